"""The certified tiles of a slide: read as they come, checked, and in the reference's colours."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from itertools import islice
from typing import Final

import numpy as np
from fluoro.v1 import slide_pb2
from fluoro_jobs.worker.context import StepContext
from numpy.typing import NDArray

from ml_worker.pixels import not_certified

WHITE: Final = 240.0
"""Light that passes through the empty glass, of 255, as TileSlide has it."""
DENSITY: Final = -np.log((np.arange(256) + 1.0) / WHITE)
"""Optical density of each value of a channel."""
REFERENCE: Final = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])
"""Hematoxylin and eosin in red, green and blue: those of Macenko's published code."""
REFERENCE_MAXIMA: Final = np.array([1.9705, 1.0308])
"""99th percentiles of their amounts, from the same place."""

PALETTE_PIXELS: Final = 2**25
"""From so many on, a table of all 2**24 colours takes less time than it saves."""

Tiles = NDArray[np.uint8]
Some = tuple[Sequence[slide_pb2.TissueTile], Tiles]
"""Tiles, and their pixels: (tiles, rows, columns, 3)."""


def stored_tiles(
    blob: str, slide: slide_pb2.TiledSlide, at_once: int, context: StepContext
) -> Iterator[Some]:
    """Some tiles at a time, as they are stored: nobody may see them before `check`.

    Memory is that of these tiles and a part of the blob. FluoroError PIXELS_NOT_CERTIFIED once the
    blob turns out shorter or longer than the slide says; those before it may be whole.
    """
    size = slide.tile_size
    stream = _Stream(blob, context)
    tiles = iter(slide.tiles)
    while some := list(islice(tiles, at_once)):
        pixels = np.empty((len(some), size, size, 3), np.uint8)
        stream.read_into(pixels.reshape(-1).data)
        yield some, pixels
    stream.expect_end()


def check(some: Some) -> None:
    """FluoroError PIXELS_NOT_CERTIFIED unless each tile has the bytes that its slide says."""
    for tile, pixels in zip(*some, strict=True):
        if hashlib.sha256(pixels.data).digest() != tile.sha256:
            raise not_certified("has other bytes than its certificate says")


class _Stream:
    """A blob, read by lengths that are not those of its parts."""

    def __init__(self, blob: str, context: StepContext) -> None:
        self._parts = context.parts(blob)
        self._rest = memoryview(b"")

    def read_into(self, target: memoryview) -> None:
        """Fills it. FluoroError PIXELS_NOT_CERTIFIED if the blob ends before."""
        while len(target):
            if not len(self._rest):
                self._rest = next(self._parts, memoryview(b""))
                if not len(self._rest):
                    raise not_certified("ends before its certificate does")
            taken = min(len(target), len(self._rest))
            target[:taken] = self._rest[:taken]
            target, self._rest = target[taken:], self._rest[taken:]

    def expect_end(self) -> None:
        """FluoroError PIXELS_NOT_CERTIFIED if there is more."""
        if len(self._rest) or any(len(part) for part in self._parts):
            raise not_certified("is longer than its certificate says")


Tables = NDArray[np.float32]
"""By channel to get, channel there, and its value: factors (3, 3, 256) of the light that passes."""


def to_reference(slide: slide_pb2.TiledSlide) -> Tables | None:
    """What makes the slide's colours the reference's; None without an estimate of its stains.

    Densities are mixed by a matrix. Light is their exponential, so it is mixed by products, and
    three look-ups give what a logarithm, a matrix and an exponential would.
    """
    if not slide.HasField("stain"):
        return None
    stains = np.stack([slide.stain.hematoxylin, slide.stain.eosin], axis=1)
    there = np.array([slide.stain.hematoxylin_maximum, slide.stain.eosin_maximum])
    mix = REFERENCE @ np.diag(REFERENCE_MAXIMA / there) @ np.linalg.pinv(stains)
    return np.asarray(np.exp(-mix[:, :, np.newaxis] * DENSITY), np.float32)


def colours_of(tables: Tables, pixels: int, pool: Executor) -> Callable[[Tiles, Tiles], object]:
    """What puts a tile in the reference's colours into another array. pixels: of all tiles."""
    if pixels < PALETTE_PIXELS:
        return partial(normalized, tables=tables)
    return partial(painted, palette=palette_of(tables, pool))


def normalized(tile: Tiles, out: Tiles | None = None, *, tables: Tables) -> Tiles:
    """One tile, (rows, columns, 3), in the reference's colours. out: where it goes, else new."""
    planes = [np.ascontiguousarray(tile[..., channel]) for channel in range(3)]
    out = np.empty_like(tile) if out is None else out
    for channel, factors in enumerate(tables):
        light = factors[0].take(planes[0])
        light *= factors[1].take(planes[1])
        light *= factors[2].take(planes[2])
        light *= WHITE
        np.minimum(light, 255, out=light)
        out[..., channel] = light
    return out


def palette_of(tables: Tables, pool: Executor) -> Tiles:
    """What `normalized` makes of each colour, (256 blue, 256 green, 256 red, 3): 48 MiB."""
    palette = np.empty((256, 256, 256, 3), np.uint8)
    red_and_green = tables[:, 1, :, np.newaxis] * tables[:, 0, np.newaxis, :]

    def fill(blue: int) -> None:
        for channel, factors in enumerate(red_and_green):
            light = factors * tables[channel, 2, blue]
            light *= WHITE
            np.minimum(light, 255, out=light)
            palette[blue, ..., channel] = light

    list(pool.map(fill, range(256)))
    return palette


def painted(tile: Tiles, out: Tiles, *, palette: Tiles) -> None:
    """One tile, (rows, columns, 3), in the colours of the palette."""
    padded = np.empty(tile.size + 1, np.uint8)
    padded[:-1] = tile.reshape(-1)
    # Four bytes from each pixel on. The fourth, of the next pixel, is masked.
    places = np.ndarray(tile.size // 3, "<u4", padded, strides=(3,)).astype(np.intp)
    places &= 0xFFFFFF
    # No place is outside; "clip" is the mode that writes straight into `out`.
    palette.reshape(-1, 3).take(places, axis=0, out=out.reshape(-1, 3), mode="clip")
