"""How much painted text is found, and what is taken for text where there is none.

`make deidentify-check` runs it on many frames and prints both.
"""

import os
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pydicom
from dicom_worker.deidentify.burned_in import plan
from dicom_worker.deidentify.painting import background, paint
from dicom_worker.reading import open_dicom
from dicom_worker.testing import saved, wheel_file
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray

FRAMES = int(os.environ.get("FLUORO_CHECK_FRAMES", "3"))
SEED = int(os.environ.get("FLUORO_CHECK_SEED", "7"))
REAL = ("CT_small", "693_J2KI", "JPEG2000")
"""Real images without text: a CT of the head, another one, a mammogram's part."""
WHOLE = 0.95
"""Share of the strokes that has to be masked for a text to be gone."""


def test_painted_text_is_masked_and_images_without_text_are_not(tmp_path: Path) -> None:
    generator = random.Random(SEED)
    gone: dict[str, list[bool]] = defaultdict(list)
    alarms, refused, lost = 0, 0, 0.0
    for number in range(FRAMES):
        plain = frame(generator, number)
        covered = masked(plain, tmp_path)
        # A picture without text that is refused is a false alarm, and lost as a whole.
        alarms += covered is None or bool(covered.any())
        lost += 1.0 if covered is None else float(covered.mean())
        painted = paint(plain, generator)
        covered = masked(painted.values, tmp_path)
        if covered is None:
            refused += 1
            continue
        is_gone = bool(covered[painted.inked].mean() >= WHOLE)
        names = (
            "all",
            f"font of {painted.size}",
            f"contrast {painted.contrast}",
            f"turned {painted.angle}",
        )
        for name in names:
            gone[name].append(is_gone)
    print(f"\nimages without text: {FRAMES}, masked in {alarms}, {lost / FRAMES:.2%} of pixels")  # noqa: T201 - what `make deidentify-check` is for
    print(f"images with text: {FRAMES}, refused {refused}")  # noqa: T201 - see above
    for name, found in sorted(gone.items()):
        print(f"recall, {name}: {sum(found)} of {len(found)}")  # noqa: T201 - see above
    assert sum(gone["all"]) >= int(0.75 * len(gone["all"]))
    assert refused <= 0.2 * FRAMES
    assert alarms <= 0.2 * FRAMES


def frame(generator: random.Random, number: int) -> NDArray[np.integer]:
    """Every other frame is real, the others are phantoms."""
    if number % 2:
        return pydicom.dcmread(wheel_file(REAL[number // 2 % len(REAL)])).pixel_array
    return background(generator, generator.choice((256, 384, 512)), generator.choice((256, 512)))


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
        planned = plan(open_dicom(path, folder), lambda: None)
    except FluoroError as error:
        if error.reason is not Reason.DEIDENTIFICATION_REFUSED:
            raise
        return None
    return planned.mask(0, values.shape)
