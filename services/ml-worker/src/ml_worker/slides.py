"""The certified tiles of a slide: read as they come, checked, and in the reference's colours."""

import hashlib
from collections.abc import Iterator, Sequence
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

Tiles = NDArray[np.uint8]


def certified_tiles(
    blob: str, slide: slide_pb2.TiledSlide, at_once: int, context: StepContext
) -> Iterator[tuple[Sequence[slide_pb2.TissueTile], Tiles]]:
    """Some tiles at a time, (tiles, rows, columns, 3), each checked before anybody sees it.

    Memory is that of these tiles and a part of the blob. FluoroError PIXELS_NOT_CERTIFIED once a
    tile has other bytes than its slide says; those before it are what they should be.
    """
    size = slide.tile_size
    stream = _Stream(blob, context)
    tiles = iter(slide.tiles)
    while some := list(islice(tiles, at_once)):
        pixels = np.empty((len(some), size, size, 3), np.uint8)
        for tile, place in zip(some, pixels, strict=True):
            stream.read_into(place.reshape(-1).data)
            if hashlib.sha256(place.data).digest() != tile.sha256:
                raise not_certified("has other bytes than its certificate says")
        yield some, pixels
    stream.expect_end()


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
