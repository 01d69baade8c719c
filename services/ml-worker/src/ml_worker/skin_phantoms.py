"""Painted skin with lesions and burns whose truth is known, by rules of a cartoon.

No real dermoscopy image or photograph of a burn can be shipped. Each lesion has three aspects:
colours, shape, texture. Its kind has rules for each, and now and then an aspect breaks its rule, so
that models which look at one aspect alone err and disagree.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

KINDS: Final = ("naevus", "melanoma", "keratosis")
DEPTHS: Final = ("healthy", "superficial", "partial thickness", "full thickness")
BREAKS_A_RULE: Final = 0.08
"""How often an aspect is that of any kind."""

_TONES: Final = ((236, 205, 182), (224, 184, 160), (198, 152, 124), (172, 124, 96))
_BROWNS: Final = ((168, 116, 78), (136, 90, 60), (104, 68, 48))
_WAXY: Final = ((176, 148, 96), (150, 128, 92), (128, 112, 96))
_PATCHES: Final = ((26, 22, 26), (96, 112, 138), (184, 62, 66), (70, 44, 36), (232, 222, 216))
_BURNS: Final = (
    ((224, 112, 104),),
    ((190, 52, 58), (226, 150, 150)),
    ((240, 232, 214), (70, 48, 40)),
)
"""Colours of each depth: red; wet red and blisters; leathery white and char."""

Pixels = NDArray[np.uint8]
Plane = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Skin:
    """A picture and its truth.

    pixels: (side, side, 3) RGB. truth: (side, side), 1 in a lesion, or the index into DEPTHS. kind:
    index into KINDS, -1 without a lesion.
    """

    pixels: Pixels
    truth: NDArray[np.uint8]
    kind: int = -1


def plain(random: np.random.Generator, side: int = 96) -> Skin:
    """Skin with a tone, uneven light, pores and perhaps some hairs."""
    return Skin(_camera(_ground(random, side), random), np.zeros((side, side), np.uint8))


def lesion(random: np.random.Generator, kind: int, side: int = 96) -> Skin:
    """A lesion of a kind in the middle of skin. Half as faint as usual at the faintest."""
    color, shape, texture = (
        int(random.integers(len(KINDS))) if random.random() < BREAKS_A_RULE else kind
        for _ in range(3)
    )
    image = _ground(random, side)
    mask, edge = _outline(random, shape, side)
    inside = _colored(random, color, mask, side)
    inside = inside + _structures(random, texture, mask, side)[..., np.newaxis]
    weight = ndimage.gaussian_filter(mask.astype(np.float64), edge * side)
    weight *= random.uniform(0.5, 1.0)
    image = image * (1 - weight[..., np.newaxis]) + inside * weight[..., np.newaxis]
    return Skin(_camera(image, random), mask.astype(np.uint8), kind)


def burn(random: np.random.Generator, side: int = 96) -> Skin:
    """A burn that is deepest in the middle: up to three depths, one inside the other."""
    image = _ground(random, side)
    truth = np.zeros((side, side), np.uint8)
    size = random.uniform(0.25, 0.38)
    center = random.uniform(0.44, 0.56, 2)
    for depth in range(1, 1 + int(random.integers(1, len(DEPTHS)))):
        mask = _blob(random, side, size, 0.12, 1.0, center)
        mask &= (truth == depth - 1) if depth > 1 else True
        colors = _BURNS[depth - 1]
        patches = _smooth(random, side, 0.06) > 0
        painted = np.where(
            patches[..., np.newaxis], np.array(colors[0], float), np.array(colors[-1], float)
        )
        painted = (
            painted + random.normal(0, 6, 3) + 5 * _smooth(random, side, 0.02)[..., np.newaxis]
        )
        weight = ndimage.gaussian_filter(mask.astype(np.float64), 0.006 * side)[..., np.newaxis]
        image = image * (1 - weight) + painted * weight
        truth[mask] = depth
        size *= random.uniform(0.5, 0.75)
    return Skin(_camera(image, random), truth)


def _ground(random: np.random.Generator, side: int) -> Plane:
    rows, columns = np.indices((side, side)) / side - 0.5
    tone = np.array(_TONES[int(random.integers(len(_TONES)))]) + random.normal(0, 5, 3)
    light = 1 + random.normal(0, 0.05) * rows + random.normal(0, 0.05) * columns
    image = tone * light[..., np.newaxis] + 2.5 * _smooth(random, side, 0.015)[..., np.newaxis]
    for _ in range(int(random.integers(4))):
        angle, offset = random.uniform(0, np.pi), random.uniform(-0.5, 0.5)
        across = np.abs(rows * np.cos(angle) + columns * np.sin(angle) - offset)
        image *= 1 - 0.35 * np.exp(-((across * 200) ** 2))[..., np.newaxis]
    return np.asarray(image)


def _outline(random: np.random.Generator, kind: int, side: int) -> tuple[Mask, float]:
    """The lesion, and how soft its edge is as a share of the side."""
    size = random.uniform(0.18, 0.3)
    center = random.uniform(0.46, 0.54, 2)
    ratio, waves, edge = (
        (random.uniform(0.8, 1), random.uniform(0, 0.05), random.uniform(0.01, 0.025)),
        (random.uniform(0.7, 1), random.uniform(0.12, 0.3), random.uniform(0.005, 0.03)),
        (random.uniform(0.45, 0.7), random.uniform(0, 0.08), random.uniform(0.002, 0.006)),
    )[kind]
    return _blob(random, side, size, waves, ratio, center), edge


def _blob(
    random: np.random.Generator,
    side: int,
    size: float,
    waves: float,
    ratio: float,
    center: NDArray[np.float64],
) -> Mask:
    """size: radius as a share of the side. waves: how far the radius varies. ratio of the axes."""
    rows, columns = np.indices((side, side)) / side
    turned = np.exp(1j * random.uniform(0, np.pi)) * (rows - center[0] + 1j * (columns - center[1]))
    turned = turned.real / ratio + 1j * turned.imag
    angle = np.angle(turned)
    radius = np.ones((side, side))
    for frequency in (2, 3, 4, 5, 7):
        radius += waves * 0.5 * random.normal() * np.cos(frequency * angle + random.uniform(0, 7))
    return np.asarray(np.abs(turned) <= size * np.clip(radius, 0.45, 1.6))


def _colored(random: np.random.Generator, kind: int, mask: Mask, side: int) -> Plane:
    palette = (_BROWNS, _BROWNS, _WAXY)[kind]
    image = np.empty((side, side, 3))
    image[:] = np.array(palette[int(random.integers(len(palette)))]) + random.normal(0, 7, 3)
    patches = (int(random.integers(2)), int(random.integers(2, 5)), int(random.integers(2)))[kind]
    colors = _PATCHES if kind == 1 else palette
    for place in random.permutation(len(colors))[:patches]:
        where = _smooth(random, side, 0.07) > random.uniform(0.5, 1.0)
        weight = ndimage.gaussian_filter((where & mask).astype(np.float64), 0.01 * side)
        image += (np.array(colors[place]) - image) * weight[..., np.newaxis]
    return image


def _structures(random: np.random.Generator, kind: int, mask: Mask, side: int) -> Plane:
    """What is lighter or darker inside: a net, streaks and blotches, or light and dark dots."""
    rows, columns = np.indices((side, side)) / side
    strength = random.uniform(14, 34)
    if kind == 0:
        step, turn = random.uniform(0.05, 0.08), random.uniform(0, np.pi)
        first = rows * np.cos(turn) + columns * np.sin(turn)
        second = columns * np.cos(turn) - rows * np.sin(turn)
        lines = np.maximum(np.cos(2 * np.pi * first / step), np.cos(2 * np.pi * second / step))
        return np.asarray(-strength * np.maximum(lines, 0) ** 2)
    if kind == 1:
        return np.asarray(strength * _smooth(random, side, 0.035))
    dots = np.zeros((side, side))
    inside = np.argwhere(mask)
    for number in range(int(random.integers(8, 18))):
        row, column = inside[int(random.integers(len(inside)))] / side
        distance = ((rows - row) ** 2 + (columns - column) ** 2) / random.uniform(0.012, 0.02) ** 2
        dots += (2.2 if number % 3 else -2.2) * strength * np.exp(-distance)
    return dots


def _smooth(random: np.random.Generator, side: int, grain: float) -> Plane:
    """Smooth noise of standard deviation 1. grain: its size as a share of the side."""
    noise = ndimage.gaussian_filter(random.normal(size=(side, side)), grain * side, mode="wrap")
    return np.asarray(noise / noise.std())


def _camera(image: Plane, random: np.random.Generator) -> Pixels:
    noisy = image + random.normal(0, random.uniform(0.3, 2), image.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
