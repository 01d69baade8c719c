"""A Bundle of FHIR R4 (hl7.org/fhir/R4): studies, findings, models, and a report of them."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid5

from fluoro.v1 import (
    classify_pb2,
    compare_pb2,
    deidentify_pb2,
    dermoscopy_pb2,
    detect_pb2,
    dicom_pb2,
    ml_pb2,
    slide_pb2,
)
from fluoro_jobs.ledger.origins import Origins
from fluoro_jobs.worker.context import Upstream
from google.protobuf.message import Message

from export_worker.dicom.origin import algorithm_name, lo, statement
from export_worker.fhir_codes import DCM, concept_of
from export_worker.findings import Class, Told, class_of, told_of
from export_worker.images import key_of, model_of, models_behind, results
from export_worker.wording import job_time

Resource = dict[str, Any]

FOUND: Final = (
    ml_pb2.AnalyzeImagesResult,
    classify_pb2.ClassifyImagesResult,
    dermoscopy_pb2.AssessDermoscopyResult,
    detect_pb2.DetectObjectsResult,
    slide_pb2.AnalyzeSlideResult,
    compare_pb2.CompareImagesResult,
)
"""Results with something for an electronic record."""
NO_ORIGINS: Final = Origins([], [])
UCUM: Final = "http://unitsofmeasure.org"
UID: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
UID_CHARACTERS: Final = 64
CODE_STRING: Final = re.compile(r"[A-Z0-9_]+")
"""A Modality (0008,0060) as PS3.3 has them: CS without spaces."""
UNKNOWN: Final = {
    "extension": [
        {
            "url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason",
            "valueCode": "unknown",
        }
    ]
}
"""A reference that must be there, to nobody."""
IMAGING: Final = {
    "coding": [
        {
            "system": "http://loinc.org",
            "code": "18748-4",
            "display": "Diagnostic imaging study",
        }
    ]
}


def write_bundle(
    path: Path,
    job: str,
    upstream: Sequence[Upstream],
    subject: str,
    check: Callable[[], None],
    origins: Origins = NO_ORIGINS,
) -> int:
    """Writes the Bundle; returns how many resources are in it.

    A resource takes a line, and memory no more than that. check: called before each; stops by
    raising.
    """
    # Nothing is issued before the steps that it covers have ended. Another attempt says the same.
    moment = instant(max([job_time(job), *(run.end_time for run in origins.runs)]))
    about = {"subject": {"reference": subject} if subject else UNKNOWN, "issued": moment}
    head = {"resourceType": "Bundle", "type": "collection", "timestamp": moment}
    studies, found = [], []
    count = 0
    with path.open("w", encoding="utf-8") as file:
        # The Bundle is written entry by entry, so it is never in memory as a whole.
        file.write(json.dumps(head)[:-1] + ', "entry": [')
        for resource in resources(job, upstream, about):
            check()
            if resource["resourceType"] == "ImagingStudy":
                studies.append(reference(resource))
            elif resource["resourceType"] == "Observation":
                found.append(reference(resource))
            file.write(",\n" if count else "\n")
            file.write(entry(resource))
            count += 1
        report = report_of(job, upstream, about, studies, found)
        for resource in (report, *provenance(job, upstream, reference(report), moment, origins)):
            file.write((",\n" if count else "\n") + entry(resource))
            count += 1
        file.write("\n]}\n")
    return count


def entry(resource: Resource) -> str:
    """An entry of the Bundle, on one line."""
    whole = {"fullUrl": f"urn:uuid:{resource['id']}", "resource": resource}
    # NaN would be written as a word that no JSON reader knows: better an error here.
    return json.dumps(whole, ensure_ascii=False, allow_nan=False)


def instant(moment: datetime) -> str:
    """As FHIR writes it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


def reference(resource: Resource) -> dict[str, str]:
    """To a resource of the same Bundle."""
    return {"reference": f"urn:uuid:{resource['id']}"}


def id_of(job: str, *what: object) -> str:
    """The same in every attempt."""
    return str(uuid5(UUID(job.removeprefix("jobs/")), json.dumps(what)))


