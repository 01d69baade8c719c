"""What operations beside AnalyzeImages found, as Observations of FHIR R4."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fluoro.v1 import classify_pb2, compare_pb2, dermoscopy_pb2, detect_pb2, ml_pb2, slide_pb2
from google.protobuf.message import Message

from export_worker.wording import printable

UCUM: Final = "http://unitsofmeasure.org"
NAME_CHARACTERS: Final = 64

NO_CLASS: Final = {
    classify_pb2.ClassifiedFrame.VERDICT_OUT_OF_DISTRIBUTION: "A model has not seen the like.",
    classify_pb2.ClassifiedFrame.VERDICT_MODELS_DISAGREE: "The models disagree.",
    classify_pb2.ClassifiedFrame.VERDICT_UNCERTAIN: "The models are too uncertain.",
}
"""Why an image has no class, which is neither benign nor malignant."""
RULED: Final = {
    dermoscopy_pb2.AssessedLesion.VERDICT_BENIGN: "Below the threshold for suspicion.",
    dermoscopy_pb2.AssessedLesion.VERDICT_SUSPICIOUS: "Suspicious.",
    dermoscopy_pb2.AssessedLesion.VERDICT_HIGHLY_SUSPICIOUS: "Highly suspicious.",
}
"""What the ABCD rule says of a lesion."""


@dataclass(frozen=True, slots=True)
class Told:
    """One Observation.

    item: key of the image. part: tells it from others of the image. models: that it rests on.
    value: value or dataAbsentReason, if there is one for the whole. members: parts of the
    Observations of the same image that it is derived from.
    """

    item: str
    part: tuple[object, ...]
    models: list[ml_pb2.ModelReference]
    code: str
    components: list[Mapping[str, Any]]
    value: Mapping[str, Any] = field(default_factory=dict)
    members: list[tuple[object, ...]] = field(default_factory=list)


def quantity(value: float, unit: str, code: str) -> dict[str, Any]:
    """ValueQuantity. unit, code: empty if the unit is not known."""
    coding = {"unit": unit, "system": UCUM, "code": code} if code else {}
    return {"valueQuantity": {"value": value, **coding}}


def told_of(result: Message) -> Iterator[Told]:
    """Of each image in the order of the result; nothing of other results."""
    match result:
        case classify_pb2.ClassifyImagesResult():
            for image in result.images:
                for frame in image.frames:
                    yield from _of_frame(_key(image), frame)
        case dermoscopy_pb2.AssessDermoscopyResult():
            yield from map(_of_lesion, result.lesions)
        case detect_pb2.DetectObjectsResult():
            yield from (_of_objects(one, result.model) for one in result.images)
        case slide_pb2.AnalyzeSlideResult():
            yield from (_of_slide(one, result.model) for one in result.slides)
        case compare_pb2.CompareImagesResult():
            yield from (
                _of_likeness(one, result.model)
                for one in result.images
                if one.HasField("similarity") and math.isfinite(one.similarity)
            )


def _of_likeness(compared: compare_pb2.ComparedImage, model: ml_pb2.ModelReference) -> Told:
    components = [component("Cosine similarity", compared.similarity)]
    return Told(_key(compared), ("likeness",), [model], "Likeness to the reference", components)


def _of_frame(item: str, frame: classify_pb2.ClassifiedFrame) -> Iterator[Told]:
    """What models together say, then what each says."""
    if frame.verdict == classify_pb2.ClassifiedFrame.VERDICT_CLASSIFIED:
        value = {"valueCodeableConcept": {"text": named(frame.display_name, frame.label)}}
    else:
        value = {"dataAbsentReason": {"text": NO_CLASS.get(frame.verdict, "Not known.")}}
    components = [
        component("Mean probability", frame.mean_probability),
        component("Share of models that agree", frame.agreement),
    ]
    models = [opinion.model for opinion in frame.opinions]
    code = "Class of the image by several models"
    parts: list[tuple[object, ...]] = [("opinion", frame.frame, n) for n in range(len(models))]
    yield Told(item, ("verdict", frame.frame), models, code, finite(components), value, parts)
    for part, opinion in zip(parts, frame.opinions, strict=True):
        components = [
            component(named(score.display_name, score.label), score.probability)
            for score in opinion.classes
        ]
        if opinion.HasField("novelty"):
            components.append(component("Novelty", opinion.novelty))
        calibrated = "calibrated" if opinion.calibrated else "not calibrated"
        code = f"Classes of the image and their probabilities, {calibrated}"
        yield Told(item, part, [opinion.model], code, finite(components))


def _of_lesion(lesion: dermoscopy_pb2.AssessedLesion) -> Told:
    components = [
        component("Asymmetric axes", lesion.asymmetry),
        component("Segments of the border that end abruptly", lesion.border),
        component("Colours", len(lesion.colors)),
        component("Structures", len(lesion.structures)),
        component("Total dermatoscopy score", lesion.total),
        component("Share of the image", 100 * lesion.fraction, "%"),
    ]
    if lesion.HasField("diameter_mm"):
        components.append(component("Largest diameter", lesion.diameter_mm, "mm"))
    if lesion.HasField("area_mm2"):
        components.append(component("Area", lesion.area_mm2, "mm2"))
    value = {"valueCodeableConcept": {"text": RULED.get(lesion.verdict, "Not known.")}}
    code = "Lesion by the ABCD rule of dermatoscopy"
    item = _key(lesion)
    return Told(item, ("lesion",), [lesion.model], code, finite(components), value)


def _of_objects(detected: detect_pb2.DetectedImage, model: ml_pb2.ModelReference) -> Told:
    """Each with its score."""
    components = [
        component(named(one.display_name, one.label), one.score) for one in detected.objects
    ]
    value = {"valueInteger": len(detected.objects)}
    item = _key(detected)
    return Told(item, ("objects",), [model], "Objects found", finite(components), value)


def _of_slide(slide: slide_pb2.AnalyzedSlide, model: ml_pb2.ModelReference) -> Told:
    components = [
        component(named(one.display_name, one.label), 100 * one.share, "%") for one in slide.classes
    ]
    code = "Shares of the slide's tiles by class"
    return Told(_key(slide), ("slide",), [model], code, finite(components))


def _key(entry: Any) -> str:
    return str(entry.item or entry.input)


def named(display_name: str, label: int) -> str:
    """Name of a class; its number if it has none that can be read."""
    return printable(display_name, NAME_CHARACTERS) or str(label)


def component(name: str, value: float, unit: str = "1") -> Mapping[str, Any]:
    """A part of an Observation. unit: as in UCUM; empty if it is not known."""
    return {"code": {"text": name}, **quantity(value, unit, unit)}


def finite(components: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that JSON can write."""
    return [one for one in components if math.isfinite(one["valueQuantity"]["value"])]
