"""What models found beside label maps: one statement each, for FHIR and for DICOM."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, groupby
from operator import attrgetter
from typing import Any, Final, NamedTuple

from fluoro.v1 import classify_pb2, compare_pb2, dermoscopy_pb2, detect_pb2, ml_pb2, slide_pb2
from google.protobuf.message import Message

from export_worker.wording import printable

NAME_CHARACTERS: Final = 64

NO_CLASS: Final = {
    classify_pb2.ClassifiedFrame.VERDICT_OUT_OF_DISTRIBUTION: "A model has not seen the like.",
    classify_pb2.ClassifiedFrame.VERDICT_MODELS_DISAGREE: "The models disagree.",
    classify_pb2.ClassifiedFrame.VERDICT_UNCERTAIN: "The models are too uncertain.",
}
"""Why an image has no class, which is neither benign nor malignant."""
UNKNOWN: Final = "Not known."
RULED: Final = {
    dermoscopy_pb2.AssessedLesion.VERDICT_BENIGN: "Below the threshold for suspicion.",
    dermoscopy_pb2.AssessedLesion.VERDICT_SUSPICIOUS: "Suspicious.",
    dermoscopy_pb2.AssessedLesion.VERDICT_HIGHLY_SUSPICIOUS: "Highly suspicious.",
}
"""What the ABCD rule says of a lesion."""


class Coding(NamedTuple):
    """What a class is called elsewhere, as `fluoro.v1.Code`."""

    value: str
    scheme: str
    meaning: str


class Class(NamedTuple):
    """A class of a model. codes: of the model's manifest."""

    name: str
    label: int
    codes: tuple[Coding, ...] = ()

    @property
    def text(self) -> str:
        """Its name; its number if it has none that can be read."""
        return named(self.name, self.label)


class Box(NamedTuple):
    """Where an object is, in pixels of the image. frame: from 1."""

    frame: int
    left: float
    top: float
    width: float
    height: float