def resources(
    job: str, upstream: Sequence[Upstream], about: Mapping[str, Any]
) -> Iterator[Resource]:
    """All but the report. about: the `subject` of each, and when Observations are `issued`."""
    yield from studies_of(job, upstream, about["subject"])
    # Findings name items; a record knows studies.
    study_of = {
        key_of(one): id_of(job, "study", one.study_instance_uid) for one in instances(upstream)
    }
    for step in upstream:
        if not isinstance(step.result, FOUND):
            continue
        # By all that is said of a model: two models of one name are two Devices.
        devices: dict[bytes, Resource] = {}
        for number, model in enumerate(models_behind(step.result)):
            device = device_of(job, step.step, number, model)
            # Shares of a step may have run different versions of a model, each a Device of its own.
            devices[model.SerializeToString(deterministic=True)] = device
            yield device
        for finding, model in findings_in(step.result):
            device = devices[model.SerializeToString(deterministic=True)]
            common = common_of(about, device, study_of.get(key_of(finding)), model)
            yield from observations(job, step.step, finding, common)
        for volume, model in volumes_in(step.result):
            device = devices[model.SerializeToString(deterministic=True)]
            common = common_of(about, device, study_of.get(volume.items[0]), model)
            yield from of_volume(job, step.step, volume, common)
        for told in told_of(step.result):
            used = [devices[one.SerializeToString(deterministic=True)] for one in told.models]
            study = study_of.get(told.item)
            yield observation_of(job, step.step, told, about, used, study)


def findings_in(result: Message) -> Iterator[tuple[ml_pb2.ImageFinding, ml_pb2.ModelReference]]:
    """What AnalyzeImages found, and which model did; nothing of other results."""
    if isinstance(result, ml_pb2.AnalyzeImagesResult):
        yield from ((finding, model_of(result, finding)) for finding in result.findings)


def volumes_in(result: Message) -> Iterator[tuple[ml_pb2.VolumeFinding, ml_pb2.ModelReference]]:
    """What AnalyzeImages measured in whole series, and by which model; nothing of others."""
    if isinstance(result, ml_pb2.AnalyzeImagesResult):
        by_key = {key_of(finding): finding for finding in result.findings}
        for volume in result.volumes:
            if found := next((by_key[key] for key in volume.items if key in by_key), None):
                yield volume, model_of(result, found)


def common_of(
    about: Mapping[str, Any],
    device: Resource,
    study: str | None,
    model: ml_pb2.ModelReference,
) -> Resource:
    """What Observations of measures have in common. study: id of the ImagingStudy, if known."""
    return {
        # `final` would say that somebody has verified it.
        "status": "preliminary",
        **about,
        "device": reference(device),
        **({"derivedFrom": [{"reference": f"urn:uuid:{study}"}]} if study else {}),
        **noted(model),
    }


def observation_of(
    job: str,
    step: str,
    told: Told,
    about: Mapping[str, Any],
    devices: Sequence[Resource],
    study: str | None,
) -> Resource:
    """An Observation. R4 has room for one device: what several found names what each of them found.

    study: id of the ImagingStudy, if it is known.
    """
    # Several models may carry the same note, which is said once.
    notes = dict.fromkeys([*(statement(model) for model in told.models), told.note])
    members = [id_of(job, "told", step, told.item, *part) for part in told.members]
    from_ = [{"reference": f"urn:uuid:{one}"} for one in ([study] if study else []) + members]
    return {
        "resourceType": "Observation",
        "id": id_of(job, "told", step, told.item, *told.part),
        "status": "preliminary",
        "code": {"text": told.name},
        **about,
        **value_of(told),
        **({"device": reference(devices[0])} if len(devices) == 1 else {}),
        **({"derivedFrom": from_} if from_ else {}),
        **({"note": [{"text": note} for note in notes if note]} if any(notes) else {}),
        **({"component": parts} if (parts := parts_of(told)) else {}),
    }


def value_of(told: Told) -> Resource:
    """What it comes to: value or dataAbsentReason, if there is one for the whole."""
    if told.count is not None:
        return {"valueInteger": told.count}
    if told.said is None:
        return {}
    kind = "dataAbsentReason" if told.said.absent else "valueCodeableConcept"
    return {kind: concept_of(told.said.of) if told.said.of else {"text": told.said.text}}


