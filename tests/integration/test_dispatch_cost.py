"""What a dispatch and a look at the backlog cost has a bound.

PostgreSQL ends a statement that takes too long, and then nothing would ever be dispatched or
measured.
"""

from fluoro_jobs import dispatch
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import attempts, backlog
from fluoro_jobs.ledger.attempts import Worker
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.testing.rig import Rig

OWNERS = 30
TASKS = 1_000
"""Of each owner."""
PLACES = 2_000

_COPY = """
INSERT INTO open_tasks (task_id, job_id, queue, task_name, owner, state, priority, due_time, order_time, dispatch_order)
SELECT gen_random_uuid(), job_id, queue, task_name, 'o' || o, state, priority, due_time, order_time, dispatch_order
FROM open_tasks, generate_series(0, %(owners)s - 1) o, generate_series(1, %(tasks)s) n
"""


def entries_read(connection: LedgerConnection) -> int:
    """Of the index of ready tasks, so far."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    ((entries,),) = connection.execute(
        "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'open_tasks_ready_idx'"
    ).fetchall()
    return int(entries)


def rows_walked(connection: LedgerConnection) -> int:
    """Of the table of open tasks, by statements that used no index, so far."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    ((rows,),) = connection.execute(
        "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'open_tasks'"
    ).fetchall()
    return int(rows)


def test_a_dispatch_fills_its_window_and_looks_at_so_many_tasks_only_however_many_wait(
    rig: Rig,
) -> None:
    rig.submit(rig.job_of())
    with rig.connection() as connection:
        connection.execute(_COPY, {"owners": OWNERS, "tasks": TASKS})
        connection.execute("ANALYZE open_tasks")
        by = Worker(new_id(), "host:1", "dicom", PLACES // dispatch.MAX_WINDOW_TASKS, "0")
        attempts.beat(connection, by, [], 0.001)
        before = entries_read(connection)
        assert len(dispatch.take(connection)) == PLACES
        assert entries_read(connection) - before < dispatch.MAX_CANDIDATES + 10 * OWNERS
        shares = connection.execute(
            "SELECT count(*) FROM open_tasks WHERE state = 'QUEUED' GROUP BY owner"
        ).fetchall()
        assert max(shares) <= (PLACES // OWNERS + 1,), "of each owner as many"


def test_what_is_due_later_is_no_backlog_and_no_look_at_it_walks_over_that(rig: Rig) -> None:
    rig.submit(rig.job_of())
    with rig.ledger.connection() as connection:
        connection.execute(_COPY, {"owners": 3, "tasks": TASKS})
        connection.execute(
            "UPDATE open_tasks SET state = 'WAITING', dispatch_order = NULL, due_time = now() + interval '1 day' WHERE owner LIKE 'o%'"
        )
        before = rows_walked(connection)
        dicom = next(queue for queue in backlog.by_queue(connection) if queue.name == "dicom")
        assert sum(dicom.tasks.values()) == 1
        assert rows_walked(connection) == before
