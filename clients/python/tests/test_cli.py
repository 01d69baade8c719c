"""The `fluoro` command as people and scripts use it: a process against a gateway on a socket."""

import asyncio
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from fluoro.v1 import blob_service_pb2, event_pb2, explanation_pb2, job_pb2, job_service_pb2
from fluoro_client import FULL
from fluoro_client.errors import FieldViolation
from fluoro_client.jobs import imaging_report
from fluoro_client.options import StateName
from fluoro_client.present import explanation_view
from fluoro_client.testing import Fault
from fluoro_client.testing.views import shown
from google.protobuf import json_format
from rich.console import Console

State = job_pb2.Job.State


def done(gateway):
    """A finished job with artifacts and one failed item."""
    preview, report = (
        gateway.add_blob(b"png", "image/png"),
        gateway.add_blob(b"%PDF-", "application/pdf"),
    )
    job = job_pb2.Job(
        inputs=["blobs/a", "blobs/b"],
        steps=[
            job_pb2.Step(
                name="render",
                state=job_pb2.Step.STATE_PARTIALLY_SUCCEEDED,
                tasks=[
                    job_pb2.Task(attempts=[job_pb2.Attempt(number=1), job_pb2.Attempt(number=2)])
                ],
                items=[
                    job_pb2.Item(input=0, state=job_pb2.Item.STATE_SUCCEEDED),
                    job_pb2.Item(
                        input=1,
                        state=job_pb2.Item.STATE_FAILED,
                        reason="NOT_DICOM",
                        message="No DICM prefix.",
                    ),
                ],
                artifacts=[
                    job_pb2.Artifact(
                        name="preview-0000.png",
                        role="preview",
                        blob=preview.name,
                        size_bytes=3,
                        sha256=preview.sha256,
                    )
                ],
            ),
            job_pb2.Step(
                name="report",
                state=job_pb2.Step.STATE_SUCCEEDED,
                artifacts=[
                    job_pb2.Artifact(
                        name="report.pdf",
                        role="report",
                        blob=report.name,
                        size_bytes=5,
                        sha256=report.sha256,
                    )
                ],
            ),
        ],
    )
    return gateway.add_job(
        job,
        events=[event_pb2.JobChanged(state=State.STATE_PARTIALLY_SUCCEEDED, reason="ITEMS_FAILED")],
    )


async def test_help_documents_the_exit_codes_and_every_command_takes_output(fluoro):
    code, out, _ = await fluoro("--help")
    assert code == 0
    assert "Exit codes" in out
    commands = "upload submit pipelines watch get list explain cancel retry download"
    for command in commands.split():
        assert command in out
        assert "--output" in (await fluoro(command, "--help"))[1]


