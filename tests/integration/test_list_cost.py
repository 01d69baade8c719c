"""What a list costs depends on its page, and not on what is stored.

Statements are planned once for all values of their parameters, as PostgreSQL does it with prepared
statements after a while. Rows are counted and not seconds.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import pytest
from fluoro.v1 import job_pb2
from fluoro.v1.audit_service_pb2 import ListAuditEventsRequest
from fluoro.v1.job_service_pb2 import JOB_VIEW_FULL, ListJobsRequest, ListTasksRequest
from fluoro_jobs.ledger import audit_search, batches, deletion, lists, read, search
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.paging import LOOKED_AT
from fluoro_jobs.testing.rig import OWNER, Rig

STORED: Final = 100_000

HISTORY: Final = """
INSERT INTO jobs (id, owner, input_count, labels, state, last_sequence, create_time, end_time)
SELECT (lpad(to_hex(%(start)s + n * 60000::int8), 12, '0') || '70008000'
    || lpad(to_hex(n), 12, '0'))::uuid, %(owner)s, 1,
  CASE WHEN n %% 40000 = 7 THEN '{"kind": "rare"}'
    ELSE '{"kind": "usual"}' END::jsonb, 'SUCCEEDED', 1, time, time + interval '5 min'
FROM generate_series(1, %(stored)s) n,
  LATERAL (SELECT to_timestamp(%(start)s / 1000.0 + n * 60) AS time) at
UNION ALL
SELECT ('00000000-0000-7000-9000-' || lpad(to_hex(n), 12, '0'))::uuid, 'o' || n, 1, '{}'::jsonb,
  'PENDING', 1, now(), NULL
FROM generate_series(1, 1000) n
"""
"""A job a minute, each of five minutes."""
START: Final = datetime(2026, 1, 1, tzinfo=UTC)
ATTEMPTS: Final = """
INSERT INTO tasks (id, job_id, step, shard, state, first_input, input_count, allowed)
SELECT gen_random_uuid(), job_id, step, n, 'FAILED', 0, 1, 1
FROM tasks, generate_series(1, %(stored)s) n WHERE job_id = %(job)s
"""
CLAIMED: Final = "INSERT INTO attempts (task_id, number, worker) SELECT id, 1, 'host:1' FROM tasks"


@pytest.fixture
def history(rig: Rig) -> Rig:
    """Many ended jobs of an owner, three that are open, and others' who have one each."""
    with rig.connection() as connection:
        parameters = {"owner": OWNER, "stored": STORED, "start": int(START.timestamp() * 1000)}
        connection.execute(HISTORY, parameters)
    for _ in range(3):
        rig.submit(rig.job_of())
    return rig


def read_of(connection: LedgerConnection, table: str) -> int:
    """Rows of the table that statements have read so far, by indexes or without."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    ((rows,),) = connection.execute(
        "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = %s", (table,)
    ).fetchall()
    return int(rows)


def cost(connection: LedgerConnection, table: str, act: Callable[[], object]) -> int:
    """Rows of the table that `act` reads."""
    connection.execute("SET plan_cache_mode = force_generic_plan")
    for _ in range(6):  # psycopg prepares what it has seen five times
        act()
    before = read_of(connection, table)
    act()
    return read_of(connection, table) - before


@pytest.mark.parametrize("analyzed", [False, True])
def test_a_page_of_jobs_reads_that_page_whatever_the_history(history: Rig, analyzed: bool) -> None:
    with history.connection() as connection:
        if analyzed:
            connection.execute("ANALYZE jobs")
        first = ListJobsRequest(page_size=10)
        token = search.list_jobs(connection, OWNER, first).next_page_token
        running = [job_pb2.Job.STATE_PENDING, job_pb2.Job.STATE_RUNNING]
        for request, count in (
            (first, 10),
            (ListJobsRequest(page_size=10, page_token=token), 10),
            (ListJobsRequest(page_size=10, states=running), 3),
            (ListJobsRequest(page_size=10, states=running, labels={"kind": "none"}), 0),
        ):
            page = search.list_jobs(connection, OWNER, request)
            assert len(page.jobs) == count
            rows = cost(
                connection,
                "jobs",
                lambda request=request: search.list_jobs(connection, OWNER, request),
            )
            assert rows <= 12, request


TWO_OWNERS: Final = """
INSERT INTO jobs (id, owner, input_count, labels, state, last_sequence, create_time, end_time)
SELECT (lpad(to_hex(%(start)s + n * 60000::int8), 12, '0') || '70008000'
    || lpad(to_hex(n), 12, '0'))::uuid, 'o' || n %% 2, 1, '{}', %(state)s, 1,
  to_timestamp(%(start)s / 1000.0), to_timestamp(%(end)s)
