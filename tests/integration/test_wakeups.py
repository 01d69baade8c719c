"""Wake-ups: sent by a thread of its own to those whom they concern.

Nothing told is left out, and nobody waits for a Redis that is away.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis
from fluoro.v1 import event_pb2, job_pb2
from fluoro.v1.job_service_pb2 import SubmitJobRequest
from fluoro_jobs.dispatch import Dispatcher
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import accept, attempts, heartbeats
from fluoro_jobs.testing.rig import OWNER as TESTER
from fluoro_jobs.testing.rig import Rig, until
from fluoro_jobs.wakeups import (
    MAX_PENDING,
    Publisher,
    cancels_channel,
    shard_of,
    unpack,
    wakeups_channel,
)
from fluoro_local.servers import ValkeyServer
from fluoro_telemetry import metrics
from scheduler.sweep import Sweeper

OWNER = "ada"
CHANNEL = wakeups_channel(shard_of(OWNER))


@contextmanager
def _heard(redis_url: str, *channels: str) -> Iterator[Any]:
    with (
        redis.Redis.from_url(redis_url) as client,
        client.pubsub(ignore_subscribe_messages=True) as heard,
    ):
        heard.subscribe(*channels)
        for _ in channels:
            heard.get_message(timeout=30)  # the confirmation
        yield heard


@contextmanager
def _hung(valkey: ValkeyServer) -> Iterator[None]:
    os.kill(valkey.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(valkey.pid, signal.SIGCONT)


def _await_job(heard: Any, job: UUID, seconds: float, owner: str = OWNER) -> None:
    def is_heard() -> bool:
        message = heard.get_message(timeout=0.1)
        return message is not None and unpack(message["data"])[:2] == (job, owner)

    until(is_heard, seconds, "news of the job")


def test_every_job_is_told_of_also_the_last_one_before_the_end(redis_url: str) -> None:
    jobs = [new_id() for _ in range(500)]
    with _heard(redis_url, CHANNEL) as heard:
        publisher = Publisher(redis_url)
        for job in jobs:
            publisher.events(job, OWNER)
            publisher.events(job, OWNER)
        publisher.close()
        missing = set(jobs)

        def all_heard() -> bool:
            while missing and (message := heard.get_message(timeout=0.1)) is not None:
                missing.discard(unpack(message["data"])[0])
            return not missing

        until(all_heard, 30, "news of every job")


def test_what_is_told_while_the_last_wake_ups_are_on_their_way_is_told_before_the_end(
    redis_url: str, valkey: ValkeyServer
) -> None:
    publisher, last = Publisher(redis_url), new_id()
    with _heard(redis_url, CHANNEL) as heard:
        with _hung(valkey):
            publisher.events(new_id(), OWNER)
            until(lambda: not publisher._pending, 30, "the first one on its way")
            publisher.events(last, OWNER)
            closing = threading.Thread(target=publisher.close)
            closing.start()
            until(publisher._closing.is_set, 30, "the end")
        closing.join()
        _await_job(heard, last, 5)


def test_a_pool_child_that_is_replaced_tells_of_the_job_that_it_ended(
    rig: Rig, valkey: ValkeyServer, tmp_path: Path
) -> None:
    rig.worker(
        slots=1, max_memory_per_child_kib=1
    )  # each child has grown beyond that after its first task
    job = rig.submit(rig.job_of({"do": "wait", "path": str(tmp_path / "go")}))
    with _heard(rig.redis_url, wakeups_channel(shard_of(TESTER))) as heard:
        rig.running(job)
        while heard.get_message(timeout=0.5) is not None:
            pass
        with _hung(valkey):
            (tmp_path / "go").touch()
            until(
                lambda: rig.job(job).state == job_pb2.Job.STATE_SUCCEEDED, what="the end of the job"
            )
        _await_job(heard, job, 5, TESTER)


def test_what_was_told_while_redis_was_away_is_sent_once_it_is_back(
    redis_url: str, valkey: ValkeyServer
) -> None:
    publisher, job = Publisher(redis_url), new_id()
    valkey.kill()
    publisher.events(job, OWNER)
    valkey.start()
    with _heard(redis_url, CHANNEL) as heard:
        later = new_id()
        publisher.events(later, OWNER)
        _await_job(heard, later, 10)
    publisher.close()


def test_nobody_waits_for_a_hung_redis_and_wake_ups_flow_at_once_when_it_goes_on(
    redis_url: str, valkey: ValkeyServer
) -> None:
    publisher, job = Publisher(redis_url), new_id()
    with _heard(redis_url, CHANNEL, cancels_channel("host:1")) as heard:
        with _hung(valkey):
            started = time.monotonic()
            for number in range(200):
                publisher.progress(
                    OWNER, event_pb2.Progress(job=f"jobs/{job}", step="s", fraction=number / 200)
                )
            for _ in range(1000):
                publisher.cancel(new_id(), OWNER, ["host:1"])
            assert time.monotonic() - started < 1
            until(lambda: time.monotonic() > started + 3, 30, "a send that failed")
        continued, last = time.monotonic(), new_id()
        publisher.events(last, OWNER)
        fractions, cancelled = set(), 0

        def all_heard() -> bool:
            nonlocal cancelled
            told = None
            while told != last and (message := heard.get_message(timeout=0.1)) is not None:
                if message["channel"].decode() == CHANNEL:
                    told, _, progress = unpack(message["data"])
                    fractions.update(
                        [event_pb2.Progress.FromString(progress).fraction] if progress else []
                    )
                else:
                    cancelled += 1
            return told == last

        until(all_heard, 30, "the last wake-up")
        assert time.monotonic() - continued < 2
        assert max(fractions) == pytest.approx(199 / 200)
        assert len(fractions) <= 4, "of a task only the latest progress is told"
        assert cancelled <= 4
    publisher.close()


def test_what_waits_for_redis_is_bounded_and_what_is_dropped_is_counted(
    redis_url: str, valkey: ValkeyServer
) -> None:
    dropped = metrics.WAKEUPS_DROPPED.labels(kind="events")
    before = dropped._value.get()
    publisher = Publisher(redis_url)
    with _hung(valkey):
        for _ in range(MAX_PENDING + 100):
            publisher.events(new_id(), OWNER)
        until(lambda: dropped._value.get() >= before + 100, 20, "dropped wake-ups")
        assert dropped._value.get() == before + 100
    publisher.close()


def test_a_round_of_the_scheduler_over_a_thousand_expired_jobs_takes_seconds_while_redis_hangs(
    rig: Rig, valkey: ValkeyServer
) -> None:
    request = SubmitJobRequest(job=rig.job_of())
    publisher = Publisher(rig.redis_url)
    sweeper = Sweeper(rig.ledger, Dispatcher(rig.ledger, rig.redis_url), publisher)
    with rig.connection() as connection:
        accept.accept(connection, [accept.validate(request, "tester") for _ in range(1000)])
        connection.execute("UPDATE jobs SET expire_time = now() - interval '1 s'")
        accept.accept(
            connection, [accept.validate(request, "tester") for _ in range(2)]
        )  # which go to their queue meanwhile
        heartbeats.beat(
            connection, attempts.Worker(new_id(), "host:1", "dicom", slots=10, version="0"), []
        )

        def open_jobs() -> int:
            (count,) = connection.execute(
                "SELECT count(*) FROM jobs WHERE end_time IS NULL"
            ).fetchone() or (0,)
            return int(count)

        assert open_jobs() == 1002
        seconds = []
        with _hung(valkey):
            while len(seconds) < 4 or open_jobs() > 2:
                started = time.monotonic()
                sweeper.sweep()
                seconds.append(time.monotonic() - started)
        assert max(seconds) < 6, seconds
        assert seconds[-1] < 1.5, "a Redis that is known to be away is hardly waited for"

    def both_queued() -> bool:
        sweeper.sweep()
        with redis.Redis.from_url(rig.redis_url) as client:
            return client.llen("dicom") >= 2

    until(both_queued, 30, "the messages of the jobs that were ready")
    publisher.close()
