"""C: which of the rule's six colours a lesion shows."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import ndimage

from ml_worker.dermoscopy.lesion import Lesion

REFERENCES: Final = {
    "white": (92.0, 2.0, 4.0),
    "red": (50.0, 45.0, 25.0),
    "light brown": (60.0, 17.0, 32.0),
    "dark brown": (30.0, 15.0, 18.0),
    "blue-grey": (48.0, -2.0, -14.0),
    "black": (10.0, 1.0, 1.0),
}
"""CIE L*a*b* (D65) that stands for each colour. A point has the colour it is nearest to."""
MIN_FRACTION: Final = 0.03
"""Share of the lesion that a colour must cover to count."""
WHITER_THAN_SKIN: Final = 5.0
"""White counts only where L* exceeds that of the skin by this much, as the rule says."""


@dataclass(frozen=True, slots=True)
class Colors:
    """Share of the lesion per colour; what looks like the skin has none. score: 0 to 6."""

    fractions: dict[str, float]
    score: int

    @property
    def found(self) -> tuple[str, ...]:
        """The colours that count."""
        return tuple(name for name, share in self.fractions.items() if share >= MIN_FRACTION)


def colors(lesion: Lesion) -> Colors:
    """Gives each point of the lesion the nearest reference, or that of the skin."""
    # Smoothed, because noise would scatter one colour over several references.
    lab = np.stack(
        [ndimage.gaussian_filter(lesion.lab[..., band], 1.5) for band in range(3)], axis=-1
    )
    # Between lesion and skin lie mixtures of their colours, which nobody painted.
    core = ndimage.binary_erosion(lesion.mask, iterations=5)
    # A thin lesion has no core, and is judged by all of it.
    points = lab[core if core.any() else lesion.mask]
    references = np.array([lesion.skin, *REFERENCES.values()], np.float32)
    nearest = np.linalg.norm(points[:, None, :] - references[None], axis=-1).argmin(axis=1)
    white = 1 + list(REFERENCES).index("white")
    nearest[(nearest == white) & (points[:, 0] < lesion.skin[0] + WHITER_THAN_SKIN)] = 0
    counts = np.bincount(nearest, minlength=len(references))[1:]
    fractions = {
        name: float(count) / len(points) for name, count in zip(REFERENCES, counts, strict=True)
    }
    return Colors(fractions, sum(share >= MIN_FRACTION for share in fractions.values()))