def parts_of(told: Told) -> list[Resource]:
    """Its components: figures, then what was seen."""
    figures = []
    for one in told.known:
        code = concept_of(one.of) if one.of else {"text": one.name}
        figures.append({"code": code, **quantity(one.value, one.unit, one.unit)})
        figures += [
            {
                "code": concept_of(Class(point.name, 0)),
                "valueString": f"Column {point.x:g}, row {point.y:g}",
            }
            for point in one.landmarks
        ]
    seen = [
        {"code": {"text": kind}, "valueCodeableConcept": {"text": name}}
        for kind, name in told.qualities
    ]
    return [*figures, *seen]


def quantity(value: float, unit: str, code: str) -> dict[str, Any]:
    """ValueQuantity. unit, code: empty if the unit is not known."""
    coding = {"unit": unit, "system": UCUM, "code": code} if code else {}
    return {"valueQuantity": {"value": value, **coding}}


def component(name: str, value: float, unit: str = "1") -> Resource:
    """A part of an Observation. unit: as in UCUM; empty if it is not known."""
    return {"code": {"text": name}, **quantity(value, unit, unit)}


def finite(components: list[Resource]) -> list[Resource]:
    """Those that JSON can write."""
    return [one for one in components if math.isfinite(one["valueQuantity"]["value"])]


def provenance(
    job: str,
    upstream: Sequence[Upstream],
    report: Mapping[str, str],
    moment: str,
    origins: Origins,
) -> Iterator[Resource]:
    """One of the inputs, and one of each earlier step with the time of its attempts."""
    writer = {"who": {"display": f"Fluoro export-worker {version('export-worker')}"}}
    common = {"resourceType": "Provenance", "target": [report], "recorded": moment}
    if origins.inputs:
        yield {
            "id": id_of(job, "provenance"),
            **common,
            "activity": {"text": "report"},
            "agent": [writer],
            "entity": [
                {
                    "role": "source",
                    "what": {
                        "identifier": {
                            "system": "urn:ietf:rfc:3986",
                            "value": f"nih:sha-256;{one.sha256.hex()}",
                        },
                        "display": f"Input {one.number}, {one.size_bytes} bytes",
                    },
                }
                for one in origins.inputs
            ],
        }
    results_of = {step.step: step.result for step in upstream}
    for run in origins.runs:
        result = results_of.get(run.step)
        models = models_behind(result) if isinstance(result, FOUND) else []
        ran = [
            {"who": {"reference": f"urn:uuid:{device_of(job, run.step, number, model)['id']}"}}
            for number, model in enumerate(models)
        ]
        yield {
            "id": id_of(job, "provenance", run.step),
            **common,
            "occurredPeriod": {"start": instant(run.start_time), "end": instant(run.end_time)},
            "activity": {"text": f"step {run.step}, attempts: {run.attempts}"},
            # R4 wants an agent of every Provenance.
            "agent": ran or [{"who": {"display": "Fluoro"}}],
        }


def instances(upstream: Sequence[Upstream]) -> Iterator[dicom_pb2.DicomInstance]:
    """Those that were inspected, but for those whose UIDs are none: FHIR refuses the whole then.

    After a de-identification only what it left: UIDs of originals lead back to the patient.
    """
    cleaned = list(results(upstream, deidentify_pb2.DeidentifyDicomResult))
    left = {one.sop_instance_uid for result in cleaned for one in result.instances}
    for result in results(upstream, dicom_pb2.InspectDicomResult):
        for one in result.instances:
            uids = (one.study_instance_uid, one.series_instance_uid, one.sop_instance_uid)
            if all(map(is_uid, (*uids, one.sop_class_uid))) and (
                not cleaned or one.sop_instance_uid in left
            ):
                yield one


def is_uid(text: str) -> bool:
    """Whether it is a UID (PS3.5 9.1), leading zeros aside."""
    return len(text) <= UID_CHARACTERS and UID.fullmatch(text) is not None


def studies_of(
    job: str, upstream: Sequence[Upstream], subject: Mapping[str, Any]
) -> Iterator[Resource]:
    """An ImagingStudy for each study, with its series and instances, each once."""
    studies: dict[str, dict[str, dict[str, dicom_pb2.DicomInstance]]] = {}
    for one in instances(upstream):
        series = studies.setdefault(one.study_instance_uid, {})
        series.setdefault(one.series_instance_uid, {})[one.sop_instance_uid] = one
    # By UID, because the order of inputs must not change the bytes.
    for uid in sorted(studies):
        yield {
            "resourceType": "ImagingStudy",
            "id": id_of(job, "study", uid),
            "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}],
            "status": "available",
            "subject": subject,
            "numberOfSeries": len(studies[uid]),
            "numberOfInstances": sum(map(len, studies[uid].values())),
            "series": [series_of(one, studies[uid][one]) for one in sorted(studies[uid])],
        }


