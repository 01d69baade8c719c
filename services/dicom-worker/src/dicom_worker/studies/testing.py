"""For tests and benchmarks: a synthetic series, whose every voxel tells where it lies."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_worker.testing import saved, wheel_file

AXIAL: Final = (1, 0, 0, 0, 1, 0)
SAGITTAL: Final = (0, 1, 0, 0, 0, -1)
CORONAL: Final = (1, 0, 0, 0, 0, -1)
OBLIQUE: Final = (0.8, 0.6, 0, -0.36, 0.48, 0.8)
STUDY: Final = "1.2.826.0.1.3680043.8.498.1"
"""Root of all UIDs here."""
ORIGIN: Final = (-20.0, 10.0, -100.0)


def values(number: int, rows: int = 12, columns: int = 10) -> NDArray[np.int16]:
    """The stored values of a slice, all different from those of another."""
    row, column = np.mgrid[:rows, :columns]
    cells: NDArray[np.int16] = (number * 100 + row * 7 + column).astype(np.int16)
    return cells


def ct_slice(
    number: int,
    *,
    orientation: Sequence[float] = AXIAL,
    step: Sequence[float] | None = None,
    spacing: Sequence[float] = (0.5, 0.75),
    pitch: float = 2.5,
    series: str = "1",
    pixels: NDArray[Any] | None = None,
    **changes: Any,
) -> Dataset:
    """The slice of that number, from 0, of a series of CT.

    step: from slice to slice in millimetres; None for `pitch` along the normal. changes: attributes
    with other values; None removes one.
    """
    cells = values(number) if pixels is None else pixels
    normal = np.cross(orientation[:3], orientation[3:])
    position = np.array(ORIGIN) + number * (normal * pitch if step is None else np.array(step))
    dataset = dcmread(wheel_file("CT_small"))
    for keyword in ("DataSetTrailingPadding", "PixelPaddingValue"):
        dataset.pop(keyword, None)
    known: dict[str, Any] = {
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": f"{STUDY}.{series}",
        "SOPInstanceUID": f"{STUDY}.{series}.{number + 1}",
        "FrameOfReferenceUID": f"{STUDY}.0",
        "InstanceNumber": number + 1,
        "ImageOrientationPatient": list(map(float, orientation)),
        "ImagePositionPatient": [round(float(each), 6) for each in position],
        "PixelSpacing": list(spacing),
        "SliceThickness": pitch,
        "Rows": cells.shape[0],
        "Columns": cells.shape[1],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(cells.dtype.kind == "i"),
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelData": cells.tobytes(),
    }
    for keyword, value in (known | changes).items():
        if value is None:
            dataset.pop(keyword, None)
        else:
            setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def ct_series(count: int, **options: Any) -> list[bytes]:
    """The files of a series; options as for `ct_slice`."""
    return [saved(ct_slice(number, **options)) for number in range(count)]
