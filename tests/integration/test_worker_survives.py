"""A job accepted is a job done: each test is named after the failure it rehearses."""

import os
import signal
import subprocess
from datetime import datetime
from pathlib import Path
from uuid import UUID

import pytest
import redis
from fluoro.v1 import job_pb2
from fluoro_jobs.celery import Sender
from fluoro_jobs.ledger import control
from fluoro_jobs.ledger.attempts import LEASE_SECONDS
from fluoro_jobs.testing.rig import OWNER, Rig, sequences, until
from fluoro_jobs.wakeups import Publisher
from fluoro_local.servers import PostgresServer, ValkeyServer

Outcome = job_pb2.Attempt
SUCCEEDED = job_pb2.Job.STATE_SUCCEEDED


def outcomes(job: job_pb2.Job) -> list[str]:
    return [
        Outcome.Outcome.Name(attempt.outcome).removeprefix("OUTCOME_")
        for attempt in job.steps[0].tasks[0].attempts
    ]


def lease_of(rig: Rig, job_id: UUID) -> datetime | None:
    with rig.connection() as connection:
        row = connection.execute(
            "SELECT lease_expire_time FROM open_tasks WHERE job_id = %s", (job_id,)
        ).fetchone()
    assert row is not None
    return row[0]


def assert_gap_free(rig: Rig, job: job_pb2.Job) -> None:
    events = rig.events(UUID(job.name.removeprefix("jobs/")))
    assert sequences(events) == list(range(1, job.last_sequence + 1))
    assert events[-1].job_changed.state == job.state


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_job_runs_to_its_end_and_its_events_have_no_gap(rig: Rig, pool: str) -> None:
    rig.worker(pool=pool)
    job = rig.finished(
        rig.submit(rig.job_of({"do": "artifact", "name": "note.txt", "text": "hello"}))
    )
    assert job.state == SUCCEEDED, rig.logs()
    assert rig.blobs.read(job.steps[0].artifacts[0].blob) == b"hello"
    assert_gap_free(rig, job)


def test_sigkill_of_a_pool_child_gives_the_lease_back_at_once(rig: Rig, tmp_path: Path) -> None:
    rig.start("scheduler")
    rig.worker()
    job = rig.finished(
        rig.submit(rig.job_of({"do": "die_once", "path": str(tmp_path / "died")})), seconds=60
    )
    assert (job.state, outcomes(job)) == (SUCCEEDED, ["LOST", "SUCCEEDED"]), rig.logs()
    lost = job.steps[0].tasks[0].attempts[0]
    taken = lost.end_time.ToDatetime() - lost.start_time.ToDatetime()
    assert taken.total_seconds() < LEASE_SECONDS, "sooner than the lease would tell"
    assert_gap_free(rig, job)


def test_a_poison_pill_stops_circulating_after_its_attempts(rig: Rig) -> None:
    rig.start("scheduler")
    rig.worker()
    job = rig.finished(rig.submit(rig.job_of({"do": "die"}, max_attempts=2)))
    assert (job.state, job.steps[0].reason, outcomes(job)) == (
        job_pb2.Job.STATE_FAILED,
        "WORKER_LOST",
        ["LOST", "LOST"],
    )
    assert rig.finished(rig.submit(rig.job_of())).state == SUCCEEDED, "the worker goes on"


def test_a_task_that_asks_for_too_much_memory_fails_and_takes_nobody_along(rig: Rig) -> None:
    rig.worker(child_memory_limit_kib=1_000_000, slots=1)
    take = {"do": "take", "bytes": 900 << 20}
    job = rig.finished(rig.submit(rig.job_of(take, max_attempts=1)))
    assert (job.state, job.steps[0].reason) == (job_pb2.Job.STATE_FAILED, "INTERNAL")
    assert outcomes(job) == ["FAILED"], "its process goes on, or it would be lost"
    job = rig.finished(rig.submit(rig.job_of({"do": "take", "bytes": 100 << 20})))
    assert job.state == SUCCEEDED


