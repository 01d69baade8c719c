"""Wake-ups reach those whom they concern, and nobody else."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from itertools import count

import pytest
import redis
from fluoro.v1.event_pb2 import Progress
from fluoro.v1.job_service_pb2 import CancelJobRequest, WatchJobRequest
from fluoro_jobs.testing.rig import OWNER, Rig, until
from fluoro_jobs.wakeups import cancels_channel, shard_of, wakeups_channel
from fluoro_local.servers import ValkeyServer
from fluoro_telemetry import metrics
from gateway import tail, testing_jobs
from gateway.testing import serving

OTHER = "bob"
NEIGHBOUR = next(
    name for number in count() if shard_of(name := f"owner-{number}") == shard_of("ada")
)
"""Somebody else of ada's shard."""


@pytest.fixture
async def gateway(
    database_url: str, redis_url: str, blob_url: str
) -> AsyncIterator[testing_jobs.Stage]:
    # So that whatever arrives at once has come by a wake-up.
    slow = {
        "watch_poll_interval_seconds": 60,
        "watch_safety_interval_seconds": 60,
        "watch_bookmark_interval_seconds": 60,
    }
    async with testing_jobs.staged(database_url, redis_url, blob_url, **slow) as rig:
        yield rig


async def _until_listening(client: "redis.Redis", *owners: str) -> None:
    channels = {wakeups_channel(shard_of(owner)).encode() for owner in owners}
    await asyncio.to_thread(
        until,
        lambda: set(client.pubsub_channels("fluoro:wakeups:*")) == channels,
        15,
        "the subscriptions",
    )


def _heard(watched: str) -> float:
    return metrics.WAKEUPS_HEARD.labels(watched=watched)._value.get()


async def test_a_gateway_hears_of_those_alone_who_are_watched_there(
    gateway: testing_jobs.Stage, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "ECHO_SECONDS", 0.3)
    jobs = {owner: await gateway.submit(owner) for owner in ("ada", NEIGHBOUR, OTHER)}
    with redis.Redis.from_url(redis_url) as client:
        await _until_listening(client)
        call = gateway.client.jobs.WatchJob(
            WatchJobRequest(name=jobs["ada"]), metadata=(("fluoro-owner", "ada"),)
        )
        assert (await call.read()).snapshot.name == jobs["ada"]
        await _until_listening(client, "ada")
        watched, others = _heard("true"), _heard("false")
        for owner in (NEIGHBOUR, OTHER):
            await gateway.start(jobs[owner])
            await asyncio.to_thread(
                gateway.publisher.progress, owner, Progress(job=jobs[owner], step="a")
            )
        # The neighbour's events and progress; of the other nothing comes.
        await asyncio.to_thread(
            until, lambda: _heard("false") >= others + 2, 10, "wake-ups of the same shard"
        )
        await gateway.start(jobs["ada"])
        async with asyncio.timeout(30):
            assert (await call.read()).event.sequence == 2
        assert (_heard("true"), _heard("false")) == (watched + 1, others + 2)
        call.cancel()
        await _until_listening(client)


async def test_what_happens_before_the_subscription_stands_is_not_missed(
    gateway: testing_jobs.Stage, redis_url: str, valkey: ValkeyServer
) -> None:
    job = await gateway.submit("ada")
    with redis.Redis.from_url(redis_url) as client:
        await asyncio.to_thread(
            until, lambda: client.pubsub_channels("fluoro:echo:*"), 10, "the gateway's subscription"
        )
    os.kill(valkey.pid, signal.SIGSTOP)
    try:
        call = gateway.client.jobs.WatchJob(
            WatchJobRequest(name=job), metadata=(("fluoro-owner", "ada"),)
        )
        assert (await call.read()).snapshot.last_sequence == 1
        await gateway.start(job, wake=False)  # told while nobody listened
    finally:
        os.kill(valkey.pid, signal.SIGCONT)
    async with asyncio.timeout(30):
        assert (await call.read()).event.sequence == 2
    call.cancel()


async def test_a_cancel_is_told_to_the_worker_that_runs_the_job_and_of_an_ended_job_to_nobody(
    rig: Rig,
) -> None:
    workers = [rig.worker(pool="threads", slots=1), rig.worker(pool="threads", slots=1)]
    jobs = [rig.submit(rig.job_of({"do": "sleep", "seconds": 60})) for _ in workers]
    ran_by = {job: rig.running(job).worker for job in jobs}
    assert len(set(ran_by.values())) == 2
    with (
        redis.Redis.from_url(rig.redis_url) as client,
        client.pubsub(ignore_subscribe_messages=True) as listener,
    ):
        names = list(ran_by.values())
        assert client.pubsub_numsub(*map(cancels_channel, names)) == [
            (cancels_channel(name).encode(), 1) for name in names
        ]
        listener.psubscribe("fluoro:cancels:*")
        listener.get_message(timeout=30)
        async with serving(
            rig.database_url, rig.redis_url, rig.blob_url, single_owner=OWNER
        ) as gateway:
            for _ in range(2):
                await gateway.jobs.CancelJob(CancelJobRequest(name=f"jobs/{jobs[0]}"))
            await gateway.jobs.CancelJob(CancelJobRequest(name=f"jobs/{jobs[1]}"))
        told: list[tuple[bytes, bytes]] = []

        def both_told() -> bool:
            while (message := listener.get_message(timeout=0.05)) is not None:
                if message["data"]:  # what is empty, a worker tells itself
                    told.append((message["channel"], message["data"]))
            return len(told) >= 2

        until(both_told, 30, "both cancels")
        assert told == [(cancels_channel(ran_by[job]).encode(), job.bytes) for job in jobs]
