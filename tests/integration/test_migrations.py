"""A ledger with jobs in every state goes on after it was migrated."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import psycopg
import pytest
from fluoro.v1 import job_pb2
from fluoro_jobs import dispatch
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import attempts, control, heartbeats, migrate, read, sweeps
from fluoro_jobs.ledger.attempts import Claim, Worker
from fluoro_jobs.ledger.records import ItemResult, TaskResult
from fluoro_jobs.ledger.sweeps import Backoff
from fluoro_jobs.testing.rig import until
from fluoro_local.servers import PostgresServer
from psycopg import Connection
from psycopg.rows import TupleRow

Db = Connection[TupleRow]
OWNER = "ann"

# A: its first step runs, the second waits, and has been tried before a retry. B: ended, with one of
# two tasks lost. C: for tomorrow. D: ready, after an outage. E: one of two images is rendered, and
# an analysis waits for a worker, another one for a second rendering.
BEFORE = """
INSERT INTO blobs (id, owner, size_bytes, sha256, media_type, uploaded)
  SELECT ('00000000-0000-7000-8000-00000000000' || n)::uuid, 'ann', 1, ('\\x0' || n)::bytea,
    'text/plain', n < 3 FROM generate_series(1, 3) n;
INSERT INTO owner_limits VALUES ('ann', 7);
INSERT INTO workers (id, name, queue, slots, version, expire_time)
  VALUES ('00000000-0000-7000-8000-000000000009', 'h:1', 'dicom', 4, '0', now());
INSERT INTO jobs (id, owner, inputs, state, last_sequence, priority, schedule_time)
  SELECT id::uuid, 'ann',
    '{00000000-0000-7000-8000-000000000002,00000000-0000-7000-8000-000000000001}', state, events,
    priority, due
  FROM (VALUES ('0a000000-0000-7000-8000-000000000000', 'RUNNING', 4, 3, NULL),
    ('0b000000-0000-7000-8000-000000000000', 'PARTIALLY_SUCCEEDED', 5, 0, NULL),
    ('0c000000-0000-7000-8000-000000000000', 'PENDING', 1, 0, now() + interval '1 day'),
    ('0d000000-0000-7000-8000-000000000000', 'RUNNING', 1, 0, NULL),
    ('0e000000-0000-7000-8000-000000000000', 'RUNNING', 1, 0, NULL)) j(id, state, events, priority,
      due);
UPDATE jobs SET end_time = now() WHERE state = 'PARTIALLY_SUCCEEDED';
INSERT INTO events (job_id, owner, sequence, state)
  SELECT id, owner, generate_series(1, last_sequence), state FROM jobs;
INSERT INTO steps (job_id, ordinal, name, operation, request, after, max_attempts,
  initial_backoff_seconds, max_backoff_seconds,
  timeout_seconds, fans_out, requires_all, state)
  SELECT j.id, 0, 'first', 'inspect_dicom', ''::bytea, '{}'::smallint[], 3, 0, 0, 60,
    j.state = 'PARTIALLY_SUCCEEDED', false, j.state FROM jobs j
  UNION ALL
  SELECT '0a000000-0000-7000-8000-000000000000', 1, 'second', 'export_report', '', '{0}', 3, 0, 0,
    60, false, false, 'PENDING';
UPDATE steps SET operation = 'render_dicom', state = 'SUCCEEDED' WHERE job_id::text LIKE '0e%';
INSERT INTO steps (job_id, ordinal, name, operation, request, after, max_attempts,
  initial_backoff_seconds, max_backoff_seconds,
  timeout_seconds, fans_out, requires_all, state)
  SELECT '0e000000-0000-7000-8000-000000000000', n, name, operation, '', after::smallint[], 3, 0,
    0, 60, false, false, 'PENDING'
  FROM (VALUES (1, 'second', 'render_dicom', '{}'), (2, 'look', 'analyze_images', '{0}'),
    (3, 'later', 'analyze_images', '{0,1}'))
    s(n, name, operation, after);
