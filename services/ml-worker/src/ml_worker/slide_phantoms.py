"""Painted tissue whose kind is known, since no whole slide can be shipped."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

KINDS: Final = ("fibres", "scattered nuclei", "crowded nuclei")
"""What tissue looks like, by value."""
HEMATOXYLIN: Final = (0.65, 0.70, 0.29)
EOSIN: Final = (0.22, 0.85, 0.48)
"""Directions in optical density of one laboratory; `laboratory` gives others."""
GLASS: Final = 240.0
"""Light that passes through where nothing is, of 255."""
_NUCLEI: Final = ((4, 10), (14, 26), (75, 110))
"""Of each kind, in 256 x 256 pixels: at least, and at most."""
_RADII: Final = ((2.5, 4.0), (4.5, 6.5), (5.5, 8.5))
_ISLAND: Final = ((0.0, 0.0, 0.44), (0.05, 0.05, 0.3), (0.08, 0.12, 0.15))
"""Of each kind, as shares of the slide: how far up and right of the middle, and the radius."""

Tile = NDArray[np.uint8]
Stains = NDArray[np.float64]


def laboratory(random: np.random.Generator, spread: float = 0.08) -> Stains:
    """Stains of one laboratory: (3, 2), hematoxylin and eosin, of length 1 times their strength."""
    stains = np.array([HEMATOXYLIN, EOSIN]).T + random.normal(0, spread, (3, 2))
    strength = random.uniform(0.75, 1.3, 2)
    return np.asarray(np.abs(stains) / np.linalg.norm(stains, axis=0) * strength)


def tissue(kind: int, random: np.random.Generator, stains: Stains, side: int = 256) -> Tile:
    """A tile of tissue: (side, side, 3) RGB. kind: index into KINDS."""
    return _seen(*_amounts(kind, random, side), stains, random)


def slide(
    grid: NDArray[np.int8], random: np.random.Generator, stains: Stains, side: int = 256
) -> Iterator[Tile]:
    """The tiles of a slide, row by row. grid: a kind for each, -1 for glass without tissue.

    A few tiles of each kind repeat, turned and mirrored, so that large slides take no long time.
    """
    bank = [[tissue(kind, random, stains, side) for _ in range(6)] for kind in range(len(KINDS))]
    glass = np.clip(random.normal(GLASS, 1.5, (side, side, 3)), 0, 255).astype(np.uint8)
    for kind in grid.ravel():
        if kind < 0:
            yield glass
            continue
        tile = np.rot90(bank[kind][random.integers(6)], int(random.integers(4)))
        yield np.ascontiguousarray(tile[:, :: random.choice((-1, 1))])


def island(down: int, across: int) -> NDArray[np.int8]:
    """A grid for `slide`: an island of fibres, in it scattered nuclei, and a crowd of them."""
    rows, columns = np.indices((down, across))
    y, x = (rows + 0.5) / down - 0.5, (columns + 0.5) / across - 0.5
    grid = np.full((down, across), -1, np.int8)
    for kind, (up, right, radius) in enumerate(_ISLAND):
        grid[np.hypot(y + up, x - right) < radius] = kind
    return grid


def _amounts(
    kind: int, random: np.random.Generator, side: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Hematoxylin and eosin of each pixel."""
    grain = (1.0, 7.0) if kind == 0 else (2.5, 2.5)
    texture = ndimage.gaussian_filter(random.normal(size=(side, side)), grain, mode="wrap")
    eosin = np.clip(0.75 - 0.12 * kind + 0.22 * texture / texture.std(), 0.15, None)
    hematoxylin = np.full((side, side), 0.06 + 0.04 * kind)
    fewest, most = _NUCLEI[kind]
    count = round(random.integers(fewest, most + 1) * (side / 256) ** 2)
    rows, columns = np.indices((side, side))
    for row, column in random.uniform(0, side, (count, 2)):
        tall, wide = random.uniform(*_RADII[kind], 2)
        here = np.s_[
            max(0, int(row) - 9) : int(row) + 11, max(0, int(column) - 9) : int(column) + 11
        ]
        down, right = (rows[here] - row) / tall, (columns[here] - column) / wide
        inside = np.clip(2.5 * (1 - np.hypot(down, right)), 0, 1)
        hematoxylin[here] = np.maximum(hematoxylin[here], inside * random.uniform(0.8, 1.3))
        eosin[here] *= 1 - 0.7 * inside
    return hematoxylin, eosin


def _seen(
    hematoxylin: NDArray[np.float64],
    eosin: NDArray[np.float64],
    stains: Stains,
    random: np.random.Generator,
) -> Tile:
    """What light is left behind these amounts (Beer and Lambert), with the camera's noise."""
    density = np.stack([hematoxylin, eosin], axis=-1) @ stains.T
    light = GLASS * np.exp(-density) + random.normal(0, 2, density.shape)
    return np.clip(light.round(), 0, 255).astype(np.uint8)
