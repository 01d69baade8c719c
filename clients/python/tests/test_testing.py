"""The fake gateway as users' tests see it."""

import asyncio
import subprocess
import sys
import threading
import time

import pytest
from fluoro.v1 import dicom_pb2, event_pb2, job_pb2
from fluoro_client import AsyncClient, Client
from fluoro_client.errors import (
    DeadlineExceededError,
    FieldViolation,
    InvalidArgumentError,
    PermissionDeniedError,
    UnreachableError,
)
from fluoro_client.jobs import imaging_report, render
from fluoro_client.testing import FakeGateway, Fault, File, Outcome
from fluoro_client.testing.pytest_plugin import fluoro_gateway

Job, Step = job_pb2.Job, job_pb2.Step

__all__ = ["fluoro_gateway"]


@pytest.fixture
def client(fluoro_gateway):
    with Client(fluoro_gateway.endpoint, owner="ada", deadline_seconds=10) as client:
        yield client


def a_job(gateway, *steps):
    return Job(inputs=[gateway.add_blob(b"x").name], steps=steps or [render()])


def test_a_job_succeeds_at_once_and_tells_a_whole_story(fluoro_gateway, client):
    job = client.submit(imaging_report([client.upload(b"x")]))
    assert job.state == Job.STATE_PENDING
    done = client.get(job.name)
    assert [step.state for step in done.steps] == [Step.STATE_SUCCEEDED] * 4
    events = fluoro_gateway.events(job)
    assert [event.sequence for event in events] == list(range(1, done.last_sequence + 1))
    assert events[-1].job_changed.state == done.state == Job.STATE_SUCCEEDED


def test_a_step_comes_to_what_the_test_says(fluoro_gateway, client, tmp_path):
    result = dicom_pb2.RenderDicomResult(images=[dicom_pb2.RenderedImage()])
    outcome = Outcome(
        items=[job_pb2.Item(input=0, state=job_pb2.Item.STATE_SUCCEEDED)],
        artifacts=[File("a.png", b"png", "preview")],
        result=result,
    )
    fluoro_gateway.script("render", outcome)
    [step] = client.get(client.submit(a_job(fluoro_gateway)).name).steps
    assert step.render_dicom_result == result
    assert (step.artifacts[0].role, len(step.items)) == ("preview", 1)
    assert client.download(step.artifacts[0], tmp_path / "a.png").read_bytes() == b"png"


def test_a_script_holds_for_so_many_runs_and_then_the_one_before(fluoro_gateway, client):
    fluoro_gateway.script("render", Outcome("INTERNAL"))
    fluoro_gateway.script("render", Outcome(), times=1)
    jobs = [client.submit(a_job(fluoro_gateway)) for _ in range(3)]
    assert [client.get(job.name).state for job in jobs] == [
        Job.STATE_SUCCEEDED,
        Job.STATE_FAILED,
        Job.STATE_FAILED,
    ]


def test_a_result_of_another_operation_is_an_error_and_not_a_success(fluoro_gateway):
    job = fluoro_gateway.add_job(a_job(fluoro_gateway))
    fluoro_gateway.script("render", Outcome(result=dicom_pb2.InspectDicomResult()))
    with Client(fluoro_gateway.endpoint, owner="ada") as client:
        fluoro_gateway.hold = True
        job = client.submit(a_job(fluoro_gateway))
    with pytest.raises(TypeError):
        fluoro_gateway.finish(job)


def test_a_held_job_goes_as_the_test_goes(fluoro_gateway, client):
    fluoro_gateway.hold = True
    job = client.submit(a_job(fluoro_gateway, render("a"), render("b", after=["a"])))
    watch = client.watch(job.name)
    assert next(watch).snapshot.state == Job.STATE_PENDING
    with pytest.raises(ValueError, match="not a step of"):
        fluoro_gateway.begin(job, "b")
    fluoro_gateway.begin(job, "a")
    assert [next(watch).WhichOneof("update") for _ in range(3)] == ["event"] * 3
    fluoro_gateway.progress(job, event_pb2.Progress(step="a", attempt=1, fraction=0.5))
    assert next(watch).progress.fraction == 0.5
    fluoro_gateway.finish(job, "a")
    assert [step.state for step in client.get(job.name).steps] == [
        Step.STATE_SUCCEEDED,
        Step.STATE_PENDING,
    ]
    fluoro_gateway.end(job, Job.STATE_FAILED, "JOB_EXPIRED")
    *_, last = watch
    assert last.event.job_changed.reason == client.wait(job.name).reason == "JOB_EXPIRED"