def test_help_does_not_wait_for_grpc():
    script = (
        "import sys, fluoro_client.cli; sys.exit(any(name in sys.modules for name in "
        "('grpc', 'google.protobuf', 'fluoro.v1')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_words_of_the_command_line_are_those_of_the_api():
    assert {f"STATE_{name.name}" for name in StateName} == set(State.keys()) - {"STATE_UNSPECIFIED"}


async def test_files_and_folders_are_uploaded_and_told_in_json(gateway, fluoro, tmp_path):
    (tmp_path / "study" / "series").mkdir(parents=True)
    for name, data in (
        ("study/series/2", b"two"),
        ("study/1.png", b"one"),
        ("study/.hidden", b"no"),
        ("last", b"three"),
    ):
        (tmp_path / name).write_bytes(data)
    code, out, _ = await fluoro(
        "upload", str(tmp_path / "study"), str(tmp_path / "last"), "--output", "json"
    )
    uploads = [(Path(found["file"]).name, found["blob"]) for found in json.loads(out)["uploads"]]
    blobs = [json_format.ParseDict(blob, blob_service_pb2.Blob()) for _, blob in uploads]
    assert code == 0
    assert [
        (name, gateway.data[blob.name]) for (name, _), blob in zip(uploads, blobs, strict=True)
    ] == [
        ("1.png", b"one"),
        ("2", b"two"),
        ("last", b"three"),
    ]
    assert (await fluoro("upload", str(tmp_path / "last")))[1].split()[5:7] == [
        str(tmp_path / "last"),
        blobs[2].name,
    ]


async def test_a_pipeline_is_submitted_with_blobs_and_paths_in_order(gateway, fluoro, tmp_path):
    (tmp_path / "ct.dcm").write_bytes(b"ct")
    words = [
        "--pipeline",
        "ct-tissue",
        "--input",
        gateway.add_blob(b"x").name,
        "--input",
        str(tmp_path / "ct.dcm"),
        "--label",
        "study=a",
    ]
    code, out, _ = await fluoro("submit", *words, "--priority", "3", "--output", "json")
    assert code == 0
    [job] = gateway.jobs.values()
    assert json_format.Parse(out, job_pb2.Job()).name == job.name
    assert list(job.inputs) == list(gateway.blobs)
    assert [step.name for step in job.steps] == ["inspect", "render", "analyze", "report"]
    assert (dict(job.labels), job.priority) == ({"study": "a"}, 3)
    assert {owner for _, owner, _ in gateway.calls} == {"ada"}


async def test_a_job_comes_from_standard_input_and_a_request_id_makes_it_safe_to_repeat(
    gateway, fluoro
):
    text = json_format.MessageToJson(imaging_report([gateway.add_blob(b"x")]))
    for _ in range(2):
        code, out, _ = await fluoro("submit", "--file", "-", "--request-id", "once", input=text)
        assert code == 0
    [job] = gateway.jobs.values()
    assert job.name in out


@pytest.mark.parametrize(
    "words",
    [
        ["submit"],
        ["submit", "--pipeline", "ct-tissue", "--file", "x", "--input", "blobs/1"],
        ["submit", "--file", "/no/such/file"],
        ["submit", "--file", "x", "--param", "title=A"],
        ["submit", "--pipeline", "ct-tissue", "--input", "blobs/1", "--param", "title"],
        ["submit", "--file", "-"],
        ["submit", "--pipeline", "ct-tissue", "--input", "/no/such/file"],
        ["submit", "--pipeline", "ct-tissue", "--input", "blobs/1", "--label", "novalue"],
        ["upload", "/no/such/file"],
        ["list", "--state", "sleeping"],
        ["watch", "x", "--cursor", "3"],
        ["watch"],
        ["watch", "x", "--all"],
        ["watch", "x", "--label", "study=a"],
        ["download", "x"],
        ["frobnicate"],
    ],
)
async def test_a_command_that_makes_no_sense_exits_with_2(gateway, fluoro, words):
    code, out, err = await fluoro(*words)
    assert (code, out) == (2, "")
    assert err
    assert not gateway.calls


async def test_a_job_is_shown_with_steps_failed_items_and_artifacts(gateway, fluoro):
    job = done(gateway)
    code, out, _ = await fluoro("get", job.name.removeprefix("jobs/"))
    assert code == 0
    for text in (
        job.name,
        "partially succeeded",
        "ITEMS_FAILED",
        "1/2 ok, 1 failed",
        "NOT_DICOM",
        "No DICM prefix.",
        "preview-0000.png",
    ):
        assert text in out
    assert json_format.Parse(
        (await fluoro("get", job.name, "--output", "json"))[1], job_pb2.Job()
    ) == shown(job, FULL)


async def test_a_job_of_a_thousand_images_fits_on_a_screen(gateway, fluoro):
    failed = {
        "state": job_pb2.Item.STATE_FAILED,
        "reason": "NOT_DICOM",
        "message": "No DICM prefix.",
    }
    step = job_pb2.Step(
        name="render",
        state=job_pb2.Step.STATE_FAILED,
        tasks=[
            job_pb2.Task(shard=shard, attempts=[job_pb2.Attempt(number=1)] * 2)
            for shard in range(20)
        ],
        items=[job_pb2.Item(input=number, **failed) for number in range(990)]
        + [
            job_pb2.Item(input=999, **failed | {"reason": "OTHER"}),
            job_pb2.Item(input=3, key="3/0007", **failed | {"reason": "MEMBER"}),
        ],
        artifacts=[
            job_pb2.Artifact(name=f"{number}.png", role="preview", size_bytes=2)
            for number in range(1000)
        ]
        + [job_pb2.Artifact(name="all.zip", role="archive", size_bytes=7)],
    )
    code, out, _ = await fluoro("get", gateway.add_job(job_pb2.Job(steps=[step])).name)
    assert code == 0
    words = [line.split() for line in out.splitlines()]
    assert ["render", "failed", "0/992", "ok,", "992", "failed", "40", "in", "20", "tasks"] in words
    assert ["render", "990", "inputs", "failed", "NOT_DICOM", "No", "DICM", "prefix."] in words
    assert ["render", "999", "failed", "OTHER", "No", "DICM", "prefix."] in words
    assert ["render", "3/0007", "failed", "MEMBER", "No", "DICM", "prefix."] in words
    assert [
        "render",
        "1000",
        "artifacts",
        "preview",
        "2000",
        "fluoro",
        "download",
        "…",
        "--role",
        "preview",
    ] in words
    assert ["render", "all.zip", "archive", "7"] in words
    assert len(words) < 13


async def test_lists_are_filtered_and_limited(gateway, fluoro):
    jobs = [gateway.add_job(job_pb2.Job(labels={"study": "a"})) for _ in range(3)] + [done(gateway)]
    code, out, _ = await fluoro(
        "list", "--state", "pending", "--label", "study=a", "--limit", "2", "--output", "json"
    )
    assert code == 0
    assert [job["name"] for job in json.loads(out)["jobs"]] == [jobs[2].name, jobs[1].name]
    code, out, _ = await fluoro("list", "--state", "partially-succeeded")
    assert [line.split()[0] for line in out.splitlines()] == ["JOB", jobs[3].name]


async def test_a_job_is_cancelled(gateway, fluoro):
    job = gateway.add_job()
    code, out, _ = await fluoro("cancel", job.name, "--output", "json")
    assert (code, json.loads(out)["state"]) == (0, "STATE_CANCELLED")
    assert (await fluoro("cancel", job.name))[0] == 0


async def test_a_job_that_failed_is_retried_and_one_that_runs_is_not(gateway, fluoro):
    job = gateway.add_job(imaging_report([]))
    assert (await fluoro("retry", job.name))[0] == 3
    await fluoro("cancel", job.name)
    code, out, _ = await fluoro("retry", job.name, "--output", "json")
    assert (code, json.loads(out)["state"]) == (0, "STATE_PENDING")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State.STATE_SUCCEEDED, 0),
        (State.STATE_PARTIALLY_SUCCEEDED, 0),
        (State.STATE_FAILED, 1),
        (State.STATE_CANCELLED, 1),
    ],
)
async def test_the_outcome_of_a_watched_job_is_the_exit_code(gateway, fluoro, state, expected):
    job = gateway.add_job(events=[event_pb2.JobChanged(state=state, reason="STEP_FAILED")])
    assert (await fluoro("watch", job.name))[0] == expected


