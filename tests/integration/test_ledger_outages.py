"""PostgreSQL stops answering in ways that raise no error: every wait ends, nobody waits twice."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger import control
from fluoro_jobs.ledger.connection import (
    IDLE_IN_TRANSACTION_SECONDS,
    Ledger,
    LedgerConnection,
    fetch_together,
)
from fluoro_jobs.testing.rig import OWNER, Rig, until
from fluoro_local.folders import free_port
from fluoro_local.servers import PostgresServer
from harness.proxy import Proxy
from psycopg_pool import ConnectionPool

STATEMENT_SECONDS = 2
AT_ONCE_SECONDS = 0.5
BACK_SECONDS = 30


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    """In front of the session's PostgreSQL."""
    info = psycopg.conninfo.conninfo_to_dict(database_url)
    proxy = Proxy(free_port(), Path(f"{info['host']}/.s.PGSQL.5432"))
    proxy.start()
    yield proxy
    proxy.close()


@contextmanager
def ledger_at(url: str, connections: int = 2) -> Iterator[Ledger]:
    ledger = Ledger(
        url, max_connections=connections, wait_seconds=2, statement_seconds=STATEMENT_SECONDS
    )
    try:
        yield ledger
    finally:
        ledger.close()


def through(proxy: Proxy, database_url: str) -> str:
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    return f"postgresql://postgres@127.0.0.1:{proxy.port}/{name}?sslmode=disable&gssencmode=disable"


def seconds_of_refusal(ledger: Ledger, statement: str = "SELECT") -> float:
    """How long it takes to hear that there is no ledger."""
    began = time.monotonic()
    with pytest.raises(FluoroError) as refusal, ledger.connection() as connection:
        connection.execute(statement)
    assert refusal.value.reason is Reason.LEDGER_UNAVAILABLE
    return time.monotonic() - began


@contextmanager
def stopped(postgres: PostgresServer) -> Iterator[None]:
    """SIGSTOP for the server and its backends, each of which leads a session of its own."""
    os.kill(postgres.pid, signal.SIGSTOP)  # first: from here on there are no new ones
    children = [
        int(pid)
        for pid in Path(f"/proc/{postgres.pid}/task/{postgres.pid}/children").read_text().split()
    ]
    for pid in children:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in (*children, postgres.pid):
            os.kill(pid, signal.SIGCONT)


def answers(ledger: Ledger) -> bool:
    try:
        ledger.check()
    except FluoroError:
        return False
    return True


def test_a_statement_into_a_connection_gone_silent_ends_and_later_callers_are_refused_at_once(
    proxy: Proxy, database_url: str
) -> None:
    with ledger_at(through(proxy, database_url)) as ledger:
        ledger.check()
        proxy.half_open()
        assert seconds_of_refusal(ledger) < STATEMENT_SECONDS + 1
        for _ in range(100):
            assert seconds_of_refusal(ledger) < AT_ONCE_SECONDS
        proxy.mend()
        until(lambda: answers(ledger), BACK_SECONDS, "an answer of the ledger")


def test_a_stopped_postgresql_is_told_within_the_deadline_and_found_again_once_it_goes_on(
    postgres: PostgresServer, database_url: str
) -> None:
    with ledger_at(database_url) as ledger, ThreadPoolExecutor(8) as callers:
        ledger.check()
        with stopped(postgres):
            first = list(callers.map(seconds_of_refusal, [ledger] * 8))
            assert max(first) < STATEMENT_SECONDS + 3, first
            assert seconds_of_refusal(ledger) < AT_ONCE_SECONDS
        until(lambda: answers(ledger), BACK_SECONDS, "an answer of the ledger")


