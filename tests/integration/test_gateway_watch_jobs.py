"""Watching all jobs of an owner: every event of each, in order, whatever breaks or waits."""

import asyncio
import random
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Any
from uuid import UUID

import grpc.aio
import psycopg
import pytest
import structlog
from fluoro.v1.event_pb2 import Event, Progress
from fluoro.v1.job_pb2 import Job
from fluoro.v1.job_service_pb2 import (
    CancelJobRequest,
    RetryJobRequest,
    WatchJobRequest,
    WatchJobsResponse,
)
from fluoro_client import AsyncClient
from fluoro_jobs.ledger import control
from fluoro_jobs.ledger.connection import Ledger
from fluoro_local.servers import ValkeyServer
from gateway.testing import logged, parse
from gateway.testing_jobs import Stage, claim, staged

PATIENCE_SECONDS = 30
TERMINAL = {Job.STATE_SUCCEEDED, Job.STATE_FAILED, Job.STATE_CANCELLED}
SEQUENCES_OF_ONE_STEP = list(range(1, 8))


@pytest.fixture
async def rig(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Stage]:
    async with staged(database_url, redis_url, blob_url) as made:
        yield made


@pytest.fixture
def dead_redis_url() -> Iterator[str]:
    """Where no Redis listens, and nothing else will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{held.getsockname()[1]}/0"


async def read(
    call: Any, until: Callable[[list[WatchJobsResponse]], bool]
) -> list[WatchJobsResponse]:
    """Responses up to the one with which `until` holds."""
    got: list[WatchJobsResponse] = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for response in call:
            got.append(response)
            if until(got):
                break
    return got


def told(responses: list[WatchJobsResponse]) -> dict[str, list[int]]:
    """Sequences per job, as they came."""
    found: dict[str, list[int]] = defaultdict(list)
    for response in responses:
        if response.HasField("event"):
            found[response.event.job].append(response.event.sequence)
    return found


def ended(*jobs: str) -> Callable[[list[WatchJobsResponse]], bool]:
    """Whether the last event of each job is there."""
    left = set(jobs)

    def until(got: list[WatchJobsResponse]) -> bool:
        if got[-1].event.job_changed.state in TERMINAL:
            left.discard(got[-1].event.job)
        return not left

    return until


def bookmarked(got: list[WatchJobsResponse]) -> bool:
    return got[-1].HasField("bookmark")


def differs(cursor: str, got: list[WatchJobsResponse]) -> bool:
    return got[-1].cursor != cursor


async def test_open_jobs_are_snapshots_and_later_ones_come_by_their_first_event(rig: Stage) -> None:
    old, done = await rig.submit(study="a"), await rig.submit()
    await rig.run(done)
    call = rig.watch()
    (first,) = await read(call, bool)
    assert (
        first.job.name,
        first.job.labels["study"],
        first.job.last_sequence,
        len(first.job.steps),
    ) == (old, "a", 1, 0)
    new = await rig.submit()
    await rig.run(old)
    await rig.run(new)
    assert told(await read(call, ended(old, new))) == {
        old: SEQUENCES_OF_ONE_STEP[1:],
        new: SEQUENCES_OF_ONE_STEP,
    }


async def test_only_the_owners_jobs_with_the_labels_appear(rig: Stage) -> None:
    calls = [rig.watch(), rig.watch(study="a"), rig.watch(owner="eve")]
    for call in calls:
        await read(call, bookmarked)
    jobs = [
        await rig.submit(),
        await rig.submit(study="a", site="x"),
        await rig.submit("eve", study="a"),
    ]
    for job in jobs:
        await rig.run(job)
    heard = [
        told(await read(call, ended(*mine)))
        for call, mine in zip(calls, (jobs[:2], jobs[1:2], jobs[2:]), strict=True)
    ]
    assert [set(found) for found in heard] == [set(jobs[:2]), {jobs[1]}, {jobs[2]}]
    assert [set(told(await read(call, bookmarked))) for call in calls] == [set(), set(), set()]


async def test_many_watchers_of_many_jobs_hear_every_event_once_and_in_order(rig: Stage) -> None:
    calls = [rig.watch() for _ in range(8)]
    for call in calls:
        await read(call, bookmarked)
    jobs = [await rig.submit() for _ in range(30)]
    readers = [asyncio.create_task(read(call, ended(*jobs))) for call in calls]
    await asyncio.gather(*(rig.run(job, wake=number % 3 > 0) for number, job in enumerate(jobs)))
    for got in await asyncio.gather(*readers):
        assert told(got) == dict.fromkeys(jobs, SEQUENCES_OF_ONE_STEP)


async def test_a_resume_from_any_cursor_misses_nothing(rig: Stage) -> None:
    call = rig.watch()
    got = await read(call, bookmarked)
    jobs = []
    for _ in range(12):
        jobs.append(await rig.submit())
        await rig.run(jobs[-1])
        got += await read(call, ended(jobs[-1]))
    choice = random.Random(7)
    for number in [0, len(got) - 1, *choice.sample(range(len(got)), 8)]:
        rest = {job: set(sequences) for job, sequences in told(got[number + 1 :]).items()}
        cursors = [got[number].cursor]
        again = await read(rig.watch(cursors[0]), ended(*rest)) if rest else []
        for job, sequences in told(again).items():
            assert sequences == list(range(sequences[0], sequences[-1] + 1))
            assert rest.get(job, set()) <= set(sequences)
        assert set(rest) <= set(told(again))


async def test_a_cursor_that_changed_twice_repeats_nothing_from_before_the_first_change(
    rig: Stage, database_url: str
) -> None:
    call = rig.watch()
    got = await read(call, bookmarked)
    for _ in range(6):
        jobs = [await rig.submit() for _ in range(3)]
        for job in jobs:
            await rig.run(job)
        got += await read(call, ended(*jobs))
        last = got[-1].cursor
        with psycopg.connect(
            database_url
        ) as other:  # one more transaction: the cursor may stand behind those of the jobs already
            other.execute("SELECT pg_current_xact_id()")
        got += await read(call, partial(differs, last))
    cursors = list(dict.fromkeys(response.cursor for response in got))
    assert len(cursors) > 4
    for before, cursor in pairwise(cursors):
        first = next(number for number, response in enumerate(got) if response.cursor == before)
        forgotten = {
            (response.event.job, response.event.sequence)
            for response in got[:first]
            if response.HasField("event")
        }
        again = await read(rig.watch(cursor), bookmarked)
        assert not forgotten & {(response.event.job, response.event.sequence) for response in again}


async def test_a_long_transaction_holds_the_cursor_and_not_the_events(
    rig: Stage, database_url: str
) -> None:
    call = rig.watch()
    await read(call, bookmarked)
    with psycopg.connect(database_url) as other:
        other.execute("SELECT pg_current_xact_id()")
        before = (await read(call, lambda got: bookmarked(got) and len(got) > 8))[-1].cursor
        job = await rig.submit()
        await rig.run(job)
        got = await read(call, ended(job))
        assert told(got) == {job: SEQUENCES_OF_ONE_STEP}
        late = await rig.submit()
        got += await read(call, lambda got: bookmarked(got) and len(got) > 3)
        assert {response.cursor for response in got} == {before}
    await rig.run(late)
    moved = await read(call, lambda got: got[-1].cursor != before)
    again = await read(rig.watch(before), ended(job, late))
    assert told(again) == {job: SEQUENCES_OF_ONE_STEP, late: SEQUENCES_OF_ONE_STEP}
    assert moved


async def test_a_transaction_that_commits_late_is_not_passed_over(
    rig: Stage, database_url: str
) -> None:
    slow = await rig.submit()
    call = rig.watch()
    await read(call, bookmarked)
    ledger = Ledger(database_url)
    try:
        with ledger.connection() as connection, connection.transaction():
            connection.execute(
                "SELECT pg_current_xact_id()"
            )  # its events get a lower transaction id than those that commit before
            job = await rig.submit()
            await rig.run(job)
            got = await read(call, ended(job))
            got += await read(call, lambda got: len(got) > 5)
            claim(connection, UUID(slow[5:]))
    finally:
        ledger.close()
    await rig.succeed(slow, wake=False)
    assert told(await read(call, ended(slow))) == {slow: SEQUENCES_OF_ONE_STEP[1:]}
    assert (
        told(await read(rig.watch(got[-1].cursor), ended(slow)))[slow] == SEQUENCES_OF_ONE_STEP[1:]
    )


async def test_a_job_that_is_retried_after_it_was_forgotten_goes_on(rig: Stage) -> None:
    call = rig.watch()
    await read(call, bookmarked)
    job = await rig.submit()
    await rig.client.jobs.CancelJob(CancelJobRequest(name=job), metadata=(("fluoro-owner", "ada"),))
    got = await read(call, ended(job))
    got += await read(call, lambda got: bookmarked(got) and len(got) > 8)
    await rig.client.jobs.RetryJob(RetryJobRequest(name=job), metadata=(("fluoro-owner", "ada"),))
    await rig.run(job)
    got += await read(call, ended(job))
    sequences = told(got)[job]
    assert sequences == list(range(1, len(sequences) + 1))


@pytest.mark.parametrize("wake", [True, False], ids=["with wake-ups", "without a single wake-up"])
async def test_without_redis_all_events_come(
    database_url: str, dead_redis_url: str, blob_url: str, wake: bool
) -> None:
    async with staged(database_url, dead_redis_url, blob_url) as rig:
        call = rig.watch()
        await read(call, bookmarked)
        jobs = [await rig.submit() for _ in range(5)]
        for job in jobs:
            await rig.run(job, wake=wake)
        assert told(await read(call, ended(*jobs))) == dict.fromkeys(jobs, SEQUENCES_OF_ONE_STEP)


async def test_a_watch_lives_through_a_crash_of_redis(
    database_url: str, redis_url: str, blob_url: str, valkey: ValkeyServer
) -> None:
    async with staged(database_url, redis_url, blob_url) as rig:
        call = rig.watch()
        await read(call, bookmarked)
        jobs = [await rig.submit()]
        valkey.kill()
        try:
            jobs.append(await rig.submit())
            for job in jobs:
                await rig.run(job)
            got = await read(call, ended(*jobs))
        finally:
            valkey.start()
        jobs.append(await rig.submit())
        await rig.run(jobs[-1])
        assert told(got + await read(call, ended(jobs[-1]))) == dict.fromkeys(
            jobs, SEQUENCES_OF_ONE_STEP
        )


async def test_progress_comes_live_also_of_jobs_without_recent_events(rig: Stage) -> None:
    job = await rig.submit()
    call = rig.watch()
    await read(call, lambda got: bookmarked(got) and len(got) > 5)
    sent = Progress(job=job, step="a", stage="decode", fraction=0.25)
    rig.publisher.progress("ada", sent)
    assert (await read(call, lambda got: got[-1].HasField("progress")))[-1].progress == sent


async def test_a_reader_who_is_too_slow_is_ended_with_a_cursor_that_misses_nothing(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    async with staged(
        database_url, redis_url, blob_url, watch_ring_events=50, watch_stall_seconds=0.5
    ) as rig:
        job = await rig.submit()
        call = rig.watch()
        got = await read(call, bool)
        with structlog.testing.capture_logs() as logs:
            for _ in range(
                20
            ):  # 16 MB, not read meanwhile: far over what HTTP/2 buffers and the ring hold together
                await rig.fail_often(job, 8, "x" * 100_000)
            await logged("watch_too_slow", logs)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            got += await read(_also(call, got), lambda _: False)
        how = parse(caught.value)
        assert (how.code.name, how.reason) == ("RESOURCE_EXHAUSTED", "WATCH_TOO_SLOW")
        assert how.metadata["cursor"] == got[-1].cursor
        await rig.act(
            job, lambda db, job_id: control.cancel_job(db, "ada", job_id)
        )  # CancelJob's answer would be too large
        again = told(await read(rig.watch(how.metadata["cursor"]), ended(job)))[job]
        assert again[0] <= told(got)[job][-1] + 1
        assert again == list(range(again[0], again[-1] + 1))


async def _also(call: Any, into: list[WatchJobsResponse]) -> AsyncIterator[WatchJobsResponse]:
    """The call's responses, kept even when it ends in an error."""
    async for response in call:
        into.append(response)
        yield response


