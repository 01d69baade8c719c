"""Thousands of events at once: readers get them all, whoever reads nothing is ended."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest
import structlog
from fluoro.v1.dicom_pb2 import InspectDicom
from fluoro.v1.job_pb2 import Job, Step
from fluoro.v1.job_service_pb2 import (
    CancelJobRequest,
    GetJobRequest,
    ListJobsRequest,
    SubmitJobRequest,
    WaitJobRequest,
    WatchJobRequest,
)
from fluoro_jobs.testing.rig import until
from gateway import cursor
from gateway.testing import logged
from gateway.testing_jobs import Stage, staged

PATIENCE_SECONDS = 60
STEPS, TASKS_OF_A_STEP = 40, 25
EVENTS = STEPS * TASKS_OF_A_STEP + STEPS + 2
"""Of a job of so many steps and tasks that is accepted and cancelled."""
ADA = (("fluoro-owner", "ada"),)


@pytest.fixture
async def stage(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Stage]:
    async with staged(database_url, redis_url, blob_url) as made:
        yield made


async def submit_large(stage: Stage) -> str:
    """The name of a job of 1,000 tasks."""
    (some,) = (await stage.client.jobs.ListJobs(ListJobsRequest(page_size=1), metadata=ADA)).jobs
    known = await stage.client.jobs.GetJob(GetJobRequest(name=some.name), metadata=ADA)
    blob = known.job.inputs[0]
    steps = [
        Step(name=f"s{number}", inspect_dicom=InspectDicom(), max_inputs_per_task=1)
        for number in range(STEPS)
    ]
    job = Job(inputs=[blob] * TASKS_OF_A_STEP, steps=steps)
    return str(
        (await stage.client.jobs.SubmitJob(SubmitJobRequest(job=job), metadata=ADA)).job.name
    )


async def cancel(stage: Stage, job: str) -> None:
    await stage.client.jobs.CancelJob(CancelJobRequest(name=job), metadata=ADA)


def watch(stage: Stage, job: str) -> Any:
    return stage.client.jobs.WatchJob(WatchJobRequest(name=job), metadata=ADA)


async def sequences_of(call: Any) -> list[int]:
    """Of the events up to the end of the stream."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        return [response.event.sequence async for response in call if response.HasField("event")]


async def told(call: Any, *jobs: str) -> dict[str, list[int]]:
    """Sequences per job, up to the last event of all these jobs."""
    found: dict[str, list[int]] = {job: [] for job in jobs}
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for response in call:
            if response.HasField("event"):
                found[response.event.job].append(response.event.sequence)
                if all(sequences and sequences[-1] == EVENTS for sequences in found.values()):
                    break
    return found


async def bookmarked(call: Any) -> str:
    """The cursor once the snapshots are through."""
    async for response in call:
        if response.HasField("bookmark"):
            return str(response.cursor)
    raise AssertionError("the stream ended")


def nothing_runs(stage: Stage) -> bool:
    """Whether every transaction that wrote events is below the horizon."""
    with stage.ledger.connection() as connection:
        row = connection.execute(
            "SELECT max(transaction_id) < pg_snapshot_xmin(pg_current_snapshot()) FROM events"
        ).fetchone()
    return row is not None and row[0]


@asynccontextmanager
async def stalls() -> AsyncIterator[list[float]]:
    """Seconds by which the event loop was late, all through the block."""
    late: list[float] = []

    async def tick() -> None:
        while True:
            asked = time.monotonic()
            await asyncio.sleep(0.002)
            late.append(time.monotonic() - asked - 0.002)

    ticking = asyncio.create_task(tick())
    try:
        yield late
    finally:
        ticking.cancel()


