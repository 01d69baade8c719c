"""Which models a step names: for those who look whether a worker has them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from fluoro.v1 import (
    classify_pb2,
    compare_pb2,
    dermoscopy_pb2,
    detect_pb2,
    embedding_pb2,
    ml_pb2,
    slide_pb2,
    visualize_pb2,
)
from google.protobuf.message import DecodeError, Message

from fluoro_jobs.operations import BY_FIELD


class Named(NamedTuple):
    """A model by its id. version: empty for the newest."""

    name: str
    version: str

    def __str__(self) -> str:
        """Its resource name."""
        return f"models/{self.name}" + (f"/versions/{self.version}" if self.version else "")


NAMING: Final[Mapping[type[Message], Callable[[Any], Sequence[Named]]]] = {
    request: lambda request: [Named(request.model, request.version)] if request.model else []
    for request in (
        ml_pb2.AnalyzeImages,
        embedding_pb2.EmbedImages,
        visualize_pb2.VisualizeImages,
        detect_pb2.DetectObjects,
        compare_pb2.CompareImages,
        slide_pb2.AnalyzeSlide,
    )
} | {
    classify_pb2.ClassifyImages: lambda request: [
        Named(each.model, each.version) for each in request.models
    ],
    dermoscopy_pb2.AssessDermoscopy: lambda request: [
        Named(request.outline.model, request.outline.version)
    ],
}
"""Requests of operations that need models, and how they name them."""
FIELDS: Final = tuple(field for field, one in BY_FIELD.items() if one.request in NAMING)
"""Fields of the oneof `fluoro.v1.Step.operation` whose messages name models."""


def models_of(request: Message) -> Sequence[Named]:
    """The models that a step needs."""
    naming = NAMING.get(type(request))
    return naming(request) if naming else ()


def models_of_step(field: str, data: bytes) -> Sequence[Named]:
    """The same, of a step as the ledger has it. None of what this release cannot read."""
    operation = BY_FIELD.get(field)
    if operation is None or operation.request not in NAMING:
        return ()
    try:
        return models_of(operation.request.FromString(data))
    except DecodeError:
        return ()