FROM generate_series(1, 20000) n
"""


@pytest.mark.parametrize("state", ["PENDING", "SUCCEEDED"])
def test_an_owner_of_few_jobs_reads_those_and_not_what_two_others_have(
    rig: Rig, state: str
) -> None:
    few = [rig.submit(rig.job_of()) for _ in range(3)]
    with rig.connection() as connection:
        start = START.timestamp()
        end = None if state == "PENDING" else start
        given = {"start": int(start * 1000), "state": state, "end": end}
        connection.execute(TWO_OWNERS, given)
        connection.execute("ANALYZE jobs")
        for order in search.ORDERS:
            for filtered in ("", "NOT end_time:*"):
                request = ListJobsRequest(filter=filtered, order_by=order)
                found = search.list_jobs(connection, OWNER, request).jobs
                assert len(found) == (0 if order.startswith("end_time") else len(few))
                rows = cost(
                    connection,
                    "jobs",
                    lambda asked=request: search.list_jobs(connection, OWNER, asked),
                )
                assert rows <= len(few), request
        assert cost(connection, "jobs", lambda: search.open_jobs(connection, OWNER, 10)) <= len(few)


def at(minutes: int) -> str:
    """When the job of that number was created, as a filter has it."""
    return f'"{(START + timedelta(minutes=minutes)).isoformat()}"'


@pytest.mark.parametrize("analyzed", [False, True])
def test_a_page_in_any_order_reads_that_page_and_begins_where_the_filter_says(
    history: Rig, analyzed: bool
) -> None:
    first, last = 50_000, 50_010
    with history.connection() as connection:
        if analyzed:
            connection.execute("ANALYZE jobs")

        def pages_of(order: str, filtered: str) -> tuple[list[int], int]:
            """Numbers on the first page, and what the second one reads."""
            request = ListJobsRequest(page_size=11, order_by=order, filter=filtered)
            page = search.list_jobs(connection, OWNER, request)
            request.page_token = page.next_page_token
            rows = cost(connection, "jobs", lambda: search.list_jobs(connection, OWNER, request))
            return [UUID(job.name[5:]).int % 2**48 for job in page.jobs], rows

        for order in ("create_time desc", "create_time", "end_time desc", "end_time"):
            time, _, way = order.partition(" ")
            late, slack = (5, 0) if time == "end_time" else (0, 24 * 60)
            between = f"{time} >= {at(first + late)} AND {time} <= {at(last + late)}"
            numbers, rows = pages_of(order, between)
            assert numbers == sorted(range(first, last + 1), reverse=way == "desc")
            assert rows <= LOOKED_AT + 1
            assert pages_of(order, "")[1] <= 13
            # Names are bounds of create_time to a day.
            assert pages_of(order, f"{time} > {at(first)}")[1] <= 13 + slack


def test_a_filter_that_only_open_jobs_pass_reads_those(history: Rig) -> None:
    with history.connection() as connection:
        for filtered in (
            "state = RUNNING OR state = PENDING",
            "NOT (state = SUCCEEDED OR end_time:*) AND labels.kind != none",
            "state != SUCCEEDED -state=FAILED -state=CANCELLED state != PARTIALLY_SUCCEEDED",
        ):
            request = ListJobsRequest(filter=filtered)
            assert len(search.list_jobs(connection, OWNER, request).jobs) == 3
            rows = cost(
                connection, "jobs", lambda asked=request: search.list_jobs(connection, OWNER, asked)
            )
            assert rows <= 4, filtered


def test_what_is_done_to_many_jobs_looks_at_no_more_than_a_page(history: Rig) -> None:
    with history.connection() as connection:
        for wanted, bound in (
            (batches.cancellable(OWNER, "*"), 4),
            (batches.cancellable(OWNER, "state = FAILED"), 0),
            (batches.retriable(OWNER, "labels.kind = rare"), LOOKED_AT + 1),
        ):
            for act in (search.count, lambda *args: search.find(*args, limit=10)):
                rows = cost(
                    connection, "jobs", lambda act=act, wanted=wanted: act(connection, wanted, None)
                )
                assert rows <= bound, wanted.filter


def test_deleting_a_job_reads_that_job_whatever_else_is_stored(history: Rig) -> None:
    with history.connection() as connection:
        request = ListJobsRequest(filter="end_time:*", page_size=10)
        ended = iter(search.list_jobs(connection, OWNER, request).jobs)

        def act() -> None:
            deletion.delete_job(connection, OWNER, UUID(next(ended).name[5:]))
            assert deletion.remove_deleted(connection) == 1

        assert cost(connection, "jobs", act) <= 4


def test_a_filter_that_few_jobs_pass_makes_short_pages_and_misses_none(history: Rig) -> None:
    with history.connection() as connection:
        for request in (
            ListJobsRequest(labels={"kind": "rare"}),
            ListJobsRequest(filter="labels.kind = rare"),
            ListJobsRequest(filter="labels.kind = rare", order_by="end_time desc"),
        ):
            found: list[str] = []
            pages = 0
            while True:
                page = search.list_jobs(connection, OWNER, request)
                pages += 1
                found += [job.name for job in page.jobs]
                request.page_token = page.next_page_token
                if not request.page_token:
                    break
                rows = cost(
                    connection,
                    "jobs",
                    lambda asked=request: search.list_jobs(connection, OWNER, asked),
                )
                assert rows <= LOOKED_AT + 1
            assert pages >= STORED // LOOKED_AT
            assert [UUID(name[5:]).int % 2**48 for name in found] == [80_007, 40_007, 7]


def test_attempts_are_read_by_their_tasks_in_a_ledger_that_was_never_analyzed(rig: Rig) -> None:
    many, few = rig.submit(rig.job_of()), rig.submit(rig.job_of())
    with rig.connection() as connection:
        connection.execute(ATTEMPTS, {"stored": 1_000 * 20, "job": many})
        connection.execute(CLAIMED)
        rows = cost(
            connection,
            "attempts",
            lambda: read.get_job(connection, OWNER, few, view=JOB_VIEW_FULL),
        )
        assert rows <= 2
        request = ListTasksRequest(job=f"jobs/{few}")
        assert (
            cost(connection, "attempts", lambda: lists.list_tasks(connection, OWNER, few, request))
            <= 2
        )


MANY_ATTEMPTS: Final = """
INSERT INTO attempts (task_id, number, worker, outcome, reason, message)
SELECT id, n, 'host:1', 'FAILED', 'INTERNAL', repeat('m', 200)
FROM tasks, generate_series(1, 100) n WHERE job_id = %(job)s AND shard < 1000
"""


def test_a_page_of_tasks_reads_little_more_attempts_than_it_shows(rig: Rig) -> None:
    job = rig.submit(rig.job_of())
    with rig.connection() as connection:
        connection.execute(ATTEMPTS, {"job": job, "stored": 1000})
        connection.execute(MANY_ATTEMPTS, {"job": job})
        connection.execute("ANALYZE attempts")
        request = ListTasksRequest(job=f"jobs/{job}", page_size=1000)
        page = lists.list_tasks(connection, OWNER, job, request)
        shown = sum(len(each.task.attempts) for each in page.tasks)
        assert page.next_page_token
        assert all(len(each.task.attempts) == 100 for each in page.tasks)
        more = lists.TASKS_TOGETHER * lists.ATTEMPTS
        assert (
            cost(connection, "attempts", lambda: lists.list_tasks(connection, OWNER, job, request))
            <= shown + more
        )


AUDIT: Final = """
INSERT INTO audit (id, time, principal, how, owner, method, action, peer, thing, outcome)
SELECT (lpad(to_hex(%(start)s + n * 60000::int8), 12, '0') || '70008000'
    || lpad(to_hex(n), 12, '0'))::uuid, to_timestamp(%(start)s / 1000.0 + n * 60), 'ada', 'jwt',
  CASE WHEN n %% 20000 = 7 THEN 'rare' ELSE 'usual' END, 'fluoro.v1.JobService.GetJob', 'R', '',
  'jobs/00000000-0000-7000-8000-' || lpad(to_hex(n %% 20000), 12, '0'),
  CASE WHEN n = 50000 THEN 'NOT_FOUND' ELSE 'OK' END
