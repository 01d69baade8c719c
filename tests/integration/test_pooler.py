"""Fluoro behind a transaction pooler: as without one, with fewer connections to PostgreSQL."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from fluoro.v1 import job_pb2
from fluoro_client import Client
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger.connection import IDLE_IN_TRANSACTION_SECONDS, Ledger
from fluoro_jobs.ledger.migrate import migrate
from fluoro_jobs.testing.rig import OWNER, Rig, until
from fluoro_local.folders import free_port
from fluoro_local.pooler import PoolerServer
from fluoro_local.servers import PostgresServer
from fluoro_local.testing import standing_still
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from structlog.testing import capture_logs

STATEMENT_SECONDS = 2
AT_ONCE_SECONDS = 0.5
BACK_SECONDS = 30
SLOTS = 2


def through(pooler: PoolerServer, database_url: str) -> str:
    if not pooler.running:
        pooler.start()
    return pooler.url_of(conninfo_to_dict(database_url)["dbname"])


@contextmanager
def ledger_at(url: str, connections: int = 2) -> Iterator[Ledger]:
    ledger = Ledger(
        url, max_connections=connections, wait_seconds=2, statement_seconds=STATEMENT_SECONDS
    )
    try:
        yield ledger
    finally:
        ledger.close()


def refusal(ledger: Ledger, statement: str = "SELECT") -> tuple[Reason, float]:
    """Why there is no ledger, and how long it took to hear so."""
    began = time.monotonic()
    with pytest.raises(FluoroError) as refused, ledger.connection() as connection:
        connection.execute(statement)
    return refused.value.reason, time.monotonic() - began


def answers(ledger: Ledger) -> bool:
    try:
        ledger.check()
    except FluoroError:
        return False
    return True


def test_jobs_live_their_whole_life_through_a_pooler_with_fewer_connections_than_processes(
    pooler: PoolerServer, database_url: str, redis_url: str, blob_url: str, tmp_path: Path
) -> None:
    pooler.settings["default_pool_size"] = 2
    rig = Rig(through(pooler, database_url), redis_url, blob_url, tmp_path)
    try:
        port = free_port()
        rig.served("gateway", free_port(), grpc_host="127.0.0.1", grpc_port=port)
        rig.served("scheduler", free_port())
        for queue in ("dicom", "export"):
            rig.worker(queue, slots=SLOTS)
        with Client(f"127.0.0.1:{port}", owner=OWNER) as client:
            ends(client, tmp_path)
    finally:
        rig.close()
    assert 1 <= pooler.server_connections() <= 2


def ends(client: Client, folder: Path) -> None:
    """Jobs that succeed after a retry, fan out and join, are cancelled, watched and listed."""
    fails_once = [{"do": "fail", "reason": "INTERNAL", "unless": str(folder / "once")}]
    blobs = [client.upload(json.dumps([]).encode()).name for _ in range(4)]
    job = job_pb2.Job(inputs=blobs)
    job.steps.add(name="inspect", max_inputs_per_task=1).inspect_dicom.SetInParent()
    job.steps.add(name="render", after=["inspect"]).render_dicom.SetInParent()
    jobs = [client.submit(job) for _ in range(10)]
    for one in jobs:
        assert list(client.watch(one.name))
        done = client.wait(one.name, timeout_seconds=60)
        assert done.state == job_pb2.Job.STATE_SUCCEEDED, done

    failing = job_pb2.Job(inputs=[client.upload(json.dumps(fails_once).encode()).name])
    failing.steps.add(name="inspect").inspect_dicom.SetInParent()
    failed = client.wait(client.submit(failing).name, timeout_seconds=60)
    assert failed.state == job_pb2.Job.STATE_FAILED
    (folder / "once").touch()
    again = client.wait(client.retry(failed.name).name, timeout_seconds=60)
    assert again.state == job_pb2.Job.STATE_SUCCEEDED

    waits = [{"do": "wait", "path": str(folder / "never")}]
    waiting = job_pb2.Job(inputs=[client.upload(json.dumps(waits).encode()).name])
    waiting.steps.add(name="inspect").inspect_dicom.SetInParent()
    running = client.submit(waiting)
    assert client.cancel(running.name).state == job_pb2.Job.STATE_CANCELLED
    assert len(list(client.list())) == len(jobs) + 2


def test_a_worker_opens_a_connection_for_each_slot_and_one_more(rig: Rig, tmp_path: Path) -> None:
    url = make_conninfo(rig.database_url, application_name="under test")
    rig.worker(slots=SLOTS, database_url=url)
    gate = tmp_path / "gate"
    waits = [rig.submit(rig.job_of({"do": "wait", "path": str(gate)})) for _ in range(SLOTS)]
    more = [rig.submit(rig.job_of()) for _ in range(10)]
    for job_id in waits:
        rig.running(job_id)
    gate.touch()
    for job_id in waits + more:
        rig.finished(job_id)
    with rig.connection() as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'under test'"
        ).fetchone()
    assert row == (SLOTS + 1,)


def test_a_pooler_that_is_gone_or_hangs_is_told_soon_and_found_again_once_it_is_back(
    pooler: PoolerServer, database_url: str
) -> None:
    with ledger_at(through(pooler, database_url)) as ledger:
        ledger.check()
        with standing_still(pooler):
            reason, seconds = refusal(ledger)
            assert reason is Reason.LEDGER_UNAVAILABLE
            assert seconds < STATEMENT_SECONDS + 1
            assert refusal(ledger)[1] < AT_ONCE_SECONDS
        until(lambda: answers(ledger), BACK_SECONDS, "an answer after the pooler went on")
        pooler.kill()
        reason, seconds = refusal(ledger)
        assert reason is Reason.LEDGER_UNAVAILABLE
        assert seconds < STATEMENT_SECONDS + 1
        until(lambda: refusal(ledger)[1] < AT_ONCE_SECONDS, BACK_SECONDS, "refusals at once")
        pooler.start()
        until(lambda: answers(ledger), BACK_SECONDS, "an answer of the new pooler")


def test_a_pooler_that_stands_still_under_work_costs_no_attempt_no_event_and_no_job(
    pooler: PoolerServer, database_url: str, redis_url: str, blob_url: str, tmp_path: Path
) -> None:
    rig = Rig(through(pooler, database_url), redis_url, blob_url, tmp_path)
    beside = Rig(database_url, redis_url, blob_url, tmp_path)
    gate, running = tmp_path / "gate", tmp_path / "running"
    waits = [{"do": "touch", "path": str(running)}, {"do": "wait", "path": str(gate)}]
    try:
        port = free_port()
        rig.served("gateway", free_port(), grpc_host="127.0.0.1", grpc_port=port)
        rig.served("scheduler", free_port())
        rig.worker(slots=SLOTS)
        with Client(f"127.0.0.1:{port}", owner=OWNER) as client, ThreadPoolExecutor() as pool:
            ends = client.submit(rig.job_of(*waits, max_attempts=1))
            watch = pool.submit(lambda: list(client.watch(ends.name)))
            until(running.exists, what="the task that is to end meanwhile")
            others = [beside.job_of(max_attempts=1) for _ in range(2)]
            with standing_still(pooler):
                began = time.monotonic()
                gate.touch()  # its commit finds nobody
                # Accepted and dispatched beside the pooler: the claim finds nobody.
                claimed = beside.submit(others[0])
                accepted = pool.submit(client.submit, others[1])
                until(lambda: time.monotonic() - began > STILL_SECONDS, STILL_SECONDS + 5)
            names = [ends.name, f"jobs/{claimed}", accepted.result(60).name]
            jobs = [client.wait(name, timeout_seconds=60) for name in names]
            assert [job.state for job in jobs] == [job_pb2.Job.STATE_SUCCEEDED] * 3, rig.logs()
            first, *updates = watch.result(60)
            events = [update.event.sequence for update in updates if update.HasField("event")]
            expected = range(first.snapshot.last_sequence + 1, jobs[0].last_sequence + 1)
            assert events == list(expected)
    finally:
        beside.close()
        rig.close()


STILL_SECONDS = 12
"""Longer than a statement may take."""


def test_a_postgresql_that_goes_behind_its_pooler_is_told_soon_and_found_again(
    pooler: PoolerServer, postgres: PostgresServer, database_url: str
) -> None:
    with ledger_at(through(pooler, database_url)) as ledger:
        ledger.check()
        postgres.kill()
        try:
            until(lambda: not answers(ledger), BACK_SECONDS, "the end of PostgreSQL's processes")
            reason, seconds = refusal(ledger)
            assert reason is Reason.LEDGER_UNAVAILABLE
            assert seconds < STATEMENT_SECONDS + 1
            until(lambda: refusal(ledger)[1] < AT_ONCE_SECONDS, BACK_SECONDS, "refusals at once")
        finally:
            postgres.start()
        until(lambda: answers(ledger), BACK_SECONDS, "an answer of the ledger")
        with standing_still(postgres):
            assert refusal(ledger)[1] < STATEMENT_SECONDS + 1
            assert refusal(ledger)[1] < AT_ONCE_SECONDS
        until(lambda: answers(ledger), BACK_SECONDS, "an answer of the ledger")


def test_callers_of_a_full_pooler_hear_that_there_is_no_connection_and_get_one_afterwards(
    pooler: PoolerServer, database_url: str
) -> None:
    pooler.settings |= {"default_pool_size": 1, "query_wait_timeout": 1}
    url = through(pooler, database_url)
    with ledger_at(url) as ledger, ledger_at(url) as other:
        ledger.check()
        other.check()
        with ledger.connection() as connection, connection.transaction():
            connection.execute("SELECT")
            reason, seconds = refusal(other)
            assert reason is Reason.LEDGER_UNAVAILABLE
            assert seconds < STATEMENT_SECONDS + 1
        until(lambda: answers(other), BACK_SECONDS, "a free connection")


STOPPED = """
import os, signal, sys
from fluoro_jobs.ledger.connection import Ledger

