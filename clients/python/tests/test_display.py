"""Following a job on a terminal and in a log."""

import asyncio
import io

import pytest
from fluoro.v1 import event_pb2, job_pb2, job_service_pb2
from fluoro_client import FULL, AsyncClient
from fluoro_client.board import Board
from fluoro_client.display import follow
from fluoro_client.jobs import imaging_report
from fluoro_client.testing.views import shown as answered
from rich.console import Console

Job, Step, Task = job_pb2.Job.State, job_pb2.Step.State, job_pb2.Task.State


@pytest.fixture
async def client(gateway):
    async with AsyncClient(gateway.endpoint, owner="ada") as client:
        yield client


def step(name, state, **fields):
    return event_pb2.StepChanged(step=name, state=state, **fields)


def task(name, state, **fields):
    return event_pb2.TaskChanged(step=name, state=state, **fields)


COUNTS = event_pb2.ItemCounts(total=4, succeeded=2, skipped=1, failed=1)
STORY = [
    event_pb2.JobChanged(state=Job.STATE_RUNNING),
    step("inspect", Step.STATE_RUNNING),
    task("inspect", Task.STATE_RUNNING, attempt=1),
    task("inspect", Task.STATE_READY, attempt=1, reason="WORKER_LOST", message="The worker died."),
    task("inspect", Task.STATE_RUNNING, attempt=2),
    task("inspect", Task.STATE_SUCCEEDED, attempt=2, items=COUNTS),
    step("inspect", Step.STATE_PARTIALLY_SUCCEEDED, reason="ITEMS_FAILED"),
    step("render", Step.STATE_FAILED, reason="ALL_ITEMS_FAILED", message="Every item failed."),
    event_pb2.JobChanged(state=Job.STATE_FAILED, reason="STEP_FAILED", message="render failed."),
]


async def shown(gateway, client, console):
    """What the console shows of the story, and the job that is returned."""
    job = gateway.add_job(job_pb2.Job(inputs=["blobs/1"], steps=imaging_report([]).steps))
    gateway.progress(
        job, event_pb2.Progress(step="inspect", attempt=1, stage="decode", fraction=0.5)
    )
    following = asyncio.create_task(follow(client, job.name, console))
    async with asyncio.timeout(20):
        # The call is on record before its snapshot is read, which the story must not be part of.
        while "decode" not in console.file.getvalue():  # noqa: ASYNC110 - rich signals nothing
            await asyncio.sleep(0.01)
    for change in STORY:
        gateway.tell(job.name, change)
    result = await following
    assert result == answered(gateway.jobs[job.name], FULL)
    return console.file.getvalue(), job


async def test_a_log_gets_one_line_per_change(gateway, client):
    text, job = await shown(gateway, client, Console(file=io.StringIO(), width=40))
    assert [line.rstrip() for line in text.splitlines()] == [
        f"{job.name} pending",
        "inspect      pending",
        "render       pending",
        "analyze      pending",
        "report       pending",
        "inspect      running decode",
        f"{job.name} running",
        "inspect      running",
        "inspect      ready attempt 1 ended · WORKER_LOST · The worker died.",
        "inspect      partially succeeded 2/4 ok, 1 skipped, 1 failed · ITEMS_FAILED",
        "render       failed ALL_ITEMS_FAILED · Every item failed.",
        f"{job.name} failed STEP_FAILED · render failed.",
    ]


async def test_a_terminal_gets_one_bar_per_step(gateway, client):
    text, _ = await shown(
        gateway,
        client,
        Console(file=io.StringIO(), width=140, force_terminal=True, color_system=None),
    )
    last = text.rsplit("inspect", 1)[1].splitlines()
    assert "100%" in last[0]
    assert "partially succeeded · 2/4 ok, 1 skipped, 1 failed · attempt 2 · ITEMS_FAILED" in last[0]
    assert [line.split()[0] for line in last[1:4]] == ["render", "analyze", "report"]
    assert "failed · ALL_ITEMS_FAILED" in last[1]


def progress(**fields):
    return response(progress=event_pb2.Progress(step="render", **fields))


def response(**update):
    return job_service_pb2.WatchJobResponse(**update)


def event(change):
    field = "step_changed" if isinstance(change, event_pb2.StepChanged) else "task_changed"
    return response(event=event_pb2.Event(**{field: change}))


def test_a_step_is_as_far_as_its_shards_are_on_average():
    board = Board()
    counts = job_pb2.StepCounts(tasks=4, ended_tasks=1, items=1, succeeded_items=1)
    running = job_pb2.Step(name="render", state=Step.STATE_RUNNING, counts=counts)
    board.apply(response(snapshot=job_pb2.Job(steps=[running])))
    board.apply(
        progress(shard=1, attempt=1, fraction=0.5, items=event_pb2.ItemCounts(total=2, succeeded=1))
    )
    assert board.steps["render"].fraction == pytest.approx(1.5 / 4)
    assert board.steps["render"].items == event_pb2.ItemCounts(total=3, succeeded=2)
    board.apply(event(step("render", Step.STATE_SUCCEEDED)))
    assert board.steps["render"].fraction == 1.0


def test_progress_of_an_attempt_that_was_fenced_off_is_not_shown():
    board = Board()
    board.apply(event(task("render", Task.STATE_RUNNING, attempt=2)))
    board.apply(progress(attempt=1, stage="stale", fraction=0.9))
    assert (board.steps["render"].stage, board.steps["render"].fraction) == ("", 0.0)
    board.apply(progress(attempt=2, stage="decode", fraction=0.5))
    assert board.steps["render"].stage == "decode"
    board.apply(event(step("render", Step.STATE_FAILED)))
    assert board.steps["render"].stage == ""
    board.apply(progress(attempt=2, stage="late", fraction=0.9))
    assert board.steps["render"].stage == ""
