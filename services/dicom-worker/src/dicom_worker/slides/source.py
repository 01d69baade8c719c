"""Slides as rows of tiles, from top to bottom: of a TIFF, or of a DICOM instance."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray

from dicom_worker import limits
from dicom_worker.attributes import decimals, item, number, text, value
from dicom_worker.photographs.refusals import Refusal, RefusedError
from dicom_worker.pixels.decoders import decoder_name, uncertified_frames
from dicom_worker.pixels.sandbox import Ticket, sandbox
from dicom_worker.reading import DicomFile, open_dicom
from dicom_worker.slides.tiff import WHITE, Level

WHOLE_SLIDE: Final = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""VL Whole Slide Microscopy Image Storage."""
RUN_BYTES: Final = 16 * limits.MIB
"""Decoded tiles that the child is asked for at once: its memory for them stays."""
TIFF_STARTS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_INT32: Final = 2**31 - 1


class NoSlideError(Exception):
    """The file shows no tissue: a label, an overview, or another kind of image. Text: which."""


@dataclass(frozen=True, slots=True)
class Slide:
    """One level of a slide. decoder: in words.

    rows_of_tiles: from top to bottom, each (tile_rows, at least columns, 3) uint8 RGB.
    """

    level: Level
    decoder: str
    rows_of_tiles: Iterator[NDArray[np.uint8]]


def open_slide(path: Path, scratch: Path, micrometres: float) -> Slide:
    """The slide at `path`. micrometres: of the pixels wanted, 0 for the finest.

    FluoroError as of TileSlide; NoSlideError if there is none in it.
    """
    with path.open("rb") as file:
        head = file.read(132)
    # The preamble of a DICOM file may be a TIFF's header (PS3.10 7.1).
    if head[:4] in TIFF_STARTS and head[128:] != b"DICM":
        return open_tiff(path, micrometres)
    return open_instance(open_dicom(path, scratch))


def open_tiff(path: Path, micrometres: float) -> Slide:
    """A TIFF's level; the child reads all of it."""
    asked = {"slide": str(path), "micrometres": micrometres}
    reply, _ = answered(sandbox().ask(asked | {"row": None}, b"", 0))
    level = Level(**reply["level"])
    try:
        # Once more: the child has seen hostile bytes, and room is made by what it says.
        level.check()
    except RefusedError as error:
        raise error.refusal.error() from None
    decoder = f"imagecodecs {version('imagecodecs')}"
    return Slide(level, decoder, tiff_rows(level, asked))


