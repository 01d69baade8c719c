"""Looks for text in every frame and masks it; looks again at what was written."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray

from dicom_worker.deidentify.films import Film
from dicom_worker.deidentify.layouts import Box, rule
from dicom_worker.deidentify.reading_text import Picture, Region, find_text
from dicom_worker.pixels.colour import eight_bits, palette_of
from dicom_worker.pixels.decoders import uncertified_frames
from dicom_worker.pixels.modality import modality_of
from dicom_worker.pixels.presentation import by_table
from dicom_worker.pixels.voi import Choice, Window, transform_of
from dicom_worker.reading import DicomFile, open_dicom

LARGEST_REGION: Final = 0.2
"""Share of a frame that one region of text may take: a larger one is more likely anatomy."""
LARGEST_SHARE: Final = 0.5
"""Share of a frame that all its text may take: more is a page, not a picture."""
ROUNDS: Final = 5
"""Times that a frame is searched: masks can make the detector see what it did not see before."""
MARGIN: Final = 0.15
"""Of a region's height, masked above and below it: ascenders, descenders and soft edges."""
ENDS: Final = 2.0
"""Of a region's height, masked before and after it: the detector loses the letters that are hardly
brighter than what is behind them, which are those at the ends."""
LINE: Final = 1.5
"""Length of a line of text as a multiple of its height. A shorter region has no ends."""
TAILS: Final = (1.0, 99.0)
"""Percentiles that a picture without a window is stretched between."""
SHOWN: Final = 0.25
"""Share of the pixels that a window of the file has to show as grey, to be taken for one of it."""
WHITE: Final = 255

MAX_REGIONS: Final = 1000
"""Regions in all pictures of a frame. Reading them takes a minute or two; a page of small print, or
somebody who wants to keep a worker busy, has more."""

Check = Callable[[], None]
Mask = NDArray[np.bool_]
"""(rows, columns)."""


def nobody(_text: str) -> bool:
    """For whom no identifiers are known."""
    return False


@dataclass(frozen=True, slots=True)
class Search:
    """How frames are searched.

    check: called between parts of a frame; stops by raising. resembles: whether a text that the
    recogniser is not sure of may be an identifier of the patient.
    """

    check: Check
    resembles: Callable[[str], bool] = nobody

    def frame(self, file: DicomFile, index: int, values: NDArray[Any]) -> list[Region]:
        """The regions of all the ways in which a frame is looked at.

        DEIDENTIFICATION_REFUSED if there are more than can be read.
        """
        found: list[Region] = []
        for picture in pictures(file, index, values):
            for region in find_text(picture, self.resembles, self.check):
                found.append(region)
                if len(found) > MAX_REGIONS:
                    raise page()
        return found


@dataclass(frozen=True, slots=True)
class FramePlan:
    """What is masked in one frame.

    outlines: of the texts, (4, 2) of x and y. by_rule: whether the device's rule changes the frame.
    unconfirmed: regions that the detector proposed and the recogniser cannot read; they stay.
    digest: SHA-256 of the stored values once masked, in which no text was found. pixels: masked.
    """

    digest: bytes
    outlines: tuple[NDArray[np.float32], ...] = ()
    by_rule: bool = False
    unconfirmed: int = 0
    pixels: int = 0

    @property
    def touched(self) -> bool:
        """Whether the frame changes."""
        return self.by_rule or bool(self.outlines)

    @property
    def boxes(self) -> list[Box]:
        """Around each text, in pixels."""
        return [box_of(outline) for outline in self.outlines]


def box_of(outline: NDArray[np.float32]) -> Box:
    """The upright rectangle around an outline."""
    left, top = (max(0, int(edge)) for edge in np.floor(outline.min(axis=0)))
    right, bottom = (int(edge) for edge in np.ceil(outline.max(axis=0)))
    return left, top, right, bottom


@dataclass(frozen=True, slots=True)
class Plan:
    """What is masked in an instance. rule: name of the device's, "" if none; it masks `fixed`."""

    rule: str
    fixed: Mask | None
    frames: list[FramePlan] = field(default_factory=list)

    @property
    def touched(self) -> bool:
        """Whether any frame changes."""
        return any(frame.touched for frame in self.frames)

    @property
    def regions(self) -> int:
        """Texts found, in all frames."""
        return sum(len(frame.outlines) for frame in self.frames)

    @property
    def pixels(self) -> int:
        """Masked ones, in all frames."""
        return sum(frame.pixels for frame in self.frames)

    def mask(self, index: int, shape: tuple[int, ...]) -> Mask:
        """What is masked in a frame."""
        return mask_of(self.frames[index].outlines, self.fixed, shape)


