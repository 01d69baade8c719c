"""Painted lesions whose features are known, since no real dermoscopy image can be shipped."""

from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SKIN: Final = (224, 184, 160)
LIGHT_BROWN: Final = (176, 128, 88)
DARK_BROWN: Final = (92, 60, 44)
BLACK: Final = (28, 24, 26)
RED: Final = (190, 60, 66)
BLUE_GREY: Final = (98, 118, 142)
WHITE: Final = (245, 238, 232)

_LINE: Final = 3
_STREAK: Final = (6, 34)

Image = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Phantom:
    """A lesion on skin. image: float, side x side x 3, 0 to 255. mask: the lesion."""

    def __init__(self, side: int = 480, seed: int = 1) -> None:
        self.random = np.random.default_rng(seed)
        self.rows, self.columns = np.indices((side, side)).astype(np.float64)
        self.side = side
        self.image: Image = np.empty((side, side, 3))
        self.image[:] = SKIN
        self.mask: Mask = np.zeros((side, side), np.bool_)

    def ellipse(
        self, row: float = 0.5, column: float = 0.5, height: float = 0.3, width: float = 0.3
    ) -> Mask:
        """Shares of the side; height and width are radii."""
        return ((self.rows / self.side - row) / height) ** 2 + (
            (self.columns / self.side - column) / width
        ) ** 2 <= 1

    def lesion(self, where: Mask, color: tuple[int, int, int], blur: float = 0.0) -> Self:
        """Adds to the lesion. blur: sigma in pixels of its border."""
        self.mask |= where
        return self.paint(where, color, blur)

    def paint(self, where: Mask, color: tuple[int, int, int], blur: float = 0.0) -> Self:
        """Colours an area. blur: sigma in pixels of its edge."""
        weight = where.astype(np.float64)
        if blur:
            weight = ndimage.gaussian_filter(weight, blur)
        self.image = self.image * (1 - weight[..., None]) + np.array(color) * weight[..., None]
        return self

    def speckle(self, amount: float, grain: float = 2.0) -> Self:
        """Varies the lightness inside, so that no area is without structure."""
        noise = ndimage.gaussian_filter(self.random.normal(size=self.mask.shape), grain)
        noise *= amount / noise.std()
        self.image += noise[..., None] * self.mask[..., None]
        return self

    def spots(self, count: int, radius: float, color: tuple[int, int, int]) -> Self:
        """Round spots on a grid inside the lesion."""
        deep = ndimage.distance_transform_edt(self.mask) > 3 * radius + 12
        step = int(radius * 6 + 14)
        places = [
            (row, column)
            for row in range(step, self.side, step)
            for column in range(step, self.side, step)
            if deep[row, column]
        ]
        for row, column in self.random.permutation(places)[:count]:
            self.paint(np.hypot(self.rows - row, self.columns - column) <= radius, color, 0.7)
        return self

    def network(self, step: int = 16, color: tuple[int, int, int] = DARK_BROWN) -> Self:
        """A net of lines through the whole lesion."""
        lines = (self.rows % step < _LINE) | (self.columns % step < _LINE)
        return self.paint(lines & self.mask, color, 0.7)

    def streaks(self, count: int, color: tuple[int, int, int] = BLACK) -> Self:
        """Lines at the edge that point outwards."""
        center = self.side / 2
        depth = ndimage.distance_transform_edt(self.mask)
        direction = np.arctan2(self.rows - center, self.columns - center)
        radius = np.hypot(self.rows - center, self.columns - center)
        for index in range(count):
            angle = -np.pi + (index + 0.5) * 2 * np.pi / count
            across = np.abs(np.angle(np.exp(1j * (direction - angle)))) * radius
            self.paint(
                self.mask & (depth > _STREAK[0]) & (depth < _STREAK[1]) & (2 * across < _LINE + 1),
                color,
                0.7,
            )
        return self

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """With the noise of a camera."""
        noisy = self.image + self.random.normal(0, 1.0, self.image.shape)
        return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def round_lesion(color: tuple[int, int, int] = DARK_BROWN, blur: float = 0.0) -> Phantom:
    """A disc of one colour in the middle. blur: sigma in pixels of its edge."""
    phantom = Phantom()
    return phantom.lesion(phantom.ellipse(), color, blur)