def tiff_rows(level: Level, asked: dict[str, Any]) -> Iterator[NDArray[np.uint8]]:
    """The child decodes the next tiles while the caller looks at those before."""
    run = max(1, RUN_BYTES // (level.tile_rows * level.tile_columns * 3))
    ahead = runs(level, asked, run)
    tickets = list(islice(ahead, 1))
    for _ in range(level.down):
        row = np.empty((level.tile_rows, level.across * level.tile_columns, 3), np.uint8)
        for first in range(0, level.across, run):
            ticket = tickets.pop()
            tickets += islice(ahead, 1)
            _, tiles = answered(ticket)
            columns = min(run, level.across - first) * level.tile_columns
            if tiles is None or tiles.shape != (level.tile_rows, columns, 3):
                raise Refusal.BROKEN.error()
            row[:, first * level.tile_columns :][:, :columns] = tiles
        yield row


def runs(level: Level, asked: dict[str, Any], run: int) -> Iterator[Ticket]:
    """Asks for the tiles of a level, so many at a time."""
    tile = level.tile_rows * level.tile_columns * 3
    for row in range(level.down):
        for first in range(0, level.across, run):
            count = min(run, level.across - first)
            request = asked | {"row": row, "first": first, "count": count}
            yield sandbox().ask(request, b"", count * tile)


def answered(ticket: Ticket) -> tuple[dict[str, Any], NDArray[Any] | None]:
    """What the child answers. FluoroError if it refuses."""
    reply, array = sandbox().reply(ticket)
    if reply["decoded"]:
        return reply, array
    if "refusal" in reply:
        raise Refusal[reply["refusal"]].error()
    raise FluoroError(Reason.IMAGE_TOO_LARGE, "The slide takes more memory than a decoder may.")


def open_instance(file: DicomFile) -> Slide:
    """A DICOM instance: one level, a frame for each tile (PS3.3 C.8.12.4)."""
    header, image = file.header, file.image
    if text(header, "SOPClassUID") != WHOLE_SLIDE:
        raise NoSlideError("It is no VL Whole Slide Microscopy image")
    kinds = [str(each) for each in value(header, "ImageType") or ()]
    if "VOLUME" not in kinds:
        raise NoSlideError("It shows a label, an overview or a thumbnail, and no level of a slide")
    if image is None:
        raise FluoroError(Reason.NO_PIXEL_DATA, "The instance has no image.")
    if (image.samples, image.bits_stored) != (3, 8):
        raise Refusal.SLIDE_KIND.error()
    if number(header, "TotalPixelMatrixFocalPlanes", 1, MAX_INT32, default=1) > 1:
        raise Refusal.SLIDE_KIND.error()
    measures = item(header, "SharedFunctionalGroupsSequence")
    measures = item(measures, "PixelMeasuresSequence") if measures is not None else None
    spacing = decimals(measures, "PixelSpacing") if measures is not None else []
    level = Level(
        rows=number(header, "TotalPixelMatrixRows", 1, MAX_INT32),
        columns=number(header, "TotalPixelMatrixColumns", 1, MAX_INT32),
        tile_rows=image.rows,
        tile_columns=image.columns,
        micrometres=1000 * spacing[0] if spacing and 0 < spacing[0] < 1 else 0.0,
    )
    try:
        level.check()
    except RefusedError as error:
        raise error.refusal.error() from None
    return Slide(level, decoder_name(file.transfer_syntax), instance_rows(file, level))


def instance_rows(file: DicomFile, level: Level) -> Iterator[NDArray[np.uint8]]:
    """The frames of an instance, put together. They must lie row by row, as scanners write them."""
    assert file.image is not None
    places = places_of(file, level)
    shape = (level.tile_rows, level.across * level.tile_columns, 3)
    row, at = np.full(shape, WHITE, np.uint8), 0
    for place, frame in zip(places, uncertified_frames(file), strict=True):
        while at < place // level.across:
            yield row
            row, at = np.full(shape, WHITE, np.uint8), at + 1
        left = place % level.across * level.tile_columns
        row[:, left : left + level.tile_columns] = frame.values
    while at < level.down:
        yield row
        row, at = np.full(shape, WHITE, np.uint8), at + 1


def places_of(file: DicomFile, level: Level) -> list[int]:
    """The number of each frame's tile, row by row. FluoroError IMAGE_UNSUPPORTED if out of order.

    TILED_FULL has them all in order (PS3.3 C.7.6.17.3); otherwise each frame says where it lies.
    """
    header, image = file.header, file.image
    assert image is not None
    every = level.down * level.across
    if text(header, "DimensionOrganizationType") == "TILED_FULL":
        places = list(range(image.frames))
        if image.frames != every:
            raise Refusal.SLIDE_ORDER.error()
        return places
    places = []
    for group in value(header, "PerFrameFunctionalGroupsSequence") or ():
        position = item(group, "PlanePositionSlideSequence")
        if position is None:
            raise Refusal.SLIDE_ORDER.error()
        down = number(position, "RowPositionInTotalImagePixelMatrix", 1, MAX_INT32) - 1
        right = number(position, "ColumnPositionInTotalImagePixelMatrix", 1, MAX_INT32) - 1
        if down % level.tile_rows or right % level.tile_columns or right >= level.columns:
            raise Refusal.SLIDE_ORDER.error()
        places.append(down // level.tile_rows * level.across + right // level.tile_columns)
    inside = all(place < every for place in places)
    ordered = all(one < other for one, other in pairwise(places))
    if len(places) != image.frames or not inside or not ordered:
        raise Refusal.SLIDE_ORDER.error()
    return places
