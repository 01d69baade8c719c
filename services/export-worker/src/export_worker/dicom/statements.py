"""Comprehensive 3D SR (PS3.16 TID 1500) of what models said of images, label maps aside."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from fluoro.v1 import ml_pb2
from fluoro_jobs.errors import FluoroError, Reason
from highdicom.sr import (
    CodedConcept,
    Comprehensive3DSR,
    FindingSite,
    GraphicTypeValues,
    ImageContentItem,
    ImageRegion,
    Measurement,
    MeasurementsAndQualitativeEvaluations,
    PixelOriginInterpretationValues,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    SourceImageForRegion,
    TextContentItem,
    TrackingIdentifier,
)
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.uid import VLWholeSlideMicroscopyImageStorage

from export_worker.dicom.codes import UNITS, coded, concept, located, name_beside, own_of
from export_worker.dicom.encoding import put_content
from export_worker.dicom.images import Image
from export_worker.dicom.measurements import Group, algorithm_of, report_of
from export_worker.dicom.origin import TRACKED_BYTES, Origin, identity, lo, statement
from export_worker.findings import Box, Class, Landmark, Measure, Told

SERIES_NUMBER: Final = 9007
"""Series Number (0020,0011) of ours, far from those of a scanner."""
GROUPS_LIMIT: Final = 5000
"""Most groups of one report: each takes milliseconds and 2 KB."""


@dataclass(frozen=True, slots=True)
class Statements:
    """What one step said of images of one series, by the same models."""

    step: str
    models: Sequence[ml_pb2.ModelReference]
    images: Sequence[Image]

    @property
    def told(self) -> Iterator[tuple[Image, Told]]:
        """Each statement, by image."""
        return ((image, told) for image in self.images for told in image.told[self.step])


def statements_of(images: Sequence[Image]) -> Iterator[Statements]:
    """What one report each is made of, in the order of the items."""
    together: dict[tuple[object, ...], list[Image]] = {}
    models: dict[tuple[object, ...], list[ml_pb2.ModelReference]] = {}
    for image in images:
        for step, told in image.told.items():
            ran = {identity(model): model for one in told for model in one.models}
            key: tuple[object, ...] = (
                step,
                # Shares of a step may have met different versions of a model, and a report names
                # those of all its groups.
                frozenset(ran),
                *image.source.subject,
                image.source.series,
            )
            together.setdefault(key, []).append(image)
            models.setdefault(key, list(ran.values()))
    for key, ones in together.items():
        yield Statements(str(key[0]), models[key], ones)


def statement_report(
    said: Statements, images: Sequence[Image], origin: Origin, check: Callable[[], None]
) -> Comprehensive3DSR:
    """A group per statement, and one per object that was detected and per landmark of it.

    images: all that are exported, for those that others are compared with. check: called before
    each; stops by raising.

    FluoroError RESULT_TOO_LARGE over the limit. ValueError, or another of highdicom's, if the
    sources do not go together.
    """
    count = sum(
        1 + sum(1 + len(one.landmarks) for one in told.known if one.box) for _, told in said.told
    )
    # Counted before the first group is made, because each takes milliseconds.
    if count > GROUPS_LIMIT:
        raise FluoroError(
            Reason.RESULT_TOO_LARGE,
            f"A series has more than {GROUPS_LIMIT:,} statements, objects and landmarks. "
            "Export parts of it, or detect fewer objects.",
        )
    types = types_of(told for _, told in said.told)
    by_key = {image.key: image for image in images}
    compared = [by_key[told.reference] for _, told in said.told if told.reference]
    sources = {image.source.instance: image.source for image in (*said.images, *compared)}

    def groups() -> Iterator[Group]:
        for image, told in said.told:
            check()
            yield from groups_of(said, image, told, by_key.get(told.reference), types, origin)

    source = said.images[0].source
    content = (f"{image.source.instance} {told.content}".encode() for image, told in said.told)
    # highdicom copies and searches all content some times: it gets the first group.
    written = report_of(
        # Made twice: to keep all groups until then would take the memory of the whole report.
        [next(groups())],
        [source.header for source in sources.values()],
        said.models,
        said.step,
        series_number=SERIES_NUMBER,
        series_instance_uid=origin.uid("statements", said.step, *source.subject, source.series),
        sop_instance_uid=origin.instance_uid(
            "statement",
            [said.step],
            said.step,
            *sorted(map(identity, said.models)),
            *(image.source.encoded for image in said.images),
            *content,
        ),
        what="Findings",
        origin=origin,
    )
    put_content(written.ContentSequence[-1], (group[0] for group in groups()))
    return written


def groups_of(
    said: Statements,
    image: Image,
    told: Told,
    compared: Image | None,
    types: Mapping[Class, CodedConcept],
    origin: Origin,
) -> Iterator[Group]:
    """TID 1501 of a statement, then TID 1410 of each of its objects and their landmarks.

    types: as `types_of`, of the whole report.
    """
    measures = [one for one in told.known if one.box is None]
    if told.count is not None:
        # First, because a reader wants to know how many before the score of each.
        measures.insert(0, Measure("Number of objects", told.count))
    about = told.said.of if told.said else None
    group = MeasurementsAndQualitativeEvaluations(
        **fields_of(said, image, told, " ".join(map(str, told.part)), origin),
        finding_type=coded(about).type if about else None,
        measurements=[measurement(one, types) for one in measures],
        qualitative_evaluations=list(evaluations(told, types)),
        source_images=[
            SourceImageForMeasurementGroup(
                image.source.sop_class, image.source.instance, frames_of(image, told.frame)
            )
        ],
    )
    remark(group, "" if told.said else f"{told.name}.", *map(statement, told.models), told.note)
    if compared is not None:
        group[0].ContentSequence.append(
            ImageContentItem(
                name=concept("Image that it is compared with"),
                referenced_sop_class_uid=compared.source.sop_class,
                referenced_sop_instance_uid=compared.source.instance,
                relationship_type=RelationshipTypeValues.CONTAINS,
            )
        )
    yield group
    objects = [(one, one.of, one.box) for one in told.known if one.of and one.box]
    for number, (one, of, box) in enumerate(objects, 1):
        found = PlanarROIMeasurementsAndQualitativeEvaluations(
            **fields_of(said, image, told, f"object {number}", origin),
            referenced_region=region(
                image, box.frame, GraphicTypeValues.POLYLINE, outline(image, box)
            ),
            **thing(of),
            measurements=[measurement(Measure(one.name, one.value, one.unit), {})],
        )
        remark(found, *map(statement, told.models))
        yield found
        for place, landmark in enumerate(one.landmarks, 1):
            # A point at the edge of the image would be another one.
            if is_in(image, landmark):
                name = f"object {number} point {place}"
                yield point(said, image, told, box.frame, name, landmark, origin)


def point(
    said: Statements,
    image: Image,
    told: Told,
    frame: int,
    name: str,
    landmark: Landmark,
    origin: Origin,
) -> Group:
    """TID 1410 of a landmark. name: among those of the image."""
    place = np.array([(landmark.x, landmark.y)])
    found = PlanarROIMeasurementsAndQualitativeEvaluations(
        **fields_of(said, image, told, name, origin),
        referenced_region=region(image, frame, GraphicTypeValues.POINT, place),
        **thing(Class(landmark.name, 0)),
    )
    remark(found, *map(statement, told.models))
    return found


def fields_of(
    said: Statements, image: Image, told: Told, name: str, origin: Origin
) -> dict[str, Any]:
    """What groups of both templates have. name: among those of the image."""
    tracked = origin.uid(
        "tracking",
        said.step,
        image.source.encoded,
        name,
        repr(told.part),
        *map(identity, told.models),
    )
    return {
        "tracking_identifier": TrackingIdentifier(
            uid=tracked,
            identifier=lo(f"{said.step} {image.source.number} {name}", TRACKED_BYTES),
        ),
        "algorithm_id": algorithm_of(told.models) if told.models else None,
    }


def thing(of: Class) -> dict[str, Any]:
    """What a TID 1410 is about: Finding, with Finding Site if a side of the body is known."""
    what, side = located(of)
    if side:
        return {"finding_type": what, "finding_sites": [FindingSite(what, laterality=side)]}
    return {"finding_type": what, "qualitative_evaluations": list(named_beside(of, what))}


def named_beside(of: Class, code: CodedConcept) -> Iterator[QualitativeEvaluation]:
    """What the model calls it, unless the code tells it."""
    if name := name_beside(of, code):
        yield QualitativeEvaluation(name=concept("Name in the model"), value=name)


def types_of(told: Iterable[Told]) -> dict[Class, CodedConcept]:
    """Codes of the classes of a report; our own where a model calls several the same."""
    by_models: dict[tuple[bytes, ...], set[Class]] = defaultdict(set)
    for one in told:
        by_models[tuple(map(identity, one.models))].update(one.about)
    types = {of: coded(of).type for classes in by_models.values() for of in classes}
    shared: set[CodedConcept] = set()
    # By model: what several call by one code is one class to each.
    for classes in by_models.values():
        names = {(types[of], own_of(of)) for of in classes}
        # People read meanings: two codes of one meaning are the same to them.
        times = Counter(key for code, _ in names for key in (code, code.meaning.lower()))
        shared.update(
            code for code, _ in names if max(times[code], times[code.meaning.lower()]) > 1
        )
    return {of: own_of(of) if code in shared else code for of, code in types.items()}


def measurement(one: Measure, types: Mapping[Class, CodedConcept]) -> Measurement:
    """A figure. One about a class is named by it, and says what it is as its derivation."""
    of = one.of
    return Measurement(
        name=types[of] if of else concept(one.name),
        value=float(one.value),
        unit=UNITS[one.unit],
        derivation=concept(one.name) if of else None,
    )


def evaluations(told: Told, types: Mapping[Class, CodedConcept]) -> Iterator[QualitativeEvaluation]:
    """What it comes to, and what was seen."""
    if told.said:
        of = told.said.of
        value = types[of] if of else concept(told.said.text)
        yield QualitativeEvaluation(name=concept(told.name), value=value)
        if of:
            yield from named_beside(of, value)
    for kind, name in told.qualities:
        yield QualitativeEvaluation(name=concept(kind), value=concept(name))


def is_in(image: Image, landmark: Landmark) -> bool:
    """Whether a landmark lies in the image."""
    return 0 <= landmark.x <= image.source.columns and 0 <= landmark.y <= image.source.rows


def outline(image: Image, box: Box) -> NDArray[np.float64]:
    """Corners of what of a box is in the image, the first again at the end."""
    right, bottom = box.left + box.width, box.top + box.height
    corners = [
        (box.left, box.top),
        (right, box.top),
        (right, bottom),
        (box.left, bottom),
        (box.left, box.top),
    ]
    # A detector may draw a box over the edge, where there is no pixel to refer to.
    return np.clip(corners, 0, (image.source.columns, image.source.rows))


def region(
    image: Image, frame: int, kind: GraphicTypeValues, places: NDArray[np.float64]
) -> ImageRegion:
    """Places in an image. PS3.3 C.18.6.1.2 counts from the outer corner of the first pixel."""
    # Of a tiled image it has to be said what coordinates count from (Type 1C).
    tiled = image.source.sop_class == VLWholeSlideMicroscopyImageStorage
    return ImageRegion(
        graphic_type=kind,
        graphic_data=places,
        source_image=SourceImageForRegion(
            image.source.sop_class, image.source.instance, frames_of(image, frame)
        ),
        pixel_origin_interpretation=PixelOriginInterpretationValues.FRAME if tiled else None,
    )


def frames_of(image: Image, frame: int) -> list[int] | None:
    """The frame to refer to; none of an image that has but one, or not this one."""
    # Referenced Frame Number is for multi-frame images alone (PS3.3 10.3).
    return [frame] if 1 <= frame <= image.source.frames != 1 else None


def remark(group: Group, *texts: str) -> None:
    """Adds comments, each once: TID 1410 and TID 1501 are extensible."""
    for text in filter(None, dict.fromkeys(texts)):
        group[0].ContentSequence.append(
            TextContentItem(
                name=codes.DCM.Comment,
                value=text,
                relationship_type=RelationshipTypeValues.CONTAINS,
            )
        )
