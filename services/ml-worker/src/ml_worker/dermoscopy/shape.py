"""A and B: asymmetry about two axes, and abrupt edges in eighths of the border."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ml_worker.dermoscopy.lesion import Lesion

AXIS_STEP_DEGREES: Final = 5
"""Step between the directions tried for the first axis; the second is at right angles to it."""
CONTOUR_ASYMMETRY: Final = 0.10
"""Share of the lesion's area that its mirror image leaves uncovered, from which an axis counts."""
COLOR_ASYMMETRY: Final = 8.0
"""Mean difference of colour (CIE76 Delta E) between the halves, from which an axis counts."""

EIGHTHS: Final = 8
BORDER_CONTRAST: Final = 15.0
"""Least difference of colour (Delta E) between the two sides of a border that can be abrupt."""
BORDER_SHARPNESS: Final = 0.6
"""Share of that difference that lies within 6 pixels of the border, from which it is abrupt."""
_NEAR: Final = (1, 3)
_FAR: Final = (8, 16)
_GRID: Final = 3
"""Pixels between the points that are compared with their mirror images."""
_SMOOTHING: Final = 4.0
"""Sigma in pixels: symmetry is judged on areas of colour, not on hairs and noise."""


@dataclass(frozen=True, slots=True)
class Asymmetry:
    """Asymmetry about each of two axes at right angles.

    axis_degrees: direction of the first one, counter-clockwise from the image's row. contour:
    share of the area that does not cover its mirror image. color: mean Delta E between mirrored
    points. score: how many axes are asymmetric, 0 to 2.
    """

    axis_degrees: float
    contour: tuple[float, float]
    color: tuple[float, float]
    score: int


def asymmetry(lesion: Lesion) -> Asymmetry:
    """Asymmetry about the axes that leave the lesion most symmetric, as the rule places them."""
    planes = [
        lesion.mask.astype(np.float32),
        *(ndimage.gaussian_filter(lesion.lab[..., band], _SMOOTHING) for band in range(3)),
    ]
    found = [_about(lesion, planes, angle) for angle in range(0, 90, AXIS_STEP_DEGREES)]
    return min(
        found,
        key=lambda one: sum(one.contour) / CONTOUR_ASYMMETRY + sum(one.color) / COLOR_ASYMMETRY,
    )


def _about(lesion: Lesion, planes: list[NDArray[np.float32]], angle: int) -> Asymmetry:
    """Asymmetry about axes in this direction. planes: the mask, then L*, a*, b*."""
    mask, *lab = (_turned(lesion, plane, angle) for plane in planes)
    inside = mask > 0.5  # noqa: PLR2004 - half of a pixel
    area = max(1.0, float(inside.sum()))
    contour, color = [], []
    for axis in (0, 1):
        both = inside & np.flip(inside, axis)
        contour.append(1 - float(both.sum()) / area)
        squares = sum(np.square(plane - np.flip(plane, axis))[both] for plane in lab)
        color.append(float(np.sqrt(squares).mean()) if both.any() else 0.0)
    score = sum(
        shape > CONTOUR_ASYMMETRY or shade > COLOR_ASYMMETRY
        for shape, shade in zip(contour, color, strict=True)
    )
    return Asymmetry(float(angle), (contour[0], contour[1]), (color[0], color[1]), score)


def _turned(lesion: Lesion, plane: NDArray[np.float32], angle: float) -> NDArray[np.float32]:
    """The plane on a square grid around the lesion's centre, turned by degrees; 0 outside."""
    distances = np.argwhere(lesion.mask) - np.array(lesion.center)
    # The grid reaches the farthest point, so that no turn cuts any of the lesion off.
    far = np.linalg.norm(distances, axis=1).max()
    reach = int(np.ceil(far)) + 1
    steps = np.arange(-reach, reach + 1, _GRID, dtype=np.float32)
    rows, columns = np.meshgrid(steps, steps, indexing="ij")
    turn = np.deg2rad(angle)
    at = (
        lesion.center[0] + rows * np.cos(turn) - columns * np.sin(turn),
        lesion.center[1] + rows * np.sin(turn) + columns * np.cos(turn),
    )
    out: NDArray[np.float32] = ndimage.map_coordinates(plane, at, order=1, output=np.float32)
    return out


@dataclass(frozen=True, slots=True)
class Border:
    """Abruptness of the border in eighths, counter-clockwise from the right.

    contrast: Delta E between inside and outside; sharpness: the share of it that lies close to the
    border; both 0 where an eighth has no skin outside. score: how many are abrupt, 0 to 8.
    """

    contrast: tuple[float, ...]
    sharpness: tuple[float, ...]
    score: int


def border(lesion: Lesion) -> Border:
    """Compares colours close to the border and away from it, on both sides, per eighth."""
    inside = ndimage.distance_transform_edt(lesion.mask)
    outside = ndimage.distance_transform_edt(~lesion.mask)
    rows, columns = np.indices(lesion.mask.shape)
    # Rows run downwards, so the difference is turned round to count angles upwards.
    direction = np.arctan2(lesion.center[0] - rows, columns - lesion.center[1]) % (2 * np.pi)
    eighth = (direction * EIGHTHS / (2 * np.pi)).astype(np.int64) % EIGHTHS
    contrast, sharpness = [], []
    for index in range(EIGHTHS):
        far = _difference(lesion.lab, inside, outside, eighth == index, _FAR)
        near = _difference(lesion.lab, inside, outside, eighth == index, _NEAR)
        contrast.append(far)
        sharpness.append(min(1.0, near / far) if far > 0 else 0.0)
    score = sum(
        far >= BORDER_CONTRAST and near >= BORDER_SHARPNESS
        for far, near in zip(contrast, sharpness, strict=True)
    )
    return Border(tuple(contrast), tuple(sharpness), score)


def _difference(
    lab: NDArray[np.float32],
    inside: NDArray[np.float64],
    outside: NDArray[np.float64],
    where: NDArray[np.bool_],
    band: tuple[int, int],
) -> float:
    """Delta E between the mean colours of two bands at these distances from the border."""
    within, beyond = (
        where & (distance >= band[0]) & (distance <= band[1]) for distance in (inside, outside)
    )
    # A lesion at the edge of the image has no skin on that side.
    if not within.any() or not beyond.any():
        return 0.0
    return float(np.linalg.norm(lab[within].mean(axis=0) - lab[beyond].mean(axis=0)))
