"""What operations beside AnalyzeImages tell about an image: heat maps, objects, images like it.

Of a slide, the tiles that stand out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fluoro.v1 import (
    classify_pb2,
    dermoscopy_pb2,
    detect_pb2,
    embedding_pb2,
    job_pb2,
    ml_pb2,
    slide_pb2,
    visualize_pb2,
)
from fluoro_jobs.worker.context import Upstream
from google.protobuf.message import Message

PICTURING: Final = (
    visualize_pb2.VisualizeImagesResult,
    detect_pb2.DetectObjectsResult,
    embedding_pb2.EmbedImagesResult,
    embedding_pb2.FindSimilarResult,
)
"""Results of these operations."""

TOLD: Final = (
    *PICTURING,
    classify_pb2.ClassifyImagesResult,
    dermoscopy_pb2.AssessDermoscopyResult,
)
"""These, and the ones that give verdicts."""


@dataclass(frozen=True, slots=True)
class Row:
    """A thing that is told of, and how sure, or how like, it is: -1 to 1.

    key: of another image. place: row and column of a tile, from 0. picture: of it, if there is one.
    """

    name: str
    value: float
    key: str = ""
    place: tuple[int, int] | None = None
    picture: job_pb2.Artifact | None = None


@dataclass(frozen=True, slots=True)
class Sight:
    """What one step tells about one image.

    key: of the image. kind: a key of the words. model: None if no model ran. frame: from 1; 0 of
    the image as a whole. picture: None if there is none. said: the class that it explains.
    """

    key: str
    kind: str
    model: ml_pb2.ModelReference | None
    picture: job_pb2.Artifact | None = None
    said: str = ""
    frame: int = 0
    rows: Sequence[Row] = ()


def sights_of(step: Upstream) -> Iterator[Sight]:
    """In the order of the result.

    KeyError if it names an artifact that its step did not leave, other than a tile's picture.
    """
    match step.result:
        case visualize_pb2.VisualizeImagesResult() as shown:
            for map_ in shown.maps:
                said = map_.explained.display_name or str(map_.explained.label)
                # KeyError here is a fault of the step: it told of a file that it did not leave.
                picture = step.artifact(map_.heat_map)
                yield Sight(_key(map_), "heat_map", shown.model, picture, said)
            for changed in shown.changed:
                picture = step.artifact(changed.before_after)
                yield Sight(_key(changed), "before_after", shown.model, picture)
        case detect_pb2.DetectObjectsResult() as detected:
            yield from _objects(step, detected)
        case embedding_pb2.FindSimilarResult() as similar:
            for found in similar.found:
                rows = [Row("", each.similarity, _key(each)) for each in found.neighbors]
                yield Sight(_key(found), "similar", None, frame=found.frame, rows=rows)
        case slide_pb2.AnalyzeSlideResult() as analyzed:
            yield from _top_tiles(step, analyzed)
        case dermoscopy_pb2.AssessDermoscopyResult() as assessed:
            for lesion in assessed.lesions:
                outlined = step.artifact(lesion.overlay) if lesion.overlay else None
                yield Sight(_key(lesion), "outline", lesion.model, outlined)


def _objects(step: Upstream, detected: detect_pb2.DetectObjectsResult) -> Iterator[Sight]:
    for image in detected.images:
        rows = [Row(each.display_name or str(each.label), each.score) for each in image.objects]
        seen = step.artifact(image.picture) if image.picture else None
        yield Sight(_key(image), "objects", detected.model, seen, rows=rows)


def _top_tiles(step: Upstream, analyzed: slide_pb2.AnalyzeSlideResult) -> Iterator[Sight]:
    """Where each class of a slide is most probable."""
    artifacts = {one.name: one for one in step.artifacts}
    for slide in analyzed.slides:
        for one in slide.classes:
            said = one.display_name or str(one.label)
            rows = [
                Row(
                    "",
                    tile.probability,
                    place=(tile.row, tile.column),
                    # A tile is told by its place, with or without a picture.
                    picture=artifacts.get(tile.picture),
                )
                for tile in one.top
            ]
            yield Sight(_key(slide), "top_tiles", analyzed.model, said=said, rows=rows)


def model_beside(result: Message) -> ml_pb2.ModelReference | None:
    """The one model of these results; None if it is another result, or no model ran."""
    # Its vectors were made in an earlier step, which tells of the model.
    if isinstance(result, PICTURING) and not isinstance(result, embedding_pb2.FindSimilarResult):
        return result.model
    return None


def _key(
    entry: visualize_pb2.SaliencyMap
    | visualize_pb2.ChangedImage
    | detect_pb2.DetectedImage
    | embedding_pb2.SimilarImages
    | embedding_pb2.Neighbor
    | dermoscopy_pb2.AssessedLesion
    | slide_pb2.AnalyzedSlide,
) -> str:
    return entry.item or str(entry.input)
