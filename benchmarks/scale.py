"""What the ledger's statements take with 0, 100,000 and 1,000,000 finished jobs stored.

A real gateway and dicom-worker run two jobs; copies of these fill one database for each size (see
`rig/history.py`). Then the databases are measured in turn, each statement alone, on connections
that were made after the fill: once before PostgreSQL knows what it holds, once after ANALYZE. A few
hundred tasks of several owners wait meanwhile. Figures are p50 in milliseconds. `growth` compares
the third size with the second, round by round. Last line: `ratio` = the worst growth.

`--sizes N,N` takes other sizes.
"""

import argparse
import itertools
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
from fluoro.v1.blob_service_pb2 import Blob
from fluoro.v1.job_pb2 import Job
from fluoro.v1.job_service_pb2 import ListJobsRequest, SubmitJobRequest
from fluoro_client import Client
from fluoro_jobs.dispatch import take
from fluoro_jobs.errors import FluoroError
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import (
    accept,
    attempts,
    backlog,
    blobs,
    heartbeats,
    horizon,
    read,
    search,
    sweeps,
)
from fluoro_jobs.ledger.attempts import Worker
from fluoro_jobs.ledger.connection import Ledger, LedgerConnection
from fluoro_jobs.ledger.records import TaskResult
from fluoro_jobs.ledger.sweeps import Backoff
from psycopg.conninfo import make_conninfo
from pydicom.data import get_testdata_file
from rig.figures import percentile, say
from rig.history import fill, sizes
from rig.servers import Servers, servers

STORED: Final = (100_000, 1_000_000)
OWNER: Final = "bench"
"""Whose every other job is."""
WAITING: Final = 300
"""Tasks that are ready meanwhile, of WAITING_OWNERS owners."""
WAITING_OWNERS: Final = 20
ROUNDS: Final = 200
PAGE_EVENTS: Final = 1024
STATES: Final = {"failed": Job.STATE_FAILED, "open": Job.STATE_RUNNING}

_FAIL: Final = """
UPDATE jobs SET state = 'FAILED' FROM (
  SELECT id, row_number() OVER (ORDER BY id DESC) AS place FROM jobs WHERE owner = %s
  ORDER BY id DESC LIMIT 10000
) newest WHERE newest.id = jobs.id AND place %% 100 = 0
"""
"""As many in each size, so that a page of them costs the same."""


class Measured:
    """One database, and the times of each statement."""

    def __init__(self, stack: ExitStack, name: str, url: str) -> None:
        """Connects, and has tasks wait."""
        self.name = name
        self.seconds: dict[str, list[float]] = {}
        self._ledger = Ledger(url, max_connections=1)
        stack.callback(self._ledger.close)
        self._connection = stack.enter_context(self._ledger.connection())
        self._worker = Worker(new_id(), "bench:1", "dicom", 1, "0")
        rows = self._connection.execute(
            "SELECT id FROM jobs WHERE owner = %s ORDER BY id DESC LIMIT 1000", (OWNER,)
        ).fetchall()
        self._jobs: list[UUID] = [job_id for (job_id,) in rows]
        self._blobs = {owner: self._blob(owner) for owner in self._owners()}
        turns = itertools.cycle(self._blobs)
        for owner in itertools.islice(turns, WAITING):
            self._accept(self._connection, owner)
        self._turns = turns
        heartbeats.beat(self._connection, self._worker, [], 0.0)

    def round(self) -> None:
        """Each statement once."""
        owner = next(self._turns)
        self._timed("accept", self._accept, owner)
        heartbeats.beat(self._connection, self._worker, [], 0.0)
        for task_id, *_ in self._timed("dispatch", take, ["dicom"]):
            claim = self._timed("claim", attempts.claim, task_id, self._worker)
            self._timed("commit", attempts.commit, claim, TaskResult(b""))
        for name, request in requests().items():
            self._timed(f"list_{name}", search.list_jobs, OWNER, request)
        self._timed("watch_start", _watch_start)
        self._timed("get", read.get_job, OWNER, random.choice(self._jobs))
        self._timed("backlog", backlog.by_queue)
        self._timed("sweep", _sweep)

    def _timed(self, name: str, do: Callable[..., Any], *arguments: object) -> Any:
        started = time.perf_counter()
        result = do(self._connection, *arguments)
        self.seconds.setdefault(name, []).append(time.perf_counter() - started)
        return result

    def _owners(self) -> list[str]:
        return [OWNER, *(f"owner-{number}" for number in range(WAITING_OWNERS - 1))]

    def _blob(self, owner: str) -> str:
        record = Blob(
            name=f"blobs/{new_id()}", sha256=os.urandom(32), media_type="application/dicom"
        )
        return blobs.add(self._connection, owner, record).name

    def _accept(self, connection: LedgerConnection, owner: str) -> None:
        job = Job(inputs=[self._blobs[owner]], labels={"ward": "7"})
        job.steps.add(name="inspect").inspect_dicom.SetInParent()
        request = SubmitJobRequest(job=job, request_id=str(uuid4()))
        (answer,) = accept.accept(connection, [accept.validate(request, owner)])
        if isinstance(answer, FluoroError):
            raise answer


def requests() -> dict[str, ListJobsRequest]:
    """The pages that are asked for: the newest jobs, and by state and label."""
    return {
        "first": ListJobsRequest(),
        **{name: ListJobsRequest(states=[state]) for name, state in STATES.items()},
        "label": ListJobsRequest(labels={"ward": "7"}),
        "rare_label": ListJobsRequest(labels={"rare": "7"}),
    }