async def test_a_watch_in_json_is_one_message_per_line_and_goes_on_after_a_cursor(gateway, fluoro):
    job = gateway.add_job(
        events=[event_pb2.StepChanged(step="a", state=job_pb2.Step.STATE_RUNNING)]
    )
    command = fluoro.start("watch", job.name, "--output", "json")
    first = json_format.Parse(await command.line(), job_service_pb2.WatchJobResponse())
    assert first.snapshot == job
    gateway.tell(job.name, event_pb2.JobChanged(state=State.STATE_RUNNING))
    gateway.end(job.name, State.STATE_FAILED)
    code, out, _ = await command.end()
    lines = [
        json_format.Parse(line, job_service_pb2.WatchJobResponse()) for line in out.splitlines()
    ]
    assert [line.event.sequence for line in lines] == [3, 4]
    assert code == 1
    _, out, _ = await fluoro("watch", job.name, "--output", "json", "--cursor", lines[0].cursor)
    assert [json.loads(line)["event"]["sequence"] for line in out.splitlines()] == ["4"]


@pytest.mark.parametrize("output", ["table", "json"])
async def test_all_jobs_are_watched_a_line_each_time_until_ctrl_c(gateway, fluoro, output):
    job = gateway.add_job(job_pb2.Job(labels={"study": "a"}))
    command = fluoro.start("watch", "--all", "--label", "study=a", "--output", output)
    lines = [await command.line()]
    gateway.tell(job.name, event_pb2.StepChanged(step="render", state=job_pb2.Step.STATE_RUNNING))
    lines += [await command.line() for _ in range(1 if output == "table" else 2)]
    command.process.send_signal(signal.SIGINT)
    code, _, err = await command.end()
    if output == "table":
        assert [line.decode().split() for line in lines] == [
            [job.name, "pending"],
            [job.name, "render", "running"],
        ]
    else:
        messages = [json_format.Parse(line, job_service_pb2.WatchJobsResponse()) for line in lines]
        assert [message.WhichOneof("update") for message in messages] == [
            "job",
            "bookmark",
            "event",
        ]
    assert code == 130
    assert err.decode().startswith(
        "Detached. Resume with: fluoro watch --all --label study=a --endpoint"
    )


