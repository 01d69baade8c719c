"""Reads the pyramid of a TIFF slide; runs in the codecs' child, which sees hostile bytes.

What the directories claim is compared with the limits before a pixel is decoded, and what a tile's
own code stream claims before that tile is.
"""

import math
import os
import re
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.uid import JPEGBaseline8Bit
from tifffile import TiffFile, TiffPage

from dicom_worker import limits
from dicom_worker.photographs.refusals import Refusal, RefusedError
from dicom_worker.pixels.certificate import ends_grey, has_hole
from dicom_worker.pixels.codecs import FrameSpec, gdcm
from dicom_worker.pixels.codestream import CodeStream, parse_j2k, parse_jpeg

PAGES: Final = 64
"""Most directories that are looked at: a pyramid has some ten, and a few more pictures beside."""
NONE, LZW, JPEG, DEFLATE, OLD_DEFLATE, APERIO_J2K, J2K = 1, 5, 7, 8, 32946, 33005, 34712
RGB, YCBCR = 2, 6
SAMPLES: Final = 3
REDUCED: Final = 1
"""Bit of NewSubfileType: the picture is a coarser one of another."""
PREDICTOR: Final = 317
DIFFERENCES: Final = 2
"""Predictor that stores how each pixel differs from the one before it."""
SHAPE_TOLERANCE: Final = 0.02
"""How far width over height of a level may be from that of the finest one: levels are rounded."""
MPP: Final = re.compile(r"\bMPP ?= ?([0-9]{1,4}(?:\.[0-9]{1,12})?)\b")
"""Micrometres per pixel in Aperio's description. Nothing else is read of it: it may hold names."""
MICROMETRES: Final = {2: 25_400.0, 3: 10_000.0}
"""ResolutionUnit → micrometres: inch, centimetre."""
WHITE: Final = 255
THREADS: Final = min(8, len(os.sched_getaffinity(0)))
HEADER_BYTES: Final = 8
"""Of a TIFF, at its start, where no tile can be."""


