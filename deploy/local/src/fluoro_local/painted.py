"""A slide of painted tissue, for the demonstration: no real one can be shipped."""

from pathlib import Path
from typing import Final

import numpy as np
import tifffile
from ml_worker.slide_phantoms import island, laboratory, slide

TILES: Final = 20
"""On each side, of 256 x 256 pixels."""
TILE: Final = 256
SEED: Final = 5


def painted_slide(path: Path) -> Path:
    """Writes a tiled TIFF of half a micrometre per pixel to `path`, and returns that."""
    random = np.random.default_rng(SEED)
    tifffile.imwrite(
        path,
        slide(island(TILES, TILES), random, laboratory(random), TILE),
        shape=(TILES * TILE, TILES * TILE, 3),
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric="rgb",
        compression="jpeg",
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
    )
    return path