def test_an_input_that_takes_too_much_memory_fails_alone(rig: Rig) -> None:
    rig.worker(child_memory_limit_kib=1_000_000, slots=1)
    job = rig.job_of({"do": "take_each", "bytes": [1 << 20, 900 << 20, 500 << 20]})
    job.inputs.extend(rig.blob(content) for content in (b"huge", b"large"))
    job = rig.finished(rig.submit(job))
    assert [(job_pb2.Item.State.Name(item.state), item.reason) for item in job.steps[0].items] == [
        ("STATE_SUCCEEDED", ""),
        ("STATE_FAILED", "MEMORY_EXCEEDED"),
        ("STATE_SUCCEEDED", ""),
    ]
    assert outcomes(job) == ["SUCCEEDED"]


def test_sigkill_of_a_whole_worker_moves_its_task_to_another_once_the_lease_expires(
    rig: Rig, tmp_path: Path
) -> None:
    rig.start("scheduler")
    first = rig.worker(slots=1)
    job_id = rig.submit(rig.job_of({"do": "wait", "path": str(tmp_path / "go")}))
    rig.running(job_id)
    os.killpg(first.pid, signal.SIGKILL)
    (tmp_path / "go").touch()
    rig.worker()
    job = rig.finished(job_id, seconds=30)
    assert (job.state, outcomes(job)) == (SUCCEEDED, ["LOST", "SUCCEEDED"]), rig.logs()
    assert_gap_free(rig, job)


def children_of(pid: int) -> list[int]:
    return [
        int(child)
        for thread in Path(f"/proc/{pid}/task").glob("*/children")
        for child in thread.read_text().split()
    ]


