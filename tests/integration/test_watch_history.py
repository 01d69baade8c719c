"""Cursors into a long history: all comes in order, and a read costs what it returns."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from uuid import UUID

import psycopg
import pytest
from fluoro.v1.job_service_pb2 import WatchJobsResponse
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import horizon, read
from fluoro_jobs.ledger.connection import Ledger, LedgerConnection
from gateway import cursor
from gateway.testing_jobs import Stage, staged

PATIENCE_SECONDS = 60
FIRST_TRANSACTION = 10
"""Lower than those of anything that really happens in the test's ledger."""
EVENTS = 600
"""Of a job."""
BEGINNING = cursor.encode_horizon("ada", {}, 0)


@pytest.fixture
async def stage(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Stage]:
    async with staged(database_url, redis_url, blob_url) as made:
        yield made


async def history(stage: Stage, start_cursor: str) -> list[WatchJobsResponse]:
    """The events from a cursor on, until a bookmark comes and the jobs' last events have come."""
    got: list[WatchJobsResponse] = []
    newest: dict[str, int] = {}
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for response in stage.watch(start_cursor):
            if response.HasField("event"):
                got.append(response)
                newest[response.event.job] = response.event.sequence
            elif all(sequence == EVENTS for sequence in newest.values()):
                break
    return got


def rewrite(database_url: str, transactions: dict[UUID, list[int]]) -> None:
    """Gives each job one event per transaction, by sequence."""
    query = (
        "INSERT INTO events (job_id, sequence, state, step, owner, transaction_id)"
        " VALUES (%s, %s, 'RUNNING', 0, 'ada', %s::text::xid8)"
    )
    with psycopg.connect(database_url) as ledger, ledger.cursor() as batch:
        batch.execute("DELETE FROM events")
        batch.executemany(
            query,
            [
                (job, number, transaction)
                for job, those in transactions.items()
                for number, transaction in enumerate(those, 1)
            ],
        )
        batch.executemany(
            "UPDATE jobs SET last_sequence = %s WHERE id = %s",
            [(len(those), job) for job, those in transactions.items()],
        )


async def test_a_resume_from_any_page_of_a_history_of_overlapping_transactions_misses_nothing(
    stage: Stage, database_url: str
) -> None:
    choice = random.Random(7)
    jobs = [UUID((await stage.submit())[5:]) for _ in range(4)]
    rewrite(
        database_url,
        {
            job: [FIRST_TRANSACTION + number + choice.randrange(12) for number in range(EVENTS)]
            for job in jobs
        },
    )
    got = await history(stage, BEGINNING)
    for job in jobs:
        assert [
            response.event.sequence for response in got if response.event.job == f"jobs/{job}"
        ] == list(range(1, EVENTS + 1))
    cursors = list(dict.fromkeys(response.cursor for response in got))
    assert len(cursors) > 3
    for number in [0, *choice.sample(range(len(got)), 2), len(got) - 1]:
        again = await history(stage, got[number].cursor)
        for job in {response.event.job for response in got}:
            seen = [
                response.event.sequence
                for response in got[: number + 1]
                if response.event.job == job
            ]
            told = [response.event.sequence for response in again if response.event.job == job]
            assert told == list(range(told[0], EVENTS + 1)) if told else seen[-1] == EVENTS
            assert not told or told[0] <= (seen or [0])[-1] + 1
    for before, now in choice.sample(list(pairwise(cursors)), 3):
        first = next(number for number, response in enumerate(got) if response.cursor == before)
        forgotten = {(response.event.job, response.event.sequence) for response in got[:first]}
        again = await history(stage, now)
        assert not forgotten & {(response.event.job, response.event.sequence) for response in again}


def fetched(connection: LedgerConnection, call: Callable[[], object]) -> int:
    """Rows of `events` that the call made PostgreSQL look at."""
    query = (
        "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'events'"
    )
    with connection.transaction():
        ((before,),) = connection.execute(query).fetchall()
        call()
        ((after,),) = connection.execute(query).fetchall()
    return int(after - before)


def fill(connection: LedgerConnection, jobs: list[UUID]) -> None:
    connection.execute(
        (
            "INSERT INTO jobs (id, owner, input_count, state, last_sequence)"
            " SELECT unnest(%s::uuid[]), 'ada', 0, 'RUNNING', 10000"
        ),
        (jobs,),
    )
    connection.execute(
        "INSERT INTO events (job_id, sequence, state, owner, transaction_id)"
        " SELECT job, s, 'RUNNING', 'ada', (%s + s / 20)::text::xid8"
        " FROM unnest(%s::uuid[]) job, generate_series(1, 10000) s",
        (FIRST_TRANSACTION, jobs),
    )  # 200 events a transaction
    connection.execute(
        "WITH small AS (INSERT INTO jobs (id, owner, input_count, state, last_sequence)"
        " SELECT gen_random_uuid(), 'eve', 0, 'RUNNING', 3"
        " FROM generate_series(1, 5000) RETURNING id)"
        " INSERT INTO events (job_id, sequence, state, owner, transaction_id)"
        " SELECT id, s, 'RUNNING', 'eve', (%s + s)::text::xid8"
        " FROM small, generate_series(1, 3) s",
        (FIRST_TRANSACTION,),
    )  # most jobs are small: what is best for them must not be done to the large ones


def test_no_read_for_a_watch_costs_more_the_more_is_stored(database_url: str) -> None:
    jobs = [new_id() for _ in range(10)]
    ledger = Ledger(database_url)
    try:
        with ledger.connection() as connection:
            fill(connection, jobs)
            connection.execute("VACUUM ANALYZE")
            late = FIRST_TRANSACTION + 490
            costs = {
                "a page of the history": fetched(
                    connection, lambda: horizon.sweep(connection, [("ada", 0)], 256)
                ),
                "news": fetched(
                    connection,
                    lambda: horizon.sweep(connection, [("ada", late), ("eve", late)], 256),
                ),
                "where jobs are": fetched(connection, lambda: horizon.heads(connection, jobs)),
                "what was seen": fetched(
                    connection,
                    lambda: horizon.seen(connection, [(job, 5000, late) for job in jobs]),
                ),
                "what is new": fetched(
                    connection,
                    lambda: horizon.newest(connection, [(job, 5000, 5020) for job in jobs]),
                ),
                "a page of events": fetched(
                    connection,
                    lambda: read.events_after(
                        connection, dict.fromkeys(jobs, 5), each=64, limit=256
                    ),
                ),
                "a page of jobs' events": fetched(
                    connection,
                    lambda: read.events_after(
                        connection,
                        dict.fromkeys(jobs, 5),
                        upto=dict.fromkeys(jobs, 9000),
                        limit=256,
                    ),
                ),
                "which jobs ended": fetched(connection, lambda: read.ended(connection, jobs)),
            }
    finally:
        ledger.close()
    assert max(costs.values()) <= 256 + 200, costs
