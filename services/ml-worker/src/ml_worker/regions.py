"""Regions of a probability map: boxes around what lies together and is probable."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull

from ml_worker.outputs import Regions

Numbers = NDArray[np.float64]

MOST_REGIONS: Final = 10_000
"""Regions of a map that are measured: more are noise, and measuring them is slow."""
TOUCHING: Final = np.ones((3, 3), bool)
"""Pixels that touch at a corner are of one region."""


class TooManyRegionsError(Exception):
    """The map has more regions than MOST_REGIONS."""


def regions_in(
    probabilities: NDArray[Any], output: Regions, threshold: float
) -> tuple[Numbers, Numbers]:
    """Boxes (regions, 4: left, top, right, bottom) in pixels of the map, and their scores.

    probabilities: (rows, columns), 0 to 1. A region scores the mean of its pixels. Its box
    surrounds its smallest rectangle, which may be turned, grown on all sides by the rectangle's
    area times `unclip` over its perimeter (Liao et al. 2020, arXiv:1911.08947, 3.3).
    TooManyRegionsError.
    """
    found = list(_measured(probabilities, output, threshold))
    return np.array([box for box, _ in found]).reshape(-1, 4), np.array([one for _, one in found])


def _measured(
    probabilities: NDArray[Any], output: Regions, threshold: float
) -> Iterator[tuple[list[float], float]]:
    numbered, _ = ndimage.label(probabilities >= output.pixel_threshold, TOUCHING)
    # A region whose longer side is too short has no other one that is long enough.
    places = [
        (number, place)
        for number, place in enumerate(ndimage.find_objects(numbered), 1)
        if max(side.stop - side.start for side in place) >= output.least_side
    ]
    if len(places) > MOST_REGIONS:
        raise TooManyRegionsError
    for number, place in places:
        region = numbered[place] == number
        score = float(probabilities[place][region].mean(dtype=float))
        axes, low, high = smallest_rectangle(region)
        width, height = high - low
        # The box of a turned rectangle may be long enough where the rectangle is not.
        if score < threshold or min(width, height) < output.least_side:
            continue
        margin = output.unclip * width * height / (2 * (width + height))
        ends = np.array([low - margin, high + margin])
        corners = np.array([(x, y) for x in ends[:, 0] for y in ends[:, 1]]) @ axes
        corners += [place[1].start, place[0].start]
        yield [*corners.min(axis=0), *corners.max(axis=0)], score


def smallest_rectangle(region: NDArray[np.bool_]) -> tuple[Numbers, Numbers, Numbers]:
    """The rectangle of least area around the pixels of a region (rows, columns).

    Its two directions as rows (x, y) of a matrix, and where it begins and ends along them. One side
    of it lies on a side of the convex hull (Freeman and Shapira 1975).
    """
    rows = np.flatnonzero(region.any(axis=1))
    first = region[rows].argmax(axis=1)
    last = region.shape[1] - region[rows, ::-1].argmax(axis=1)
    # Outer corners of the pixels, so that even one pixel has an area.
    across = np.concatenate([first, first, last, last])
    down = np.tile(np.concatenate([rows, rows + 1]), 2)
    corners = np.stack([across, down], axis=1)
    hull = corners[ConvexHull(corners).vertices].astype(float)
    along = np.roll(hull, -1, axis=0) - hull
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    # Directions, (x, y), along and across.
    turned = np.stack([along, along[:, ::-1] * [-1, 1]], axis=1)
    placed = turned @ hull.T
    low, high = placed.min(axis=2), placed.max(axis=2)
    best = int(np.prod(high - low, axis=1).argmin())
    return turned[best], low[best], high[best]