@dataclass(frozen=True, slots=True)
class Level:
    """One picture of the pyramid. rows, columns: of pixels. micrometres: of one; 0 if unknown.

    tile_rows, tile_columns: of what is decoded as a whole: a tile, or a strip.
    """

    rows: int
    columns: int
    tile_rows: int
    tile_columns: int
    micrometres: float

    @property
    def down(self) -> int:
        """Rows of tiles."""
        return -(-self.rows // self.tile_rows)

    @property
    def across(self) -> int:
        """Tiles in a row."""
        return -(-self.columns // self.tile_columns)

    def check(self) -> None:
        """RefusedError if it takes more memory, tiles or time than a slide may."""
        if self.tile_rows * self.tile_columns * 3 > limits.SLIDE_TILE_LIMIT_BYTES:
            raise RefusedError(Refusal.SLIDE_TILE)
        if min(self.rows, self.columns) < 1 or max(self.rows, self.columns) > limits.SLIDE_SIDE:
            raise RefusedError(Refusal.SLIDE_SIZE)
        if self.tile_rows * self.across * self.tile_columns * 3 > limits.SLIDE_BAND_LIMIT_BYTES:
            raise RefusedError(Refusal.SLIDE_SIZE)
        if self.down * self.across > limits.SLIDE_TILES:
            raise RefusedError(Refusal.SLIDE_SIZE)


class Pyramid:
    """The level of a slide that is read. Kept open from one row of tiles to the next."""

    def __init__(self, path: Path, micrometres: float) -> None:
        """micrometres: of the pixels wanted; 0 for the finest. RefusedError if it is no slide."""
        self._tiff = TiffFile(path)
        page, self.level = chosen(self._tiff, micrometres)
        self.level.check()
        self._decode = decoder_of(page)
        self._size = path.stat().st_size
        self._places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        # Otherwise the places of one row would be taken for those of the next.
        if len(self._places) != self.level.down * self.level.across:
            raise RefusedError(Refusal.BROKEN)

    def close(self) -> None:
        """Closes the file."""
        self._tiff.close()

    def tiles(self, row: int, first: int, count: int, room: memoryview) -> NDArray[np.uint8]:
        """So many tiles of a row, in the room: (count, tile_rows, tile_columns, 3).

        RefusedError if one of them is not what the directory says.
        """
        level = self.level
        shape = (count, level.tile_rows, level.tile_columns, 3)
        tiles = np.frombuffer(room, np.uint8, math.prod(shape)).reshape(shape)
        # The last strip ends where the picture does; tiles are always whole.
        rows = level.tile_rows
        if level.across == 1 and level.tile_columns == level.columns:
            rows = min(rows, level.rows - row * level.tile_rows)

        # Threads take them in turn. A future for each tile would cost a tenth of its decoding.
        rest = iter(range(count))

        def fill() -> None:
            for place in rest:
                self._fill(row * level.across + first + place, tiles[place], rows)

        filling = [threads().submit(fill) for _ in range(THREADS)]
        # All of them, or one would still write when the room belongs to somebody else.
        wait(filling)
        for each in filling:
            each.result()
        return tiles

    def _fill(self, number: int, tile: NDArray[np.uint8], rows: int) -> None:
        """One tile of the file, of which so many rows are stored."""
        offset, size = self._places[number]
        if size == 0:  # nobody scanned there
            tile[:] = WHITE
            return
        if size > limits.SLIDE_TILE_LIMIT_BYTES or offset + size > self._size:
            raise RefusedError(Refusal.TRUNCATED)
        if offset < HEADER_BYTES:
            raise RefusedError(Refusal.BROKEN)
        tile[rows:] = WHITE
        self._decode(os.pread(self._tiff.filehandle.fileno(), size, offset), tile[:rows])


@cache
def threads() -> ThreadPoolExecutor:
    """They decode: codecs let go of Python's lock."""
    return ThreadPoolExecutor(THREADS)


def chosen(tiff: TiffFile, micrometres: float) -> tuple[TiffPage, Level]:
    """The level of the pyramid that is read.

    Label and overview are never among them: they have another shape than the slide, or strips.
    """
    pages = tiff.pages
    # Each directory is parsed, and a hostile file may have millions.
    if len(pages) > PAGES:
        raise RefusedError(Refusal.SLIDE_PAGES)
    tiled = [
        page
        for page in (pages[number] for number in range(len(pages)))
        if isinstance(page, TiffPage) and (page.is_tiled or len(pages) == 1)
    ]
    if not tiled:
        raise RefusedError(Refusal.NO_SLIDE)
    # Masks lie beside the slide, with one sample.
    found = [(page, level_of(page)) for page in tiled if page.samplesperpixel == SAMPLES]
    if not found:
        raise RefusedError(Refusal.SLIDE_KIND)
    # A label may be larger than a slide; it is marked as a reduced image, as coarser levels may be.
    whole = [level for page, level in found if not page.subfiletype & REDUCED]
    # Most writers have it first. Of equal ones the first is taken.
    finest = max(
        whole or [level for _, level in found], key=lambda level: level.rows * level.columns
    )
    levels: list[tuple[TiffPage, Level]] = []
    for page, level in found:
        scale = finest.columns / level.columns
        if scale >= 1 and abs(finest.rows / level.rows / scale - 1) <= SHAPE_TOLERANCE:
            known = level.micrometres if level is finest else finest.micrometres * scale
            levels.append((page, Level(*_sizes(level), known)))
    levels.sort(key=lambda each: -each[1].columns)
    if micrometres == 0 or levels[0][1].micrometres == 0:
        return levels[0]
    # By ratio: twice as coarse is as far away as twice as fine.
    return min(levels, key=lambda each: abs(np.log(each[1].micrometres / micrometres)))


def _sizes(level: Level) -> tuple[int, int, int, int]:
    return level.rows, level.columns, level.tile_rows, level.tile_columns


def level_of(page: TiffPage) -> Level:
    """What a directory says of its picture. RefusedError if that is nothing."""
    rows, columns = page.imagelength, page.imagewidth
    tile_rows = page.tilelength if page.is_tiled else min(rows, page.rowsperstrip or rows)
    tile_columns = page.tilewidth if page.is_tiled else columns
    if min(rows, columns, tile_rows, tile_columns) < 1:
        raise RefusedError(Refusal.BROKEN)
    return Level(rows, columns, tile_rows, tile_columns, micrometres_of(page))


def micrometres_of(page: TiffPage) -> float:
    """Between the centres of two pixels; 0 if nobody says, or it is no light microscope's."""
    if found := MPP.search(page.description):
        size = float(found[1])
    else:
        unit = MICROMETRES.get(int(page.resolutionunit or 1), 0.0)
        resolution = page.resolution[0] if unit else 0
        size = unit / resolution if resolution > 0 else 0.0
    return size if 0.01 <= size <= 100 else 0.0  # noqa: PLR2004 - finer than light, coarser than eyes


Decode = Callable[[bytes, NDArray[np.uint8]], None]
"""Of a tile's bytes, into an array of its size: (rows, columns, 3)."""


def decoder_of(page: TiffPage) -> Decode:
    """What decodes the page's tiles. RefusedError if nothing does."""
    if page.samplesperpixel != SAMPLES or page.bitspersample != 8 or page.sampleformat != 1:  # noqa: PLR2004 - bytes
        raise RefusedError(Refusal.SLIDE_KIND)
    compression, photometric = int(page.compression), int(page.photometric)
    if int(page.planarconfig) != 1 or photometric not in (RGB, YCBCR):
        raise RefusedError(Refusal.SLIDE_KIND)
    if compression == JPEG:
        space = "RGB" if photometric == RGB else "YCBCR"
        return partial(jpeg, tables=page.jpegtables, space=space)
    if photometric != RGB:
        raise RefusedError(Refusal.SLIDE_KIND)
    if compression in (APERIO_J2K, J2K):
        return j2k
    inflate = BYTES.get(compression)
    if inflate is None:
        raise RefusedError(Refusal.SLIDE_KIND)
    differs = page.tags.valueof(PREDICTOR, 1) == DIFFERENCES

    def decode(data: bytes, out: NDArray[np.uint8]) -> None:
        values = np.frombuffer(inflate(data, out.size), np.uint8)
        if values.size != out.size:
            raise RefusedError(Refusal.BROKEN)
        array = values.reshape(out.shape)
        if differs:
            # Differences are modulo 256, so the sum has to overflow as well.
            np.cumsum(array, axis=1, dtype=np.uint8, out=out)
        else:
            out[:] = array

    return decode


BYTES: Final[dict[int, Callable[[bytes, int], Any]]] = {
    NONE: lambda data, _size: data,
    LZW: lambda data, size: imagecodecs.lzw_decode(data, out=size),
    DEFLATE: lambda data, size: imagecodecs.zlib_decode(data, out=size),
    OLD_DEFLATE: lambda data, size: imagecodecs.zlib_decode(data, out=size),
}
"""Compression → what gives so many bytes and no more."""


def jpeg(data: bytes, out: NDArray[np.uint8], tables: bytes | None, space: str) -> None:
    """A JPEG tile, once its frame header says that it has the size of a tile."""
    check(parse_jpeg, data, out.shape)
    imagecodecs.jpeg8_decode(data, tables=tables, colorspace=space, outcolorspace="RGB", out=out)
    if ends_grey(out, 8) or has_hole(data):
        # JPEGTables is a code stream of its own. Without its start and end, its tables fit behind
        # the start of the tile.
        confirm(data[:2] + (tables or b"")[2:-2] + data[2:], out.shape, space)


_turn: Final = Lock()


def confirm(data: bytes, shape: tuple[int, ...], space: str) -> None:
    """RefusedError if GDCM warns of a JPEG, or refuses it."""
    colour = "RGB" if space == "RGB" else "YBR_FULL"
    rows, columns, samples = shape
    frame = FrameSpec(JPEGBaseline8Bit, rows, columns, samples, 8, 8, False, True, colour)
    try:
        with _turn:  # what it prints is read from standard error, which all threads share
            gdcm(data, frame, memoryview(b""))
    except Exception:  # noqa: BLE001 - codecs raise anything
        raise RefusedError(Refusal.DECODER) from None


def j2k(data: bytes, out: NDArray[np.uint8]) -> None:
    """The same of JPEG 2000."""
    check(parse_j2k, data, out.shape)
    imagecodecs.jpeg2k_decode(data, out=out)


def check(parse: Callable[[bytes], CodeStream], data: bytes, shape: tuple[int, ...]) -> None:
    """RefusedError unless the code stream claims that shape: decoders allocate what it claims."""
    try:
        found = parse(data)
    except (ValueError, IndexError, struct.error):
        raise RefusedError(Refusal.BROKEN) from None
    if (found.rows, found.columns, found.samples, found.precision) != (*shape, 8):
        raise RefusedError(Refusal.SLIDE_TILE_LIES)