async def test_ctrl_c_detaches_from_a_watch_and_tells_how_to_resume(gateway, fluoro):
    job = gateway.add_job()
    command = fluoro.start("watch", job.name, "--output", "json")
    assert await command.line()
    command.process.send_signal(signal.SIGINT)
    code, _, err = await command.end()
    assert code == 130
    hint = (
        f"fluoro watch {job.name} --endpoint {gateway.endpoint} --owner ada --output json "
        f"--cursor {job.name[5:]}.1"
    )
    assert err.decode() == f"Detached; the job goes on. Resume with: {hint}\n"
    assert job.state == State.STATE_PENDING


async def test_submit_and_watch_in_one_go(gateway, fluoro):
    command = fluoro.start(
        "submit",
        "--pipeline",
        "ct-tissue",
        "--input",
        gateway.add_blob(b"x").name,
        "--watch",
        "--output",
        "json",
    )
    job = json.loads(await command.line())["snapshot"]["name"]
    gateway.finish(job)
    assert (await command.end())[0] == 0


async def test_artifacts_are_downloaded_by_step_role_and_name(gateway, fluoro, tmp_path):
    job = done(gateway)
    code, out, _ = await fluoro("download", job.name, "-o", str(tmp_path / "all"))
    assert (code, out.split()) == (
        0,
        [str(tmp_path / "all/render/preview-0000.png"), str(tmp_path / "all/report/report.pdf")],
    )
    assert (tmp_path / "all/report/report.pdf").read_bytes() == b"%PDF-"
    for words in (["--step", "report"], ["--role", "report"], ["--artifact", "report.pdf"]):
        _, out, _ = await fluoro(
            "download", job.name, *words, "-o", str(tmp_path / "one"), "--output", "json"
        )
        assert json.loads(out) == {"files": [str(tmp_path / "one/report/report.pdf")]}
    assert (await fluoro("download", job.name, "--role", "overlay", "-o", str(tmp_path)))[0] == 2


async def test_a_blob_is_downloaded_under_its_own_name(gateway, fluoro, tmp_path):
    blob = gateway.add_blob(b"png", "image/png")
    code, _, _ = await fluoro("download", blob.name, "-o", str(tmp_path))
    assert code == 0
    assert (tmp_path / f"{blob.name.removeprefix('blobs/')}.png").read_bytes() == b"png"