def test_a_wait_ends_when_the_test_ends_the_job(fluoro_gateway, client):
    fluoro_gateway.hold = True
    job = client.submit(a_job(fluoro_gateway))
    waiting = threading.Thread(target=lambda: client.wait(job.name))
    waiting.start()
    while not any(call.method == "WaitJob" for call in fluoro_gateway.calls):
        pass
    fluoro_gateway.finish(job)
    waiting.join(30)
    assert not waiting.is_alive()


@pytest.mark.parametrize("wrong", [("NO_SUCH_REASON",), ("", "", None, [FieldViolation("a", "b")])])
def test_a_fault_that_no_gateway_has_is_refused(wrong):
    with pytest.raises(ValueError, match="reason"):
        Fault(*wrong)


def test_a_fault_of_no_method_is_refused(fluoro_gateway):
    with pytest.raises(ValueError, match="no method is called submit"):
        fluoro_gateway.fail("submit", Fault())


def test_an_upload_that_breaks_is_begun_again_and_one_that_was_given_up_leaves_nothing(
    fluoro_gateway, client
):
    async def source():
        yield b"some"
        raise OSError("gone")

    fluoro_gateway.fail(
        "UploadBlob", Fault(after=0), Fault("BLOB_STORE_UNAVAILABLE", after=500_000)
    )
    assert client.upload(b"y" * 600_000).size_bytes == 600_000
    for _ in range(20):
        with pytest.raises(OSError, match="gone"):
            client.upload(source())
    assert len(fluoro_gateway.blobs) == 1


def test_whose_a_call_is_must_be_said_unless_there_is_one_owner_only(fluoro_gateway):
    with (
        Client(fluoro_gateway.endpoint) as client,
        pytest.raises(PermissionDeniedError, match="OWNER_MISSING"),
    ):
        client.upload(b"x")
    with FakeGateway(single_owner="ada") as gateway, Client(gateway.endpoint) as client:
        client.upload(b"x")
        assert gateway.calls[0].owner == ""


def test_a_cursor_of_another_job_is_refused(fluoro_gateway, client):
    jobs = [client.submit(a_job(fluoro_gateway)) for _ in range(2)]
    cursor = next(client.watch(jobs[0].name)).cursor
    with pytest.raises(InvalidArgumentError, match="CURSOR_INVALID"):
        next(client.watch(jobs[1].name, cursor))


async def test_it_stops_at_once_whatever_hangs_or_watches_and_leaves_no_thread(fluoro_gateway):
    fluoro_gateway.hold = True
    fluoro_gateway.fail("GetJob", Fault(hang=True))
    job = fluoro_gateway.add_job()
    async with AsyncClient(
        fluoro_gateway.endpoint, owner="ada", patience_seconds=0.1, deadline_seconds=0.5
    ) as client:
        watches = [client.watch(job.name), client.watch_jobs()]
        for watch in [*watches, watches[1]]:  # the second begins with a job and a bookmark
            await anext(watch)
        calls = [
            asyncio.create_task(client.wait(job.name)),
            asyncio.create_task(client.get(job.name)),
        ]
        async with asyncio.timeout(30):
            while len(fluoro_gateway.calls) < 4:  # noqa: ASYNC110 - the fake's state is not ours to signal
                await asyncio.sleep(0.001)
        started = time.monotonic()
        fluoro_gateway.stop()
        assert time.monotonic() - started < 5
        assert not [
            thread for thread in threading.enumerate() if thread.name.startswith("fluoro-fake")
        ]
        ends = await asyncio.gather(
            *calls, *(anext(watch) for watch in watches), return_exceptions=True
        )
    assert {type(end) for end in ends} <= {UnreachableError, DeadlineExceededError}


def test_two_gateways_know_nothing_of_each_other(fluoro_gateway):
    with FakeGateway() as other, Client(other.endpoint, owner="ada") as client:
        client.submit(a_job(other))
        assert not fluoro_gateway.jobs
        assert other.endpoint != fluoro_gateway.endpoint


def test_it_needs_no_pytest():
    script = "import sys, fluoro_client.testing; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