INSERT INTO tasks (id, job_id, step, shard, queue, task_name, owner, state, first_input,
  input_count, attempt, allowed, item_counts,
  result, run_after, dispatch_order, queued_time, lease_expire_time, worker_id)
  SELECT (lpad(n::text, 8, '0') || '-0000-7000-8000-000000000000')::uuid,
    (job || '000000-0000-7000-8000-000000000000')::uuid, step, shard,
    CASE step WHEN 0 THEN 'dicom' ELSE 'export' END, CASE step WHEN 0 THEN 'dicom.inspect'
      ELSE 'export.report' END, 'ann', state, first,
    inputs, attempt, 3, counts::int[], CASE
      WHEN counts IS NOT NULL THEN ''::bytea END, now() + due * interval '1 day', now(), NULL,
    CASE WHEN state = 'RUNNING' THEN now() + interval '1 min' END,
    CASE WHEN state = 'RUNNING' THEN '00000000-0000-7000-8000-000000000009'::uuid END
  FROM (VALUES (1, '0a', 0, 0, 'RUNNING', 0, 2, 1, NULL, 0),
    (2, '0a', 1, 0, 'BLOCKED', 0, 2, 1, NULL, 0),
    (3, '0b', 0, 0, 'SUCCEEDED', 0, 1, 1, '{1,1,0,0}', 0),
      (4, '0b', 0, 1, 'FAILED', 1, 1, 3, NULL, 0),
    (5, '0c', 0, 0, 'READY', 0, 2, 0, NULL, 1), (6, '0d', 0, 0, 'READY', 0, 2, 1, NULL, 0),
    (7, '0e', 0, 0, 'SUCCEEDED', 0, 2, 1, '{2,2,0,0}', 0),
      (8, '0e', 1, 0, 'READY', 0, 2, 0, NULL, 0),
    (9, '0e', 2, 0, 'READY', 0, 2, 0, NULL, 0), (10, '0e', 3, 0, 'BLOCKED', 0, 2, 0, NULL, 0))
    t(n, job, step, shard, state, first, inputs, attempt, counts, due);
UPDATE tasks t SET queue = CASE s.operation WHEN 'analyze_images' THEN 'ml' ELSE 'dicom' END,
  task_name = CASE s.operation WHEN 'analyze_images' THEN 'ml.analyze' ELSE 'dicom.render' END
  FROM steps s WHERE s.job_id = t.job_id AND s.ordinal = t.step AND t.job_id::text LIKE '0e%';
INSERT INTO attempts (task_id, number, worker, outcome, end_time)
  SELECT id, n, 'h:1', CASE state WHEN 'SUCCEEDED' THEN 'SUCCEEDED' WHEN 'RUNNING' THEN NULL
    ELSE 'FAILED' END,
    CASE WHEN state <> 'RUNNING' THEN now() END FROM tasks, generate_series(1, attempt) n;
INSERT INTO items (job_id, step, input, shard, state) VALUES
  ('0b000000-0000-7000-8000-000000000000', 0, 0, 0, 1),
    ('0b000000-0000-7000-8000-000000000000', 0, 1, 1, 3);
INSERT INTO artifacts (job_id, step, name, shard, role, input, blob_id) VALUES
  ('0b000000-0000-7000-8000-000000000000', 0, 'a', 0, 'result', 0,
    '00000000-0000-7000-8000-000000000003');
INSERT INTO artifacts (job_id, step, name, shard, role, input, blob_id) VALUES
  ('0e000000-0000-7000-8000-000000000000', 0, 'pixels-0001.npy', 0, 'pixels', 1,
    '00000000-0000-7000-8000-000000000003');