def plan(file: DicomFile, search: Search) -> Plan:
    """What has to be masked.

    FluoroError as `uncertified_frames`, and DEIDENTIFICATION_REFUSED.
    """
    assert file.image is not None
    name, fixed = rule(file.header, file.image)
    whole = Plan(name, fixed)
    film = Film()
    # A still picture in a film, and the many black frames before and after.
    seen: dict[bytes, FramePlan] = {}
    known: dict[bytes, int] = {}
    for index, frame in enumerate(uncertified_frames(file)):
        original = digest(frame.values)
        if original not in seen:
            before = tuple(film.again(frame.values))
            seen[original] = plan_frame(file, index, frame.values, fixed, search, before)
            film.add(frame.values, seen[original].outlines[len(before) :])
            known[original] = len(film.known)
        whole.frames.append(seen[original])
    # Some frame was searched before all texts of the film were known.
    if len(film.known) > min(known.values()):
        look_back(file, whole, film, known, search)
    return whole


def look_back(
    file: DicomFile, whole: Plan, film: Film, known: dict[bytes, int], search: Search
) -> None:
    """Masks in earlier frames what was found in later ones only.

    known: SHA-256 of a frame → how much of the film was known when it was searched.
    """
    again: dict[bytes, FramePlan] = {}
    for index, frame in enumerate(uncertified_frames(file)):
        search.check()
        original = digest(frame.values)
        if original not in again:
            planned = whole.frames[index]
            missed = tuple(film.again(frame.values, since=known[original]))
            if missed:
                before = planned.outlines + missed
                planned = plan_frame(file, index, frame.values, whole.fixed, search, before)
            again[original] = planned
        whole.frames[index] = again[original]


def plan_frame(
    file: DicomFile,
    index: int,
    values: NDArray[Any],
    fixed: Mask | None,
    search: Search,
    known: tuple[NDArray[np.float32], ...],
) -> FramePlan:
    """Searches one frame until no text is found any more. known: outlines of texts that it has."""
    outlines = list(known)
    masked, hidden = values, None
    by_rule = False
    if fixed is not None:
        masked = cover(file, values, fixed)
        # Where the strip was black already, nothing was masked, and the report says so.
        by_rule = not np.array_equal(masked, values)
        hidden = fixed if by_rule else None
    if outlines:
        hidden = mask_of(outlines, fixed, values.shape)
        masked = cover(file, values, hidden)
    for _ in range(ROUNDS):
        found = search.frame(file, index, masked)
        confirmed = [region.corners for region in found if region.confirmed]
        if not confirmed:
            pixels = 0 if hidden is None else int(hidden.sum())
            return FramePlan(digest(masked), tuple(outlines), by_rule, len(found), pixels)
        outlines += confirmed
        # Each round adds to the mask, so its share of the frame is judged in each.
        refuse_large(confirmed, outlines, values.shape)
        hidden = mask_of(outlines, fixed, values.shape)
        masked = cover(file, values, hidden)
    raise FluoroError(
        Reason.DEIDENTIFICATION_REFUSED,
        "Text is still found in the pixels after all that was found has been masked. "
        "Leave the instance out, or mask it by hand.",
    )


def refuse_large(
    new: list[NDArray[np.float32]],
    outlines: list[NDArray[np.float32]],
    shape: tuple[int, ...],
) -> None:
    """DEIDENTIFICATION_REFUSED if masking would take the picture away."""
    size = shape[0] * shape[1]
    share = mask_of(outlines, None, shape).sum() / size
    if share > LARGEST_SHARE or max(map(cv2.contourArea, new)) > LARGEST_REGION * size:
        raise page()


def page() -> FluoroError:
    """There is more text than picture."""
    return FluoroError(
        Reason.DEIDENTIFICATION_REFUSED,
        "What reads as text covers too much of a frame to be masked unseen. Look at it, and "
        "leave the instance out if it is a page of text.",
    )


def mask_of(
    outlines: tuple[NDArray[np.float32], ...] | list[NDArray[np.float32]],
    fixed: Mask | None,
    shape: tuple[int, ...],
) -> Mask:
    """The texts with a margin, and what the device's rule masks."""
    drawn = np.zeros(shape[:2], np.uint8)
    for outline in outlines:
        cv2.fillPoly(drawn, [np.rint(grown(outline)).astype(np.int32)], 1)
    mask = drawn.astype(bool)
    return mask if fixed is None else mask | fixed


def grown(outline: NDArray[np.float32]) -> NDArray[np.float32]:
    """The outline of a text with a margin, and more at the ends of its line."""
    centre, (width, height), angle = cv2.minAreaRect(outline)
    short = min(width, height)
    # Both sides, and two pixels at least: a share of small letters would not cover their soft
    # edges.
    margin = ends = 2 * max(2.0, MARGIN * short)
    if max(width, height) > LINE * short:
        ends = 2 * ENDS * short
    sides = (width + ends, height + margin) if width > height else (width + margin, height + ends)
    return np.asarray(cv2.boxPoints((centre, sides, angle)), np.float32)