async def test_a_file_name_that_leaves_the_folder_is_not_followed(gateway, fluoro, tmp_path):
    job = done(gateway)
    job.steps[0].artifacts[0].name = "../../outside.png"
    code, _, err = await fluoro("download", job.name, "-o", str(tmp_path / "in"))
    assert code == 2
    assert "not a plain file name" in err
    assert list(tmp_path.iterdir()) == []


async def test_a_refusal_exits_with_3_and_tells_reason_and_fields(gateway, fluoro):
    refusal = {
        "code": grpc.StatusCode.INVALID_ARGUMENT,
        "reason": "STEP_UNKNOWN",
        "message": "No such step.",
        "violations": [FieldViolation("job.steps[0].after[0]", "name a step")],
    }
    gateway.fail("SubmitJob", Fault(**refusal), Fault(**refusal))
    words = ["submit", "--pipeline", "ct-tissue", "--input", "blobs/1"]
    code, out, err = await fluoro(*words)
    assert (code, out) == (3, "")
    assert err == (
        "Error: INVALID_ARGUMENT (STEP_UNKNOWN): No such step.\n"
        "  job.steps[0].after[0]: name a step\n"
    )
    code, out, err = await fluoro(*words, "--output", "json")
    assert (code, out) == (3, "")
    assert json.loads(err)["error"] == {
        "message": "No such step.",
        "code": "INVALID_ARGUMENT",
        "reason": "STEP_UNKNOWN",
        "fields": {"job.steps[0].after[0]": "name a step"},
        "metadata": {},
    }


@pytest.mark.parametrize(
    "words",
    [["get", "x"], ["watch", "x"], ["upload", __file__], ["download", "blobs/x", "-o", "."]],
)
async def test_a_server_that_is_not_there_exits_with_4_soon(fluoro, unused_tcp_port, words):
    code, out, err = await asyncio.wait_for(
        fluoro(*words, "--endpoint", f"127.0.0.1:{unused_tcp_port}"), 20
    )
    assert (code, out) == (4, "")
    assert f"Cannot connect to a Fluoro gateway at 127.0.0.1:{unused_tcp_port}" in err


async def test_trouble_with_files_here_exits_with_5(gateway, fluoro, tmp_path):
    (tmp_path / "file").write_text("in the way of a folder")
    code, _, err = await fluoro(
        "download", gateway.add_blob(b"x").name, "-o", str(tmp_path / "file")
    )
    assert code == 5
    assert str(tmp_path / "file") in err


async def test_a_job_is_explained_in_sentences_and_in_json(gateway, fluoro):
    job = gateway.add_job(imaging_report([]))
    code, out, _ = await fluoro("explain", job.name, "--output", "json")
    found = json_format.Parse(out, explanation_pb2.JobExplanation())
    assert code == 0
    assert [step.step for step in found.steps] == [step.name for step in job.steps]
    code, out, _ = await fluoro("explain", job.name)
    assert code == 0
    assert job.name in out


def test_an_explanation_shows_causes_expected_times_and_attempts():
    found = explanation_pb2.JobExplanation(job="jobs/1", message="Step a: No worker.")
    step = found.steps.add(step="a")
    step.causes.add(kind=explanation_pb2.Cause.KIND_NO_WORKER, message="No worker.")
    found.causes.add(message="The job ends then.")
    for time in (found.finish.expected_time, found.finish.earliest_time, found.finish.latest_time):
        time.FromJsonString("2026-01-31T10:00:00Z")
    found.attempts.add(step="a", attempt=job_pb2.Attempt(number=2, worker="host:1", reason="X"))
    console = Console(width=100, file=io.StringIO())
    console.print(explanation_view(found))
    shown = console.file.getvalue()
    for text in (
        "Step a: No worker.",
        "NO_WORKER",
        "Ends about 2026-01-31 10:00:00 UTC, between 2026-01-31 10:00:00 and",
        "The job ends then.",
        "host:1",
        "running",
    ):
        assert text in shown
