"""Gathers per input what the earlier steps made of it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from fluoro.v1 import (
    classify_pb2,
    compare_pb2,
    dermoscopy_pb2,
    dicom_pb2,
    job_pb2,
    ml_pb2,
    photograph_pb2,
    slide_pb2,
)
from fluoro_jobs.worker.context import Upstream
from google.protobuf.message import Message

from export_worker.sights import Sight, model_beside, sights_of
from export_worker.verdicts import Scored, models_judging

PICTURED: Final = 12
"""Most images that are shown with pictures."""

DIGITS: Final = re.compile(r"(\d+)")

NO_CLASS: Final = -1
"""Label of the tiles of a slide that a model abstains from."""
NO_CLASS_NAME: Final = "no class: unlike the training data"
"""Its name for programs. Readers see it in the language of the report (`no_class`)."""

Result = TypeVar("Result", bound=Message)
Entry = (
    dicom_pb2.DicomInstance
    | dicom_pb2.RenderedImage
    | ml_pb2.ImageFinding
    | slide_pb2.AnalyzedSlide
    | slide_pb2.TiledSlide
    | classify_pb2.ClassifiedImage
    | dermoscopy_pb2.AssessedLesion
)
"""What a result says of one item."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one model found in one image. overlay: None if the step left no picture of it.

    step: the one that ran the model. of_tiles: whether measurements count tiles, not voxels.
    """

    step: str
    model: ml_pb2.ModelReference
    measurements: Sequence[ml_pb2.Measurement]
    classes: Sequence[ml_pb2.ClassScore]
    overlay: job_pb2.Artifact | None
    of_tiles: bool = False


@dataclass(slots=True)
class Image:
    """One input, as rendered and as analysed. Either may be missing.

    key: names it. in_volume: whether a model saw its series as one volume. tiled: of a slide.
    """

    key: str
    rendered: dicom_pb2.RenderedImage | None = None
    preview: job_pb2.Artifact | None = None
    thumbnail: job_pb2.Artifact | None = None
    findings: list[Finding] = field(default_factory=list)
    sights: list[Sight] = field(default_factory=list)
    judged: list[classify_pb2.ClassifiedFrame] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    in_volume: bool = False
    tiled: slide_pb2.TiledSlide | None = None

    @property
    def little(self) -> job_pb2.Artifact | None:
        """What shows it in little: a thumbnail, a preview, or an overlay."""
        return self.thumbnail or next(iter(self.pictures), None)

    @property
    def pictures(self) -> list[job_pb2.Artifact]:
        """The preview, then the overlays, then what other models show."""
        return [
            picture
            for picture in (
                self.preview,
                *(finding.overlay for finding in self.findings),
                *(sight.picture for sight in self.sights),
                *(row.picture for sight in self.sights for row in sight.rows),
            )
            if picture
        ]


def results(upstream: Sequence[Upstream], kind: type[Result]) -> Iterator[Result]:
    """The results of that kind, in the order of the steps."""
    return (step.result for step in upstream if isinstance(step.result, kind))


def model_of(
    result: ml_pb2.AnalyzeImagesResult, finding: ml_pb2.ImageFinding
) -> ml_pb2.ModelReference:
    """What found it. Workers of the first release named one model for all."""
    return finding.model if finding.HasField("model") else result.model


def models_of(result: ml_pb2.AnalyzeImagesResult) -> list[ml_pb2.ModelReference]:
    """Each model that ran, once: shares of a step may have met different versions."""
    # A step without findings still ran a model.
    ran = [model_of(result, finding) for finding in result.findings] or [result.model]
    return list({model.SerializeToString(deterministic=True): model for model in ran}.values())


def models_behind(result: Message) -> list[ml_pb2.ModelReference]:
    """The models that ran for it, whatever the operation."""
    if isinstance(result, ml_pb2.AnalyzeImagesResult):
        return models_of(result)
    if isinstance(result, slide_pb2.AnalyzeSlideResult):
        return [result.model]
    if isinstance(result, compare_pb2.CompareImagesResult):
        return [result.model] if result.HasField("model") else []
    model = model_beside(result)
    return models_judging(result) if model is None else [model]


def models_in(upstream: Sequence[Upstream]) -> Iterator[ml_pb2.ModelReference]:
    """Each model that ran in a step, by step."""
    for step in upstream:
        yield from models_behind(step.result)


def key_of(entry: Entry) -> str:
    """Which item it is about.

    Workers of the first release gave only the number of the job's input.
    """
    return entry.item or str(entry.input)


def key_of_item(item: job_pb2.Item) -> str:
    """As `key_of`."""
    return item.key or str(item.input)


def in_order(key: str) -> list[tuple[bool, int, str]]:
    """Sorts keys as people do: `9` before `10`, `series-2` before `series-10`, numbers first."""
    return [
        (False, int(text), "") if text.isdecimal() else (True, 0, text)
        for text in DIGITS.split(key)
        if text
    ]


def images_of(upstream: Sequence[Upstream]) -> list[Image]:
    """Every input that was rendered or analysed, in order of keys.

    When two steps rendered it, the first one's preview counts.

    KeyError if a result names an artifact that its step did not leave.
    """
    images: dict[str, Image] = {}
    for step in upstream:
        for rendered in rendered_by(step):
            image = images.setdefault(key_of(rendered), Image(key_of(rendered)))
            # Two steps may have rendered it. One preview is enough.
            if image.rendered is None:
                image.rendered = rendered
                image.preview = _artifact(step, rendered.preview)
                # Both of the first step that rendered it, so that thumbnail and preview show one
                # window.
                image.thumbnail = _artifact(step, rendered.thumbnail)
        if isinstance(step.result, ml_pb2.AnalyzeImagesResult):
            _add_findings(step, step.result, images)
        for sight in sights_of(step):
            images.setdefault(sight.key, Image(sight.key)).sights.append(sight)
        _judge(step, images)
        # A slide has tiles and no preview; its size stands in the heading.
        if isinstance(step.result, slide_pb2.TileSlideResult):
            for tiled in step.result.slides:
                images.setdefault(key_of(tiled), Image(key_of(tiled))).tiled = tiled
        if isinstance(step.result, slide_pb2.AnalyzeSlideResult):
            for slide in step.result.slides:
                image = images.setdefault(key_of(slide), Image(key_of(slide)))
                image.findings.append(_of_slide(step, slide, step.result.model))
    return [images[key] for key in sorted(images, key=in_order)]


def _add_findings(
    step: Upstream, result: ml_pb2.AnalyzeImagesResult, images: dict[str, Image]
) -> None:
    for found in result.findings:
        finding = Finding(
            step.step,
            model_of(result, found),
            found.measurements,
            found.classes,
            _artifact(step, found.overlay),
        )
        image = images.setdefault(key_of(found), Image(key_of(found)))
        image.findings.append(finding)
    for volume in result.volumes:
        for key in volume.items:
            images.setdefault(key, Image(key)).in_volume = True


def _judge(step: Upstream, images: dict[str, Image]) -> None:
    """Adds the verdicts of that step."""
    match step.result:
        case classify_pb2.ClassifyImagesResult() as asked:
            for classified in asked.images:
                key = key_of(classified)
                images.setdefault(key, Image(key)).judged.extend(classified.frames)
        case dermoscopy_pb2.AssessDermoscopyResult() as assessed:
            for lesion in assessed.lesions:
                key = key_of(lesion)
                images.setdefault(key, Image(key)).scored.append(Scored(lesion, assessed.rule))


def _of_slide(
    step: Upstream, slide: slide_pb2.AnalyzedSlide, model: ml_pb2.ModelReference
) -> Finding:
    """Its classes with their tiles, those without a class, and the heat map."""
    measurements = [
        ml_pb2.Measurement(
            label=each.label,
            display_name=each.display_name,
            color=each.color,
            voxels=each.tiles,
            fraction=each.share,
        )
        for each in slide.classes
    ]
    if slide.novel_tiles:
        # Listed with the classes, or their shares would not add up to the whole.
        measurements.append(
            ml_pb2.Measurement(
                label=NO_CLASS,
                display_name=NO_CLASS_NAME,
                voxels=slide.novel_tiles,
                fraction=slide.novel_tiles / slide.tiles,
            )
        )
    heat_map = _artifact(step, slide.heat_map)
    return Finding(step.step, model, measurements, (), heat_map, of_tiles=True)


def rendered_by(step: Upstream) -> Iterator[dicom_pb2.RenderedImage]:
    """The pictures that a step made: of DICOM, or of photographs."""
    if isinstance(step.result, dicom_pb2.RenderDicomResult):
        yield from step.result.images
    elif isinstance(step.result, photograph_pb2.ImportImagesResult):
        yield from (image.rendered for image in step.result.images)


def pictured(images: Sequence[Image]) -> list[Image]:
    """Those shown with pictures."""
    return first([image for image in images if image.pictures], PICTURED)


def first(images: Sequence[Image], most: int) -> list[Image]:
    """So many of them: the first ones; of slices of volumes, some from everywhere."""
    if len(images) <= most or not all(image.in_volume for image in images):
        return list(images[:most])
    # The middle of each of so many equal parts: the first slices alone would show one end of the
    # body.
    return [images[(2 * number + 1) * len(images) // (2 * most)] for number in range(most)]


def volumes_of(upstream: Sequence[Upstream]) -> list[Image]:
    """What models found in whole series: an image each, whose key is the first and the last."""
    return [
        Image(
            f"{volume.items[0]} … {volume.items[-1]}",
            findings=[
                Finding(step.step, model_of(step.result, found), volume.measurements, (), None)
            ],
        )
        for step in upstream
        if isinstance(step.result, ml_pb2.AnalyzeImagesResult)
        for volume in step.result.volumes
        # Only for its model: the message of a volume names none.
        for found in step.result.findings[:1]
    ]


def _artifact(step: Upstream, name: str) -> job_pb2.Artifact | None:
    return step.artifact(name) if name else None
