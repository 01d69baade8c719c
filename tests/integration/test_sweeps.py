"""One broken job stops no other: the scheduler goes round it."""

import urllib.request
from typing import LiteralString
from uuid import UUID

import pytest
import redis
from fluoro.v1 import job_pb2
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import attempts, heartbeats
from fluoro_jobs.ledger.attempts import Worker
from fluoro_jobs.ledger.sweeps import Backoff, one_by_one
from fluoro_jobs.testing.rig import Rig, queue_tasks, until
from fluoro_local.folders import free_port
from prometheus_client.parser import text_string_to_metric_families

COPIES: LiteralString = """
WITH new AS MATERIALIZED (SELECT gen_random_uuid() AS job, gen_random_uuid() AS task
  FROM generate_series(1, %(copies)s)),
j AS (INSERT INTO jobs SELECT (jsonb_populate_record(j, jsonb_build_object('id', n.job))).*
  FROM jobs j, new n WHERE j.id = %(job)s),
s AS (INSERT INTO steps SELECT (jsonb_populate_record(s, jsonb_build_object('job_id', n.job))).*
  FROM steps s, new n WHERE s.job_id = %(job)s),
t AS (INSERT INTO tasks
  SELECT (jsonb_populate_record(t, jsonb_build_object('id', n.task, 'job_id', n.job))).*
  FROM tasks t, new n WHERE t.job_id = %(job)s),
o AS (INSERT INTO open_tasks
  SELECT (jsonb_populate_record(o, jsonb_build_object('task_id', n.task, 'job_id', n.job))).*
  FROM open_tasks o, new n WHERE o.job_id = %(job)s)
INSERT INTO events SELECT (jsonb_populate_record(e, jsonb_build_object('job_id', n.job))).*
  FROM events e, new n WHERE e.job_id = %(job)s
"""

FALL_DUE: dict[str, LiteralString] = {
    "lease_expired": (
        "UPDATE open_tasks SET lease_expire_time = now() - %s * interval '1 s' WHERE job_id = %s"
    ),
    "job_expired": "UPDATE jobs SET expire_time = now() - %s * interval '1 s' WHERE id = %s",
}
"""By the action that takes care of it."""
BREAK: dict[str, LiteralString] = {
    # It cannot be written: its next event has been there before.
    "event": (
        "INSERT INTO events (job_id, owner, sequence, state)"
        " SELECT id, owner, last_sequence + 1, state FROM jobs WHERE id = %s"
    ),
    # It cannot be decided: its step has ended, and its last attempt has not.
    "step": "WITH t AS (UPDATE tasks SET allowed = 1 WHERE job_id = %s RETURNING job_id) "
    "UPDATE steps s SET state = 'SUCCEEDED' FROM t WHERE s.job_id = t.job_id",
}


@pytest.mark.parametrize("foreign", [b"not json", b"[]", b'{"headers": null}', b"\xff"])
def test_a_foreign_message_in_a_queue_keeps_no_lost_one_from_being_sent_again(
    rig: Rig, foreign: bytes
) -> None:
    by = Worker(new_id(), "host:1", "dicom", 4, "0")
    with rig.connection() as connection:
        heartbeats.beat(connection, by, [])
        job_id = rig.submit(rig.job_of())
        with redis.Redis.from_url(rig.redis_url) as client:
            assert client.llen("dicom") == 1
            client.delete("dicom")
            client.lpush("dicom", foreign)
            connection.execute(
                "UPDATE open_tasks SET queued_time = now() - interval '1 min' WHERE job_id = %s",
                (job_id,),
            )
            assert rig.dispatcher.reconcile() == 1
            assert client.llen("dicom") == 2


THREE: LiteralString = (
    "SELECT now(), id, id FROM"
    " (SELECT gen_random_uuid() AS id FROM generate_series(1, 3)) j, pg_sleep(0.3)"
)


def test_a_round_gets_something_done_however_long_it_took_to_find_it(rig: Rig) -> None:
    with rig.connection() as connection:
        assert (
            len(
                list(
                    one_by_one(
                        connection, THREE, lambda *_: True, Backoff("lease_expired"), seconds=0.1
                    )
                )
            )
            == 3
        )


def test_a_job_whose_statement_is_too_much_for_postgresql_keeps_no_other_from_its_turn(
    rig: Rig,
) -> None:
    done: list[UUID] = []

    def act(job: UUID, _: UUID) -> bool:
        done.append(job)
        connection.execute("SELECT " + "+".join(["1"] * (50_000 if len(done) == 1 else 1)))
        return True

    with rig.connection() as connection:
        assert list(one_by_one(connection, THREE, act, Backoff("lease_expired"))) == done[1:]
    assert len(done) == 3


def failures(port: int, action: str) -> float:
    """`fluoro_sweep_failures_total`, as the scheduler exposes it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    samples = [
        sample
        for family in families
        for sample in family.samples
        if sample.name == "fluoro_sweep_failures_total"
    ]
    return sum(sample.value for sample in samples if sample.labels == {"action": action})


def running(rig: Rig, by: Worker) -> UUID:
    """A job whose task this worker, which does not exist, has claimed."""
    job_id = rig.submit(rig.job_of())
    with rig.connection() as connection:
        (task,) = queue_tasks(connection, job_id)
        assert attempts.claim(connection, task, by) is not None
    return job_id


@pytest.mark.parametrize(
    ("action", "how", "broken"),
    [
        ("lease_expired", "step", 1100),
        ("lease_expired", "event", 10),
        ("job_expired", "event", 10),
    ],  # it reads 1000 at a time
)
def test_jobs_that_cannot_be_recovered_keep_no_other_from_it(
    rig: Rig, action: str, how: str, broken: int
) -> None:
    by = Worker(new_id(), "host:1", "dicom", 4, "0")
    bad, good = running(rig, by), [running(rig, by) for _ in range(3)]
    with rig.connection() as connection:
        for job_id, seconds in [(bad, 100), *((job_id, 1) for job_id in good)]:
            connection.execute(FALL_DUE[action], (seconds, job_id))
        connection.execute(BREAK[how], (bad,))
        connection.execute(COPIES, {"job": bad, "copies": broken - 1})
    port = free_port()
    scheduler = rig.served("scheduler", port)

    def recovered(job_id: UUID) -> bool:
        (task,) = rig.job(job_id).steps[0].tasks
        return task.state != job_pb2.Task.STATE_RUNNING

    until(lambda: all(map(recovered, good)), 30, "the recovery of the good ones")
    assert scheduler.poll() is None, rig.logs()
    assert failures(port, action) >= broken
    assert f"jobs/{bad}" in next(rig.folder.glob("scheduler-*.log")).read_text()
