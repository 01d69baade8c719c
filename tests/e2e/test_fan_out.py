"""A study that is split over many tasks has the results it has in one piece."""

import io
from dataclasses import replace
from pathlib import Path

import psycopg
import pydicom
import pytest
from fluoro.v1 import job_pb2, job_service_pb2
from fluoro.v1.deidentify_pb2 import DeidentifyDicom
from fluoro.v1.dicom_pb2 import InspectDicom
from fluoro.v1.export_pb2 import ExportReport
from fluoro_client import FluoroApiError
from fluoro_client.jobs import imaging_report, step
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger import accept
from fluoro_jobs.operations import BY_FIELD
from fluoro_local.testing import JOB_SECONDS, OWNER, RunningFluoro
from google.protobuf import json_format


def outputs(step: job_pb2.Step) -> tuple[object, ...]:
    """What a step brought, whoever brought it."""
    artifacts = sorted(
        (artifact.name, artifact.role, artifact.input, artifact.key, artifact.sha256)
        for artifact in step.artifacts
    )
    return (
        step.state,
        step.reason,
        step.message,
        list(step.items),
        artifacts,
        getattr(step, step.WhichOneof("result") or "name"),
    )


def test_in_shares_or_in_one_piece_the_results_are_the_same(
    fluoro: RunningFluoro, ct: Path, mr: Path
) -> None:
    with fluoro.client() as client:
        study = [client.upload(source) for source in (ct, mr, b"not DICOM", ct, ct)] * 4
        whole, shares = imaging_report(study), imaging_report(study)
        for step in whole.steps[:3]:
            step.max_inputs_per_task = 0
        for step in shares.steps[:3]:
            step.max_inputs_per_task = 3
        done = [
            client.wait(client.submit(job).name, timeout_seconds=JOB_SECONDS)
            for job in (whole, shares)
        ]
    assert [job.state for job in done] == [job_pb2.Job.STATE_PARTIALLY_SUCCEEDED] * 2, fluoro.logs()
    assert [[len(step.tasks) for step in job.steps] for job in done] == [
        [1, 1, 1, 1],
        [7, 7, 6, 1],
    ], "the files that are no DICOM leave nothing to analyze"
    for one, other in zip(*(job.steps[:3] for job in done), strict=True):
        assert outputs(one) == outputs(other)
        assert [item.key for item in one.items] == [str(item.input) for item in one.items]
        leaves = BY_FIELD[one.WhichOneof("operation") or ""].leaves
        roles = {artifact.role for artifact in one.artifacts}
        assert roles <= set(leaves), "the table has those left on demand, too"
        assert bool(roles) == bool(leaves)


def test_images_that_are_taken_together_are_one_item_for_model_and_report(
    fluoro: RunningFluoro, ct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(BY_FIELD["analyze_images"], groups=True)
    with fluoro.client() as client:
        job = imaging_report([client.upload(ct)] * 2)
        analyze = job.steps[2]
        analyze.inputs.add(step="render", role="pixels", group=True)
        with pytest.raises(FluoroApiError) as refused:
            client.submit(job)
        assert refused.value.reason == Reason.STEP_INPUT_MISMATCH
        # The ledger and the workers are as ready for it as for an operation that takes groups.
        monkeypatch.setitem(BY_FIELD, row.field, row)
        request = job_service_pb2.SubmitJobRequest(job=job)
        with psycopg.connect(fluoro.supervisor.postgres.url, autocommit=True) as connection:
            (accepted,) = accept.accept(connection, [accept.validate(request, OWNER)])
        assert not isinstance(accepted, FluoroError), accepted
        done = client.wait(accepted.name, timeout_seconds=JOB_SECONDS)
        assert done.state == job_pb2.Job.STATE_SUCCEEDED, fluoro.logs()
        (item,) = done.steps[2].items
        assert (item.key, item.input) == ("all", -1)
        (finding,) = done.steps[2].analyze_images_result.findings
        assert (finding.item, finding.overlay) == ("all", "overlay-all.png")
        result = next(one for one in done.steps[3].artifacts if one.name == "result.json")
        text = client.download(result, tmp_path / result.name).read_text()
        told = json_format.Parse(text, job_pb2.Job())
        assert {step.name: [one.key for one in step.items] for step in told.steps} == {
            "inspect": ["0", "1"],
            "render": ["0", "1"],
            "analyze": ["all"],
        }


def test_versions_of_an_instance_are_told_whatever_tasks_they_were_in(
    fluoro: RunningFluoro, ct: Path
) -> None:
    other = pydicom.dcmread(ct)
    other.SliceThickness = 7
    written = io.BytesIO()
    other.save_as(written)
    steps = [
        step(DeidentifyDicom(project="default"), "apart"),
        step(DeidentifyDicom(project="default"), "together"),
        step(InspectDicom(), "inspect", allow_identifiable=True),
        step(ExportReport(), "report", after=["apart", "inspect"]),
    ]
    steps[3].allow_identifiable = True
    steps[0].max_inputs_per_task = steps[2].max_inputs_per_task = 1
    with fluoro.client() as client:
        inputs = [client.upload(one).name for one in (ct, written.getvalue(), ct)]
        name = client.submit(job_pb2.Job(inputs=inputs, steps=steps)).name
        done = client.wait(name, timeout_seconds=JOB_SECONDS)
    apart, together, inspect, report = done.steps
    conflict = Reason.SOP_INSTANCE_CONFLICT
    assert [item.reason for item in together.items] == [conflict] * 3, fluoro.logs()
    assert list(together.artifacts) == list(together.deidentify_dicom_result.instances) == []
    for each in (apart, inspect):
        assert [item.reason for item in each.items] == [""] * 3
    hashes = [one.sha256 for one in inspect.inspect_dicom_result.instances]
    assert hashes[0] == hashes[2] != hashes[1]
    [warning] = report.export_report_result.warnings
    assert "other bytes: 0, 1, 2." in warning
