"""The `fluoro` command against a running system, in JSON as scripts use it."""

import json
from pathlib import Path

import pytest
from fluoro.v1 import blob_service_pb2, job_pb2, job_service_pb2
from fluoro_client import BASIC
from fluoro_client.jobs import imaging_report
from fluoro_local.testing import RunningFluoro
from google.protobuf import json_format

MANY = 400
"""Inputs of a job that is certain to be still at work when a command follows it."""


def test_a_study_goes_from_upload_to_download(
    fluoro: RunningFluoro, ct: Path, mr: Path, tmp_path: Path
) -> None:
    uploads = fluoro.command_json("upload", ct, mr)["uploads"]
    blobs = [json_format.ParseDict(upload["blob"], blob_service_pb2.Blob()) for upload in uploads]
    assert [
        (upload["file"], blob.size_bytes) for upload, blob in zip(uploads, blobs, strict=True)
    ] == [(str(path), path.stat().st_size) for path in (ct, mr)]

    inputs = [word for blob in blobs for word in ("--input", blob.name)]
    words = [
        "submit",
        "--pipeline",
        "ct-tissue",
        *inputs,
        "--label",
        "study=a-to-z",
        "--watch",
        "--output",
        "json",
    ]
    watched = fluoro.command(*words)
    assert watched.returncode == 0, watched.stderr + fluoro.logs()
    messages = [
        json_format.Parse(line, job_service_pb2.WatchJobResponse())
        for line in watched.stdout.splitlines()
    ]
    name, began = messages[0].snapshot.name, messages[0].snapshot.last_sequence
    events = [message.event for message in messages if message.HasField("event")]
    assert [event.sequence for event in events] == list(range(began + 1, began + 1 + len(events)))
    assert events[-1].job_changed.state == job_pb2.Job.STATE_SUCCEEDED

    job = json_format.ParseDict(fluoro.command_json("get", name), job_pb2.Job())
    assert (job.state, job.last_sequence) == (job_pb2.Job.STATE_SUCCEEDED, events[-1].sequence)
    listed = fluoro.command_json("list", "--label", "study=a-to-z", "--state", "succeeded")["jobs"]
    assert [found["name"] for found in listed] == [name]

    files = fluoro.command_json("download", name, "-o", tmp_path)["files"]
    artifacts = {
        str(tmp_path / step.name / artifact.name): artifact.size_bytes
        for step in job.steps
        for artifact in step.artifacts
    }
    assert {file: Path(file).stat().st_size for file in files} == artifacts
    [blob_file] = fluoro.command_json("download", blobs[0].name, "-o", tmp_path)["files"]
    assert Path(blob_file).read_bytes() == ct.read_bytes()


def test_a_running_job_is_cancelled_for_good(fluoro: RunningFluoro, ct: Path) -> None:
    with fluoro.client() as client:
        name = client.submit(imaging_report([client.upload(ct)] * MANY)).name
    assert fluoro.command_json("cancel", name)["state"] == "STATE_CANCELLED"
    job = json_format.ParseDict(fluoro.command_json("cancel", name), job_pb2.Job())
    assert job.state == job_pb2.Job.STATE_CANCELLED, "to cancel again changes nothing"
    assert fluoro.command("watch", name).returncode == 1
    with fluoro.client() as client:
        assert client.get(name, view=BASIC) == job
    assert fluoro.run([ct]).state == job_pb2.Job.STATE_SUCCEEDED, "the workers are free for others"


def test_a_watched_job_that_fails_exits_with_1(fluoro: RunningFluoro, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("not DICOM")
    done = fluoro.command(
        "submit", "--pipeline", "ct-tissue", "--input", tmp_path / "letter.txt", "--watch"
    )
    assert done.returncode == 1, done.stderr
    assert "ALL_ITEMS_FAILED" in done.stdout


@pytest.mark.parametrize("words", [("get",), ("watch",), ("cancel",), ("download", "-o", ".")])
def test_another_owner_is_told_that_there_is_no_such_job(
    fluoro: RunningFluoro, ct: Path, words: tuple[str, ...]
) -> None:
    with fluoro.client() as client:
        name = client.submit(imaging_report([client.upload(ct)])).name
    done = fluoro.command(*words, name, "--output", "json", owner="eve")
    assert (done.returncode, done.stdout) == (3, "")
    error = json.loads(done.stderr)["error"]
    assert (error["code"], error["reason"]) == ("NOT_FOUND", "JOB_NOT_FOUND")


def test_another_owner_has_an_empty_list_and_cannot_have_or_use_a_blob(
    fluoro: RunningFluoro, ct: Path, tmp_path: Path
) -> None:
    with fluoro.client() as client:
        blob = client.upload(ct).name
    listed = fluoro.command("list", "--output", "json", owner="mallory")
    assert (listed.returncode, json.loads(listed.stdout)) == (0, {"jobs": []})
    for words in (
        ["download", blob, "-o", tmp_path],
        ["submit", "--pipeline", "ct-tissue", "--input", blob],
    ):
        done = fluoro.command(*words, "--output", "json", owner="mallory")
        assert (done.returncode, json.loads(done.stderr)["error"]["reason"]) == (
            3,
            "BLOB_NOT_FOUND",
        )
    assert not list(tmp_path.iterdir())


def test_a_request_the_server_refuses_names_the_field(
    fluoro: RunningFluoro, ct: Path, tmp_path: Path
) -> None:
    with fluoro.client() as client:
        blob = client.upload(ct).name
    (tmp_path / "job.json").write_text(
        json.dumps({"inputs": [blob], "steps": [{"name": "Bad Name", "inspectDicom": {}}]})
    )
    done = fluoro.command("submit", "--file", tmp_path / "job.json", "--output", "json")
    assert done.returncode == 3
    error = json.loads(done.stderr)["error"]
    assert error["reason"] == "INVALID_ARGUMENT"
    assert "job.steps[0].name" in error["fields"]


def test_a_request_id_makes_it_safe_to_submit_again(fluoro: RunningFluoro, ct: Path) -> None:
    with fluoro.client() as client:
        blob = client.upload(ct).name
    words = [
        "submit",
        "--pipeline",
        "ct-tissue",
        "--input",
        blob,
        "--request-id",
        "once-and-never-again",
    ]
    assert fluoro.command_json(*words)["name"] == fluoro.command_json(*words)["name"]
    done = fluoro.command(*words, "--priority", "9", "--output", "json")
    assert (done.returncode, json.loads(done.stderr)["error"]["reason"]) == (3, "REQUEST_ID_REUSED")
