"""result.json as programs read it."""

import hashlib
import json
from datetime import timedelta
from importlib.metadata import version
from typing import Any

from export_worker.operations.report import export_report
from fluoro.v1 import job_pb2
from fluoro.v1.export_pb2 import ExportReport
from fluoro_jobs.errors import Reason
from fluoro_jobs.testing import step_context
from google.protobuf import json_format


def parsed(data: bytes) -> job_pb2.Job:
    return json_format.Parse(data, job_pb2.Job())


def test_it_is_a_job_of_the_api_with_the_steps_results(clinic: Any) -> None:
    inspect, render, analyze = clinic.inspect(), clinic.render(), clinic.analyze()
    job = parsed(clinic.report(inspect, render, analyze).read("result.json"))
    steps = {step.name: step for step in job.steps}
    assert job.name == clinic.job
    assert steps["inspect"].inspect_dicom_result == inspect.result
    assert steps["render"].render_dicom_result == render.result
    assert steps["analyze"].analyze_images_result == analyze.result


def test_artifacts_are_named_by_what_they_hold_and_not_by_where_they_lie(clinic: Any) -> None:
    render = clinic.render()
    artifact = parsed(clinic.report(render).read("result.json")).steps[0].artifacts[0]
    assert artifact.sha256 == render.artifacts[0].sha256
    assert artifact.size_bytes == render.artifacts[0].size_bytes
    assert not artifact.blob


def test_items_that_failed_are_there(clinic: Any) -> None:
    clinic.inputs = 2
    clinic.failing["1"] = (Reason.NOT_DICOM, "Not DICOM.")
    items = parsed(clinic.report(clinic.inspect()).read("result.json")).steps[0].items
    assert [(item.input, item.state, item.reason) for item in items] == [
        (0, job_pb2.Item.STATE_SUCCEEDED, ""),
        (1, job_pb2.Item.STATE_FAILED, "NOT_DICOM"),
    ]


def test_entries_items_and_artifacts_carry_the_key_of_what_they_are_about(clinic: Any) -> None:
    clinic.keys = ["3/0007", "series-2"]
    (step,) = parsed(clinic.report(clinic.render()).read("result.json")).steps
    assert [(item.key, item.input) for item in step.items] == [("3/0007", 3), ("series-2", -1)]
    assert [image.item for image in step.render_dicom_result.images] == clinic.keys
    assert [artifact.key for artifact in step.artifacts] == clinic.keys
    assert [artifact.HasField("input") for artifact in step.artifacts] == [True, False]


def test_results_of_the_first_release_are_named_by_the_number_of_their_input(
    clinic: Any, reader: Any
) -> None:
    clinic.inputs = 3
    upstream = clinic.render()
    for entry in (*upstream.items, *upstream.artifacts):
        entry.ClearField("key")
    for image in upstream.result.images:
        image.ClearField("item")
    assert "Input 2" in reader.text(clinic.pdf(upstream))


def test_keys_are_sorted_in_camel_case_and_zeros_written_out(clinic: Any) -> None:
    data = clinic.report(clinic.inspect(), clinic.analyze()).read("result.json")
    document = json.loads(data)
    # `loads` keeps the order that it finds.
    assert json.dumps(document) == json.dumps(document, sort_keys=True)
    assert [step["name"] for step in document["steps"]] == ["analyze", "inspect"]
    assert (
        document["steps"][0]["analyzeImagesResult"]["findings"][0]["measurements"][0]["voxels"]
        == "0"
    )


def test_it_tells_where_the_results_come_from(clinic: Any) -> None:
    upstream = [clinic.inspect(), clinic.analyze()]
    attempt = step_context(clinic.folder, [b"a", b"bc"], upstream, step="report")
    attempt.context.job = clinic.job
    export_report(ExportReport(formats=[ExportReport.FORMAT_JSON]), attempt.context)
    made = parsed(attempt.read("result.json")).provenance
    assert made.job == clinic.job
    assert [(one.input, one.size_bytes, one.sha256) for one in made.inputs] == [
        (0, 1, hashlib.sha256(b"a").digest()),
        (1, 2, hashlib.sha256(b"bc").digest()),
    ]
    assert [(run.step, run.attempts) for run in made.runs] == [("inspect", 1), ("analyze", 1)]
    for run in made.runs:
        assert run.end_time.ToDatetime() - run.start_time.ToDatetime() == timedelta(seconds=1)
    [model] = made.models
    assert model == upstream[1].result.model
    assert made.writer_version == version("export-worker")


def test_numbers_that_are_none_survive_as_proto3_json_writes_them(clinic: Any) -> None:
    analyze = clinic.analyze()
    analyze.result.findings[0].measurements[0].mean_value = float("nan")
    assert b'"meanValue": "NaN"' in clinic.report(analyze).read("result.json")
