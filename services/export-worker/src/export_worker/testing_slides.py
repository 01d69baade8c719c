"""For tests and samples: what steps would have left of a slide."""

from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
from fluoro.v1 import slide_pb2
from fluoro_jobs.testing import step_context
from fluoro_jobs.worker.context import Upstream
from PIL import Image

from export_worker.testing import copied_model, png

TISSUES: Final = (
    ("fibres", "#56b4e9"),
    ("scattered nuclei", "#e69f00"),
    ("crowded nuclei", "#d55e00"),
)
"""Of a model for tiles: names and colours, by value."""
PICTURES: Final = 4
"""Of the most probable tiles of each."""


def top_tile(label: int, rank: int) -> bytes:
    """A picture of a tile: the more crowded, the more dots."""
    random = np.random.default_rng(10 * label + rank)
    tile = np.full((256, 256, 3), (222, 158, 190), np.uint8)
    rows, columns = np.indices(tile.shape[:2])
    for row, column in random.uniform(0, 256, (10 + 45 * label, 2)):
        tile[np.hypot(rows - row, columns - column) < 4 + 2 * label] = (96, 62, 140)
    buffer = BytesIO()
    Image.fromarray(tile).save(buffer, "JPEG")
    return buffer.getvalue()


def slides(folder: Path) -> list[Upstream]:
    """A slide as TileSlide and AnalyzeSlide leave it: a few of its tiles have no class."""
    tiling = step_context(folder, [b"slide"], step="tile")
    for item in tiling.context.each("tile"):
        with item:
            item.put("tiles", ".rgb", "tiles", "application/octet-stream", b"")
    tiled = slide_pb2.TiledSlide(
        item="0", rows=4096, columns=6144, microns_per_pixel=0.5, tile_size=256, tissue_share=0.42
    )
    attempt = step_context(folder, [b"slide"], step="score")
    place = np.indices((16, 24))
    kinds = (np.hypot(*(place - np.array([8, 12])[:, None, None])) / 2.5).astype(int)
    colors = [[int(color[at : at + 2], 16) for at in (1, 3, 5)] for _, color in TISSUES]
    drawn = np.array([*colors[::-1], [255] * 3], np.uint8)[np.minimum(kinds, len(TISSUES))]
    counts = [int((kinds == len(TISSUES) - 1 - place).sum()) for place in range(len(TISSUES))]
    total, novel = sum(counts), 6
    told = slide_pb2.AnalyzedSlide(item="0", tiles=total, tissue_share=0.42, novel_tiles=novel)
    for item in attempt.context.each("slides"):
        with item:
            picture = png(drawn.repeat(40, axis=0).repeat(40, axis=1))
            told.heat_map = item.put("heat-map", ".png", "heat-map", "image/png", picture)
            for label, rank in product(range(len(TISSUES)), range(PICTURES)):
                name = f"top-tile-{label}-{rank}"
                item.put(name, ".jpg", "top-tile", "image/jpeg", top_tile(label, rank))
    counts[0] -= novel
    for label, ((name, color), count) in enumerate(zip(TISSUES, counts, strict=True)):
        one = told.classes.add(label=label, display_name=name, color=color, tiles=count)
        one.share, one.mean_probability = count / total, 0.9 * count / (total - novel)
        for rank in range(5):
            one.top.add(row=5 + rank, column=9 + label, probability=0.97 - rank / 50)
            if rank < PICTURES:
                one.top[rank].picture = f"top-tile-{label}-{rank}-0000.jpg"
    model = copied_model()
    model.name = "he-texture"
    return [
        tiling.as_upstream(slide_pb2.TileSlideResult(slides=[tiled])),
        attempt.as_upstream(slide_pb2.AnalyzeSlideResult(model=model, slides=[told])),
    ]