@pytest.mark.parametrize("ring", [1024, 64])
async def test_cancelling_a_thousand_tasks_ends_no_watch_that_is_read_and_no_wait(
    database_url: str, redis_url: str, blob_url: str, ring: int
) -> None:
    async with staged(database_url, redis_url, blob_url, watch_ring_events=ring) as stage:
        await stage.submit()
        job = await submit_large(stage)
        calls = [watch(stage, job) for _ in range(4)]
        for call in calls:
            await anext(aiter(call))
        of_owner = [stage.watch(), stage.watch()]
        for call in of_owner:
            await bookmarked(call)
        wait = stage.client.jobs.WaitJob(
            WaitJobRequest(name=job, timeout={"seconds": PATIENCE_SECONDS}), metadata=ADA
        )
        reading = [asyncio.create_task(sequences_of(call)) for call in calls]
        reading_all = [asyncio.create_task(told(call, job)) for call in of_owner]
        await cancel(stage, job)
        for sequences in await asyncio.gather(*reading):
            assert sequences == list(range(2, EVENTS + 1))
        for found in await asyncio.gather(*reading_all):
            assert found == {job: list(range(2, EVENTS + 1))}
        assert (await wait).job.state == Job.STATE_CANCELLED


async def test_twenty_thousand_events_at_once_keep_their_readers_and_let_the_loop_turn(
    stage: Stage,
) -> None:
    await stage.submit()
    jobs = [await submit_large(stage) for _ in range(20)]
    call, of_one = stage.watch(), watch(stage, jobs[0])
    await bookmarked(call)
    await anext(aiter(of_one))
    async with stalls() as late:
        reading = [
            asyncio.create_task(told(call, *jobs)),
            asyncio.create_task(sequences_of(of_one)),
        ]
        await asyncio.gather(*(cancel(stage, job) for job in jobs))
        found, sequences = await asyncio.gather(*reading)
    assert found == {job: list(range(2, EVENTS + 1)) for job in jobs}
    assert sequences == list(range(2, EVENTS + 1))
    late.sort()
    usual, longest = late[len(late) * 99 // 100], late[-1]
    assert usual < 0.1, (
        f"the event loop was late by {usual:.3f} s (p99), at most by {longest:.3f} s"
    )


@pytest.mark.parametrize(("held", "cursors"), [(False, 2), (True, 1)])
async def test_a_forged_cursor_costs_pages_and_tells_the_whole_history(
    stage: Stage, database_url: str, held: bool, cursors: int
) -> None:
    some = await stage.submit()
    with psycopg.connect(database_url) as other:
        if held:  # a transaction that writes keeps cursors where they are, but no event back
            other.execute("CREATE TABLE held ()")
        jobs = [await submit_large(stage) for _ in range(3)]
        await asyncio.gather(*(cancel(stage, job) for job in jobs))
        if not held:
            await asyncio.to_thread(until, lambda: nothing_runs(stage), 20, "an end of what runs")
        call = stage.watch(cursor.encode_horizon("ada", {}, 0))
        events = []
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for response in call:
                # A page that takes long gives a sign of life, long before the last page.
                if response.HasField("event"):
                    events.append(response)
                    if len(events) == 1 + 3 * EVENTS:
                        break
        found: dict[str, list[int]] = {}
        for response in events:
            found.setdefault(response.event.job, []).append(response.event.sequence)
        assert found == {some: [1]} | {job: list(range(1, EVENTS + 1)) for job in jobs}
        # Whoever breaks off in the last page goes on from there, unless something held it.
        assert len({response.cursor for response in events}) == cursors


async def test_a_read_that_failed_is_tried_again_at_once_and_not_with_the_next_wake_up(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    async with staged(
        database_url, redis_url, blob_url, watch_safety_interval_seconds=3600
    ) as stage:
        job = await stage.submit()
        call = watch(stage, job)
        await anext(aiter(call))
        await stage.run(job, wake=False)
        with psycopg.connect(database_url, autocommit=True) as ledger:
            ledger.execute("ALTER TABLE events RENAME TO events_away")
            with structlog.testing.capture_logs() as logs:
                stage.publisher.events(UUID(job[5:]), "ada")
                await logged("watch_not_read", logs)
            ledger.execute("ALTER TABLE events_away RENAME TO events")
        assert await sequences_of(call) == [2, 3, 4, 5, 6, 7]
