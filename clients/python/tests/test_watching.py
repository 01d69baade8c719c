"""Watching a job across everything that breaks a stream."""

import asyncio

import pytest
from fluoro.v1 import event_pb2, job_pb2
from fluoro_client import AsyncClient, watching
from fluoro_client.errors import (
    DataLossError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    UnreachableError,
)
from fluoro_client.testing import Fault

STARTED = event_pb2.JobChanged(state=job_pb2.Job.STATE_RUNNING)
STEP = event_pb2.StepChanged(step="inspect", state=job_pb2.Step.STATE_RUNNING)
DONE = event_pb2.JobChanged(state=job_pb2.Job.STATE_SUCCEEDED)


@pytest.fixture
async def client(gateway):
    async with AsyncClient(gateway.endpoint, owner="ada", patience_seconds=20) as client:
        yield client


async def sequences(messages, seen):
    async for message in messages:
        if message.WhichOneof("update") == "event":
            seen.append(message.event.sequence)
    return seen


def cursors(gateway):
    """Where each watch began, without what marks the cursor as one of this watch."""
    return [call.request.start_cursor.rpartition(".")[2] for call in gateway.calls]


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the server's state is not ours to signal
            await asyncio.sleep(0.01)


def tell(gateway, name, count):
    for _ in range(count):
        gateway.tell(name, STEP)


async def test_a_watch_begins_with_a_snapshot_and_ends_after_the_terminal_event(gateway, client):
    job = gateway.add_job(events=[STARTED])
    watch = client.watch(job.name)
    assert (await anext(watch)).snapshot.state == job_pb2.Job.STATE_RUNNING
    tell(gateway, job.name, 2)
    gateway.finish(job.name)
    assert await sequences(watch, []) == [3, 4, 5]
    assert [(method, owner) for method, owner, _ in gateway.calls] == [("WatchJob", "ada")]


async def test_a_watch_of_a_finished_job_is_its_snapshot(gateway, client):
    job = gateway.add_job(events=[STARTED, DONE])
    assert [message.WhichOneof("update") async for message in client.watch(job.name)] == [
        "snapshot"
    ]


async def test_a_watch_survives_the_death_and_return_of_the_server(gateway, client):
    job, seen = gateway.add_job(), []
    watch = client.watch(job.name)
    await anext(watch)  # the snapshot, which what is told is not part of
    reader = asyncio.create_task(sequences(watch, seen))
    tell(gateway, job.name, 3)
    await until(lambda: len(seen) == 3)
    gateway.stop()
    tell(gateway, job.name, 3)
    gateway.start()
    await until(lambda: len(seen) == 6)
    gateway.finish(job.name)
    assert await reader == [2, 3, 4, 5, 6, 7, 8]
    assert cursors(gateway) == ["", "4"]


async def test_a_watch_survives_a_connection_that_is_cut(gateway, relay):
    job, seen = gateway.add_job(), []
    async with AsyncClient(f"127.0.0.1:{relay.port}", owner="ada") as client:
        watch = client.watch(job.name)
        await anext(watch)  # the snapshot, which what is told is not part of
        reader = asyncio.create_task(sequences(watch, seen))
        for count in (2, 4, 6):
            tell(gateway, job.name, 2)
            await until(lambda count=count: len(seen) == count)
            relay.cut()
        gateway.finish(job.name)
        assert await reader == [2, 3, 4, 5, 6, 7, 8]


async def test_events_that_a_server_repeats_after_a_resume_are_dropped(gateway, client):
    job = gateway.add_job(events=[STARTED])
    gateway.fail("WatchJob", Fault(after=3), Fault(after=4, repeat=2), Fault(after=5, repeat=3))
    watch = client.watch(job.name)
    await anext(watch)
    tell(gateway, job.name, 5)
    gateway.finish(job.name)
    assert await sequences(watch, []) == [3, 4, 5, 6, 7, 8]
    assert cursors(gateway) == ["", "4", "6"]