FROM generate_series(1, %(stored)s) n
"""
"""An access a minute: of 20,000 jobs in turn, and now and then of another owner."""


@pytest.mark.parametrize("analyzed", [False, True])
def test_a_page_of_the_audit_reads_that_page_however_much_is_recorded(
    rig: Rig, analyzed: bool
) -> None:
    job = "jobs/00000000-0000-7000-8000-000000000007"
    with rig.connection() as connection:
        given = {"start": int(START.timestamp() * 1000), "stored": STORED}
        connection.execute(AUDIT, given)
        if analyzed:
            connection.execute("ANALYZE audit")
        both = ("time", "time desc")
        for orders, text, count, most in (
            (both, "", 10, 12),
            (both, "owner = rare", 5, 6),
            (both, f'job = "{job}"', 5, 6),
            (both, f"owner = rare AND time < {at(20_010)}", 2, 6),
            (both, f'job = "{job}" AND principal = bob', 0, 6),
            # Names are bounds of the time to a day, where the page begins; then it ends.
            (both[:1], f"time >= {at(50_000)} AND owner != bob", 10, 12 + 24 * 60),
            (both[1:], f"time <= {at(50_000)} AND owner != bob", 10, 12 + 24 * 60),
            (both, f"time >= {at(50_000)} AND time < {at(50_010)}", 10, LOOKED_AT + 1),
            (both, "outcome != OK", 0, LOOKED_AT + 1),
        ):
            for order in orders:
                asked = ListAuditEventsRequest(filter=text, page_size=10, order_by=order)
                page = audit_search.list_events(connection, asked)
                assert len(page.events) == count, text
                rows = cost(
                    connection,
                    "audit",
                    lambda asked=asked: audit_search.list_events(connection, asked),
                )
                assert rows <= most, (text, order)
        asked, pages, found = ListAuditEventsRequest(filter="outcome != OK"), 0, []
        while pages == 0 or asked.page_token:
            page = audit_search.list_events(connection, asked)
            found += page.events
            asked.page_token, pages = page.next_page_token, pages + 1
        assert [event.outcome for event in found] == ["NOT_FOUND"]
        assert pages >= STORED // LOOKED_AT
