"""The certified tiles of a slide: read as they come, checked, and in the reference's colours."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from io import BytesIO
from itertools import islice
from typing import Final

import numpy as np
from fluoro.v1 import slide_pb2
from fluoro_jobs.worker.context import StepContext
from numpy.typing import NDArray
from PIL import Image

from ml_worker.pixels import not_certified

WHITE: Final = 240.0
"""Light that passes through the empty glass, of 255, as TileSlide has it."""
DENSITY: Final = -np.log((np.arange(256) + 1.0) / WHITE)
"""Optical density of each value of a channel."""
REFERENCE: Final = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])
"""Hematoxylin and eosin in red, green and blue: those of Macenko's published code."""
REFERENCE_MAXIMA: Final = np.array([1.9705, 1.0308])
"""99th percentiles of their amounts, from the same place."""

PICTURE_SIDE: Final = 256
"""Most rows and columns of the picture of a tile."""
PICTURE_QUALITY: Final = 90
"""As JPEG has it: for eyes, not for models."""
PALETTE_PIXELS: Final = 2**25
"""From so many on, a table of all 2**24 colours takes less time than it saves."""

Tiles = NDArray[np.uint8]
Some = tuple[Sequence[slide_pb2.TissueTile], Tiles]
"""Tiles, and their pixels: (tiles, rows, columns, 3)."""


def stored_tiles(
    blob: str, slide: slide_pb2.TiledSlide, at_once: int, context: StepContext
) -> Iterator[Some]:
    """Some tiles at a time, as they are stored: nobody may see them before `check`.

    Memory is that of these tiles. FluoroError PIXELS_NOT_CERTIFIED once the blob turns out shorter
    or longer than the slide says; those before it may be whole.
    """
    shape = (slide.tile_size, slide.tile_size, 3)
    tiles = iter(slide.tiles)
    for part in context.parts(blob, at_once * math.prod(shape)):
        some = list(islice(tiles, at_once))
        if len(part) != len(some) * math.prod(shape):
            raise not_certified("is longer or shorter than its certificate says")
        yield some, np.frombuffer(part, np.uint8).reshape(-1, *shape)
    if next(tiles, None):
        raise not_certified("ends before its certificate does")


def picture_of(
    slide: slide_pb2.TiledSlide, number: int, piece: Callable[[int, int], bytes]
) -> bytes:
    """A JPEG of a tile as it is stored, small. piece: of the tiles' blob, by offset and length.

    FluoroError PIXELS_NOT_CERTIFIED as of `check`.
    """
    size = slide.tile_size
    data = piece(number * 3 * size**2, 3 * size**2)
    if len(data) != 3 * size**2:
        raise not_certified("ends before its certificate does")
    pixels = np.frombuffer(data, np.uint8).reshape(1, size, size, 3)
    check((slide.tiles[number : number + 1], pixels))
    picture = Image.fromarray(pixels[0])
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    buffer = BytesIO()
    picture.save(buffer, format="JPEG", quality=PICTURE_QUALITY)
    return buffer.getvalue()


def check(some: Some) -> None:
    """FluoroError PIXELS_NOT_CERTIFIED unless each tile has the bytes that its slide says."""
    for tile, pixels in zip(*some, strict=True):
        if hashlib.sha256(pixels.data).digest() != tile.sha256:
            raise not_certified("has other bytes than its certificate says")


Palette = NDArray[np.uint32]
"""By colour, red + 256 * green + 65536 * blue: the colour to get, in the same way."""
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


def colours_of(tables: Tables, pixels: int, pool: Executor) -> Callable[[Tiles], Tiles]:
    """What gives tiles in the reference's colours. pixels: of all tiles."""
    if pixels < PALETTE_PIXELS:
        return partial(normalized, tables=tables)
    return partial(painted, palette=palette_of(tables, pool))


def normalized(tiles: Tiles, tables: Tables) -> Tiles:
    """Tiles in the reference's colours."""
    out = np.empty_like(tiles)
    for tile, target in zip(tiles, out, strict=True):
        planes = [np.ascontiguousarray(tile[..., channel]) for channel in range(3)]
        for channel, factors in enumerate(tables):
            light = factors[0].take(planes[0])
            light *= factors[1].take(planes[1])
            light *= factors[2].take(planes[2])
            light *= WHITE
            np.minimum(light, 255, out=light)
            target[..., channel] = light
    return out


def palette_of(tables: Tables, pool: Executor) -> Palette:
    """What `normalized` makes of each colour: 64 MiB."""
    palette = np.zeros((256, 256, 256, 4), np.uint8)
    red_and_green = tables[:, 1, :, np.newaxis] * tables[:, 0, np.newaxis, :]

    def fill(blue: int) -> None:
        for channel, factors in enumerate(red_and_green):
            light = factors * tables[channel, 2, blue]
            light *= WHITE
            np.minimum(light, 255, out=light)
            palette[blue, ..., channel] = light

    list(pool.map(fill, range(256)))
    return palette.reshape(-1).view("<u4")


def painted(tiles: Tiles, palette: Palette) -> Tiles:
    """Tiles in the colours of the palette."""
    out = np.empty(tiles.size + 1, np.uint8)
    pixels = tiles[0].size // 3
    # NumPy gathers numbers of four bytes at twice the speed of rows of three. So a pixel is such a
    # number, whose highest byte is the next pixel's lowest. These arrays stay in the cache.
    padded = np.empty(3 * pixels + 1, np.uint8)
    numbers = np.ndarray(pixels, "<u4", padded, strides=(3,))
    places, found = np.empty(pixels, np.intp), np.empty(pixels, np.uint32)
    for number, tile in enumerate(tiles):
        padded[:-1] = tile.reshape(-1)
        places[:] = numbers
        places &= 0xFFFFFF
        # No place is outside; "clip" is the mode that writes straight into `out`.
        palette.take(places, out=found, mode="clip")
        # From first to last: each one covers the highest byte of the one before.
        np.ndarray(pixels, "<u4", out, number * tile.size, (3,))[:] = found
    return out[:-1].reshape(tiles.shape)