def cover(file: DicomFile, values: NDArray[Any], mask: Mask) -> NDArray[Any]:
    """A copy of stored values with the darkest one of the frame under the mask; black in colour."""
    covered = values.copy()
    # 0 is a grey in the middle of signed values, and white in MONOCHROME1.
    covered[mask] = 0 if values.ndim > 2 else values.flat[darkest(file, values)]  # noqa: PLR2004 - rows, columns
    return covered


def darkest(file: DicomFile, values: NDArray[Any]) -> int:
    """Where a frame of one sample is darkest, as an index into its flat values."""
    assert file.image is not None
    if file.image.photometric == "PALETTE COLOR":
        palette = palette_of(file.header, little_endian=file.little_endian)
        return int(palette.apply(values).sum(axis=-1, dtype=np.int64).argmin())
    if file.image.photometric == "MONOCHROME1":
        # In MONOCHROME1 the largest value is black (PS3.3 C.7.6.3.1.2).
        return int(np.nanargmax(values))
    return int(np.nanargmin(values))


def pictures(file: DicomFile, index: int, values: NDArray[Any]) -> Iterator[Picture]:
    """A frame as pictures: colours as they are; grey in its full range, and as a screen shows it.

    Letters are usually the brightest there is, which only the full range shows; faint ones in a
    wide range are only to be seen in the window. Without a window that shows the image, the
    extremes are cut off.
    """
    image = file.image
    assert image is not None
    if image.samples > 1:
        plain = np.ascontiguousarray(eight_bits(values, image.bits_stored))
        yield plain
        low, high = (float(each) for each in np.percentile(plain, TAILS))
        # Dark letters on black, and 12 bits where the file says 16.
        if high - low < WHITE / 2:
            low, high = float(values.min()), float(values.max())
            yield np.ascontiguousarray(stretched(values.astype(np.float32), low, high))
        return
    if image.photometric == "PALETTE COLOR":
        palette = palette_of(file.header, little_endian=file.little_endian)
        yield np.ascontiguousarray(eight_bits(palette.apply(values), palette.bits))
        return
    grey = np.nan_to_num(values.astype(np.float32))
    full = stretched(grey, float(grey.min()), float(grey.max()))
    yield triple(full)
    modality = modality_of(file.header, index, little_endian=file.little_endian)
    window = transform_of(
        file.header, index, Choice(), modality.unit, little_endian=file.little_endian
    )
    if window is None and image.bits_stored <= 8:  # noqa: PLR2004 - all of them can be seen
        return
    other = None
    if isinstance(window, Window):
        other = window.apply(modality.apply(values))
    elif window is not None:
        other = by_table(window, modality.apply(values))
    if other is not None and not np.array_equal(other, full):
        yield triple(other)
    if other is None or shown(other) < SHOWN:
        other = stretched(grey, *tails(grey))
        if not np.array_equal(other, full):
            yield triple(other)


def shown(grey: NDArray[np.uint8]) -> float:
    """The share of pixels that are neither black nor white."""
    return float(((grey > 0) & (grey < WHITE)).mean())


def tails(grey: NDArray[np.float32]) -> tuple[float, float]:
    """Percentiles of the values but the lowest and highest, with which images are padded."""
    inner = grey[(grey > grey.min()) & (grey < grey.max())]
    low, high = np.percentile(inner if inner.size else grey, TAILS)
    return float(low), float(high)


def stretched(grey: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    """Values from low to high on the scale 0 to 255."""
    scale = WHITE / max(high - low, 1e-9)
    return np.asarray(np.clip((grey - low) * scale, 0, WHITE).astype(np.uint8))


def triple(grey: NDArray[np.uint8]) -> Picture:
    """Grey as (rows, columns, 3)."""
    return np.repeat(grey[..., None], 3, axis=-1)


def digest(values: NDArray[Any]) -> bytes:
    """SHA-256 of stored values, in C order and little endian."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return hashlib.sha256(little.data).digest()


def prove_pixels(target: Path, planned: Plan | None, search: Search) -> None:
    """IDENTIFIERS_LEFT if there is text in the pixels of the written file.

    A frame with the very values in which none was found is not searched again. planned: None if
    nobody looked.
    """
    if planned is None:
        return
    file = open_dicom(target, target.parent)
    for index, frame in enumerate(uncertified_frames(file)):
        search.check()
        if digest(frame.values) == planned.frames[index].digest:
            continue
        # Lossy frames come back with other values, and masks may have edges that read as letters.
        if any(region.confirmed for region in search.frame(file, index, frame.values)):
            raise FluoroError(
                Reason.IDENTIFIERS_LEFT, "Text is still to be read in the pixels that were written."
            )