with Ledger(sys.argv[1]).connection() as connection, connection.transaction():
    connection.execute("SELECT pg_advisory_xact_lock(1)")
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_a_process_stopped_inside_a_transaction_gives_its_locks_back_through_a_pooler(
    pooler: PoolerServer, database_url: str
) -> None:
    url = through(pooler, database_url)
    with subprocess.Popen([sys.executable, "-c", STOPPED, url]) as holder:
        try:
            os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
            began = time.monotonic()
            with ledger_at(url) as ledger, ledger.connection() as connection:
                connection.seconds = 30  # type: ignore[attr-defined]  # so that the server's patience is seen
                connection.execute("SELECT pg_advisory_xact_lock(1)")
            assert time.monotonic() - began < IDLE_IN_TRANSACTION_SECONDS + 2
        finally:
            holder.send_signal(signal.SIGKILL)


def test_a_pooler_that_does_not_set_up_its_sessions_is_refused_and_the_log_says_what_is_missing(
    pooler: PoolerServer, database_url: str, tmp_path: Path
) -> None:
    shipped = pooler.template.read_text()
    pooler.template = tmp_path / "pgbouncer.ini"
    pooler.template.write_text(shipped.replace("SET lock_timeout = 5000; ", ""))
    with ledger_at(through(pooler, database_url)) as ledger, capture_logs() as logs:
        assert refusal(ledger)[0] is Reason.LEDGER_UNAVAILABLE
    (line,) = {str(line["settings"]) for line in logs if line["event"] == "pooler_not_set_up"}
    assert line == "['lock_timeout']"


