"""ExportFhir: valid R4, with what was found and what is said of it."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from export_worker.operations.fhir import export_fhir
from export_worker.testing import JOB, Study, ct_slices, dermoscopies, looks, verdicts
from fhir.resources.R4B.bundle import Bundle
from fluoro.v1 import classify_pb2, compare_pb2, detect_pb2, ml_pb2, slide_pb2
from fluoro.v1.export_pb2 import ExportFhir
from fluoro.v1.model_pb2 import Code
from fluoro_jobs.errors import CancelledAttempt, FluoroError
from fluoro_jobs.testing import Attempt, step_context
from fluoro_jobs.worker.context import Upstream


def exported(folder: Path, *upstream: Upstream, **request: Any) -> Attempt:
    attempt = step_context(folder, (), upstream, step="fhir")
    attempt.context.job = JOB
    export_fhir(ExportFhir(**request), attempt.context)
    return attempt


def resources(attempt: Attempt) -> dict[str, list[dict[str, Any]]]:
    """By type, once the whole is valid."""
    data = attempt.read("fhir.json")
    Bundle.model_validate_json(data)
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in json.loads(data)["entry"]:
        assert entry["fullUrl"] == f"urn:uuid:{entry['resource']['id']}"
        found.setdefault(entry["resource"]["resourceType"], []).append(entry["resource"])
    return found


def test_a_bundle_is_valid_and_has_study_findings_and_report(clinic: Any, tmp_path: Path) -> None:
    found = resources(exported(tmp_path, clinic.inspect(), clinic.analyze(), subject="Patient/17"))
    [study], [report], [device] = (
        found[kind] for kind in ("ImagingStudy", "DiagnosticReport", "Device")
    )
    assert study["identifier"][0]["value"] == "urn:oid:1.2.3.4.6"
    assert study["series"][0]["instance"][0]["uid"] == "1.2.3.4.5"
    assert study["subject"] == {"reference": "Patient/17"}
    bone = found["Observation"][5]
    assert bone["code"]["coding"][0]["code"] == "3138006"
    assert bone["derivedFrom"] == [{"reference": f"urn:uuid:{study['id']}"}]
    assert bone["device"] == {"reference": f"urn:uuid:{device['id']}"}
    assert bone["component"][0]["valueQuantity"]["unit"] == "mL"
    assert len(report["result"]) == len(found["Observation"]) == 6
    assert bone["status"] == report["status"] == "preliminary"


def test_every_resource_of_a_demonstration_model_says_so(tmp_path: Path) -> None:
    study = Study.of_slices(tmp_path, ct_slices(1))
    found = resources(exported(tmp_path, study.analyze()))
    told = "Made by a demonstration model. Not for diagnosis."
    for resource in (*found["Observation"], *found["Device"]):
        assert resource["note"] == [{"text": told}]
    assert told in found["DiagnosticReport"][0]["conclusion"]


def test_each_finding_names_the_version_that_found_it(tmp_path: Path) -> None:
    study = Study.of_slices(tmp_path, ct_slices(2))
    analyzed = study.analyze()
    for finding in analyzed.result.findings:
        finding.model.CopyFrom(study.model)
        finding.model.version = f"{finding.input + 1}.0.0"
    found = resources(exported(tmp_path, analyzed))
    devices = {f"urn:uuid:{one['id']}": one["version"][0]["value"] for one in found["Device"]}
    assert sorted(devices.values()) == ["1.0.0", "2.0.0"]
    half = len(found["Observation"]) // 2
    told = [devices[one["device"]["reference"]] for one in found["Observation"]]
    assert told == ["1.0.0"] * half + ["2.0.0"] * half


def test_classes_of_frames_are_observations_with_probabilities(tmp_path: Path) -> None:
    analyze = Study.of_slices(tmp_path, ct_slices(1)).analyze()
    assert isinstance(analyze.result, ml_pb2.AnalyzeImagesResult)
    finding = analyze.result.findings[0]
    del finding.measurements[:]
    for frame, label in ((1, 0), (1, 1), (2, 0)):
        finding.classes.add(
            frame=frame, label=label, display_name="<b>\u202e\u5c71</b>", probability=0.5
        )
    found = resources(exported(tmp_path, analyze))
    assert [len(one["component"]) for one in found["Observation"]] == [2, 1]


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("sop_instance_uid", ""),
        ("sop_class_uid", "1 2"),
        ("series_instance_uid", "Doe^Jane"),
        ("study_instance_uid", "1" * 65),
        ("modality", "C  T"),
    ],
)
def test_what_a_file_must_not_say_makes_no_bundle_invalid(
    clinic: Any, tmp_path: Path, attribute: str, value: str
) -> None:
    inspected = clinic.inspect(**{attribute: value})
    found = resources(exported(tmp_path, inspected, clinic.analyze()))
    assert ("ImagingStudy" in found) == (attribute == "modality")
    assert ("derivedFrom" in found["Observation"][0]) == (attribute == "modality")


@pytest.mark.parametrize("uid", ["1.2.3.4.5", "2.25.1"])
def test_after_a_deidentification_no_uid_of_an_original_is_told(
    clinic: Any, tmp_path: Path, uid: str
) -> None:
    inspected = clinic.inspect(sop_instance_uid=uid)
    attempt = exported(tmp_path, inspected, clinic.deidentify(), clinic.analyze())
    found = resources(attempt)
    is_original = uid != "2.25.1"
    assert ("ImagingStudy" in found) != is_original
    assert ("derivedFrom" in found["Observation"][0]) != is_original
    assert (b"1.2.3.4" in attempt.read("fhir.json")) != is_original


def test_another_attempt_gives_the_same_bytes(clinic: Any, tmp_path: Path) -> None:
    steps = clinic.inspect(), clinic.analyze()
    first, again = (exported(tmp_path, *steps).read("fhir.json") for _ in range(2))
    assert first == again


def test_without_findings_or_studies_it_says_what_to_name(clinic: Any, tmp_path: Path) -> None:
    with pytest.raises(FluoroError, match="Name one in `after`"):
        exported(tmp_path, clinic.render())


def test_a_cancelled_attempt_leaves_nothing(clinic: Any, tmp_path: Path) -> None:
    attempt = step_context(tmp_path, (), [clinic.analyze()], step="fhir")
    attempt.context.job = JOB
    attempt.context.cancelled.set()
    with pytest.raises(CancelledAttempt):
        export_fhir(ExportFhir(), attempt.context)
    assert not attempt.context.artifacts


def test_a_verdict_names_what_each_model_said_and_every_model_what_it_is_for(
    tmp_path: Path,
) -> None:
    found = resources(exported(tmp_path, verdicts(tmp_path)[1]))
    by_code: dict[str, list[dict[str, Any]]] = {}
    for one in found["Observation"]:
        by_code.setdefault(one["code"]["text"].split(",")[0], []).append(one)
        assert one["note"] == [{"text": "Made by a demonstration model. Not for diagnosis."}]
    said = by_code["Class of the image by several models"]
    assert {"text": "melanoma"} in [one.get("valueCodeableConcept") for one in said]
    assert {"text": "The models disagree."} in [one.get("dataAbsentReason") for one in said]
    opinions = {f"urn:uuid:{one['id']}" for one in found["Observation"] if "device" in one}
    assert all({each["reference"] for each in one["derivedFrom"]} < opinions for one in said)
    assert len(found["Device"]) == 2


def test_lesions_and_objects_have_observations(tmp_path: Path) -> None:
    upstream = [dermoscopies(tmp_path)[1], *looks(tmp_path, 2)]
    found = resources(exported(tmp_path, *upstream))["Observation"]
    lesion = found[0]
    assert lesion["valueCodeableConcept"] == {"text": "Highly suspicious."}
    sizes = {
        one["code"]["text"]: one["valueQuantity"]["value"]
        for one in lesion["component"]
        if one.get("valueQuantity", {}).get("unit", "1") != "1"
    }
    seen = [one["valueCodeableConcept"]["text"] for one in lesion["component"][-6:]]
    assert seen[2:4] == ["blue-grey", "pigment network"]
    assert sizes == {
        "Share of the image": pytest.approx(21.4),
        "Largest diameter": 7.4,
        "Area": 38.2,
    }


def test_classes_have_the_codes_of_the_models_manifest(tmp_path: Path) -> None:
    naevus = Code(value="400010006", scheme="SCT", meaning="Melanocytic naevus of skin")
    codes = [
        naevus,
        Code(value="C0027962", scheme="UMLS", meaning="\u202e"),
        Code(value="1 \n 2", scheme="SCT", meaning="none"),
        Code(value="1", scheme="99ACME", meaning="theirs"),
    ]
    coding = {
        "system": "http://snomed.info/sct",
        "code": "400010006",
        "display": "Melanocytic naevus of skin",
    }
    asked = verdicts(tmp_path, 1)[1]
    assert isinstance(asked.result, classify_pb2.ClassifyImagesResult)
    [frame] = asked.result.images[0].frames
    frame.codes.extend(codes)
    frame.opinions[0].classes[0].codes.append(naevus)
    frame.opinions[0].classes[1].ClearField("codes")
    analyzed = Study.of_slices(tmp_path, ct_slices(1)).analyze()
    assert isinstance(analyzed.result, ml_pb2.AnalyzeImagesResult)
    analyzed.result.findings[0].measurements[5].codes.append(naevus)
    observations = resources(exported(tmp_path, asked, analyzed))["Observation"]
    said = next(
        one["valueCodeableConcept"] for one in observations if "valueCodeableConcept" in one
    )
    umls = {"system": "http://www.nlm.nih.gov/research/umls", "code": "C0027962"}
    assert said == {"coding": [coding, umls], "text": "nevus"}
    components = [part["code"] for one in observations for part in one.get("component", [])]
    assert {"coding": [coding], "text": "nevus"} in components
    assert {"text": "melanoma"} in components
    assert {"coding": [coding], "text": "bone"} in [one["code"] for one in observations]


@pytest.mark.parametrize(("name", "code"), [("lung", "39607008"), ("skin", "39937001")])
def test_codes_that_fhir_does_not_know_leave_the_code_of_the_name(
    tmp_path: Path, name: str, code: str
) -> None:
    result = ml_pb2.AnalyzeImagesResult(model=ml_pb2.ModelReference(name="made"))
    theirs = Code(value="1", scheme="99ACME", meaning="theirs")
    scores = result.findings.add(item="0").classes
    scores.add(frame=1, display_name=name, probability=0.5, codes=[theirs])
    step = step_context(tmp_path, step="classify").as_upstream(result)
    [observation] = resources(exported(tmp_path, step))["Observation"]
    [coding] = observation["component"][0]["code"]["coding"]
    assert (coding["system"], coding["code"]) == ("http://snomed.info/sct", code)


def test_landmarks_tell_where_they_are_and_whose_side_it_is(tmp_path: Path) -> None:
    result = detect_pb2.DetectObjectsResult(model=ml_pb2.ModelReference(name="made"))
    face = result.images.add(item="0").objects.add(frame=1, display_name="face", score=0.5)
    for name in ("left eye", "eye, left in the image", "corner of the mouth, left in the image"):
        face.landmarks.add(name=name, x=17.5, y=32)
    step = step_context(tmp_path, step="detect").as_upstream(result)
    [observation] = resources(exported(tmp_path, step))["Observation"]
    score, *points = observation["component"]
    assert score["code"]["coding"][0]["code"] == "89545001"
    assert [one["code"].get("coding", [{}])[0].get("code") for one in points] == [
        "8966001",
        "81745001",
        None,
    ]
    assert {one["valueString"] for one in points} == {"Column 17.5, row 32"}


def test_slides_and_likeness_have_observations(tmp_path: Path) -> None:
    model = ml_pb2.ModelReference(name="made", version="1", sha256=bytes(32))
    slide = slide_pb2.AnalyzeSlideResult(model=model)
    analyzed = slide.slides.add(item="0", tissue_share=0.5, tiles=9, novel_tiles=4)
    analyzed.classes.add(label=1, display_name="<b>&", share=0.25, mean_probability=0.125)
    compared = compare_pb2.CompareImagesResult(model=model)
    compared.images.add(item="0")
    compared.images.add(item="1", similarity=0.5)
    compared.images.add(item="2", similarity=float("nan"))
    steps = [
        step_context(tmp_path, step=f"step-{number}").as_upstream(result)
        for number, result in enumerate((slide, compared))
    ]
    shares, of_class, likeness = resources(exported(tmp_path, *steps))["Observation"]
    told = {one["code"]["text"]: one["valueQuantity"]["value"] for one in shares["component"]}
    assert told == {
        "Share of the slide that is tissue": 50,
        "Number of tiles": 9,
        "Number of tiles unlike the training data": 4,
        "<b>&": 25,
    }
    assert of_class["valueCodeableConcept"] == {"text": "<b>&"}
    assert of_class["component"][2]["valueQuantity"]["value"] == 0.125
    assert likeness["component"][0]["valueQuantity"]["value"] == 0.5
    assert likeness["note"] == [{"text": "Made by a demonstration model. Not for diagnosis."}]


def test_a_series_that_was_seen_as_a_volume_has_observations_of_its_own(tmp_path: Path) -> None:
    analyzed = Study.of_slices(tmp_path, ct_slices(2)).analyze()
    volume = analyzed.result.volumes.add(items=["0", "1"])
    volume.measurements.add(label=1, display_name="brain", volume_ml=1234.5)
    [of_series] = [
        one for one in resources(exported(tmp_path, analyzed))["Observation"] if "method" in one
    ]
    assert of_series["code"]["coding"][0]["code"] == "12738006"
    assert of_series["component"][0]["valueQuantity"]["value"] == 1234.5


def test_provenance_tells_the_inputs_and_when_each_step_ran(tmp_path: Path) -> None:
    study = Study.of_slices(tmp_path, ct_slices(1))
    attempt = step_context(tmp_path, [b"a"], [study.analyze()], step="fhir")
    attempt.context.job = JOB
    export_fhir(ExportFhir(), attempt.context)
    found = resources(attempt)
    [report], [device] = found["DiagnosticReport"], found["Device"]
    came, ran = found["Provenance"]
    [entity] = came["entity"]
    assert (
        entity["what"]["identifier"]["value"] == f"nih:sha-256;{hashlib.sha256(b'a').hexdigest()}"
    )
    assert ran["activity"]["text"] == "step analyze, attempts: 1"
    assert ran["occurredPeriod"]["start"] < ran["occurredPeriod"]["end"]
    for issued in (report["issued"], *(one["issued"] for one in found["Observation"])):
        assert issued == came["recorded"] == ran["recorded"] >= ran["occurredPeriod"]["end"]
    assert ran["agent"] == [{"who": {"reference": f"urn:uuid:{device['id']}"}}]
    for one in (came, ran):
        assert one["target"] == [{"reference": f"urn:uuid:{report['id']}"}]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308])
def test_figures_that_json_cannot_write_are_left_out(tmp_path: Path, value: float) -> None:
    analyzed = Study.of_slices(tmp_path, ct_slices(1)).analyze()
    measured = analyzed.result.findings[0].measurements[0]
    measured.fraction, measured.mean_value, measured.volume_ml = value, math.nan, math.inf
    first = resources(exported(tmp_path, analyzed))["Observation"][0]
    assert [one["code"]["text"] for one in first["component"]] == ["Number of voxels"]


@pytest.mark.parametrize("name", ["", "\n", "\x00\x07", "\u202e"])
def test_names_that_cannot_be_read_are_numbers(tmp_path: Path, name: str) -> None:
    analyzed = Study.of_slices(tmp_path, ct_slices(1)).analyze()
    finding = analyzed.result.findings[0]
    for one in finding.measurements:
        one.display_name = name
    finding.classes.add(frame=1, label=3, display_name=name, probability=0.5)
    finding.model.Clear()
    analyzed.result.model.Clear()
    found = resources(exported(tmp_path, analyzed))
    *measured, classes = found["Observation"]
    assert [one["code"]["text"] for one in measured] == [str(n) for n in range(len(measured))]
    assert classes["component"][0]["code"]["text"] == "3"
    assert "property" not in found["Device"][0]