def test_a_process_that_cannot_have_another_thread_for_a_moment_finds_the_ledger_afterwards(
    proxy: Proxy, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = iter([RuntimeError("can't start new thread")] * 2)

    def open_when_there_is_one(pool: ConnectionPool[Any]) -> None:
        if error := next(opened, None):
            raise error
        opens(pool)

    with ledger_at(through(proxy, database_url)) as ledger:
        ledger.check()
        proxy.half_open()
        seconds_of_refusal(ledger)
        opens = ConnectionPool.open
        monkeypatch.setattr(ConnectionPool, "open", open_when_there_is_one)
        proxy.mend()
        until(lambda: answers(ledger), BACK_SECONDS, "an answer of the ledger")
        assert next(opened, None) is None


def test_a_connection_that_was_cut_off_while_it_idled_is_found_out_sooner_than_a_statement_would(
    proxy: Proxy, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluoro_jobs.ledger.connection.IDLE_SECONDS", 0)
    monkeypatch.setattr("fluoro_jobs.ledger.connection.ASK_SECONDS", 0.5)
    with ledger_at(through(proxy, database_url)) as ledger:
        ledger.check()
        proxy.half_open()
        assert seconds_of_refusal(ledger) < STATEMENT_SECONDS - 0.5


def test_connections_that_ended_while_they_idled_cost_no_call(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluoro_jobs.ledger.connection.IDLE_SECONDS", 0)
    with ledger_at(database_url) as ledger, ledger.connection() as one:
        with ledger.connection() as other:
            pid = other.info.backend_pid
        one.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        ledger.check()


def test_callers_who_wait_for_each_other_are_no_outage(database_url: str) -> None:
    with ledger_at(database_url, connections=1) as ledger:
        with ledger.connection(), ThreadPoolExecutor(1) as other:
            assert other.submit(seconds_of_refusal, ledger).result() < 3
        began = time.monotonic()
        ledger.check()
        assert time.monotonic() - began < AT_ONCE_SECONDS


def test_a_statement_that_takes_too_long_is_ended_by_the_server_and_its_connection_stays(
    database_url: str,
) -> None:
    with ledger_at(database_url, connections=1) as ledger:
        with ledger.connection() as connection:
            pid = connection.info.backend_pid
        with pytest.raises(FluoroError) as refusal, ledger.connection() as connection:
            connection.execute("SELECT pg_sleep(60)")
        assert refusal.value.reason is Reason.LEDGER_BUSY
        with ledger.connection() as connection:
            assert connection.info.backend_pid == pid


@pytest.mark.parametrize("good", range(8))
def test_statements_of_a_pipeline_that_failed_can_be_run_again(
    database_url: str, good: int
) -> None:
    """good: how often they ran before; psycopg prepares what has run a few times."""

    def run(connection: LedgerConnection, divisor: int) -> list[Any]:
        first = "SELECT 6 / %(divisor)s::int", {"divisor": divisor}
        return fetch_together(connection, first, ("SELECT 7", {}))

    with ledger_at(database_url) as ledger, ledger.connection() as connection:
        for _ in range(good):
            run(connection, 1)
        with pytest.raises(psycopg.errors.DivisionByZero):
            run(connection, 0)
        for _ in range(8):
            assert run(connection, 1) == [(6,), (7,)]


def test_a_pipeline_with_more_answers_than_psycopg_counts_on_is_an_outage_and_no_bug(
    database_url: str,
) -> None:
    def answered_twice(ledger: Ledger) -> None:
        with ledger.connection() as connection, connection.pipeline() as pipeline:
            connection.execute("INSERT INTO once VALUES (1), (1)")
            with suppress(psycopg.errors.UniqueViolation):
                pipeline.sync()

    with ledger_at(database_url) as ledger:
        with ledger.connection() as connection:
            unique = "UNIQUE DEFERRABLE INITIALLY DEFERRED"
            connection.execute(f"CREATE TABLE once (number int {unique})")
        for _ in range(100):  # whether psycopg sees both answers at once is a matter of luck
            with pytest.raises(FluoroError) as refused:
                answered_twice(ledger)
            assert refused.value.reason is Reason.LEDGER_UNAVAILABLE
        ledger.check()


HOLDER = """
import sys, time
from uuid import UUID
from fluoro_jobs.ledger import store
from fluoro_jobs.ledger.connection import Ledger

with Ledger(sys.argv[1]).connection() as connection, connection.transaction():
    connection.execute(*store.locking(UUID(sys.argv[2])))
    print("locked", flush=True)
    time.sleep(600)
"""


@contextmanager
def stopped_holder(database_url: str, job_id: UUID) -> Iterator[None]:
    """A process that was stopped in the middle of a transition of the job."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, database_url, str(job_id)], stdout=subprocess.PIPE
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"locked\n"
            holder.send_signal(signal.SIGSTOP)
            yield
        finally:
            holder.kill()


def test_a_process_stopped_inside_a_transition_holds_up_the_job_for_seconds_only(rig: Rig) -> None:
    job_id = rig.submit(rig.job_of())
    with stopped_holder(rig.database_url, job_id):
        began = time.monotonic()
        with rig.ledger.connection() as connection:
            control.cancel_job(connection, OWNER, job_id)
        assert time.monotonic() - began < IDLE_IN_TRANSACTION_SECONDS + 2
    assert [event.sequence for event in rig.events(job_id)] == list(
        range(1, rig.job(job_id).last_sequence + 1)
    )


def test_closing_a_ledger_that_is_away_ends_its_search(proxy: Proxy, database_url: str) -> None:
    with ledger_at(through(proxy, database_url)) as ledger:
        ledger.check()
        proxy.half_open()
        seconds_of_refusal(ledger)
        assert "ledger-probe" in {thread.name for thread in threading.enumerate()}
    until(
        lambda: "ledger-probe" not in {thread.name for thread in threading.enumerate()},
        BACK_SECONDS,
        "the end of the search",
    )
