"""A heartbeat that fails for one attempt still works for the others."""

import os
import signal
from pathlib import Path
from uuid import UUID

import pytest
from fluoro.v1 import job_pb2
from fluoro_jobs.testing.rig import Rig, until
from google.protobuf.duration_pb2 import Duration

SUCCEEDED = job_pb2.Job.STATE_SUCCEEDED


def outcomes(rig: Rig, job_id: UUID) -> list[str]:
    return [
        job_pb2.Attempt.Outcome.Name(attempt.outcome).removeprefix("OUTCOME_")
        for attempt in rig.job(job_id).steps[0].tasks[0].attempts
    ]


def test_a_lost_attempt_whose_job_is_locked_keeps_no_other_lease_from_being_renewed(
    rig: Rig, tmp_path: Path
) -> None:
    rig.worker(slots=2)
    go, dies = tmp_path / "go", tmp_path / "dies"
    held = rig.submit(
        rig.job_of(
            {"do": "wait", "path": str(dies)}, {"do": "die_once", "path": str(tmp_path / "died")}
        )
    )
    other = rig.submit(rig.job_of({"do": "wait", "path": str(go)}, max_attempts=1))
    rig.running(held)
    rig.running(other)
    with rig.connection() as connection, rig.connection() as locking, locking.transaction():
        locking.execute("SELECT FROM jobs WHERE id = %s FOR UPDATE", (held,))
        connection.execute(
            "UPDATE open_tasks SET lease_expire_time = now() + interval '3 s' WHERE job_id = %s",
            (other,),
        )
        dies.touch()
        until((tmp_path / "died").exists, what="the death of a pool child")
        renewed = (
            "SELECT FROM open_tasks WHERE job_id = %s AND lease_expire_time > now() + "
            "interval '10 s'"
        )
        until(
            lambda: connection.execute(renewed, (other,)).fetchone() is not None,
            4,
            "a renewed lease",
        )
    go.touch()
    for job_id in (held, other):
        assert rig.finished(job_id).state == SUCCEEDED, rig.logs()
    assert outcomes(rig, held) == ["LOST", "SUCCEEDED"]


def test_a_claim_that_postgresql_does_after_its_worker_gave_up_costs_no_attempt(rig: Rig) -> None:
    rig.worker(slots=1)
    assert rig.finished(rig.submit(rig.job_of())).state == SUCCEEDED
    with rig.connection() as connection:
        of_child = (
            "SELECT pid FROM pg_stat_activity WHERE state = 'idle' AND query LIKE 'WITH job AS (%'"
        )
        ((backend,),) = connection.execute(of_child).fetchall()
    os.kill(backend, signal.SIGSTOP)
    try:
        job_id = rig.submit(rig.job_of(max_attempts=1))
        until(lambda: "task_not_run" in rig.logs(), what="a worker that gives up")
        rig.have_workers_look()
        until(
            lambda: rig.logs().count("ledger_back") >= 1,
            30,
            "a child that reaches the ledger again",
        )
    finally:
        os.kill(backend, signal.SIGCONT)
    assert rig.finished(job_id).state == SUCCEEDED, rig.logs()
    assert outcomes(rig, job_id) == ["RELEASED", "SUCCEEDED"]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_attempts_that_take_too_long_are_ended_and_their_slots_are_free(
    rig: Rig, pool: str
) -> None:
    rig.worker(slots=2, pool=pool)
    jobs = [rig.job_of({"do": "sleep", "seconds": 60}, max_attempts=1) for _ in range(2)]
    for job in jobs:
        job.steps[0].attempt_timeout.CopyFrom(Duration(seconds=1))
    job_ids = [rig.submit(job) for job in jobs]
    ends = [rig.finished(job_id, 30) for job_id in job_ids]
    assert [job.steps[0].tasks[0].attempts[-1].reason for job in ends] == ["ATTEMPT_TIMEOUT"] * 2
    for job_id in [rig.submit(rig.job_of()) for _ in range(2)]:
        assert rig.finished(job_id, 30).state == SUCCEEDED, rig.logs()


def test_a_panic_in_a_thread_costs_one_attempt_and_no_slot(rig: Rig, tmp_path: Path) -> None:
    """A library in Rust raises what is no Exception."""
    rig.worker(pool="threads", slots=1)
    panics = rig.submit(rig.job_of({"do": "panic_once", "path": str(tmp_path / "panicked")}))
    assert rig.finished(panics, seconds=30).state == SUCCEEDED, rig.logs()
    assert outcomes(rig, panics) == ["LOST", "SUCCEEDED"]
