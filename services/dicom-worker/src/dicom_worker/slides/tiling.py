"""Cuts a slide into tiles and keeps those with tissue, a row of tiles in memory at a time."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
from fluoro_jobs.worker.ahead import made_ahead
from numpy.typing import NDArray

from dicom_worker import limits
from dicom_worker.photographs.refusals import Refusal
from dicom_worker.slides.source import Run, Slide
from dicom_worker.slides.tiff import WHITE
from dicom_worker.slides.tissue import Stain, densities_of, sample, stain_of, tissue_of

THREADS: Final = min(4, len(os.sched_getaffinity(0)))
"""That look at tiles: hashes and look-ups let go of Python's lock."""
PIECE_TILES: Final = 20
"""That a thread looks at in one go."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of tissue. row, column: of the grid. tissue: share of it, 0 to 1."""

    row: int
    column: int
    tissue: float
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """Some tiles of a row of the grid: (tiles, size, size, 3). first: column of the first one."""

    row: int
    first: int
    tiles: NDArray[np.uint8]


@dataclass(slots=True)
class Tiling:
    """Cuts a slide. size: rows and columns of a tile. least: share of it that must be tissue.

    pool: its threads look at tiles. tick: called per piece. What is found is there once `kept` has
    ended.
    """

    slide: Slide
    size: int
    least: float
    pool: ThreadPoolExecutor
    tick: Callable[[], None]
    tiles: list[Tile] = field(default_factory=list, init=False)
    tissue_share: float = field(default=0.0, init=False)
    _stain: Future[Stain | None] | None = field(default=None, init=False)

    def kept(self) -> Iterator[memoryview]:
        """The bytes of each tile of tissue, row by row.

        FluoroError as of `open_slide`; IMAGE_TOO_LARGE if the tiles are more than may be left.
        """
        seen, found, samples = 0, 0, []
        look = partial(look_at, least=self.least)
        for looked in made_ahead(self.pool, look, self._pieces(), THREADS):
            self.tick()
            seen, found = seen + looked.seen, found + looked.found
            bytes_left = (len(self.tiles) + len(looked.kept)) * self.size**2 * 3
            # Before any of this piece is given away: the store could not take it back.
            if bytes_left > limits.ARRAY_LIMIT_BYTES:
                raise Refusal.SLIDE_TISSUE.error()
            for tile, data, colours in looked.kept:
                samples.append(colours)
                self.tiles.append(tile)
                yield data
        self.tissue_share = found / seen
        if samples:
            # While the store waits for its disk.
            self._stain = self.pool.submit(stain_of, densities_of(samples))

    def stain(self) -> Stain | None:
        """How the slide is stained; None if too few pixels say."""
        return self._stain.result() if self._stain else None

    def _pieces(self) -> Iterator[Piece]:
        level = self.slide.level
        as_in_the_file = (level.tile_rows, level.tile_columns) == (self.size, self.size)
        for row in map(self._trimmed, self.slide.runs) if as_in_the_file else self._cut():
            for first in range(0, len(row.tiles), PIECE_TILES):
                tiles = row.tiles[first : first + PIECE_TILES]
                yield Piece(row.row, row.first + first, tiles)

    def _trimmed(self, run: Run) -> Piece:
        """Tiles of the file that are those of the grid, white beyond the slide."""
        level, size = self.slide.level, self.size
        run.tiles[:, level.rows - run.row * size :] = WHITE
        run.tiles[-1, :, level.columns - (run.first + len(run.tiles) - 1) * size :] = WHITE
        return Piece(run.row, run.first, run.tiles)

    def _cut(self) -> Iterator[Piece]:
        """Rows of the grid, cut of tiles of another size."""
        size, across = self.size, -(-self.slide.level.columns // self.size)
        for row, band in enumerate(self._bands(across)):
            yield Piece(row, 0, band.reshape(size, across, size, 3).swapaxes(0, 1))

    def _bands(self, across: int) -> Iterator[NDArray[np.uint8]]:
        """Bands of `size` rows, (size, across x size, 3), white beyond the slide."""
        level, size = self.slide.level, self.size
        band, filled, done = self._white(across), 0, 0
        for row in self._rows():
            use = row[: level.rows - done, : level.columns]
            done += len(use)
            while len(use):
                taken = min(size - filled, len(use))
                band[filled : filled + taken, : level.columns] = use[:taken]
                filled, use = filled + taken, use[taken:]
                if filled == size or (done >= level.rows and not len(use)):
                    yield band
                    band, filled = self._white(across), 0

    def _rows(self) -> Iterator[NDArray[np.uint8]]:
        """Rows of the file's tiles, put together: (tile_rows, at least columns, 3)."""
        level = self.slide.level
        shape = (level.tile_rows, level.across, level.tile_columns, 3)
        row = np.empty(shape, np.uint8)
        for run in self.slide.runs:
            end = run.first + len(run.tiles)
            row[:, run.first : end] = run.tiles.swapaxes(0, 1)
            if end == level.across:
                yield row.reshape(level.tile_rows, -1, 3)

    def _white(self, across: int) -> NDArray[np.uint8]:
        return np.full((self.size, across * self.size, 3), WHITE, np.uint8)


@dataclass(frozen=True, slots=True)
class Looked:
    """What was seen of a piece. seen: pixels that were looked at. found: those of tissue.

    kept: tiles of tissue, their bytes, and colours of some of their tissue.
    """

    seen: int
    found: int
    kept: list[tuple[Tile, memoryview, NDArray[np.uint8]]]


def look_at(piece: Piece, least: float) -> Looked:
    """Looks where the tissue is. least: as of Tiling."""
    tissue = tissue_of(piece.tiles)
    shares = tissue.mean(axis=(1, 2))
    kept = []
    # A least share of 0 keeps every tile with some tissue, not those of glass alone.
    for place in np.flatnonzero(shares >= max(least, np.finfo(float).tiny)):
        pixels = np.ascontiguousarray(piece.tiles[place])
        # In bytes: whoever takes chunks counts by len().
        data = pixels.reshape(-1).data
        digest = hashlib.sha256(data).digest()
        tile = Tile(piece.row, piece.first + int(place), float(shares[place]), digest)
        kept.append((tile, data, sample(pixels, tissue[place])))
    return Looked(tissue.size, int(np.count_nonzero(tissue)), kept)
