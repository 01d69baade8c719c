"""Watching all jobs across everything that breaks a stream."""

import asyncio
from collections import defaultdict
from contextlib import aclosing

import pytest
from fluoro.v1 import event_pb2, job_pb2
from fluoro_client import AsyncClient, Client
from fluoro_client.errors import InvalidArgumentError
from fluoro_client.testing import Fault

STEP = event_pb2.StepChanged(step="inspect", state=job_pb2.Step.STATE_RUNNING)


@pytest.fixture
async def client(gateway):
    async with AsyncClient(gateway.endpoint, owner="ada", patience_seconds=20) as client:
        yield client


async def until_ended(messages, *names):
    """Sequences per job, up to the end of the last of these."""
    told, left = defaultdict(list), set(names)
    async with asyncio.timeout(20):
        async for message in messages:
            if message.HasField("event"):
                told[message.event.job].append(message.event.sequence)
                if message.event.job_changed.state == job_pb2.Job.STATE_SUCCEEDED:
                    left.discard(message.event.job)
                    if not left:
                        break
    return told


def live(gateway, count, **fields):
    """New jobs, each with four events after the first."""
    jobs = [gateway.add_job(job_pb2.Job(**fields)) for _ in range(count)]
    for _ in range(3):
        for job in jobs:
            gateway.tell(job.name, STEP)
    for job in jobs:
        gateway.finish(job.name)
    return [job.name for job in jobs]


async def test_open_jobs_come_first_and_later_ones_by_their_first_event(gateway, client):
    old = gateway.add_job(job_pb2.Job(labels={"study": "a"}))
    gateway.add_job()
    watch = client.watch_jobs({"study": "a"})
    assert (await anext(watch)).job.name == old.name
    assert (await anext(watch)).HasField("bookmark")
    names = live(gateway, 2, labels={"study": "a"})
    assert await until_ended(watch, *names) == {name: [1, 2, 3, 4, 5] for name in names}
    assert [(method, owner) for method, owner, _ in gateway.calls] == [("WatchJobs", "ada")]


async def test_every_event_comes_once_however_often_the_stream_breaks(gateway, client):
    gateway.fail(
        "WatchJobs",
        *(Fault(after=count) for count in (2, 5, 7, 4, 9)),
        Fault(after=8, reason="WATCH_TOO_SLOW"),
    )
    watch = client.watch_jobs()
    await anext(watch)
    names = live(gateway, 6)
    assert await until_ended(watch, *names) == {name: [1, 2, 3, 4, 5] for name in names}
    assert len(gateway.calls) == 7


async def test_a_watch_that_breaks_before_its_first_cursor_starts_anew(gateway, client):
    jobs = [gateway.add_job().name for _ in range(3)]
    gateway.fail("WatchJobs", Fault(after=2))
    async with aclosing(client.watch_jobs()) as watch:
        seen = [(await anext(watch)).job.name for _ in range(5)]
    assert set(seen) == set(jobs)
    assert [call.request.start_cursor for call in gateway.calls] == ["", ""]


async def test_a_refusal_is_told(gateway, client):
    gateway.fail("WatchJobs", Fault(reason="CURSOR_INVALID"))
    gateway.add_job()
    with pytest.raises(InvalidArgumentError):
        await anext(client.watch_jobs(start_cursor="0"))


async def test_the_sync_client_watches_too(gateway):
    job = gateway.add_job()

    def first():
        with Client(gateway.endpoint, owner="ada") as client:
            return next(client.watch_jobs()).job.name

    assert await asyncio.to_thread(first) == job.name
