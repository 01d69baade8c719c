"""TileSlide: whole slides as certified tiles of tissue."""

from concurrent.futures import ThreadPoolExecutor
from typing import Final

from fluoro.v1.slide_pb2 import StainEstimate, TiledSlide, TileSlide, TileSlideResult, TissueTile
from fluoro_jobs.errors import Reason
from fluoro_jobs.worker.context import StepContext, StepItem
from fluoro_jobs.worker.handler import handles

from dicom_worker.slides.source import NoSlideError, open_slide
from dicom_worker.slides.tiling import THREADS, Tiling

TILE_SIZE: Final = 256
MIN_TISSUE: Final = 0.25
RGB: Final = "application/octet-stream"
SHARE_DECIMALS: Final = 6


@handles(TileSlide)
def tile_slide(request: TileSlide, context: StepContext) -> TileSlideResult:
    """Leaves `tiles-0000.rgb` for each input that is a slide with tissue."""
    result = TileSlideResult()
    for item in context.each("slides"):
        with item:
            try:
                slide = open_slide(item.fetch(), item.folder, request.microns_per_pixel)
            except NoSlideError as error:
                item.skip(Reason.NO_APPLICABLE_INPUT, f"{error}.")
                continue
            # 0 is a choice: every tile with some tissue.
            least = request.min_tissue if request.HasField("min_tissue") else MIN_TISSUE
            with ThreadPoolExecutor(THREADS) as pool:
                tiling = Tiling(slide, request.tile_size or TILE_SIZE, least, pool, context.check)
                # Straight into the store: all tiles together may be larger than the scratch disk.
                name = item.put("tiles", ".rgb", "tiles", RGB, tiling.kept())
            if tiling.tiles:
                result.slides.append(told(item, tiling, name))
            else:
                item.skip(Reason.NO_APPLICABLE_INPUT, "No tile of the slide has enough tissue.")
    return result


def told(item: StepItem, tiling: Tiling, name: str) -> TiledSlide:
    """The slide in the words of the API."""
    level = tiling.slide.level
    slide = TiledSlide(
        input=item.input,
        item=item.key,
        tiles_artifact=name,
        rows=level.rows,
        columns=level.columns,
        microns_per_pixel=level.micrometres,
        tile_size=tiling.size,
        tissue_share=round(tiling.tissue_share, SHARE_DECIMALS),
        decoder=tiling.slide.decoder,
        tiles=[
            TissueTile(
                row=tile.row,
                column=tile.column,
                tissue_share=round(tile.tissue, SHARE_DECIMALS),
                sha256=tile.sha256,
            )
            for tile in tiling.tiles
        ],
    )
    if stain := tiling.stain():
        slide.stain.CopyFrom(
            StainEstimate(
                hematoxylin=stain.hematoxylin,
                eosin=stain.eosin,
                hematoxylin_maximum=stain.maxima[0],
                eosin_maximum=stain.maxima[1],
            )
        )
    return slide
