"""Cuts a slide into tiles and keeps those with tissue, a band of the slide in memory at a time."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dicom_worker import limits
from dicom_worker.photographs.refusals import Refusal
from dicom_worker.slides.source import Slide
from dicom_worker.slides.tiff import WHITE
from dicom_worker.slides.tissue import Stain, sample, stain_of, tissue_of

THREADS: Final = min(4, len(os.sched_getaffinity(0)))
"""That look at tiles: hashes and look-ups let go of Python's lock."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of tissue. row, column: of the grid. tissue: share of it, 0 to 1."""

    row: int
    column: int
    tissue: float
    sha256: bytes


@dataclass(slots=True)
class Tiling:
    """Cuts a slide. size: rows and columns of a tile. least: share of it that must be tissue.

    tick: called per band. What is found is there once `kept` has ended.
    """

    slide: Slide
    size: int
    least: float
    tick: Callable[[], None]
    tiles: list[Tile] = field(default_factory=list, init=False)
    tissue_share: float = field(default=0.0, init=False)
    stain: Stain | None = field(default=None, init=False)

    def kept(self) -> Iterator[memoryview]:
        """The bytes of each tile of tissue, row by row.

        FluoroError as of `open_slide`; IMAGE_TOO_LARGE if the tiles are more than may be left.
        """
        level, size = self.slide.level, self.size
        across = -(-level.columns // size)
        seen, found, densities = 0, 0, []
        with ThreadPoolExecutor(THREADS) as pool:
            for row, band in enumerate(self._bands(across)):
                self.tick()
                tiles = band.reshape(size, across, size, 3).swapaxes(0, 1)
                tissue = tissue_of(tiles)
                found += int(np.count_nonzero(tissue))
                seen += tissue.size
                shares = tissue.mean(axis=(1, 2))
                columns = np.flatnonzero(shares >= max(self.least, np.finfo(float).tiny))
                if (len(self.tiles) + len(columns)) * size * size * 3 > limits.ARRAY_LIMIT_BYTES:
                    raise Refusal.SLIDE_TISSUE.error()
                looked_at = pool.map(look_at, tiles[columns], tissue[columns])
                for column, (data, density, digest) in zip(columns, looked_at, strict=True):
                    densities.append(density)
                    self.tiles.append(Tile(row, int(column), float(shares[column]), digest))
                    yield data
        self.tissue_share = found / seen
        self.stain = stain_of(np.concatenate(densities)) if densities else None

    def _bands(self, across: int) -> Iterator[NDArray[np.uint8]]:
        """Bands of `size` rows, (size, across x size, 3), white beyond the slide."""
        level, size = self.slide.level, self.size
        band, filled, done = self._white(across), 0, 0
        for row in self.slide.rows_of_tiles:
            use = row[: level.rows - done, : level.columns]
            done += len(use)
            while len(use):
                taken = min(size - filled, len(use))
                band[filled : filled + taken, : level.columns] = use[:taken]
                filled, use = filled + taken, use[taken:]
                if filled == size or (done >= level.rows and not len(use)):
                    yield band
                    band, filled = self._white(across), 0

    def _white(self, across: int) -> NDArray[np.uint8]:
        return np.full((self.size, across * self.size, 3), WHITE, np.uint8)


def look_at(
    tile: NDArray[np.uint8], tissue: NDArray[np.bool_]
) -> tuple[memoryview, NDArray[np.float32], bytes]:
    """Its bytes, some of its optical densities, and its SHA-256."""
    # In bytes: whoever takes chunks counts by len().
    data = tile.reshape(-1).data
    return data, sample(tile, tissue), hashlib.sha256(data).digest()