"""
A, B, C, D, E = (UUID(f"0{letter}000000-0000-7000-8000-000000000000") for letter in "abcde")
STATES = job_pb2.Job.State


@pytest.fixture
def db(postgres: PostgresServer) -> Iterator[Db]:
    """A ledger from before open tasks had a table of their own, brought to the newest schema."""
    with psycopg.connect(postgres.url, autocommit=True) as server:
        server.execute("CREATE DATABASE old")
        migrate.migrate(postgres.url_of("old"), "0002")
        with psycopg.connect(postgres.url_of("old"), autocommit=True) as connection:
            connection.execute(BEFORE)
        migrate.migrate(postgres.url_of("old"))
        with psycopg.connect(postgres.url_of("old"), autocommit=True) as connection:
            yield connection
        server.execute("DROP DATABASE old WITH (FORCE)")


def job(db: Db, job_id: UUID) -> job_pb2.Job:
    return read.get_job(db, OWNER, job_id)


def work(
    db: Db, queues: Sequence[str] = ("dicom", "export"), of_e: Sequence[job_pb2.Artifact] = ()
) -> list[Claim]:
    """Everything that can be dispatched is, and brings good items; and in job E these artifacts."""
    claims = []
    for queue in queues:
        by = Worker(new_id(), "h:2", queue, 8, "0")
        heartbeats.beat(db, by, [])
        for task, *_ in dispatch.take(db):
            claim = attempts.claim(db, task, by)
            assert claim is not None
            items = [
                ItemResult(one.number, one.key, one.input, job_pb2.Item.STATE_SUCCEEDED)
                for one in claim.inputs
            ]
            left = of_e if claim.graph.id == E else ()
            assert attempts.commit(db, claim, TaskResult(b"", items, left))
            claims.append(claim)
    return claims


def test_jobs_of_before_go_on_after_it_and_what_had_ended_reads_as_it_did(db: Db) -> None:
    ended = job(db, B)
    assert ended.inputs == [f"blobs/00000000-0000-7000-8000-00000000000{n}" for n in (2, 1)]
    step = ended.steps[0]
    assert (step.max_inputs_per_task, step.artifacts[0].input) == (1, 0)
    assert [(item.input, item.state) for item in step.items] == [(0, 1), (1, 3)]
    assert [(task.state, len(task.attempts)) for task in step.tasks] == [
        (job_pb2.Task.STATE_SUCCEEDED, 1),
        (job_pb2.Task.STATE_FAILED, 3),
    ]
    assert db.execute("SELECT owner, max_tasks FROM owners").fetchall() == [(OWNER, 7)]
    assert db.execute("SELECT owner, bytes FROM stored_bytes").fetchall() == [(OWNER, 3)]

    db.execute(
        "UPDATE open_tasks SET lease_expire_time = now() - interval '1 s' WHERE state = 'RUNNING'"
    )
    assert list(sweeps.expired_leases(db, Backoff("test"))) == [A]
    control.retry_job(db, OWNER, B)
    db.execute("UPDATE open_tasks SET due_time = now() WHERE job_id <> %s", (C,))
    done = {(claim.graph.id, claim.step_name, claim.attempt) for claim in work(db)} - {
        (E, "second", 1)
    }
    assert done == {(A, "first", 2), (A, "second", 2), (B, "first", 4), (D, "first", 2)}
    assert {STATES.Name(job(db, one).state) for one in (A, B, D)} == {"STATE_SUCCEEDED"}
    assert STATES.Name(job(db, C).state) == "STATE_PENDING"
    assert [len(task.attempts) for task in job(db, A).steps[1].tasks] == [2]


def test_an_analysis_of_before_works_on_the_pixels_that_it_came_after(db: Db) -> None:
    def inputs(claim: Claim) -> list[tuple[object, ...]]:
        return [(one.number, one.key, [part.name for part in one.parts]) for one in claim.inputs]

    (look,) = work(db, ["ml"])
    assert (look.step_name, inputs(look)) == ("look", [(1, "1", ["pixels-0001.npy"])])
    again = job_pb2.Artifact(
        name="again.npy", role="pixels", key="1", input=1, blob=f"blobs/{new_id()}"
    )
    work(db, ["dicom"], [again])
    (later,) = work(db, ["ml"])
    assert (later.step_name, inputs(later)) == (
        "later",
        [(0, "1", ["pixels-0001.npy", "again.npy"])],
    )
    assert STATES.Name(job(db, E).state) == "STATE_SUCCEEDED"


def test_a_job_that_is_being_changed_while_the_schema_is_gets_its_change_and_so_does_the_schema(
    postgres: PostgresServer,
) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as server:
        server.execute("CREATE DATABASE busy")
        url = postgres.url_of("busy")
        migrate.migrate(url, "0003")
        with (
            ThreadPoolExecutor(1) as threads,
            psycopg.connect(url, autocommit=True) as watching,
            psycopg.connect(url) as changing,
        ):
            changing.execute("SELECT FROM jobs FOR UPDATE")
            migrating = threads.submit(migrate.migrate, url)
            until(lambda: watching.execute("SELECT FROM pg_locks WHERE NOT granted").rowcount)
            changing.execute("UPDATE jobs SET last_sequence = 2")
            changing.commit()
            migrating.result(60)
        server.execute("DROP DATABASE busy WITH (FORCE)")
