"""AnalyzeSlide: shows the certified tiles of slides to a model that gives classes."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from fluoro.v1 import dicom_pb2, slide_pb2
from fluoro_jobs.errors import Reason
from fluoro_jobs.worker.ahead import made_ahead, read_ahead
from fluoro_jobs.worker.context import StepContext, StepItem
from fluoro_jobs.worker.handler import handles
from numpy.typing import NDArray

from ml_worker.classifying import probabilities
from ml_worker.images import Models, frames_input, wrong_kind
from ml_worker.manifest import Input
from ml_worker.novelty import UNLIKE, novel
from ml_worker.outputs import Classes
from ml_worker.pixels import not_certified
from ml_worker.prepare import NotForThisImageError, prepare
from ml_worker.showing import AHEAD, run_ahead, samples_at_once
from ml_worker.slide_map import Squares, colors_of, draw_slide_map, grey_of, side_of
from ml_worker.slides import (
    Some,
    Tables,
    check,
    colours_of,
    picture_of,
    stored_tiles,
    to_reference,
)

if TYPE_CHECKING:
    from ml_worker.sessions import Model

MODALITY: Final = "SM"
"""Slide Microscopy (PS3.3 C.7.3.1.1.1)."""
DEFAULT_TOP: Final = 5
PICTURES: Final = 12
"""Of tiles, that a slide leaves at most."""
RUNS_AT_ONCE: Final = 4
"""That are prepared together: the model need not wait for the threads that do it."""
NONE: Final = slide_pb2.STAIN_NORMALIZATION_NONE
MACENKO: Final = slide_pb2.STAIN_NORMALIZATION_MACENKO


@handles(slide_pb2.AnalyzeSlide)
def analyze_slide(
    request: slide_pb2.AnalyzeSlide, context: StepContext
) -> slide_pb2.AnalyzeSlideResult:
    """Runs a model of this process on every slide that an earlier step cut."""
    # ONNX Runtime takes half a second to import, and the table of handlers does not need it.
    from ml_worker.registry import models  # noqa: PLC0415 - see above

    return analyze(request, context, models())


def analyze(
    request: slide_pb2.AnalyzeSlide, context: StepContext, models: Models
) -> slide_pb2.AnalyzeSlideResult:
    """Runs one of these models on every slide, each as an item.

    FluoroError MODEL_UNKNOWN or MODEL_UNAVAILABLE if there is no such model, MODEL_NOT_APPLICABLE
    if it gives no classes, or is not made for slides.
    """
    model = models.find(request.model, request.version)
    tensor = suited_input(model)
    slides = {
        (step, slide.tiles_artifact): slide
        for step, result in context.results.items()
        if isinstance(result, slide_pb2.TileSlideResult)
        for slide in result.slides
    }
    result = slide_pb2.AnalyzeSlideResult(model=model.reference)
    for item in context.each("slides"):
        with item:
            part = item.part("tiles")
            if (slide := slides.get((part.step, part.name))) is None:
                raise not_certified("has no certificate")
            tables = None
            if request.stain_normalization != NONE:
                tables = to_reference(slide)
            try:
                seen = see(model, tensor, part.blob, slide, tables, context)
            except NotForThisImageError as error:
                name = model.manifest.name
                item.skip(
                    Reason.MODEL_NOT_APPLICABLE, f"{name} is not made for this slide: {error}."
                )
                continue
            analyzed = told(item, seen, request.top_tiles or DEFAULT_TOP)
            analyzed.stain_normalization = NONE if tables is None else MACENKO
            show_top(item, seen, analyzed, partial(context.piece, part.blob))
            result.slides.append(analyzed)
    return result


def suited_input(model: "Model") -> Input:
    """The input that takes tiles.

    FluoroError MODEL_NOT_APPLICABLE unless the model gives classes of colour images of slides.
    """
    tensor, applies_to = frames_input(model), model.manifest.applies_to
    if tensor is None or applies_to is None or "classes" not in model.manifest.kinds:
        raise wrong_kind(model, "AnalyzeSlide needs a model of single frames that gives classes.")
    takes_slides = not applies_to.modalities or MODALITY in applies_to.modalities
    if not takes_slides or applies_to.unit != "1" or "colour" not in applies_to.photometric:
        raise wrong_kind(model, "AnalyzeSlide needs one that is made for colour images of slides.")
    return tensor


def see(
    model: "Model",
    tensor: Input,
    blob: str,
    slide: slide_pb2.TiledSlide,
    tables: Tables | None,
    context: StepContext,
) -> "Seen":
    """All of a slide. NotForThisImageError if the model needs other slides."""
    parts = scored(model, tensor, blob, slide, tables, context)
    grey, scores = zip(*parts, strict=True)
    seen = Seen(model, slide, np.concatenate(grey), np.concatenate(scores))
    if seen.is_novel.all():
        raise NotForThisImageError(UNLIKE)
    return seen


def scored(
    model: "Model",
    tensor: Input,
    blob: str,
    slide: slide_pb2.TiledSlide,
    tables: Tables | None,
    context: StepContext,
) -> Iterator[tuple[Squares, NDArray[np.float64]]]:
    """Some tiles at a time, as the picture has them, and a probability for each and each label.

    Probabilities are not a number where a tile is unlike what the model was trained on.
    """
    size, output = slide.tile_size, model.manifest.output("classes")
    assert isinstance(output, Classes)  # the caller looked
    image = dicom_pb2.RenderedImage(
        modality=MODALITY,
        certificate=dicom_pb2.PixelCertificate(unit="1", bits_stored=8),
        pixel_spacing_mm=[slide.microns_per_pixel / 1000] * 2 if slide.microns_per_pixel else (),
    )
    at_once = RUNS_AT_ONCE * samples_at_once(model, tensor, (size, size), image)

    with ThreadPoolExecutor(1 + AHEAD) as pool:
        every = len(slide.tiles) * size**2
        colours = None if tables is None else colours_of(tables, every, pool)

        def ready(some: Some) -> tuple[Squares, NDArray[Any]]:
            check(some)
            _, pixels = some
            grey = grey_of(pixels, side_of(*grid_of(slide)))
            shown = pixels if colours is None else colours(pixels)
            return grey, prepare(shown, image, tensor)

        stored = read_ahead(pool, stored_tiles(blob, slide, at_once, context))
        chunks = made_ahead(pool, ready, stored, AHEAD)
        for grey, found in run_ahead(model, tensor, chunks, context):
            scores = probabilities(output, found["classes"])
            scores[novel(model, found)] = np.nan
            yield grey, scores


def grid_of(slide: slide_pb2.TiledSlide) -> tuple[int, int]:
    """Rows and columns of tiles."""
    return -(-slide.rows // slide.tile_size), -(-slide.columns // slide.tile_size)


@dataclass(frozen=True)
class Seen:
    """What was seen of a slide: each tile as the picture has it, and (tiles, labels) scores.

    Scores are not a number where a tile is unlike what the model was trained on.
    """

    model: "Model"
    slide: slide_pb2.TiledSlide
    grey: Squares
    scores: NDArray[np.float64]

    @property
    def is_novel(self) -> NDArray[np.bool_]:
        """Which tiles are. They have no class."""
        return np.asarray(np.isnan(self.scores).all(axis=1))


def told(item: StepItem, seen: Seen, top: int) -> slide_pb2.AnalyzedSlide:
    """The slide in the words of the API."""
    slide, scores, labels = seen.slide, seen.scores, seen.model.manifest.labels
    places, colors = [(tile.row, tile.column) for tile in slide.tiles], colors_of(labels)
    picture = draw_slide_map(grid_of(slide), places, seen.grey, scores, colors)
    array = BytesIO()
    np.save(array, scores.astype("<f4"))
    known = np.flatnonzero(~seen.is_novel)
    best = scores[known].argmax(axis=1)
    told = slide_pb2.AnalyzedSlide(
        input=item.input,
        item=item.key,
        heat_map=item.put("heat-map", ".png", "heat-map", "image/png", picture),
        scores=item.put(
            "tile-scores", ".npy", "tile-scores", "application/x-npy", array.getvalue()
        ),
        tiles=len(scores),
        tissue_share=slide.tissue_share,
        novel_tiles=len(scores) - len(known),
    )
    for place, label in enumerate(labels):
        mine = scores[known, place]
        count = int((best == place).sum())
        # Stable, so that equal scores keep the order of the tiles.
        first = np.argsort(-mine, kind="stable")[:top]
        told.classes.add(
            label=label.value,
            display_name=label.display_name,
            color=colors[place],
            tiles=count,
            share=count / len(scores),
            mean_probability=float(mine.mean()),
            codes=label.coded,
            top=[
                slide_pb2.TopTile(
                    row=slide.tiles[known[at]].row,
                    column=slide.tiles[known[at]].column,
                    probability=float(mine[at]),
                )
                for at in first
            ],
        )
    return told


def show_top(
    item: StepItem,
    seen: Seen,
    slide: slide_pb2.AnalyzedSlide,
    piece: Callable[[int, int], bytes],
) -> None:
    """Leaves pictures of the first tiles in `top` of each class. piece: of the tiles' blob."""
    numbers = {(tile.row, tile.column): at for at, tile in enumerate(seen.slide.tiles)}
    firsts = [
        (rank, place, numbers[top.row, top.column])
        for place, each in enumerate(slide.classes)
        for rank, top in enumerate(each.top)
    ]
    best = np.nan_to_num(seen.scores).argmax(axis=1)
    # The first of each class, then the second of each.
    own = sorted(one for one in firsts if best[one[2]] == one[1])
    for rank, place, number in own[:PICTURES]:
        slide.classes[place].top[rank].picture = item.put(
            f"top-tile-{place}-{rank}",
            ".jpg",
            "top-tile",
            "image/jpeg",
            picture_of(seen.slide, number, piece),
        )
