"""Where a slide shows tissue, and how it is stained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

WHITE: Final = 240.0
"""Light that passes through the empty glass, of 255: Macenko et al., ISBI 2009."""
LEAST_DENSITY: Final = 0.15
"""Mean optical density (natural logarithm) from which on a pixel is stained, as in that paper."""
LEAST_COLOUR: Final = 20
"""Least difference of the channels, of 255: pen, dust and folds of the glass are grey."""
MOST_LIGHT: Final = round((WHITE * np.exp(-LEAST_DENSITY)) ** 3)
"""The same without a logarithm: the product of the channels, each plus 1, is below."""
STRIDE: Final = 4
"""Every so many rows and columns are looked at."""
PIXELS_PER_TILE: Final = 256
"""Of which the stains are estimated."""
PIXELS_PER_SLIDE: Final = 2**17
"""More of them make no other estimate."""
LEAST_PIXELS: Final = 1000
"""Fewer say nothing about stains."""
PERCENTILE: Final = 1.0
"""Of angles that are left out at both ends, as in that paper."""
DECIMALS: Final = 6
DENSITY: Final = -np.log((np.arange(256) + 1.0) / WHITE).astype(np.float32)
"""Optical density of each value of a channel."""


@dataclass(frozen=True, slots=True)
class Stain:
    """Directions of hematoxylin and eosin in optical density, and 99th percentiles of amounts."""

    hematoxylin: tuple[float, ...]
    eosin: tuple[float, ...]
    maxima: tuple[float, float]


def tissue_of(tiles: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of the pixels that are looked at are tissue: (tiles, rows / 4, columns / 4).

    tiles: (tiles, rows, columns, 3).
    """
    rows = np.ascontiguousarray(tiles[:, ::STRIDE])
    # Plane by plane: NumPy takes eight times as long for an axis of three.
    red, green, blue = (np.ascontiguousarray(rows[:, :, ::STRIDE, each]) for each in range(3))
    lightest = np.maximum(np.maximum(red, green), blue)
    coloured = lightest - np.minimum(np.minimum(red, green), blue) >= LEAST_COLOUR
    light = np.add(red, 1, dtype=np.uint32)
    light *= np.add(green, 1, dtype=np.uint32)
    light *= np.add(blue, 1, dtype=np.uint32)
    return np.asarray(coloured & (light < MOST_LIGHT))


def sample(tile: NDArray[np.uint8], tissue: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Colours of some tissue pixels, spread evenly over a tile: (pixels, 3)."""
    places = np.flatnonzero(tissue)
    step = max(1, len(places) // PIXELS_PER_TILE)
    rows, columns = np.divmod(places[::step], tissue.shape[1])
    colours: NDArray[np.uint8] = tile[rows * STRIDE, columns * STRIDE]
    return colours


def densities_of(samples: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Optical densities of the samples of a slide: (pixels, 3), fewer than 2 x PIXELS_PER_SLIDE."""
    colours = np.concatenate(samples)
    densities: NDArray[np.float32] = DENSITY[colours[:: max(1, len(colours) // PIXELS_PER_SLIDE)]]
    return densities


def stain_of(densities: NDArray[Any]) -> Stain | None:
    """Macenko's estimate; None if these pixels are too few, or of one colour.

    densities: (pixels, 3) optical densities of tissue.
    """
    if len(densities) < LEAST_PIXELS:
        return None
    densities = densities.astype(np.float64)
    # Products by einsum: BLAS would keep a thread of every processor spinning for a while.
    apart = densities - densities.mean(axis=0)
    _, vectors = np.linalg.eigh(np.einsum("ij,ik->jk", apart, apart) / (len(apart) - 1))
    # eigh sorts eigenvalues upwards; the two largest span the plane of the stains.
    plane = vectors[:, [2, 1]]
    # An eigenvector has no sign of its own, and density is never negative.
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    on_plane = np.einsum("ij,jk->ik", densities, plane)
    angles = np.arctan2(on_plane[:, 1], on_plane[:, 0])
    ends = np.percentile(angles, (PERCENTILE, 100 - PERCENTILE))
    first, second = (plane @ (np.cos(angle), np.sin(angle)) for angle in ends)
    # Hematoxylin takes more of the red.
    hematoxylin, eosin = (first, second) if first[0] > second[0] else (second, first)
    stains = np.stack([hematoxylin, eosin], axis=1)
    # Of one colour, both directions are the same, and amounts would be noise.
    if np.linalg.cond(stains) > 1 / np.finfo(np.float32).eps:
        return None
    found = np.einsum("ij,kj->ki", densities, np.linalg.pinv(stains))
    amounts = np.percentile(found, 99, axis=1)
    if not np.isfinite(stains).all() or amounts.min() <= 0:
        return None
    return Stain(
        tuple(hematoxylin.round(DECIMALS).tolist()),
        tuple(eosin.round(DECIMALS).tolist()),
        (round(float(amounts[0]), DECIMALS), round(float(amounts[1]), DECIMALS)),
    )
