"""Gathers per input what the earlier steps made of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, TypeVar

from fluoro.v1 import dicom_pb2, job_pb2, ml_pb2
from fluoro_jobs.worker.context import Upstream
from google.protobuf.message import Message

PICTURED: Final = 12
"""Images shown with pictures; more would make a book of it."""

Result = TypeVar("Result", bound=Message)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one model found in one image. overlay: None if the step left no picture of it."""

    model: ml_pb2.ModelReference
    measurements: Sequence[ml_pb2.Measurement]
    overlay: job_pb2.Artifact | None


@dataclass(slots=True)
class Image:
    """One input, as rendered and as analysed. Either may be missing."""

    input: int
    rendered: dicom_pb2.RenderedImage | None = None
    preview: job_pb2.Artifact | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def pictures(self) -> list[job_pb2.Artifact]:
        """The preview, then the overlays."""
        return [
            picture
            for picture in (self.preview, *(finding.overlay for finding in self.findings))
            if picture
        ]


def results(upstream: Sequence[Upstream], kind: type[Result]) -> Iterator[Result]:
    """The results of that kind, in the order of the steps."""
    return (step.result for step in upstream if isinstance(step.result, kind))


def images_of(upstream: Sequence[Upstream]) -> list[Image]:
    """Every input that was rendered or analysed, in input order.

    When two steps rendered it, the first one's preview counts.

    KeyError if a result names an artifact that its step did not leave.
    """
    images: dict[int, Image] = {}
    for step in upstream:
        if isinstance(step.result, dicom_pb2.RenderDicomResult):
            for rendered in step.result.images:
                image = images.setdefault(rendered.input, Image(rendered.input))
                if image.rendered is None:
                    image.rendered = rendered
                    image.preview = _artifact(step, rendered.preview)
        elif isinstance(step.result, ml_pb2.AnalyzeImagesResult):
            for found in step.result.findings:
                finding = Finding(
                    step.result.model, found.measurements, _artifact(step, found.overlay)
                )
                images.setdefault(found.input, Image(found.input)).findings.append(finding)
    return [images[number] for number in sorted(images)]


def pictured(images: Sequence[Image]) -> list[Image]:
    """Those shown with pictures."""
    return list(islice((image for image in images if image.pictures), PICTURED))


def _artifact(step: Upstream, name: str) -> job_pb2.Artifact | None:
    return step.artifact(name) if name else None
