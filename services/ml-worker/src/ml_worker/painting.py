"""Painted slides and photographs, to try Fluoro out: no real ones can be shipped.

`python -m ml_worker.painting slide|lesions|burns FOLDER` writes files into FOLDER.
"""

import sys
from pathlib import Path
from typing import Final

import numpy as np
import tifffile
from PIL import Image

from ml_worker.skin_phantoms import KINDS, burn, lesion, plain
from ml_worker.slide_phantoms import island, laboratory, slide

TILES: Final = 20
"""On each side of a slide, of 256 x 256 pixels."""
TILE: Final = 256
SIDE: Final = 480
"""Of a photograph, in pixels."""
BURNS: Final = 3
SEED: Final = 5


def paint_slide(folder: Path) -> None:
    """A tiled TIFF of half a micrometre per pixel."""
    random = np.random.default_rng(SEED)
    tifffile.imwrite(
        folder / "painted-slide.tif",
        slide(island(TILES, TILES), random, laboratory(random), TILE),
        shape=(TILES * TILE, TILES * TILE, 3),
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric="rgb",
        compression="jpeg",
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
    )


def paint_lesions(folder: Path) -> None:
    """A lesion of each kind, and bare skin."""
    random = np.random.default_rng(SEED)
    pictures = {name: lesion(random, kind, SIDE) for kind, name in enumerate(KINDS)}
    for name, picture in {**pictures, "skin": plain(random, SIDE)}.items():
        Image.fromarray(picture.pixels).save(folder / f"painted-{name}.png")


def paint_burns(folder: Path) -> None:
    """Some burns."""
    random = np.random.default_rng(SEED)
    for number in range(1, BURNS + 1):
        picture = burn(random, SIDE)
        Image.fromarray(picture.pixels).save(folder / f"painted-burn-{number}.png")


PAINTERS: Final = {"slide": paint_slide, "lesions": paint_lesions, "burns": paint_burns}

if __name__ == "__main__":
    PAINTERS[sys.argv[1]](Path(sys.argv[2]))