@pytest.mark.parametrize(
    "other", [{"owner": "eve"}, {"study": "a"}], ids=["another owner", "other labels"]
)
async def test_a_cursor_is_good_for_its_own_watch_only(rig: Stage, other: dict[str, str]) -> None:
    (mark,) = await read(rig.watch(), bookmarked)
    for bad in (rig.watch(mark.cursor, **other), rig.watch("nonsense")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read(bad, bookmarked)
        assert (parse(caught.value).code.name, parse(caught.value).reason) == (
            "INVALID_ARGUMENT",
            "CURSOR_INVALID",
        )


async def test_a_watch_of_a_job_from_before_its_oldest_event_is_told_the_oldest_cursor(
    rig: Stage, database_url: str
) -> None:
    job = await rig.submit()
    metadata = (("fluoro-owner", "ada"),)
    call = rig.client.jobs.WatchJob(WatchJobRequest(name=job), metadata=metadata)
    first = await anext(aiter(call))
    await rig.run(job)
    with psycopg.connect(database_url, autocommit=True) as ledger:
        ledger.execute("DELETE FROM events WHERE job_id = %s AND sequence <= 4", (UUID(job[5:]),))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [
            _
            async for _ in rig.client.jobs.WatchJob(
                WatchJobRequest(name=job, start_cursor=first.cursor), metadata=metadata
            )
        ]
    how = parse(caught.value)
    assert (how.code.name, how.reason) == ("OUT_OF_RANGE", "CURSOR_EXPIRED")
    oldest = WatchJobRequest(name=job, start_cursor=how.metadata["oldest_cursor"])
    assert [
        response.event.sequence
        async for response in rig.client.jobs.WatchJob(oldest, metadata=metadata)
    ] == [5, 6, 7]


async def test_the_client_yields_each_event_once_across_gateways_that_go_and_come(
    database_url: str, redis_url: str, blob_url: str, unused_tcp_port: int
) -> None:
    seen: list[Event] = []
    jobs: list[str] = []

    async def follow(client: AsyncClient) -> None:
        async for message in client.watch_jobs():
            seen.extend([message.event] if message.HasField("event") else [])

    async with AsyncClient(f"127.0.0.1:{unused_tcp_port}", owner="ada") as client:
        reader = None
        for _ in range(4):
            fields = {"grpc_port": unused_tcp_port, "shutdown_grace_seconds": 0.1}
            async with staged(database_url, redis_url, blob_url, **fields) as rig:
                if reader is None:
                    reader = asyncio.create_task(follow(client))
                for job in jobs[-3:]:
                    await rig.succeed(job)
                jobs += [await rig.submit() for _ in range(3)]
                for job in jobs[-3:]:
                    await rig.start(job)
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while len({event.job for event in seen}) < len(jobs):  # noqa: ASYNC110 - the reader signals nothing
                        await asyncio.sleep(0.02)
        assert reader is not None
        reader.cancel()
        with suppress(asyncio.CancelledError):
            await reader
    for job in jobs[:-3]:
        sequences = [event.sequence for event in seen if event.job == job]
        assert sequences == list(range(sequences[0], 8))
        assert sequences[0] in ((1, 2) if job in jobs[:3] else (1,))
