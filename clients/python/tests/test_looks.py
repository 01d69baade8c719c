"""What the command prints, as people see it on terminals of several widths, and `fluoro run`."""

import asyncio
import io
import signal
import subprocess
import sys

import pytest
from fluoro.v1 import job_pb2, token_service_pb2
from fluoro.v1.pipeline_service_pb2 import Pipeline, PipelineParameter
from fluoro_client.present import jobs_table, pipeline_view, tokens_table
from rich.console import Console

NAME = "jobs/01a21a90-9b42-7aeb-a374-22c43f0cb6d2"


def printed(view, width):
    file = io.StringIO()
    Console(file=file, width=width).print(view)
    return [line.rstrip() for line in file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [70, 80, 200])
def test_a_list_has_one_line_per_job_whose_name_can_be_copied(width):
    jobs = [job_pb2.Job(name=NAME, state=job_pb2.Job.STATE_RUNNING) for _ in range(3)]
    head, *lines = printed(jobs_table(jobs), width)
    assert head.split() == ["JOB", "STATE"]  # what no job has has no column
    assert [line.split() for line in lines] == [[NAME, "running"]] * 3


def test_a_label_makes_room_for_the_name_of_the_job():
    job = job_pb2.Job(name=NAME, state=job_pb2.Job.STATE_FAILED, labels={"study": "a" * 40})
    assert NAME in "\n".join(printed(jobs_table([job]), 80))


def test_the_name_of_a_token_can_be_copied():
    token = token_service_pb2.Token(
        name=NAME.replace("jobs", "tokens"), owner="scanner-3", display_name="CT in room 3"
    )
    assert token.name in "\n".join(printed(tokens_table([token]), 80))


def test_a_parameter_is_told_on_narrow_terminals_too():
    width = PipelineParameter(
        name="window_width", type=PipelineParameter.TYPE_NUMBER, description="How wide it is."
    )
    width.default_value.number_value = 400
    pipeline = Pipeline(name="pipelines/x/versions/1", version=1, parameters=[width])
    lines = printed(pipeline_view(pipeline), 50)
    assert "--param window_width=  number, default 400" in lines
    assert "    How wide it is." in lines


async def test_a_run_without_a_place_for_its_results_does_not_begin(gateway, fluoro, tmp_path):
    (tmp_path / "ct.dcm").write_bytes(b"ct")
    words = ["run", "imaging-report", str(tmp_path / "ct.dcm")]
    code, _, err = await fluoro(*words, "--to", str(tmp_path / "ct.dcm" / "out"))
    assert (code, "ct.dcm" in err) == (5, True)
    assert gateway.blobs == {}


async def test_ctrl_c_in_a_run_leaves_the_job_and_says_how_to_get_its_results(
    gateway, fluoro, tmp_path
):
    (tmp_path / "ct.dcm").write_bytes(b"ct")
    command = fluoro.start(
        "run", "imaging-report", str(tmp_path / "ct.dcm"), "--to", str(tmp_path / "out")
    )
    assert await command.line()  # it watches
    command.process.send_signal(signal.SIGINT)
    code, _, err = await asyncio.wait_for(command.end(), 30)
    [job] = gateway.jobs.values()
    assert (code, job.state) == (130, job_pb2.Job.STATE_PENDING)
    assert f"fluoro watch {job.name}" in err.decode()
    assert f"fluoro download {job.name}" in err.decode()


async def test_a_folder_without_files_and_one_that_is_not_there_are_usage_errors(
    gateway, fluoro, tmp_path
):
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    for name in ("empty", "nothing"):
        code, _, err = await fluoro(
            "run", "imaging-report", str(tmp_path / name), "--to", str(tmp_path / "out")
        )
        assert (code, name in err) == (2, True)
    assert gateway.jobs == {}


async def test_a_wait_ends_with_the_job_and_its_outcome_is_the_exit_code(gateway, fluoro):
    job = gateway.add_job()
    waiting = asyncio.create_task(fluoro("wait", job.name.removeprefix("jobs/")))
    async with asyncio.timeout(30):
        while not any(call.method == "WaitJob" for call in gateway.calls):  # noqa: ASYNC110 - the server's state is not ours to signal
            await asyncio.sleep(0.01)
    gateway.end(job, job_pb2.Job.STATE_FAILED, "JOB_EXPIRED")
    code, out, _ = await waiting
    assert (code, "JOB_EXPIRED" in out) == (1, True)


def test_ctrl_c_while_the_command_is_still_being_imported_leaves_no_traceback():
    words = ["-X", "importtime", "-c", "from fluoro_client.entry import main; main()", "list"]
    with subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE) as command:
        for line in command.stderr:
            if b"typer" in line:
                break
        command.send_signal(signal.SIGINT)
        said = command.stderr.read()
    assert command.returncode == 130
    assert b"Traceback" not in said
