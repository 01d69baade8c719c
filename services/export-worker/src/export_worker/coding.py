"""Codes of classes, as the manifests of models have them, for people."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final

from fluoro.v1 import classify_pb2, detect_pb2, ml_pb2, slide_pb2, visualize_pb2
from fluoro_jobs.worker.context import Upstream
from google.protobuf.message import Message

from export_worker.findings import named
from export_worker.images import model_of
from export_worker.wording import printable

LISTED: Final = 20
"""Most classes of a model whose codes are listed: a label map of a body has a hundred."""
CODE_CHARACTERS: Final = 120
"""Of a code with its scheme and meaning."""

Class = ml_pb2.Measurement | ml_pb2.ClassScore | detect_pb2.DetectedObject | slide_pb2.SlideClass


def codes_by_model(upstream: Sequence[Upstream]) -> dict[bytes, str]:
    """What is said of the codes of a model's classes that were found, by the model as bytes."""
    found: dict[bytes, dict[str, str]] = {}
    for step in upstream:
        for model, classes in _classes(step.result):
            told = found.setdefault(model.SerializeToString(deterministic=True), {})
            for one in classes:
                if one.codes and one.display_name not in told:
                    told[one.display_name] = _said(one)
    return {model: _listed([*told.values()]) for model, told in found.items()}


def _listed(told: Sequence[str]) -> str:
    more = ["…"] if len(told) > LISTED else []
    return "; ".join([*told[:LISTED], *more])


def _said(one: Class) -> str:
    """`melanoma = SCT 93655004 Malignant melanoma of skin`."""
    codes = (
        printable(f"{code.scheme} {code.value} {code.meaning}", CODE_CHARACTERS)
        for code in one.codes
    )
    return f"{named(one.display_name, one.label)} = {', '.join(codes)}"


def _classes(result: Message) -> Iterator[tuple[ml_pb2.ModelReference, Iterable[Class]]]:
    """The classes in a result, by model."""
    match result:
        case ml_pb2.AnalyzeImagesResult():
            for finding in result.findings:
                yield model_of(result, finding), [*finding.measurements, *finding.classes]
        case classify_pb2.ClassifyImagesResult():
            for frame in chain.from_iterable(image.frames for image in result.images):
                yield from ((opinion.model, opinion.classes) for opinion in frame.opinions)
        case detect_pb2.DetectObjectsResult():
            yield from ((result.model, image.objects) for image in result.images)
        case slide_pb2.AnalyzeSlideResult():
            yield from ((result.model, slide.classes) for slide in result.slides)
        case visualize_pb2.VisualizeImagesResult():
            yield result.model, [one.explained for one in result.maps]
