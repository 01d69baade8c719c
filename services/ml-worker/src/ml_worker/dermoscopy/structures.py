"""D: which of the rule's five differential structures a lesion shows."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import blob_log
from skimage.filters import sato
from skimage.measure import label, regionprops

from ml_worker.dermoscopy.lesion import Lesion

MIN_STRUCTURELESS: Final = 0.10
"""Share of the lesion without structure from which structureless areas count."""
SMOOTH_DEVIATION: Final = 1.2
"""Largest standard deviation of L* within 13 pixels that has no structure."""
MIN_SPOTS: Final = 3
"""Dots and globules count from three on."""
DOT_RADII: Final = (2.0, 4.0)
GLOBULE_RADII: Final = (5.0, 11.0)
"""Radii in pixels of a lesion that is 320 long: a globule is over 0.1 mm, a dot below."""
SPOT_CONTRAST: Final = 6.0
"""Least darkness (L*) of a dot or globule against what is around it."""
SPOT_DISTINCTION: Final = 4.0
"""How often the lesion's typical darkness of detail a spot must be."""
MIN_MESHES: Final = 12
"""Closed meshes from which dark lines are a pigment network."""
MIN_STREAKS: Final = 3
"""Radial lines at the edge from which streaks count."""
_EDGE: Final = 36
_STREAK_LENGTH: Final = 10
_HAT: Final = 29
_LINE: Final = 2.5
"""Least response of the line filter (L* x pixels) that is a line."""


@dataclass(frozen=True, slots=True)
class Structures:
    """What was counted for each structure, and which count. score: 0 to 5."""

    structureless_fraction: float
    dots: int
    globules: int
    network_meshes: int
    streaks: int

    @property
    def found(self) -> tuple[str, ...]:
        """The structures that count."""
        counts = {
            "structureless areas": self.structureless_fraction >= MIN_STRUCTURELESS,
            "dots": self.dots >= MIN_SPOTS,
            "globules": self.globules >= MIN_SPOTS,
            "pigment network": self.network_meshes >= MIN_MESHES,
            "branched streaks": self.streaks >= MIN_STREAKS,
        }
        return tuple(name for name, there in counts.items() if there)

    @property
    def score(self) -> int:
        """How many count."""
        return len(self.found)


def structures(lesion: Lesion) -> Structures:
    """Counts spots, meshes and streaks in the lightness of a lesion."""
    lightness = ndimage.gaussian_filter(lesion.lab[..., 0], 1.0)
    depth = ndimage.distance_transform_edt(lesion.mask)
    # The outermost pixels are the border's own gradient.
    core = depth > 8  # noqa: PLR2004 - see above
    lines = _lines(lightness, lesion)
    meshes = _meshes(lines & core)
    dots, globules = _spots(lightness, core, lines)
    return Structures(
        structureless_fraction=_smooth(lightness, core),
        dots=dots,
        globules=globules,
        network_meshes=meshes,
        streaks=_streaks(lines & (depth > 3) & (depth <= _EDGE), lesion.center),  # noqa: PLR2004 - see above
    )


def _smooth(lightness: NDArray[np.float32], core: NDArray[np.bool_]) -> float:
    """Share of the core whose lightness hardly varies."""
    if not core.any():
        return 0.0
    mean = ndimage.uniform_filter(lightness.astype(np.float64), 13)
    square = ndimage.uniform_filter(lightness.astype(np.float64) ** 2, 13)
    # Rounding may leave a little less than 0, of which the root is NaN.
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    return float((deviation[core] <= SMOOTH_DEVIATION).mean())


def _lines(lightness: NDArray[np.float32], lesion: Lesion) -> NDArray[np.bool_]:
    """Where dark lines run, some 2 to 6 pixels wide."""
    # Skin is lighter than a lesion: without it, the edge itself would be a line.
    level = np.where(lesion.mask, lightness, np.median(lightness[lesion.mask]))
    response = sato(level, sigmas=(1.5, 2.5), black_ridges=True)
    found: NDArray[np.bool_] = (response >= _LINE) & lesion.mask
    return found


def _meshes(lines: NDArray[np.bool_]) -> int:
    """How many small areas lines enclose on all sides."""
    # A gap of a pixel or two would open a mesh that everybody sees as closed.
    closed = ndimage.binary_closing(lines, iterations=1)
    holes = label(ndimage.binary_fill_holes(closed) & ~closed, connectivity=1)
    return int(sum(8 <= region.area <= 900 for region in regionprops(holes)))  # noqa: PLR2004 - 3 to 34 pixels across


def _spots(
    lightness: NDArray[np.float32], core: NDArray[np.bool_], lines: NDArray[np.bool_]
) -> tuple[int, int]:
    """How many dots and how many globules."""
    darkness = ndimage.black_tophat(lightness, size=_HAT)
    typical = np.median(darkness[core]) if core.any() else 0.0
    # In a speckled lesion every grain is a little dark: only what stands out is a spot.
    least = max(SPOT_CONTRAST, SPOT_DISTINCTION * float(typical))
    blobs = blob_log(
        darkness / 100,
        min_sigma=DOT_RADII[0] / np.sqrt(2),
        max_sigma=GLOBULE_RADII[1] / np.sqrt(2),
        num_sigma=8,
        threshold=least / 100 / 3,
        overlap=0.3,
    )
    dots = globules = 0
    for row, column, sigma in blobs:
        at = (int(row), int(column))
        radius = sigma * np.sqrt(2)
        # blob_log goes by shape as well: a faint place of the right size may pass its threshold.
        if not core[at] or darkness[at] < least or _on_line(lines, at, radius):
            continue
        dots += radius < GLOBULE_RADII[0]
        globules += radius >= GLOBULE_RADII[0]
    return int(dots), int(globules)


def _on_line(lines: NDArray[np.bool_], at: tuple[int, int], radius: float) -> bool:
    """Whether lines lead away from a spot: then it is a knot of a network, or part of a streak."""
    reach = int(np.ceil(radius * 2.5)) + 2
    window = lines[
        max(0, at[0] - reach) : at[0] + reach + 1, max(0, at[1] - reach) : at[1] + reach + 1
    ]
    rows, columns = np.indices(window.shape)
    centre = (min(at[0], reach), min(at[1], reach))
    ring = np.hypot(rows - centre[0], columns - centre[1])
    return bool(window[(ring > reach - 1.5) & (ring <= reach)].any())


def _streaks(lines: NDArray[np.bool_], center: tuple[float, float]) -> int:
    """How many lines near the edge point outwards."""
    count = 0
    for region in regionprops(label(lines, connectivity=2)):
        if region.axis_major_length < _STREAK_LENGTH:
            continue
        if region.axis_minor_length * 2.5 > region.axis_major_length:
            continue
        row, column = region.centroid
        outwards = np.array([row - center[0], column - center[1]])
        along = np.array([np.cos(region.orientation), np.sin(region.orientation)])
        # A line has no direction of its own, so the sign says nothing.
        cosine = abs(float(outwards @ along)) / max(1e-6, float(np.linalg.norm(outwards)))
        count += int(cosine > 0.85)  # noqa: PLR2004 - within some 30 degrees
    return count
