"""A painted head in MR, to try Fluoro out: no real one can be shipped.

`python -m dicom_worker.studies.painting head FOLDER` writes a series of DICOM files into FOLDER.
"""

import sys
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import MRImageStorage

from dicom_worker.studies.testing import ct_slice
from dicom_worker.testing import saved

SIDE: Final = 160
"""Rows and columns."""
PLANES: Final = 80
SPACING_MM: Final = 1.5
PITCH_MM: Final = 2.5
SEED: Final = 7
WHITE: Final = 900.0
"""The value of the brightest tissue."""

Volume = NDArray[np.float64]
Center = tuple[float, float, float]


def head(
    planes: int = PLANES, side: int = SIDE, seed: int = SEED
) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """A head as T1-weighted MR shows one, and its brain: (planes, rows, columns), from the feet up.

    Scalp bright, skull and liquor dark, grey matter darker than white matter. Rows run to the back.
    """
    random = np.random.default_rng(seed)
    z, y, x = ((np.arange(size) + 0.5) / size * 2 - 1 for size in (planes, side, side))
    z, y, x = z[:, None, None], y[:, None], x[:]

    def ellipsoid(center: Center, radii: Center) -> Volume:
        parts = zip((x, y, z), center, radii, strict=True)
        squares = [((axis - middle) / radius) ** 2 for axis, middle, radius in parts]
        return np.asarray(np.sqrt(sum(squares)), np.float64)

    skull, brain = (
        ellipsoid((0, 0, 0.1), (0.82, 0.92, 0.86)),
        ellipsoid((0, 0, 0.15), (0.62, 0.72, 0.6)),
    )
    neck = ((x / 0.45) ** 2 + ((y - 0.1) / 0.5) ** 2 < 1) & (z < -0.3)  # noqa: PLR2004 - a share of the head
    values = np.zeros(skull.shape)
    values[neck] = 0.5
    values[skull < 1] = 0.85
    values[skull < 0.93] = 0.08  # noqa: PLR2004 - a share of the head
    values[brain < 1.05] = 0.12  # noqa: PLR2004 - a share of the head
    values[brain < 1] = 0.5
    values[brain < 0.86] = 0.75  # noqa: PLR2004 - a share of the head
    for left in (0.1, -0.1):
        values[ellipsoid((left, 0, 0.2), (0.1, 0.3, 0.12)) < 1] = 0.12
    noisy = np.abs(values + random.normal(0, 0.02, values.shape))
    return (noisy * WHITE).astype(np.uint16), brain < 1


def write_head(folder: Path) -> None:
    """An axial series, one file for each slice."""
    values, _ = head()
    for number, plane in enumerate(values):
        dataset = ct_slice(
            number,
            spacing=(SPACING_MM, SPACING_MM),
            pitch=PITCH_MM,
            pixels=plane,
            Modality="MR",
            SOPClassUID=MRImageStorage,
            RescaleSlope=None,
            RescaleIntercept=None,
            RescaleType=None,
            WindowCenter=WHITE / 2,
            WindowWidth=WHITE,
            PatientName="Painted^Head",
        )
        dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
        (folder / f"painted-{number:03}.dcm").write_bytes(saved(dataset))


PAINTERS: Final = {"head": write_head}

if __name__ == "__main__":
    PAINTERS[sys.argv[1]](Path(sys.argv[2]))
