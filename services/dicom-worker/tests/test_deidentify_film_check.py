"""A film as ultrasound makes it: a name that stands, one that moves, one that appears late.

`make deidentify-check` runs it with 100 frames and prints time and memory.
"""

import os
import random
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from dicom_worker.deidentify.burned_in import Search, plan
from dicom_worker.deidentify.films import Film
from dicom_worker.deidentify.instance import deidentify
from dicom_worker.deidentify.painting import background, stamp
from dicom_worker.deidentify.profile import Options
from dicom_worker.deidentify.pseudonyms import Key
from dicom_worker.deidentify.report import pixels
from dicom_worker.reading import open_dicom
from dicom_worker.testing import saved, wheel_file
from numpy.typing import NDArray

FRAMES = int(os.environ.get("FLUORO_CHECK_FILM", "4"))
ROWS, COLUMNS = 160, 224
WHOLE = 0.95
"""Share of the strokes that has to be masked for a text to be gone."""
GROWTH_MIB = 96
"""Memory that a film may take beyond what one frame takes. Each frame has some 100 KiB."""


def film(count: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Frames and their strokes, (frames, rows, columns) each. The last half has a third text."""
    generator, noise = random.Random(5), np.random.default_rng(5)
    scene = background(generator, ROWS, COLUMNS).astype(np.float32)
    strokes = np.zeros((count, ROWS, COLUMNS), bool)
    for number, one in enumerate(strokes):
        write(one, "QUACKENBUSH^O", 6, 6)
        write(one, "MRN 99812345", 60 + number * 40 // count, 20 + number * 40 // count)
        if number >= count // 2:
            write(one, "12.03.1957", 130, 120)
    frames = np.clip(scene + noise.normal(0, 6, strokes.shape), 0, 220).astype(np.uint8)
    frames[strokes] = 255
    return frames, strokes


def write(strokes: NDArray[np.bool_], word: str, top: int, left: int) -> None:
    """Adds a word."""
    ink = stamp(word, 14, 0) > 0.5
    strokes[top : top + ink.shape[0], left : left + ink.shape[1]] |= ink


def instance(frames: NDArray[np.uint8], path: Path) -> Path:
    """A multi-frame file of them."""
    dataset = pydicom.dcmread(wheel_file("CT_small"))
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = frames.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelRepresentation = 0
    dataset.PixelData = frames.tobytes()
    dataset["PixelData"].VR = "OB"
    path.write_bytes(saved(dataset))
    return path


def test_every_frame_of_a_film_is_masked_and_told_of(tmp_path: Path) -> None:
    frames, strokes = film(FRAMES)
    options = Options(frozenset(("clean_pixel_data",)))
    source, target = instance(frames[:1], tmp_path / "film"), tmp_path / "clean"
    deidentify(source, target, Key(bytes(32)), options, lambda: None)
    first, began = memory_mib(), time.monotonic()
    source = instance(frames, source)
    cleaned = deidentify(source, target, Key(bytes(32)), options, lambda: None)
    seconds, grown = time.monotonic() - began, memory_mib() - first
    print(  # noqa: T201 - what `make deidentify-check` is for
        f"\nfilm of {FRAMES} frames: {seconds:.1f} s, {seconds / frames.size * 1e6:.1f} s per "
        f"megapixel, {grown:.0f} MiB more than a film of one"
    )
    after = pydicom.dcmread(target).pixel_array.reshape(frames.shape)
    for number in range(FRAMES):
        assert (after[number] < frames[number])[strokes[number]].mean() >= WHOLE, number
    assert grown < GROWTH_MIB
    told: list[dict[str, Any]] = pixels(cleaned.pixels)["frames"]
    assert [each["frame"] for each in told] == list(range(1, FRAMES + 1))
    assert all(each["regions"] >= 2 and each["masked_pixels"] > 0 for each in told)


def memory_mib() -> float:
    """The most that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_a_text_that_stands_still_is_known_again_in_noise_and_only_where_it_is() -> None:
    frames, _ = film(4)
    known = Film()
    late = np.array([(118, 128), (206, 128), (206, 146), (118, 146)], np.float32)
    known.add(frames[3], (late,))
    assert [len(list(known.again(frame))) for frame in frames] == [0, 0, 1, 1]
    assert list(known.again(frames[3], since=1)) == []


def test_what_only_a_later_frame_showed_is_masked_in_earlier_ones_too(tmp_path: Path) -> None:
    frames, _ = film(2)
    faint = frames[[0, 0]].copy()
    # In the first frame the name is too faint to be found by itself.
    ink = stamp("NGUYEN", 14, 0) > 0.5
    place = (slice(100, 100 + ink.shape[0]), slice(20, 20 + ink.shape[1]))
    faint[:, 60:90] = 100
    for frame, step in zip(faint, (FAINT, 120), strict=True):
        frame[90:130] = 100
        frame[place][ink] += step
    alone = plan(open_dicom(instance(faint[:1], tmp_path / "a"), tmp_path), Search(lambda: None))
    both = plan(open_dicom(instance(faint, tmp_path / "b"), tmp_path), Search(lambda: None))
    assert not alone.mask(0, (ROWS, COLUMNS))[place].any()
    assert both.mask(0, (ROWS, COLUMNS))[place][ink].all()


FAINT = 3
"""Grey levels that nobody sees."""
