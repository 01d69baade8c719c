"""A store is away for a while: no job fails, no attempt counts, and work goes on soon after."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from uuid import UUID

import pytest
from fluoro.v1 import job_pb2
from fluoro_jobs.testing.rig import Rig, until
from fluoro_local.folders import free_port
from fluoro_local.servers import PostgresServer

SUCCEEDED = job_pb2.Job.STATE_SUCCEEDED


def outcomes(rig: Rig, job_id: UUID) -> list[str]:
    found = [attempt for step in rig.job(job_id).steps for attempt in step.tasks[0].attempts]
    return [
        job_pb2.Attempt.Outcome.Name(attempt.outcome).removeprefix("OUTCOME_") for attempt in found
    ]


@contextmanager
def without_blobs(rig: Rig) -> Iterator[None]:
    """As if the folder's disk were gone.

    Root may write to a folder that is read-only; nobody can write into a file's.
    """
    folder = Path(rig.blob_url.removeprefix("file://"))
    away = folder.rename(folder.with_name("away"))
    folder.touch()
    yield
    folder.unlink()
    away.rename(folder)


def get(port: int, path: str) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def slots(rig: Rig) -> int:
    with rig.connection() as connection:
        (found,) = connection.execute("SELECT sum(slots) FROM workers").fetchone() or (None,)
    return int(found)


def leases_hold(rig: Rig) -> bool:
    with rig.connection() as connection:
        return (
            connection.execute(
                "SELECT FROM open_tasks WHERE coalesce(lease_expire_time, '-infinity') < now()"
            ).fetchone()
            is None
        )


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_takes_no_tasks_while_the_blob_store_is_away_and_no_job_fails_for_it(
    rig: Rig, pool: str
) -> None:
    port = free_port()
    rig.start("scheduler")
    rig.worker(pool=pool, slots=2, http_port=port, deaf_after_seconds=0.5)
    until(lambda: get(port, "/readyz")[0] == 200, what="a ready worker")
    jobs = [
        rig.job_of({"do": "artifact", "name": "a", "text": "x"}, max_attempts=2) for _ in range(8)
    ]
    with without_blobs(rig):
        job_ids = [rig.submit(job) for job in jobs]
        until(lambda: "fluoro_worker_paused 1.0" in get(port, "/metrics")[1], 30, "a paused worker")
        until(lambda: slots(rig) == 0, 30, "a heartbeat that tells so")
        assert (get(port, "/readyz")[0], get(port, "/healthz")[0]) == (503, 200)
        until(
            lambda: not any(outcomes(rig, job_id)[-1:] == ["UNSPECIFIED"] for job_id in job_ids),
            30,
            "what was taken to come back",
        )
        before = [outcomes(rig, job_id) for job_id in job_ids]
        with pytest.raises(AssertionError, match="more attempts"):
            until(
                lambda: [outcomes(rig, job_id) for job_id in job_ids] != before, 2, "more attempts"
            )
    ends = [rig.finished(job_id, seconds=10) for job_id in job_ids]
    assert {job.state for job in ends} == {SUCCEEDED}, rig.logs()
    assert {outcome for job_id in job_ids for outcome in outcomes(rig, job_id)} <= {
        "RELEASED",
        "SUCCEEDED",
    }
    assert "consumer_deaf" not in rig.logs()


def test_postgresql_killed_under_jobs_of_two_steps_costs_no_attempt(
    rig: Rig, postgres: PostgresServer
) -> None:
    rig.start("scheduler")
    rig.worker(slots=2)
    jobs = [rig.job_of({"do": "sleep", "seconds": 0.3}, max_attempts=1) for _ in range(8)]
    for job in jobs:
        step = job.steps.add(name="after", after=["step"])
        step.CopyFrom(job.steps[0])
        step.name = "after"
        step.after.append("step")
    job_ids = [rig.submit(job) for job in jobs]
    until(lambda: rig.job(job_ids[0]).state == SUCCEEDED, what="a job's end")
    postgres.kill()
    until(
        lambda: "heartbeat_missed" in rig.logs() and "sweep_waits" in rig.logs(),
        what="the outage to be noticed",
    )
    postgres.start()
    for job_id in job_ids:
        assert rig.finished(job_id).state == SUCCEEDED, rig.logs()
        assert set(outcomes(rig, job_id)) <= {"RELEASED", "SUCCEEDED"}


def test_leases_that_ran_out_while_postgresql_was_away_are_renewed_before_they_are_swept(
    rig: Rig, postgres: PostgresServer, tmp_path: Path
) -> None:
    rig.start("scheduler")
    rig.worker()
    job_ids = [
        rig.submit(rig.job_of({"do": "wait", "path": str(tmp_path / "go")}, max_attempts=1))
        for _ in range(2)
    ]
    for job_id in job_ids:
        rig.running(job_id)
    with rig.connection() as connection:
        connection.execute("UPDATE open_tasks SET lease_expire_time = now() + interval '1 s'")
        postgres.kill()
    until(
        lambda: "heartbeat_missed" in rig.logs() and "sweep_waits" in rig.logs(),
        what="the outage to be noticed",
    )
    postgres.start()
    until(lambda: leases_hold(rig), 30, "a heartbeat")
    (tmp_path / "go").touch()
    for job_id in job_ids:
        assert (rig.finished(job_id).state, outcomes(rig, job_id)) == (SUCCEEDED, ["SUCCEEDED"]), (
            rig.logs()
        )
