"""How much painted text is masked, and what is taken for text where there is none.

`make deidentify-check` runs it on many frames and prints both.
"""

import os
import random
import time
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
from dicom_worker.deidentify.burned_in import Search, plan
from dicom_worker.deidentify.painting import Painted, background, paint
from dicom_worker.reading import open_dicom
from dicom_worker.testing import saved, wheel_file
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray
from pydicom.data import get_testdata_file

FRAMES = int(os.environ.get("FLUORO_CHECK_FRAMES", "6"))
SEED = int(os.environ.get("FLUORO_CHECK_SEED", "7"))
WHEEL = (
    *("CT_small", "693_J2KI", "JPEG2000", "MR_small", "examples_overlay"),
    "J2K_pixelrep_mismatch",
)
DATA = ("MR2_UNCR", "RG1_UNCR", "explicit_VR-UN", "eCT_Supplemental", "emri_small")
"""Real images without text, of CT, MR, a scintigram and radiographs; the latter in pydicom-data."""
LONGEST = 600
"""Rows and columns that are painted on, so that the check takes minutes."""
WHOLE = 0.95
"""Share of the strokes that has to be masked for a text to be gone."""


def test_painted_text_is_masked_and_images_without_text_are_not(tmp_path: Path) -> None:
    generator = random.Random(SEED)
    real = WHEEL + DATA if len(WHEEL + DATA) <= FRAMES else WHEEL[:3]
    alarms, without, lost = 0, 0, 0.0
    gone: dict[str, list[bool]] = defaultdict(list)
    refused, began, pixels = 0, time.monotonic(), 0
    for number in range(FRAMES):
        plain = frame(generator, number, real)
        # A real image is looked at once as it is.
        if number % 2 == 0 or number < 2 * len(real):
            covered = masked(plain, tmp_path)
            # A picture without text that is refused is a false alarm, and lost as a whole.
            alarms += covered is None or bool(covered.any())
            lost += 1.0 if covered is None else float(covered.mean())
            without += 1
            pixels += plain.size
        painted = paint(plain, generator)
        if not painted.inked.any():
            continue
        covered = masked(painted.values, tmp_path)
        pixels += plain.size
        refused += covered is None
        if covered is not None:
            for name in names_of(painted):
                gone[name].append(bool(covered[painted.inked].mean() >= WHOLE))
    seconds = (time.monotonic() - began) / pixels * 1e6
    print(f"\nimages without text: {without}, masked in {alarms}, {lost / without:.2%} of pixels")  # noqa: T201 - what `make deidentify-check` is for
    print(f"texts: {len(gone['all']) + refused}, refused {refused}; {seconds:.1f} s per megapixel")  # noqa: T201 - see above
    for name, found in sorted(gone.items()):
        print(f"recall, {name}: {sum(found)} of {len(found)}, {np.mean(found):.0%}")  # noqa: T201 - see above
    assert sum(gone["all"]) >= int(0.85 * len(gone["all"]))
    assert refused <= 0.05 * FRAMES
    assert alarms <= 0.05 * without


def names_of(painted: Painted) -> tuple[str, ...]:
    """The rows of the table that a text counts for."""
    return (
        "all",
        f"font of {painted.size:2}" if painted.size > 9 else "font under 10",
        f"contrast {painted.contrast}",
        f"turned {painted.angle}",
        painted.face,
    )


def frame(generator: random.Random, number: int, real: tuple[str, ...]) -> NDArray[np.integer]:
    """Every other frame is real, the others are phantoms."""
    if number % 2:
        return image(real[number // 2 % len(real)])
    return background(generator, generator.choice((256, 384, 512)), generator.choice((256, 512)))


@cache
def image(name: str) -> NDArray[np.integer]:
    """The first frame of a file, halved until it is small enough."""
    path = wheel_file(name) if name in WHEEL else get_testdata_file(f"{name}.dcm")
    values = pydicom.dcmread(str(path)).pixel_array
    values = values[0] if values.ndim > 2 else values
    step = -(-max(values.shape) // LONGEST)
    return np.ascontiguousarray(values[::step, ::step])


def masked(values: NDArray[np.integer], folder: Path) -> NDArray[np.bool_] | None:
    """What would be masked in a file of this one frame; None if it would be refused."""
    dataset = pydicom.dcmread(wheel_file("CT_small"))
    dataset.Rows, dataset.Columns = values.shape
    bits = 8 * values.dtype.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PixelData = values.tobytes()
    path = folder / "frame.dcm"
    path.write_bytes(saved(dataset))
    try:
        planned = plan(open_dicom(path, folder), Search(lambda: None))
    except FluoroError as error:
        if error.reason is not Reason.DEIDENTIFICATION_REFUSED:
            raise
        return None
    return planned.mask(0, values.shape)
