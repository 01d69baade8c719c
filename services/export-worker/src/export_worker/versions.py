"""Inputs that are versions of one DICOM instance: one SOP Instance UID, other content."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from fluoro.v1 import convert_pb2, deidentify_pb2, dicom_pb2
from fluoro_jobs.worker.context import Upstream

from export_worker import wording
from export_worker.images import in_order, key_of
from export_worker.words import Words

NAMED: Final = 20
"""Most inputs that the warning names."""


def warning(upstream: Sequence[Upstream], words: Words) -> list[str]:
    """The sentence about them; nothing if there are none."""
    keys = sorted(versions(upstream), key=in_order)
    if not keys:
        return []
    named = ", ".join(wording.key(wording.printable(key, 128)) for key in keys[:NAMED])
    more = " …" if len(keys) > NAMED else ""
    return [words("versions", keys=named + more)]


def versions(upstream: Sequence[Upstream]) -> set[str]:
    """Their keys. A step sees all tasks of earlier ones, which compared their own inputs alone."""
    found: set[str] = set()
    for step in upstream:
        instances: dict[str, dict[bytes, list[str]]] = defaultdict(dict)
        for uid, content, key in _seen(step):
            if uid and content:
                instances[uid].setdefault(content, []).append(key)
        for contents in instances.values():
            if len(contents) > 1:
                found.update(key for keys in contents.values() for key in keys)
    return found


def _seen(step: Upstream) -> Iterator[tuple[str, bytes, str]]:
    """SOP Instance UID, SHA-256 of the file or else of the pixels, and key of the step's items."""
    match step.result:
        case dicom_pb2.InspectDicomResult() as inspected:
            for one in inspected.instances:
                yield one.sop_instance_uid, one.sha256, key_of(one)
        case dicom_pb2.RenderDicomResult() as rendered:
            for image in rendered.images:
                yield image.sop_instance_uid, image.certificate.sha256, key_of(image)
        case deidentify_pb2.DeidentifyDicomResult() as cleaned:
            for each in cleaned.instances:
                content = step.artifact(each.instance).sha256 if each.instance else b""
                yield each.sop_instance_uid, content, each.item
        case convert_pb2.ConvertDicomResult() as converted:
            for file in converted.instances:
                yield file.sop_instance_uid, step.artifact(file.instance).sha256, file.item