def series_of(uid: str, instances: Mapping[str, dicom_pb2.DicomInstance]) -> Resource:
    """A series of an ImagingStudy."""
    told = next(iter(instances.values())).modality
    # A hostile header may say anything. OT is DICOM's code for another modality.
    modality = told if CODE_STRING.fullmatch(told) else "OT"
    return {
        "uid": uid,
        "modality": {"system": DCM, "code": modality},
        "numberOfInstances": len(instances),
        "instance": [
            {
                "uid": one.sop_instance_uid,
                "sopClass": {"system": "urn:ietf:rfc:3986", "code": f"urn:oid:{one.sop_class_uid}"},
            }
            for one in instances.values()
        ],
    }


def device_of(job: str, step: str, number: int, model: ml_pb2.ModelReference) -> Resource:
    """A model that ran. number: among those of the step."""
    digest = {"type": {"text": "SHA-256"}, "valueCode": [{"text": model.sha256.hex()}]}
    version_ = lo(model.version)
    return {
        "resourceType": "Device",
        "id": id_of(job, "device", step, *([number] if number else [])),
        "deviceName": [{"name": algorithm_name(model) or "unknown", "type": "model-name"}],
        **({"version": [{"value": version_}]} if version_ else {}),
        **({"property": [digest]} if model.sha256 else {}),
        **noted(model),
    }


def noted(model: ml_pb2.ModelReference) -> Resource:
    """What is said of results of the model."""
    told = statement(model)
    return {"note": [{"text": told}]} if told else {}


def observations(
    job: str, step: str, finding: ml_pb2.ImageFinding, common: Mapping[str, Any]
) -> Iterator[Resource]:
    """Of one image: one per class that was measured."""
    item = key_of(finding)
    for one in finding.measurements:
        yield {
            "resourceType": "Observation",
            "id": id_of(job, "measurement", step, item, one.label),
            "code": concept_of(class_of(one)),
            **common,
            "component": components(one),
        }


def of_volume(
    job: str, step: str, volume: ml_pb2.VolumeFinding, common: Mapping[str, Any]
) -> Iterator[Resource]:
    """Of one series that a model saw as a volume: one per class."""
    for one in volume.measurements:
        yield {
            "resourceType": "Observation",
            "id": id_of(job, "volume", step, *volume.items, one.label),
            "code": concept_of(class_of(one)),
            **common,
            "method": {"text": "Measured in the series as a whole"},
            "component": components(one),
        }


def components(measured: ml_pb2.Measurement) -> list[Resource]:
    """What is known of a class."""
    told = []
    if measured.HasField("volume_ml"):
        told.append(component("Volume", measured.volume_ml, "mL"))
    if measured.HasField("mean_value"):
        # The unit of a mean is that of the image, which the finding does not say.
        told.append(component("Mean value", measured.mean_value, ""))
    told.append(component("Share of voxels", 100 * measured.fraction, "%"))
    told.append(component("Number of voxels", measured.voxels))
    return finite(told)


def report_of(
    job: str,
    upstream: Sequence[Upstream],
    about: Mapping[str, Any],
    studies: Sequence[Mapping[str, str]],
    found: Sequence[Mapping[str, str]],
) -> Resource:
    """The DiagnosticReport."""
    told = dict.fromkeys(
        line
        for step in upstream
        if isinstance(step.result, FOUND)
        for model in models_behind(step.result)
        if (line := statement(model))
    )
    return {
        "resourceType": "DiagnosticReport",
        "id": id_of(job, "report"),
        "identifier": [{"system": "urn:ietf:rfc:3986", "value": f"urn:uuid:{job[5:]}"}],
        "status": "preliminary",
        "code": IMAGING,
        **about,
        **({"imagingStudy": list(studies)} if studies else {}),
        **({"result": list(found)} if found else {}),
        "conclusion": " ".join(["Found by software; nobody has verified it.", *told]),
    }