def pool_children_of(pid: int) -> list[int]:
    """Without the helper that billiard starts before them."""
    return [
        child
        for child in children_of(pid)
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def test_a_pool_child_that_starts_slowly_is_waited_for(rig: Rig) -> None:
    worker = rig.start("fluoro_jobs.testing.worker", "dicom", "prefork", slots=1)
    until(lambda: pool_children_of(worker.pid), 30, "a pool child")
    children = children_of(worker.pid)
    for pid in children:
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(AssertionError, match="another child"):
        until(lambda: children_of(worker.pid) != children, 8, "another child")
    for pid in children:
        os.kill(pid, signal.SIGCONT)
    assert rig.finished(rig.submit(rig.job_of())).state == SUCCEEDED, rig.logs()


def is_queued(rig: Rig) -> bool:
    with rig.connection() as connection:
        return (
            connection.execute("SELECT FROM open_tasks WHERE state = 'QUEUED'").fetchone()
            is not None
        )


def test_a_message_received_by_a_worker_that_dies_before_the_claim_is_sent_again(rig: Rig) -> None:
    first = rig.worker(slots=1)
    for pid in until(lambda: pool_children_of(first.pid), 30, "the pool child"):
        os.kill(pid, signal.SIGSTOP)
    job_id = rig.submit(rig.job_of())
    with redis.Redis.from_url(rig.redis_url) as client:
        until(lambda: is_queued(rig) and not client.llen("dicom"), 30, "the message to be received")
    os.killpg(first.pid, signal.SIGKILL)
    rig.start("scheduler")
    rig.worker()
    job = rig.finished(job_id, seconds=30)
    assert (job.state, outcomes(job)) == (SUCCEEDED, ["SUCCEEDED"]), rig.logs()


def test_sigstop_beyond_the_lease_fences_the_late_worker_off(rig: Rig, tmp_path: Path) -> None:
    rig.start("scheduler")
    first = rig.worker(slots=1, pool="threads")
    job_id = rig.submit(
        rig.job_of(
            {"do": "wait", "path": str(tmp_path / "go")},
            {"do": "artifact", "name": "a", "text": "x"},
        )
    )
    rig.running(job_id)
    os.kill(first.pid, signal.SIGSTOP)
    until(
        lambda: (
            len(rig.job(job_id).steps[0].tasks[0].attempts) == 1
            and "LOST" in outcomes(rig.job(job_id))
        ),
        30,
        "the expiry",
    )
    (tmp_path / "go").touch()
    os.kill(first.pid, signal.SIGCONT)
    job = rig.finished(job_id)
    assert (job.state, outcomes(job)) == (SUCCEEDED, ["LOST", "SUCCEEDED"]), rig.logs()
    assert len(job.steps[0].artifacts) == 1
    assert_gap_free(rig, job)


def cancel(rig: Rig, job_id: UUID) -> job_pb2.Job:
    with rig.connection() as connection:
        _, workers = control.cancel_job(connection, OWNER, job_id)
    publisher = Publisher(rig.redis_url)
    publisher.cancel(job_id, OWNER, workers)
    publisher.close()
    job = rig.job(job_id)
    assert (job.state, outcomes(job)) == (job_pb2.Job.STATE_CANCELLED, ["CANCELLED"])
    return job


@pytest.mark.parametrize(
    ("pool", "commands"),
    [("prefork", [{"do": "spin"}]), ("threads", [{"do": "wait", "path": "/nowhere"}])],
)
def test_cancel_stops_the_compute_and_the_worker_goes_on(
    rig: Rig, pool: str, commands: list[dict[str, str]]
) -> None:
    rig.worker(pool=pool, slots=1)
    job_id = rig.submit(rig.job_of(*commands))
    rig.running(job_id)
    job = cancel(rig, job_id)
    assert rig.finished(rig.submit(rig.job_of()), seconds=30).state == SUCCEEDED, (
        rig.logs()
    )  # its only slot is free again
    assert rig.job(job_id) == job


def test_a_cancel_reaches_a_worker_that_was_offline_once_it_is_back(rig: Rig) -> None:
    worker = rig.worker(slots=1)
    job_id = rig.submit(rig.job_of({"do": "spin"}))
    rig.running(job_id)
    os.killpg(worker.pid, signal.SIGSTOP)
    job = cancel(rig, job_id)
    next_id = rig.submit(rig.job_of())
    os.killpg(worker.pid, signal.SIGCONT)
    assert rig.finished(next_id).state == SUCCEEDED, rig.logs()  # its only slot is free again
    assert rig.job(job_id) == job


def test_a_cancel_during_a_drain_stops_the_compute_and_lets_the_worker_go(rig: Rig) -> None:
    worker = rig.worker(slots=1, shutdown_grace_seconds=60)
    job_id = rig.submit(rig.job_of({"do": "spin"}))
    rig.running(job_id)
    worker.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(1)
    job = cancel(rig, job_id)
    assert worker.wait(30) == 0, rig.logs()
    assert rig.job(job_id) == job


def test_sigterm_lets_running_work_finish_and_takes_no_more(rig: Rig, tmp_path: Path) -> None:
    worker = rig.worker(slots=1)
    job_id = rig.submit(rig.job_of({"do": "wait", "path": str(tmp_path / "go")}))
    rig.running(job_id)
    worker.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(1)
    (tmp_path / "go").touch()
    assert rig.finished(job_id).state == SUCCEEDED
    assert worker.wait(30) == 0, rig.logs()
    assert outcomes(rig.job(job_id)) == ["SUCCEEDED"]


def test_nothing_is_dispatched_for_the_slots_of_a_worker_that_drains(
    rig: Rig, tmp_path: Path
) -> None:
    worker = rig.worker(slots=2)
    job_id = rig.submit(rig.job_of({"do": "wait", "path": str(tmp_path / "go")}))
    rig.running(job_id)
    worker.terminate()

    def listed_slots() -> tuple[int] | None:
        with rig.connection() as connection:
            return connection.execute("SELECT slots FROM workers").fetchone()

    until(lambda: listed_slots() == (0,), 30, "a worker without slots")
    next_id = rig.submit(rig.job_of())
    rig.dispatcher.dispatch()
    with rig.connection() as connection:
        queued = "SELECT queued_time FROM open_tasks WHERE job_id = %s"
        assert connection.execute(queued, (next_id,)).fetchone() == (None,)
    (tmp_path / "go").touch()
    assert rig.finished(job_id).state == SUCCEEDED, rig.logs()
    assert worker.wait(30) == 0, rig.logs()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_sigterm_hands_back_what_does_not_finish_in_the_grace_period(
    rig: Rig, tmp_path: Path, pool: str
) -> None:
    worker = rig.worker(slots=1, shutdown_grace_seconds=1, pool=pool)
    job_id = rig.submit(rig.job_of({"do": "wait", "path": str(tmp_path / "go")}, max_attempts=1))
    rig.running(job_id)
    worker.terminate()
    worker.wait(30)
    assert outcomes(rig.job(job_id)) == ["RELEASED"], rig.logs()
    (tmp_path / "go").touch()
    rig.worker()
    assert rig.finished(job_id, seconds=10).state == SUCCEEDED, (
        "another worker takes it at once, without waiting for the lease"
    )


def test_a_worker_whose_first_heartbeat_is_late_starts_what_waited_for_it(rig: Rig) -> None:
    job_id = rig.submit(rig.job_of())
    with rig.connection() as connection, connection.transaction():
        connection.execute("LOCK TABLE workers IN SHARE MODE")  # may be read; not written to
        process = rig.start("fluoro_jobs.testing.worker", "dicom", "prefork")
        until(
            lambda: "worker_ready" in rig.logs() or process.poll() is not None,
            what="a consuming worker",
        )
    assert rig.finished(job_id).state == SUCCEEDED, rig.logs()


def test_a_worker_that_takes_no_more_messages_ends_so_that_another_is_started(rig: Rig) -> None:
    worker = rig.worker(pool="threads", slots=2, deaf_after_seconds=1)
    rig.start("scheduler")
    rig.finished(rig.submit(rig.job_of({"do": "deafen"})))
    job_id = rig.submit(rig.job_of())
    assert worker.wait(60) == 1, rig.logs()
    assert "consumer_deaf" in rig.logs()
    rig.worker()
    assert rig.finished(job_id).state == SUCCEEDED, rig.logs()


def test_a_worker_with_a_slot_that_is_never_freed_ends_so_that_another_is_started(rig: Rig) -> None:
    worker = rig.worker(slots=2, deaf_after_seconds=1, shutdown_grace_seconds=1)
    first = rig.submit(rig.job_of({"do": "keep_slot"}))
    assert rig.finished(first).state == SUCCEEDED, rig.logs()
    assert worker.wait(60) == 1, rig.logs()
    assert "slot_stuck" in rig.logs()
    rig.worker()
    assert rig.finished(rig.submit(rig.job_of())).state == SUCCEEDED, rig.logs()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_messages_that_wait_for_a_slot_are_no_reason_to_end(
    rig: Rig, tmp_path: Path, pool: str
) -> None:
    worker = rig.worker(pool=pool, slots=1, deaf_after_seconds=0.01)
    jobs = [rig.submit(rig.job_of({"do": "wait", "path": str(tmp_path / "go")})) for _ in range(3)]
    rig.running(jobs[0])
    for _ in range(3):
        before = lease_of(rig, jobs[0])
        rig.have_workers_look()
        until(
            lambda before=before: lease_of(rig, jobs[0]) != before,
            what="a heartbeat beside a full slot",
        )
    (tmp_path / "go").touch()
    assert {rig.finished(job_id).state for job_id in jobs} == {SUCCEEDED}, rig.logs()
    assert worker.poll() is None


def test_a_redis_wipe_loses_nothing(rig: Rig, tmp_path: Path) -> None:
    rig.worker(slots=1)
    first = rig.submit(rig.job_of({"do": "wait", "path": str(tmp_path / "go")}))
    rig.running(first)
    others = [rig.submit(rig.job_of()) for _ in range(5)]
    with redis.Redis.from_url(rig.redis_url) as client:
        client.flushall()
    rig.start("scheduler")
    (tmp_path / "go").touch()
    assert {rig.finished(job_id).state for job_id in [first, *others]} == {SUCCEEDED}, rig.logs()


def test_redis_down_at_submit_delays_the_job_and_no_more(rig: Rig, valkey: ValkeyServer) -> None:
    rig.worker()
    rig.start("scheduler")
    valkey.kill()
    job_id = rig.submit(rig.job_of())
    valkey.start()
    assert rig.finished(job_id, seconds=40).state == SUCCEEDED, rig.logs()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_whose_task_ends_while_redis_is_away_takes_more_once_it_is_back(
    rig: Rig, valkey: ValkeyServer, tmp_path: Path, pool: str
) -> None:
    rig.worker(pool=pool, slots=1)
    rig.start("scheduler")
    job_id = rig.submit(rig.job_of({"do": "wait", "path": str(tmp_path / "go")}))
    rig.running(job_id)
    valkey.kill()
    (tmp_path / "go").touch()
    assert rig.finished(job_id).state == SUCCEEDED
    valkey.start()
    assert rig.finished(rig.submit(rig.job_of()), seconds=30).state == SUCCEEDED, rig.logs()


def test_postgresql_restarting_under_a_running_task_keeps_its_work(
    rig: Rig, postgres: PostgresServer, tmp_path: Path
) -> None:
    rig.worker()
    rig.start("scheduler")
    job_id = rig.submit(rig.job_of({"do": "wait", "path": str(tmp_path / "go")}))
    rig.running(job_id)
    postgres.restart()
    (tmp_path / "go").touch()
    job = rig.finished(job_id)
    assert (job.state, outcomes(job)) == (SUCCEEDED, ["SUCCEEDED"]), rig.logs()


def test_a_message_delivered_twice_runs_once(rig: Rig) -> None:
    with rig.connection() as connection:
        job_id = rig.submit(rig.job_of())
        (task_id,) = (
            connection.execute("SELECT id FROM tasks WHERE job_id = %s", (job_id,)).fetchone() or ()
        )
    Sender(rig.redis_url).send([(task_id, "dicom.inspect", "dicom", 1)] * 3)
    rig.worker()
    job = rig.finished(job_id)
    assert outcomes(job) == ["SUCCEEDED"]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_fault_of_a_store_or_of_the_workers_disk_costs_no_attempt(
    rig: Rig, tmp_path: Path, pool: str
) -> None:
    rig.start("scheduler")
    rig.worker(pool=pool)
    fails = {"do": "fail", "unless": str(tmp_path / "mended")}
    reasons = ("BLOB_STORE_UNAVAILABLE", "BLOB_STORE_FULL", "LEDGER_BUSY", "SCRATCH_FULL")
    jobs = [
        rig.submit(rig.job_of({**fails, "reason": reason}, max_attempts=1)) for reason in reasons
    ]
    until(
        lambda: all("RELEASED" in outcomes(rig.job(job_id)) for job_id in jobs),
        what="an attempt that was handed back",
    )
    assert [rig.job(job_id).steps[0].tasks[0].attempts[0].reason for job_id in jobs] == list(
        reasons
    )
    (tmp_path / "mended").touch()
    for job_id in jobs:
        job = rig.finished(job_id)
        assert (job.state, {*outcomes(job)}, outcomes(job)[-1]) == (
            SUCCEEDED,
            {"RELEASED", "SUCCEEDED"},
            "SUCCEEDED",
        ), rig.logs()
        assert_gap_free(rig, job)