async def test_a_watch_that_was_read_too_slowly_resumes_from_its_cursor(gateway, client):
    job = gateway.add_job(events=[STARTED])
    gateway.fail("WatchJob", Fault(after=2, reason="WATCH_TOO_SLOW"))
    watch = client.watch(job.name)
    await anext(watch)
    tell(gateway, job.name, 2)
    gateway.finish(job.name)
    assert await sequences(watch, []) == [3, 4, 5]
    assert cursors(gateway) == ["", "3"]


async def test_an_exhausted_resource_other_than_the_watch_is_an_error(gateway, client):
    job = gateway.add_job()
    gateway.fail("WatchJob", Fault(after=0, reason="MESSAGE_TOO_LARGE"))
    with pytest.raises(ResourceExhaustedError):
        await sequences(client.watch(job.name), [])


async def test_a_watch_with_a_cursor_continues_after_it(gateway, client):
    job = gateway.add_job(events=[STARTED, STEP, DONE])
    assert await sequences(client.watch(job.name, f"{job.name[5:]}.2"), []) == [3, 4]
    assert await sequences(client.watch(job.name, f"{job.name[5:]}.4"), []) == []


async def test_missing_events_are_an_error_and_never_passed_over(gateway, client):
    job = gateway.add_job(events=[STARTED])
    gateway.fail("WatchJob", Fault(after=2), Fault(after=99, missing=1))
    watch = client.watch(job.name)
    await anext(watch)
    tell(gateway, job.name, 3)
    seen = []
    with pytest.raises(DataLossError, match="Events 4 to 4"):
        await sequences(watch, seen)
    assert seen == [3]


async def test_a_silent_stream_is_taken_for_dead_and_resumed(gateway, client, monkeypatch):
    monkeypatch.setattr(watching, "IDLE_SECONDS", 0.3)
    job = gateway.add_job(events=[STARTED])
    gateway.fail("WatchJob", Fault(after=1, hang=True))
    watch = client.watch(job.name)
    await anext(watch)
    gateway.finish(job.name)
    assert await sequences(watch, []) == [3]


async def test_a_watch_of_an_unknown_job_is_refused_at_once(gateway, client):
    with pytest.raises(NotFoundError) as caught:
        await anext(client.watch("jobs/00000000-0000-4000-8000-000000000000"))
    assert caught.value.reason == "JOB_NOT_FOUND"
    assert len(gateway.calls) == 1


async def test_patience_ends_when_a_server_does_not_come_back(gateway):
    job = gateway.add_job()
    async with AsyncClient(gateway.endpoint, owner="ada", patience_seconds=0.5) as client:
        watch = client.watch(job.name)
        await anext(watch)
        gateway.stop()
        with pytest.raises(UnavailableError):
            await anext(watch)


async def test_a_server_that_was_never_there_is_told_within_seconds(unused_tcp_port):
    async with (
        asyncio.timeout(30),
        AsyncClient(f"127.0.0.1:{unused_tcp_port}", owner="ada", patience_seconds=600) as client,
    ):
        with pytest.raises(
            UnreachableError,
            match=f"Cannot connect to a Fluoro gateway at 127.0.0.1:{unused_tcp_port}",
        ):
            await anext(client.watch("jobs/any"))


async def test_leaving_a_watch_early_ends_the_call(gateway, client):
    job = gateway.add_job()
    watch = client.watch(job.name)
    await anext(watch)
    await watch.aclose()
    gateway.finish(job.name)
    assert (await client.get(job.name)).state == job_pb2.Job.STATE_SUCCEEDED


async def test_a_server_that_asks_for_time_gets_it(gateway, client):
    job = gateway.add_job(events=[STARTED])
    gateway.fail("WatchJob", Fault("SHUTTING_DOWN", after=1, retry_seconds=1))
    watch = client.watch(job.name)
    await anext(watch)
    start = asyncio.get_running_loop().time()
    gateway.finish(job.name)
    assert await sequences(watch, []) == [3]
    assert asyncio.get_running_loop().time() - start >= 1