def test_times_are_utc_through_a_pooler_whatever_the_database_says(
    pooler: PoolerServer, database_url: str
) -> None:
    name = conninfo_to_dict(database_url)["dbname"]
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")  # type: ignore[arg-type]  # made here
    with ledger_at(through(pooler, database_url)) as ledger:
        for _ in range(2):
            with ledger.connection() as connection:
                assert connection.execute("SHOW timezone").fetchone() == ("UTC",)


def test_migrations_through_a_pooler_take_turns(
    pooler: PoolerServer, postgres: PostgresServer
) -> None:
    pooler.settings["default_pool_size"] = 4
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE pooled")
        try:
            url = through(pooler, postgres.url_of("pooled"))
            with ThreadPoolExecutor(4) as deployments:
                list(deployments.map(migrate, [url] * 4))
            with ledger_at(url) as ledger:
                ledger.check()
        finally:
            pooler.stop()
            connection.execute("DROP DATABASE pooled WITH (FORCE)")


def test_a_transaction_whose_server_ends_before_its_commit_is_an_outage_and_no_bug(
    pooler: PoolerServer, database_url: str
) -> None:
    def end_early(ledger: Ledger) -> None:
        with ledger.connection() as connection, connection.transaction():
            pid = connection.execute("SELECT pg_backend_pid()").fetchone()
            with psycopg.connect(database_url, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", pid)

    with ledger_at(through(pooler, database_url)) as ledger:
        with pytest.raises(FluoroError) as refused:
            end_early(ledger)
        assert refused.value.reason is Reason.LEDGER_UNAVAILABLE
        ledger.check()
