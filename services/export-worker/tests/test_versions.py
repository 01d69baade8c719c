"""A report warns of inputs that are versions of one DICOM instance, whatever task saw them."""

import json
from typing import Any

import pytest
from export_worker.operations.report import export_report
from export_worker.words import LANGUAGES, words_of
from fluoro.v1 import convert_pb2, dicom_pb2
from fluoro.v1.export_pb2 import ExportReport, ReportStyle
from fluoro_jobs.worker.context import Upstream

WARNING = "Inputs with the SOP Instance UID of another input and other bytes: "


def warnings(clinic: Any, *upstream: Upstream, language: str = "") -> list[str]:
    request = ExportReport(formats=[ExportReport.FORMAT_HTML], style=ReportStyle(language=language))
    return list(export_report(request, clinic.attempt(upstream).context).warnings)


def test_versions_are_named_once_in_the_report_and_in_its_result(clinic: Any, reader: Any) -> None:
    clinic.inputs = 3
    clinic.files = {"2": b"another"}
    steps = clinic.inspect(), clinic.deidentify()
    said = f"{WARNING}0, 1, 2. Find out which of them are right."
    assert warnings(clinic, *steps) == [said]
    assert said in reader.text(clinic.pdf(*steps))


def test_copies_with_the_same_bytes_are_nothing_to_warn_of(clinic: Any) -> None:
    clinic.inputs = 3
    assert warnings(clinic, clinic.inspect(), clinic.deidentify()) == []


@pytest.mark.parametrize("step", ["inspect", "deidentify"])
def test_one_step_is_enough(clinic: Any, step: str) -> None:
    clinic.inputs = 2
    clinic.files = {"1": b"another"}
    assert len(warnings(clinic, getattr(clinic, step)())) == 1


def test_what_was_only_rendered_is_compared_by_its_pixels(clinic: Any) -> None:
    clinic.inputs = 3
    rendered = clinic.render()
    for number, image in enumerate(rendered.result.images):
        image.sop_instance_uid = "1.2.3"
        if number == 2:
            image.certificate.sha256 = b"2" * 32
    assert len(warnings(clinic, rendered)) == 1
    rendered.result.images[2].certificate.sha256 = rendered.result.images[0].certificate.sha256
    assert warnings(clinic, rendered) == []


def test_what_was_converted_is_compared_by_its_bytes(clinic: Any) -> None:
    clinic.inputs = 3
    attempt = clinic.step("convert")
    result = convert_pb2.ConvertDicomResult()
    for item in clinic.good(attempt):
        data = b"another" if item.key == "2" else b"same"
        name = item.put("instance", ".dcm", "instance", "application/dicom", data)
        result.instances.add(item=item.key, instance=name, sop_instance_uid="1.2.3")
    rendered = clinic.render()
    [said] = warnings(clinic, rendered, attempt.as_upstream(result))
    assert said.startswith(f"{WARNING}0, 1, 2.")
    result.instances.pop()
    assert warnings(clinic, rendered, attempt.as_upstream(result)) == []


def test_results_of_the_previous_release_have_no_hash_and_no_warning(clinic: Any) -> None:
    clinic.inputs = 2
    clinic.files = {"1": b"another"}
    inspected = clinic.inspect()
    for instance in inspected.result.instances:
        instance.ClearField("sha256")
    assert warnings(clinic, inspected) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_the_warning(clinic: Any, language: str) -> None:
    clinic.inputs = 2
    clinic.files = {"1": b"another"}
    [said] = warnings(clinic, clinic.inspect(), language=language)
    assert said == words_of(language)("versions", keys="0, 1")


def test_of_ten_thousand_inputs_the_first_are_named(clinic: Any) -> None:
    clinic.keys = [str(number) for number in range(3)]
    inspected = clinic.inspect()
    entries = inspected.result.instances
    for number in range(3, 10_000):
        entries.append(
            dicom_pb2.DicomInstance(
                item=str(number), sop_instance_uid="1.2.3", sha256=number.to_bytes(32, "big")
            )
        )
    [said] = warnings(clinic, inspected)
    assert said.startswith(f"{WARNING}3, 4, 5,")
    assert "21, 22 …." in said


def test_the_json_has_the_hashes_that_tell_versions_apart(clinic: Any) -> None:
    clinic.inputs = 2
    clinic.files = {"1": b"another"}
    report = json.loads(clinic.report(clinic.inspect()).read("result.json"))
    [first, second] = report["steps"][0]["inspectDicomResult"]["instances"]
    assert first["sopInstanceUid"] == second["sopInstanceUid"]
    assert first["sha256"] != second["sha256"]
