"""Slides as rows of tiles, from top to bottom: of a TIFF, or of a DICOM instance."""

from collections import deque
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
"""Decoded tiles that the child is asked for at once: its memory for them stays.

With less, its threads wait for the next request more often: a sixth of all time with 4 MiB.
"""
TIFF_STARTS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_INT32: Final = 2**31 - 1


class NoSlideError(Exception):
    """The file shows no tissue: a label, an overview, or another kind of image. Text: which."""


@dataclass(frozen=True, slots=True)
class Run:
    """Some tiles of the file that lie side by side: (tiles, tile_rows, tile_columns, 3) RGB.

    row, first: of the first one, in tiles.
    """

    row: int
    first: int
    tiles: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Slide:
    """One level of a slide. decoder: in words. runs: of tiles, row by row, all of them."""

    level: Level
    decoder: str
    runs: Iterator[Run]


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
    return Slide(level, decoder, tiff_runs(level, asked))


def tiff_runs(level: Level, asked: dict[str, Any]) -> Iterator[Run]:
    """The child decodes the next tiles while the caller looks at those before."""
    # A generator: each ticket is a request under way, and the child has room for one ahead.
    tickets = asked_for(level, asked)
    ahead = deque(islice(tickets, 1))
    while ahead:
        (row, first, count), ticket = ahead.popleft()
        ahead += islice(tickets, 1)
        _, tiles = answered(ticket)
        if tiles is None or tiles.shape != (count, level.tile_rows, level.tile_columns, 3):
            raise Refusal.BROKEN.error()
        yield Run(row, first, tiles)


def asked_for(level: Level, asked: dict[str, Any]) -> Iterator[tuple[tuple[int, int, int], Ticket]]:
    """Asks for the tiles of a level, so many of a row at a time: row, first, how many."""
    tile = level.tile_rows * level.tile_columns * 3
    most = max(1, RUN_BYTES // tile)
    for row in range(level.down):
        for first in range(0, level.across, most):
            count = min(most, level.across - first)
            request = asked | {"row": row, "first": first, "count": count}
            yield (row, first, count), sandbox().ask(request, b"", count * tile)


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
    # Colour thresholds of tissue and estimates of stains are those of 8-bit RGB.
    if (image.samples, image.bits_stored) != (3, 8):
        raise Refusal.SLIDE_KIND.error()
    # Several focal planes have several frames for each tile.
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
    return Slide(level, decoder_name(file.transfer_syntax), instance_runs(file, level))


def instance_runs(file: DicomFile, level: Level) -> Iterator[Run]:
    """The frames of an instance, which must lie row by row, as scanners write them."""
    assert file.image is not None
    places = places_of(file, level)
    frames = zip(places, uncertified_frames(file), strict=True)
    place, frame = next(frames, (-1, None))
    shape = (level.across, level.tile_rows, level.tile_columns, 3)
    for row in range(level.down):
        # TILED_SPARSE leaves tiles out where the scanner saw only glass.
        tiles = np.full(shape, WHITE, np.uint8)
        while frame is not None and place // level.across == row:
            tiles[place % level.across] = frame.values
            place, frame = next(frames, (-1, None))
        yield Run(row, 0, tiles)


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
        # Positions count from 1 (PS3.3 C.8.12.6.1).
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