def _watch_start(connection: LedgerConnection) -> None:
    """What WatchJobs reads before it is live: where it stands, and the open jobs."""
    horizon.sweep(connection, [(OWNER, None)], PAGE_EVENTS)
    request = ListJobsRequest(page_size=1000, states=[Job.STATE_PENDING, Job.STATE_RUNNING])
    search.list_jobs(connection, OWNER, request)


def _sweep(connection: LedgerConnection) -> None:
    """What a round of the scheduler looks for."""
    list(sweeps.expired_leases(connection, Backoff("lease_expired")))
    list(sweeps.expired_jobs(connection, Backoff("job_expired")))
    heartbeats.forget_workers(connection)


def main(stored: Sequence[int], rounds: int) -> None:
    """Fills, measures, and says how it grows."""
    with servers() as run:
        jobs = _two_jobs(run)
        urls = {0: run.database_url}
        with _unsafe(run.database_url):
            for size in stored:
                urls[size] = _filled(run.database_url, jobs, size)
        growths = {}
        for analyzed in (False, True):
            if analyzed:
                _analyze(urls.values())
            measured = _measure(urls, rounds)
            for name in measured[stored[-1]]:
                p50 = {size: 1000 * percentile(of[name], 50) for size, of in measured.items()}
                most, some = (measured[size][name] for size in (stored[-1], stored[-2]))
                growth = statistics.median(a / b for a, b in zip(most, some, strict=False))
                growths[name, analyzed] = growth
                figures = {f"p50_ms_{size}": ms for size, ms in p50.items()}
                say(name, **figures, growth=growth, analyzed=analyzed)
    worst = max(growths, key=lambda key: growths[key])
    say(
        "scale",
        ratio=growths[worst],
        worst=worst[0],
        worst_is_analyzed=worst[1],
        stored=list(stored),
        rounds=rounds,
        cpus=os.cpu_count(),
    )


def _two_jobs(run: Servers) -> list[UUID]:
    """Ids of jobs of one step and of two, nine of the first for one of the second."""
    with (
        run.service("gateway") as gateway,
        run.service("dicom_worker", slots=1),
        Client(f"127.0.0.1:{gateway.port}", owner=OWNER) as client,
    ):
        file = Path(str(get_testdata_file("CT_small.dcm")))
        blob = client.upload(file, media_type="application/dicom")
        job = Job(inputs=[blob.name])
        job.steps.add(name="inspect").inspect_dicom.SetInParent()
        one = client.wait(client.submit(job).name, timeout_seconds=60)
        job.steps.add(name="render", after=["inspect"]).render_dicom.SetInParent()
        two = client.wait(client.submit(job).name, timeout_seconds=60)
    if {one.state, two.state} != {Job.STATE_SUCCEEDED}:
        raise SystemExit("a job did not succeed")
    ids = [UUID(job.name.removeprefix("jobs/")) for job in (one, two)]
    return [ids[0]] * 9 + [ids[1]]


def _filled(url: str, jobs: Sequence[UUID], size: int) -> str:
    """URL of a copy of the database with so many finished jobs."""
    name, seed = f"jobs_{size}", make_conninfo(url)
    with psycopg.connect(make_conninfo(url, dbname="template1"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE postgres")
    filled = make_conninfo(seed, dbname=name)
    started = time.perf_counter()
    fill(filled, jobs, size)
    with psycopg.connect(filled) as connection:
        connection.execute(_FAIL, (OWNER,))
        tables = sizes(connection)
    say(
        f"{size} jobs",
        fill_seconds=time.perf_counter() - started,
        mib=sum(tables.values()),
        **tables,
    )
    return filled


@contextmanager
def _unsafe(url: str) -> Iterator[None]:
    """Without what makes a fill durable, and slow. Autovacuum stays off: it would analyze."""
    settings = {"fsync": "off", "max_wal_size": "'8GB'", "autovacuum": "off"}
    elsewhere = make_conninfo(url, dbname="template1")
    with psycopg.connect(elsewhere, autocommit=True) as connection:
        for name, value in settings.items():
            connection.execute(f"ALTER SYSTEM SET {name} = {value}")
        connection.execute("SELECT pg_reload_conf()")
        yield
        connection.execute("ALTER SYSTEM RESET fsync")
        connection.execute("SELECT pg_reload_conf()")
        connection.execute("CHECKPOINT")


def _analyze(urls: Iterable[str]) -> None:
    for url in urls:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")


def _measure(urls: dict[int, str], rounds: int) -> dict[int, dict[str, list[float]]]:
    """The databases in turn: what slows the machine for a while slows all of them."""
    with ExitStack() as stack:
        databases = {size: Measured(stack, str(size), url) for size, url in urls.items()}
        for number in range(rounds + rounds // 10):
            for database in databases.values():
                database.round()
                if number == rounds // 10:  # until here, plans were made and pages fetched
                    database.seconds.clear()
        return {size: database.seconds for size, database in databases.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds; the figures mean nothing"
    )
    parser.add_argument("--sizes", default=",".join(map(str, STORED)), help="stored jobs: N,N")
    arguments = parser.parse_args()
    if arguments.quick:
        main((200, 400), 10)
    else:
        main([int(size) for size in arguments.sizes.split(",")], ROUNDS)
