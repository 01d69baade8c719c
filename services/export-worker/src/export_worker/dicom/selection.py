"""Key Object Selection (PS3.3 A.35.4): of each class the image with most of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fluoro.v1 import ml_pb2
from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from highdicom.sr import CodedConcept

from export_worker.dicom.images import Image
from export_worker.dicom.measurements import observer
from export_worker.dicom.origin import (
    Origin,
    equipment_fields,
    identity,
    series_description,
    statement,
)
from export_worker.dicom.sources import Source

SERIES_NUMBER: Final = 9006
"""Series Number (0020,0011) of ours, far from those of a scanner."""
TITLE: Final = CodedConcept("113000", "DCM", "Of Interest")


@dataclass(slots=True)
class _Most:
    """The image with most of a class so far."""

    voxels: int
    name: str
    image: Image


def key_images(images: Sequence[Image], step: str) -> list[tuple[str, Source]]:
    """Names of classes, each with the image that has most voxels of it, the first of equals."""
    most: dict[int, _Most] = {}
    for image in images:
        for measured in image.found[step].finding.measurements:
            # Most of nothing is no key image.
            if measured.label == 0 or not measured.voxels:
                continue
            before = most.get(measured.label)
            if before is None or measured.voxels > before.voxels:
                most[measured.label] = _Most(measured.voxels, measured.display_name, image)
    return [(most[label].name, most[label].image.source) for label in sorted(most)]


def key_object_selection(
    chosen: Sequence[tuple[str, Source]],
    step: str,
    model: ml_pb2.ModelReference,
    origin: Origin,
) -> KeyObjectSelectionDocument:
    """Refers to the chosen images of one study, each once."""
    # One image may have most of several classes, and is referred to once.
    sources = list({source.instance: source for _, source in chosen}.values())
    headers = [source.header for source in sources]
    lines = [
        *([told] if (told := statement(model)) else []),
        *(f"Instance {source.number}: most {name}." for name, source in chosen),
    ]
    written = KeyObjectSelectionDocument(
        evidence=headers,
        content=KeyObjectSelection(
            document_title=TITLE,
            referenced_objects=headers,
            observer_device_context=observer(),
            description="\n".join(lines),
        ),
        series_instance_uid=origin.uid("selections", step, *sources[0].subject),
        series_number=SERIES_NUMBER,
        sop_instance_uid=origin.instance_uid(
            "selection",
            [step],
            step,
            identity(model),
            *lines,
            *(source.encoded for source in sources),
        ),
        instance_number=1,
        contributing_equipment=origin.equipment([(step, model)]),
        series_description=series_description("Key images", model),
        **equipment_fields(),
    )
    origin.stamp(written, headers[0].get("TimezoneOffsetFromUTC", ""))
    return written
