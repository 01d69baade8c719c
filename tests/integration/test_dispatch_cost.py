"""What a dispatch and a look at the backlog cost has a bound.

PostgreSQL ends a statement that takes too long, and then nothing would ever be dispatched or
measured. Counted are the entries of indexes that a statement reads: unlike its time, they are the
same on every machine.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from fluoro.v1 import job_pb2, job_service_pb2
from fluoro_jobs import dispatch
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import accept, backlog, heartbeats, limits, turn
from fluoro_jobs.ledger.attempts import Worker
from fluoro_jobs.ledger.backlog import QueueBacklog
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.turn import Turn
from fluoro_jobs.testing.rig import OWNER, Rig

QUEUE = "dicom"
SLOTS = 1_000
MOST_READ = 8 * (turn.MAX_TAKEN + turn.MAX_LINES)
"""Most entries that a turn reads: a few for each task that it takes and each line it looks at."""

_COPY = """
INSERT INTO open_tasks
  (task_id, job_id, queue, task_name, owner, state, priority, due_time, order_time, dispatch_order)
SELECT gen_random_uuid(), job_id, queue, coalesce(%(name)s, task_name), 'o' || o, state, priority,
  due_time, order_time, dispatch_order
FROM open_tasks, generate_series(0, %(owners)s - 1) o, generate_series(1, %(tasks)s) n
"""
_PUT_OFF = """
UPDATE open_tasks SET state = 'WAITING', dispatch_order = NULL, due_time = now() + interval '1 day'
WHERE owner LIKE 'o%'
"""


def many(
    rig: Rig, connection: LedgerConnection, owners: int, tasks: int, name: str | None = None
) -> None:
    """Ready tasks of each of many owners, and a worker for them. name: of the operation."""
    rig.submit(rig.job_of())
    connection.execute(_COPY, {"owners": owners, "tasks": tasks, "name": name})
    connection.execute("ANALYZE open_tasks")
    by = Worker(new_id(), "host:1", QUEUE, SLOTS, "0", operations=("dicom.inspect",))
    heartbeats.beat(connection, by, [], 60)


def reads(connection: LedgerConnection, table: str = "open_tasks") -> int:
    """Entries of the table's indexes, and rows of the table without one, read so far."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    ((entries,),) = connection.execute(
        "SELECT (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes"
        " WHERE relname = %(table)s) + seq_tup_read "
        "FROM pg_stat_user_tables WHERE relname = %(table)s",
        {"table": table},
    ).fetchall()
    return int(entries)


def turn_of(connection: LedgerConnection, after: turn.Line = turn.FIRST) -> tuple[Turn, int]:
    """A turn, and what it read."""
    before = reads(connection)
    taken = turn.take(connection, QUEUE, after)
    return taken, reads(connection) - before


def queue_of(connection: LedgerConnection) -> QueueBacklog:
    return next(queue for queue in backlog.by_queue(connection) if queue.name == QUEUE)