class Landmark(NamedTuple):
    """A point of an object, in pixels of the image."""

    name: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure. unit: as in UCUM. of: the class that it is about.

    box, landmarks: of the object. Landmarks are finite and have names.
    """

    name: str
    value: float
    unit: str = "1"
    of: Class | None = None
    box: Box | None = None
    landmarks: tuple[Landmark, ...] = ()


@dataclass(frozen=True, slots=True)
class Said:
    """What it comes to: a class, a word, or why there is none (absent)."""

    text: str
    of: Class | None = None
    absent: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """One statement about an image.

    item: key of the image. part: tells it from others of the image. models: that it rests on.
    name: what it is. said: of the whole, if anything. members: parts of those of the same image
    that it is derived from. frame: from 1; 0 means all. qualities: kind and name of what was seen.
    note: for readers. reference: key of the image that this one is compared with. count: of
    objects.
    """

    item: str
    part: tuple[object, ...]
    models: list[ml_pb2.ModelReference]
    name: str
    measures: list[Measure]
    said: Said | None = None
    members: list[tuple[object, ...]] = field(default_factory=list)
    frame: int = 0
    qualities: list[tuple[str, str]] = field(default_factory=list)
    note: str = ""
    reference: str = ""
    count: int | None = None

    @property
    def known(self) -> list[Measure]:
        """The figures that are numbers."""
        return [
            one
            for one in self.measures
            if math.isfinite(one.value) and all(map(math.isfinite, one.box or ()))
        ]

    @property
    def about(self) -> Iterator[Class]:
        """The classes that it names."""
        if self.said and self.said.of:
            yield self.said.of
        yield from (one.of for one in self.measures if one.of)

    @property
    def content(self) -> str:
        """All of it but the models."""
        whole = (self.item, self.part, self.name, self.measures, self.said, self.frame)
        return repr((*whole, self.qualities, self.note, self.reference, self.count))


def told_of(result: Message) -> Iterator[Told]:
    """Of each image in the order of the result; nothing of other results."""
    match result:
        case ml_pb2.AnalyzeImagesResult():
            yield from chain.from_iterable(
                _of_classes(one, result.model) for one in result.findings
            )
        case classify_pb2.ClassifyImagesResult():
            yield from chain.from_iterable(map(_of_frames, result.images))
        case dermoscopy_pb2.AssessDermoscopyResult():
            yield from (_of_lesion(one, result.rule) for one in result.lesions)
        case detect_pb2.DetectObjectsResult():
            yield from (_of_objects(one, result.model) for one in result.images)
        case slide_pb2.AnalyzeSlideResult():
            yield from chain.from_iterable(_of_slide(one, result.model) for one in result.slides)
        case compare_pb2.CompareImagesResult():
            yield from (
                _of_likeness(one, _key(result.images[0]), result.model)
                for one in result.images
                # The reference itself has no likeness to itself.
                if one.HasField("similarity") and math.isfinite(one.similarity)
            )


by_frame: Final = attrgetter("frame")


def _of_classes(finding: ml_pb2.ImageFinding, model: ml_pb2.ModelReference) -> Iterator[Told]:
    """Of each frame that a model classified. model: that of findings that name none."""
    # groupby joins neighbours alone.
    for frame, scores in groupby(sorted(finding.classes, key=by_frame), by_frame):
        told = Told(
            _key(finding),
            ("classes", frame),
            [finding.model if finding.HasField("model") else model],
            "Classes of the image and their probabilities",
            _probabilities(scores),
            frame=frame,
        )
        # Probabilities that are all no numbers make no statement.
        if told.known:
            yield told


def _of_likeness(
    compared: compare_pb2.ComparedImage, reference: str, model: ml_pb2.ModelReference
) -> Told:
    return Told(
        _key(compared),
        ("likeness",),
        [model],
        "Likeness to the reference",
        [Measure("Cosine similarity", compared.similarity)],
        reference=reference,
    )


def _of_frames(image: classify_pb2.ClassifiedImage) -> Iterator[Told]:
    for frame in image.frames:
        yield from _of_frame(_key(image), frame)


def _of_frame(item: str, frame: classify_pb2.ClassifiedFrame) -> Iterator[Told]:
    """What models together say, then what each says."""
    if frame.verdict == classify_pb2.ClassifiedFrame.VERDICT_CLASSIFIED:
        of = class_of(frame)
        said = Said(of.text, of)
    else:
        # A newer worker may give a verdict that this one does not know: that is no class either.
        said = Said(NO_CLASS.get(frame.verdict, UNKNOWN), absent=True)
    # By place, because two opinions may be of one model.
    parts: list[tuple[object, ...]] = [
        ("opinion", frame.frame, n) for n in range(len(frame.opinions))
    ]
    yield Told(
        item,
        ("verdict", frame.frame),
        [opinion.model for opinion in frame.opinions],
        "Class of the image by several models",
        [
            Measure("Mean probability", frame.mean_probability),
            Measure("Share of models that agree", frame.agreement),
        ],
        said,
        parts,
        frame.frame,
    )
    for part, opinion in zip(parts, frame.opinions, strict=True):
        measures = _probabilities(opinion.classes)
        if opinion.HasField("novelty"):
            measures.append(Measure("Novelty", opinion.novelty))
        calibrated = "calibrated" if opinion.calibrated else "not calibrated"
        # A probability that is not calibrated reads like one that is, so its name says so.
        name = f"Classes of the image and their probabilities, {calibrated}"
        yield Told(item, part, [opinion.model], name, measures, frame=frame.frame)


def _probabilities(scores: Iterable[ml_pb2.ClassScore]) -> list[Measure]:
    return [Measure("Probability", one.probability, of=class_of(one)) for one in scores]


def _of_lesion(lesion: dermoscopy_pb2.AssessedLesion, rule: dermoscopy_pb2.AbcdRule) -> Told:
    measures = [
        Measure("Asymmetric axes", lesion.asymmetry),
        Measure("Segments of the border that end abruptly", lesion.border),
        Measure("Colours", len(lesion.colors)),
        Measure("Structures", len(lesion.structures)),
        Measure("Total dermatoscopy score", lesion.total),
        Measure("Share of the image", 100 * lesion.fraction, "%"),
    ]
    # Without a scale there is none, and 0 mm would be a finding.
    if lesion.HasField("diameter_mm"):
        measures.append(Measure("Largest diameter", lesion.diameter_mm, "mm"))
    if lesion.HasField("area_mm2"):
        measures.append(Measure("Area", lesion.area_mm2, "mm2"))
    seen = (("Colour", lesion.colors), ("Structure", lesion.structures))
    about = (("Rule", rule.source), ("Against relying on it", rule.counter_evidence))
    return Told(
        _key(lesion),
        ("lesion",),
        [lesion.model],
        "Lesion by the ABCD rule of dermatoscopy",
        measures,
        Said(RULED.get(lesion.verdict, UNKNOWN)),
        frame=1,
        qualities=[
            (kind, name)
            for kind, ones in seen
            for one in ones
            if (name := printable(one, NAME_CHARACTERS))
        ],
        note=". ".join(f"{what}: {printable(text)}" for what, text in about if text),
    )


def _of_objects(detected: detect_pb2.DetectedImage, model: ml_pb2.ModelReference) -> Told:
    """How many, and each with its score."""
    measures = [
        Measure(
            "Score",
            one.score,
            of=class_of(one),
            box=Box(one.frame, one.left, one.top, one.width, one.height),
            landmarks=tuple(_landmarks(one)),
        )
        for one in detected.objects
    ]
    item, count = _key(detected), len(detected.objects)
    return Told(item, ("objects",), [model], "Objects found", measures, count=count)


def _landmarks(detected: detect_pb2.DetectedObject) -> Iterator[Landmark]:
    for number, one in enumerate(detected.landmarks, 1):
        # A graphic in SR and a quantity in FHIR must be numbers.
        if math.isfinite(one.x) and math.isfinite(one.y):
            yield Landmark(named(one.name, number), one.x, one.y)


def _of_slide(slide: slide_pb2.AnalyzedSlide, model: ml_pb2.ModelReference) -> Iterator[Told]:
    """Of its tiles, then of those of each class."""
    classes = [class_of(one) for one in slide.classes]
    novel = [Measure("Number of tiles unlike the training data", slide.novel_tiles)]
    if not slide.novel_tiles:  # or the model does not tell
        novel = []
    shares = [
        Measure("Share of tiles", 100 * one.share, "%", of)
        for one, of in zip(slide.classes, classes, strict=True)
    ]
    yield Told(
        _key(slide),
        ("slide",),
        [model],
        "Shares of the slide's tiles by class",
        [
            Measure("Share of the slide that is tissue", 100 * slide.tissue_share, "%"),
            Measure("Number of tiles", slide.tiles),
            *novel,
            *shares,
        ],
    )
    for one, of in zip(slide.classes, classes, strict=True):
        top = (f"{tile.row}, {tile.column}: {tile.probability:.4f}" for tile in one.top)
        yield Told(
            _key(slide),
            ("slide", one.label),
            [model],
            "Tiles of the slide of one class",
            [
                Measure("Number of tiles", one.tiles),
                Measure("Share of tiles", 100 * one.share, "%"),
                Measure("Mean probability", one.mean_probability),
                *(Measure("Probability of a tile", tile.probability) for tile in one.top),
            ],
            Said(of.text, of),
            note=f"Most probable tiles, by row and column: {'; '.join(top)}." if one.top else "",
        )


def _key(entry: Any) -> str:
    return str(entry.item or entry.input)


def class_of(entry: Any) -> Class:
    """The class that part of a result is about."""
    codes = (Coding(one.value, one.scheme, one.meaning) for one in entry.codes)
    return Class(entry.display_name, entry.label, tuple(codes))


def named(display_name: str, label: int) -> str:
    """Name of a class; its number if it has none that can be read."""
    return printable(display_name, NAME_CHARACTERS) or str(label)
