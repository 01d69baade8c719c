"""An archive through everything: its files are known once it is unpacked, then go as uploads go."""

import io
import json
import zipfile
from pathlib import Path

from fluoro.v1 import archive_pb2, job_pb2
from fluoro_client.jobs import analyze, render, report, step
from fluoro_local.testing import JOB_SECONDS, RunningFluoro

NAMES = ["Doe^Jane/ct", "Doe^Jane/mr", "README", "again/ct", "again/mr", "last"]
CT, MR, TEXT = ["0/0000", "0/0003", "0/0005"], ["0/0001", "0/0004"], "0/0002"


def test_an_archive_is_unpacked_rendered_analyzed_and_reported_without_a_name_of_its_files(
    fluoro: RunningFluoro, ct: Path, mr: Path, tmp_path: Path
) -> None:
    data = [ct.read_bytes(), mr.read_bytes()]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in zip(NAMES, [*data, b"not DICOM", *data, data[0]], strict=True):
            target.writestr(name, content)
    with fluoro.client() as client:
        job = job_pb2.Job(
            inputs=[client.upload(archive.getvalue()).name],
            steps=[
                step(archive_pb2.UnpackArchive(), "unpack"),
                render(after=["unpack"], max_inputs_per_task=2),
                analyze("ct-tissue", after=["render"], max_inputs_per_task=2),
                report(after=["render", "analyze"]),
            ],
        )
        done = client.wait(client.submit(job).name, timeout_seconds=JOB_SECONDS)
        assert done.state == job_pb2.Job.STATE_PARTIALLY_SUCCEEDED, fluoro.logs()
        unpacked, rendered, analyzed, reported = done.steps
        listing = next(each for each in unpacked.artifacts if each.role == "members")
        listed = json.loads(client.download(listing.blob, tmp_path / "members").read_text())
    assert [(each["key"], each["name"]) for each in listed] == [
        (f"0/{number:04}", name) for number, name in enumerate(NAMES)
    ]
    # The README fails alone, and so never reaches the model: 3 + 3 tasks for 6 + 5 inputs.
    assert [len(each.tasks) for each in done.steps] == [1, 3, 3, 1]
    assert {item.key: item.reason for item in rendered.items} == {
        **dict.fromkeys(CT + MR, ""),
        TEXT: "NOT_DICOM",
    }
    assert {item.key: item.reason for item in analyzed.items} == {
        **dict.fromkeys(CT, ""),
        **dict.fromkeys(MR, "MODEL_NOT_APPLICABLE"),
    }
    findings = analyzed.analyze_images_result.findings
    assert [(finding.input, finding.item) for finding in findings] == [(0, key) for key in CT]
    assert {artifact.name for artifact in reported.artifacts} == {"report.pdf", "result.json"}
    assert not any(name in str(done) for name in ("Doe", "Jane", "README", "again"))
    assert not any(name in fluoro.logs() for name in ("Doe^", "README", "again/"))


def test_a_file_that_is_no_archive_fails_its_job_with_what_to_do(fluoro: RunningFluoro) -> None:
    with fluoro.client() as client:
        job = job_pb2.Job(
            inputs=[client.upload(b"not an archive").name],
            steps=[
                step(archive_pb2.UnpackArchive(), "unpack"),
                render(after=["unpack"]),
            ],
        )
        done = client.wait(client.submit(job).name, timeout_seconds=JOB_SECONDS)
    assert [each.reason for each in done.steps] == ["ALL_ITEMS_FAILED", "UPSTREAM_FAILED"]
    assert done.steps[0].items[0].reason == "ARCHIVE_INVALID"
    assert not done.steps[1].tasks