@pytest.mark.parametrize(("owners", "tasks"), [(30, 1_000), (3_000, 10)])
def test_a_turn_reads_what_it_takes_however_many_tasks_and_owners_wait(
    rig: Rig, owners: int, tasks: int
) -> None:
    with rig.ledger.connection() as connection:
        many(rig, connection, owners, tasks)
        for _ in range(2):
            one, read = turn_of(connection)
            assert len(one.taken) == turn.MAX_TAKEN
            assert read < MOST_READ
        shares = connection.execute(
            "SELECT count(*) FROM open_tasks WHERE state = 'QUEUED' GROUP BY owner"
        ).fetchall()
        assert max(shares) <= (2 * turn.MAX_TAKEN // min(owners, turn.MAX_LINES) + 1,)


def test_turns_come_round_to_every_owner(rig: Rig) -> None:
    owners = 2 * turn.MAX_LINES + 50
    with rig.ledger.connection() as connection:
        many(rig, connection, owners, 4)
        after = turn.FIRST
        for _ in range(3):
            one, _ = turn_of(connection, after)
            after = one.last or after
        ((served,),) = connection.execute(
            "SELECT count(DISTINCT owner) FROM open_tasks WHERE state = 'QUEUED'"
        ).fetchall()
        assert served >= owners


def test_owners_at_their_limits_keep_nobody_behind_them_waiting_however_many_they_are(
    rig: Rig,
) -> None:
    with rig.ledger.connection() as connection:
        many(rig, connection, 4 * turn.MAX_LINES, 1)
        connection.execute(
            "INSERT INTO owners (owner, max_tasks) SELECT DISTINCT owner, 0 FROM open_tasks"
        )
        connection.execute(
            "UPDATE open_tasks SET owner = 'z' WHERE task_id = (SELECT max(task_id::text)::uuid "
            "FROM open_tasks)"
        )
        rig.dispatcher.dispatch()
        rows = connection.execute("SELECT owner FROM open_tasks WHERE state = 'QUEUED'").fetchall()
        assert rows == [("z",)]


def test_turns_of_two_queues_at_one_moment_keep_an_owners_limit_over_both(
    rig: Rig, database_url: str
) -> None:
    in_flight = "SELECT count(*) FROM open_tasks WHERE queued_time IS NOT NULL AND owner = %s"
    one_of_dicom = "WHERE task_id = (SELECT task_id FROM open_tasks WHERE queue = 'dicom' LIMIT 1)"
    queues = {"dicom": "inspect_dicom", "export": "export_report"}
    with rig.connection() as connection, psycopg.connect(database_url) as other:
        for queue, operation in queues.items():
            for _ in range(4):
                accept.accept(connection, [made(rig.job_of(operation=operation))])
            heartbeats.beat(connection, Worker(new_id(), "host:1", queue, SLOTS, "0"), [], 60)
        limits.set_limit(connection, OWNER, 3)
        assert len(turn.take(other, "dicom").taken) == 3  # not committed yet
        blocked = turn.take(connection, "export")
        assert (blocked.taken, blocked.blocked, blocked.goes_on) == ([], True, True)
        other.rollback()

        # Now one ends while the other, which looks at many owners, is at work.
        limits.set_limit(connection, OWNER, 1)
        connection.execute(_COPY + one_of_dicom, {"owners": 200, "tasks": 1, "name": None})

        def take_at_once(queue: str) -> None:
            with psycopg.connect(database_url, autocommit=True) as own:
                for _ in range(ROUNDS):
                    begin.wait()
                    turn.take(own, queue)
                    end.wait()
                    end.wait()

        begin, end = threading.Barrier(2, timeout=20), threading.Barrier(3, timeout=20)
        with ThreadPoolExecutor(2) as pool:
            threads = [pool.submit(take_at_once, queue) for queue in queues]
            for _ in range(ROUNDS):
                end.wait(60)
                assert connection.execute(in_flight, (OWNER,)).fetchall() == [(1,)]
                connection.execute(
                    "UPDATE open_tasks SET state = 'READY', queued_time = NULL,"
                    " dispatch_order = order_time WHERE queued_time IS NOT NULL"
                )
                end.wait(60)
            for thread in threads:
                thread.result()


ROUNDS = 50


def made(job: job_pb2.Job) -> accept.Submission:
    return accept.validate(job_service_pb2.SubmitJobRequest(job=job), OWNER)


def test_a_dispatch_fills_all_places_also_where_one_of_many_owners_has_most_tasks(rig: Rig) -> None:
    with rig.ledger.connection() as connection:
        many(rig, connection, 200, 1)
        connection.execute(_COPY + "WHERE owner = 'o0'", {"owners": 1, "tasks": 400, "name": None})
        assert len(dispatch.take(connection)) == 601


def test_tasks_that_wait_for_their_time_cost_a_turn_nothing_and_are_no_backlog(rig: Rig) -> None:
    with rig.ledger.connection() as connection:
        many(rig, connection, 10, 2_000)
        connection.execute(_PUT_OFF)
        connection.execute("VACUUM open_tasks")  # as if they had waited from the beginning
        one, read = turn_of(connection)
        assert (len(one.taken), one.due) == (1, False)
        assert read < MOST_READ / 10
        queue = queue_of(connection)
        assert (queue.tasks["WAITING"], queue.tasks["READY"], queue.seconds) == (20_000, 0, 0.06)
        assert queue.oldest_ready_seconds == 0


def test_tasks_whose_time_has_come_are_dispatched_in_the_order_in_which_it_came(rig: Rig) -> None:
    with rig.ledger.connection() as connection:
        many(rig, connection, 1, 5)
        connection.execute(_PUT_OFF)
        dispatch.take(connection)
        connection.execute(
            "UPDATE open_tasks SET due_time = now() - interval '1 s', order_time = now() - "
            "interval '1 s' * attempt "
            "WHERE owner LIKE 'o%'"
        )
        assert queue_of(connection).oldest_ready_seconds == 0
        assert len(dispatch.take(connection)) == 5
        assert queue_of(connection).tasks["WAITING"] == 0


def test_tasks_that_no_worker_knows_cost_a_turn_nothing_and_are_told_of(rig: Rig) -> None:
    with rig.ledger.connection() as connection:
        many(rig, connection, 3_000, 5, "dicom.aaa")
        one, read = turn_of(connection)
        assert len(one.taken) == 1
        assert read < MOST_READ / 10
        assert queue_of(connection).held == 15_000


def test_a_look_at_the_backlog_reads_nothing_of_the_tasks_that_have_ended(rig: Rig) -> None:
    rig.submit(rig.job_of())
    with rig.ledger.connection() as connection:
        connection.execute(
            "INSERT INTO tasks (id, job_id, step, shard, first_input, input_count, allowed, state) "
            "SELECT gen_random_uuid(), job_id, step, n, 0, 1, 1, 'SUCCEEDED'"
            " FROM tasks, generate_series(1, 3000) n"
        )
        before = reads(connection, "tasks"), reads(connection)
        assert sum(queue_of(connection).tasks.values()) == 1
        assert reads(connection, "tasks") == before[0]
        assert reads(connection) - before[1] < 10
