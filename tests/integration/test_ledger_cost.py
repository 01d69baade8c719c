"""What a task costs the ledger: the same in jobs of many tasks and of few, few index entries."""

from collections.abc import Iterator
from uuid import UUID

import pytest
from fluoro.v1 import job_pb2, job_service_pb2
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import accept, attempts, heartbeats
from fluoro_jobs.ledger.attempts import Worker
from fluoro_jobs.ledger.records import ItemResult, TaskResult
from fluoro_jobs.testing.rig import OWNER, Rig, queue_tasks
from psycopg import Connection
from psycopg.rows import TupleRow

Db = Connection[TupleRow]
BY = Worker(new_id(), "host:1", "dicom", 4, "0")


@pytest.fixture
def db(rig: Rig) -> Iterator[Db]:
    with rig.ledger.connection() as connection:
        yield connection


def fan_out(rig: Rig, tasks: int) -> job_pb2.Job:
    """A job whose one step has so many tasks, of an input each."""
    job = job_pb2.Job(inputs=[rig.blob(b"x")] * tasks)
    job.steps.add(name="step", max_inputs_per_task=1).inspect_dicom.SetInParent()
    return job


def tasks_of(db: Db, job: job_pb2.Job) -> list[UUID]:
    """Submits the job, and queues its tasks."""
    request = job_service_pb2.SubmitJobRequest(job=job)
    (answer,) = accept.accept(db, [accept.validate(request, OWNER)])
    assert isinstance(answer, job_pb2.Job)
    return queue_tasks(db, UUID(answer.name.removeprefix("jobs/")))


def run(db: Db, task: UUID) -> None:
    """Claims the task, renews its lease and commits a result of a usual size."""
    claim = attempts.claim(db, task, BY)
    assert claim is not None
    heartbeats.beat(db, BY, [(task, 1)])
    (one,) = claim.inputs
    items = [ItemResult(one.number, one.key, one.input, job_pb2.Item.STATE_SUCCEEDED)]
    assert attempts.commit(db, claim, TaskResult(b"x" * 300, items))


def rows_read(db: Db) -> dict[str, int]:
    """Of each table, so far."""
    for _ in range(2):  # the second finds what was counted before the first
        db.execute("SELECT pg_stat_force_next_flush()")
    query = (
        "SELECT relname, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)"
        " FROM pg_stat_user_tables"
    )
    return dict(db.execute(query).fetchall())


def test_a_task_of_a_job_of_a_thousand_reads_few_rows(rig: Rig, db: Db) -> None:
    tasks = tasks_of(db, fan_out(rig, 1000))
    for task in tasks[:7]:  # until psycopg has prepared the statements
        run(db, task)
    db.execute("VACUUM ANALYZE")
    before = rows_read(db)
    run(db, tasks[7])
    cost = {table: rows - before[table] for table, rows in rows_read(db).items()}
    assert {table: rows for table, rows in cost.items() if rows > 20} == {}


def test_statements_prepared_for_an_empty_ledger_read_few_rows_of_a_fuller_one(
    rig: Rig, db: Db
) -> None:
    for _ in range(60):
        (task,) = tasks_of(db, fan_out(rig, 1))
        run(db, task)
    (task,) = tasks_of(db, fan_out(rig, 1))
    before = rows_read(db)
    run(db, task)
    cost = {table: rows - before[table] for table, rows in rows_read(db).items()}
    assert {table: rows for table, rows in cost.items() if rows > 20} == {}


def test_most_updates_of_hot_rows_touch_no_index(rig: Rig, db: Db) -> None:
    for job in [fan_out(rig, 100), *(fan_out(rig, 1) for _ in range(100))]:
        for task in tasks_of(db, job):
            run(db, task)
    db.execute("SELECT pg_stat_force_next_flush()")
    query = "SELECT relname, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE n_tup_upd > 0"
    shares = {table: hot / updates for table, updates, hot in db.execute(query).fetchall()}
    assert shares.pop("jobs") > 0.6, "the end of a job takes it from the index of open ones"
    assert shares.pop("open_tasks") > 0.6, "all but dispatch"
    assert shares.pop("tasks") > 0.6, "a result may find no room on the page of its task"
    assert {table: share for table, share in shares.items() if share < 0.8} == {}
