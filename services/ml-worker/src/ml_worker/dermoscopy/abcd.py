"""The whole assessment: four scores, their evidence, and the total dermatoscopy score."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml_worker.dermoscopy.colors import Colors, colors
from ml_worker.dermoscopy.lesion import prepare
from ml_worker.dermoscopy.rule import NACHBAR_1994, Rule, Verdict
from ml_worker.dermoscopy.shape import Asymmetry, Border, asymmetry, border
from ml_worker.dermoscopy.structures import Structures, structures


@dataclass(frozen=True, slots=True)
class Assessment:
    """What the ABCD rule says of a lesion.

    diameter_mm, area_mm2: of the lesion; None without a scale.
    """

    asymmetry: Asymmetry
    border: Border
    colors: Colors
    structures: Structures
    diameter_mm: float | None
    area_mm2: float | None
    total: float
    verdict: Verdict
    rule: Rule


def assess(
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    mm_per_pixel: float | None = None,
    rule: Rule = NACHBAR_1994,
) -> Assessment:
    """Scores a lesion by the ABCD rule.

    image: sRGB, uint8, rows x columns x 3. mask: bool, rows x columns; its largest region is the
    lesion. mm_per_pixel: side of a pixel in millimetres, positive, if known. Raises
    LesionRefusedError for what cannot be scored.
    """
    # Once for all four scores: their widths count pixels of this scale.
    lesion = prepare(image, mask)
    a, b, c, d = asymmetry(lesion), border(lesion), colors(lesion), structures(lesion)
    total = rule.total(a.score, b.score, c.score, d.score)
    return Assessment(
        asymmetry=a,
        border=b,
        colors=c,
        structures=d,
        diameter_mm=None if mm_per_pixel is None else lesion.diameter_pixels * mm_per_pixel,
        area_mm2=None if mm_per_pixel is None else lesion.area_pixels * mm_per_pixel**2,
        total=total,
        verdict=rule.verdict(total),
        rule=rule,
    )
