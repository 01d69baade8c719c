"""A lesion at the scale and in the colours that its features are measured in."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.measure import label, regionprops
from skimage.transform import resize

DIAMETER_PIXELS: Final = 320
"""Longest side of the lesion's box while it is measured: the features' widths below count these."""
MARGIN: Final = 0.25
"""Skin kept around the lesion, as a share of its longest side."""
MIN_PIXELS: Final = 32
"""Shortest allowed long side of a lesion's box in the original: less has no structure to see."""
MAX_PIXELS: Final = 100_000_000
"""Largest allowed image: rows times columns."""


class LesionRefusedError(ValueError):
    """Image and mask cannot be assessed; the text says why and holds no pixel values."""


@dataclass(frozen=True, slots=True)
class Lesion:
    """A lesion and the skin around it, scaled so that its box is DIAMETER_PIXELS long.

    lab: CIE L*a*b* under D65, float32, rows x columns x 3. mask: the lesion. skin: mean L*a*b* of
    the skin around it. center: row and column of its centre of mass. scale: pixels here for one
    pixel of the original. area_pixels, diameter_pixels: of the original; the diameter is Feret's
    largest.
    """

    lab: NDArray[np.float32]
    mask: NDArray[np.bool_]
    skin: NDArray[np.float32]
    center: tuple[float, float]
    scale: float
    area_pixels: int
    diameter_pixels: float


def prepare(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Lesion:
    """Cuts the largest region of the mask out, with its skin.

    image: sRGB, uint8, rows x columns x 3. mask: bool, rows x columns. Holes are filled.
    LesionRefusedError if they do not fit each other, or show no lesion with skin around it.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:  # noqa: PLR2004 - RGB
        raise LesionRefusedError("the image is not 8-bit RGB")
    if mask.shape != image.shape[:2]:
        raise LesionRefusedError("the mask has another shape than the image")
    if mask.size > MAX_PIXELS:
        raise LesionRefusedError(f"the image has more than {MAX_PIXELS:,} pixels")
    regions = regionprops(label(mask, connectivity=2))
    if not regions:
        raise LesionRefusedError("no lesion was found")
    # Of equal ones the first, so that the same mask gives the same lesion.
    region = max(regions, key=lambda one: (one.area, -one.label))
    top, left, bottom, right = region.bbox
    side = max(bottom - top, right - left)
    if side < MIN_PIXELS:
        raise LesionRefusedError(f"the lesion is less than {MIN_PIXELS} pixels long")
    # Hair and reflections tear holes into masks; no lesion has any.
    whole = ndimage.binary_fill_holes(region.image)
    margin = max(2, round(MARGIN * side))
    rows = slice(max(0, top - margin), min(mask.shape[0], bottom + margin))
    columns = slice(max(0, left - margin), min(mask.shape[1], right + margin))
    inside = np.zeros(mask.shape, np.bool_)
    inside[top:bottom, left:right] = whole
    scale = DIAMETER_PIXELS / side
    cut = inside[rows, columns]
    shape = tuple(max(1, round(length * scale)) for length in cut.shape)
    # Enlarging needs no smoothing, which would soften borders that are to be judged.
    smooth = scale < 1
    small = resize(image[rows, columns], shape, order=1, anti_aliasing=smooth)
    lesion = resize(cut.astype(np.float32), shape, order=1, anti_aliasing=smooth) >= 0.5  # noqa: PLR2004 - half of a pixel
    lab = rgb2lab(np.clip(small, 0, 1)).astype(np.float32)
    around = ~ndimage.binary_dilation(lesion, iterations=6)
    # Colours and borders are judged against the skin, so some of it is needed.
    if np.count_nonzero(around) < around.size // 50:
        raise LesionRefusedError("the image shows too little skin around the lesion")
    row, column = ndimage.center_of_mass(lesion)
    return Lesion(
        lab=lab,
        mask=lesion,
        # The median: hairs, bubbles and the black corners of a dermatoscope are few.
        skin=np.median(lab[around], axis=0).astype(np.float32),
        center=(float(row), float(column)),
        scale=scale,
        area_pixels=int(np.count_nonzero(whole)),
        diameter_pixels=float(region.feret_diameter_max),
    )
