"""Tasks per second, end to end, of tasks that do nothing: what the ledger costs.

Ours: jobs of one step, submitted through the library as the gateway does it (group commit, then
dispatch), run by a real worker, counted until the ledger calls all of them SUCCEEDED. Peer: stock
Celery with acks_late, published by `.delay()` and counted until queue and unacknowledged messages
are gone. Both start with idle, warm workers, pool and number of slots are the same, both pools are
measured. `…_cpu_ms` is CPU time per task, by process. Last line: `ratio` = ours / Celery with
prefork, `ratio_threads` with threads.
"""

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import psycopg
import redis
from celery import Celery
from fluoro.v1.blob_service_pb2 import Blob
from fluoro.v1.job_pb2 import Job
from fluoro.v1.job_service_pb2 import SubmitJobRequest
from fluoro_jobs.dispatch import Dispatcher
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import blobs
from fluoro_jobs.ledger.accept import GroupCommit, validate
from fluoro_jobs.ledger.connection import Ledger
from google.protobuf.json_format import MessageToDict
from rig.figures import quick, ratio, say
from rig.load import until
from rig.servers import Servers, cpu_seconds, servers

POOLS: Final = ("threads", "prefork")
SLOTS: Final = 2
PATIENCE_SECONDS: Final = 60
"""How long one round may take."""
POOL_SECONDS: Final = 25
"""No further round of a pool is begun after this."""
OWNER: Final = "default"


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two.

    round: runs so many tasks; returns the seconds from the first submit to the last end.
    """

    round: Callable[[int], float]
    worker_pid: int
    server_pids: dict[str, int]


def main(rounds: int, tasks: int) -> None:
    """Rounds in turn for each pool, figures at the end."""
    ratios = {}
    for pool in POOLS:
        with servers() as run, ExitStack() as stack:
            ours, theirs = fluoro(stack, run, pool), stock_celery(stack, run, pool)
            for side in (ours, theirs):
                side.round(max(20, tasks // 4))
            measured: list[tuple[dict[str, float], dict[str, float]]] = []
            deadline = time.monotonic() + POOL_SECONDS
            while len(measured) < rounds and (not measured or time.monotonic() < deadline):
                measured.append((measure(ours, tasks), measure(theirs, tasks)))
        rates = (
            [mine["per_second"] for mine, _ in measured],
            [peer["per_second"] for _, peer in measured],
        )
        for name, figures in zip(("fluoro", "celery"), zip(*measured, strict=True), strict=True):
            medians = {key: statistics.median(one[key] for one in figures) for key in figures[0]}
            say(f"{name} {pool}", **medians, slots=SLOTS, tasks=tasks, rounds=len(measured))
        ratios[pool] = ratio(*rates)
    say(
        "noop",
        ratio=ratios["prefork"],
        ratio_threads=ratios["threads"],
        slots=SLOTS,
        cpus=os.cpu_count(),
        submit="library, group commit",
    )


def measure(side: Side, tasks: int) -> dict[str, float]:
    """One round: tasks per second, and where the CPU time of a task goes."""
    before = cpu(side)
    seconds = side.round(tasks)
    return {"per_second": tasks / seconds} | {
        f"{name}_cpu_ms": 1000 * (now - before[name]) / tasks for name, now in cpu(side).items()
    }


def cpu(side: Side) -> dict[str, float]:
    """CPU seconds so far of everything that takes part."""
    main, pool = cpu_seconds(side.worker_pid)
    servers = {name: sum(cpu_seconds(pid)) for name, pid in side.server_pids.items()}
    return {
        "submitter": time.process_time(),
        "worker_main": main,
        "worker_children": pool,
    } | servers


def fluoro(stack: ExitStack, run: Servers, pool: str) -> Side:
    """A worker, and a submitter in this process."""
    worker = stack.enter_context(
        run.service("fluoro_jobs.testing.worker", "dicom", pool, slots=SLOTS)
    )
    ledger = Ledger(run.database_url)
    stack.callback(ledger.close)
    commits, dispatcher = GroupCommit(ledger), Dispatcher(ledger, run.redis_url)
    stack.callback(dispatcher.close)
    stack.callback(commits.close)
    dispatcher.start()
    looking = stack.enter_context(psycopg.connect(run.database_url, autocommit=True))
    with ledger.connection() as connection:
        blob = blobs.add(
            connection,
            OWNER,
            Blob(name=f"blobs/{new_id()}", sha256=bytes(32), media_type="application/dicom"),
        )
    job = Job(inputs=[blob.name])
    job.steps.add(name="noop").render_dicom.SetInParent()

    def all_ended() -> bool:
        return looking.execute("SELECT FROM jobs WHERE end_time IS NULL LIMIT 1").fetchone() is None

    def succeeded() -> int:
        row = looking.execute("SELECT count(*) FROM jobs WHERE state = 'SUCCEEDED'").fetchone()
        return int(row[0]) if row else 0

    def round_of(tasks: int) -> float:
        goal, started = succeeded() + tasks, time.perf_counter()
        answers = [
            commits.submit(validate(SubmitJobRequest(job=job, request_id=str(uuid4())), OWNER))
            for _ in range(tasks)
        ]
        for answer in answers:
            answer.add_done_callback(lambda _: dispatcher.wake("dicom"))
        wait(answers)
        until(all_ended, PATIENCE_SECONDS)
        seconds = time.perf_counter() - started
        if succeeded() != goal:
            raise SystemExit("a job did not succeed")
        return seconds

    return Side(
        round_of, worker.child.pid, {"postgres": run.postgres_pid, "valkey": run.valkey_pid}
    )


def stock_celery(stack: ExitStack, run: Servers, pool: str) -> Side:
    """A worker, and `.delay()` in this process."""
    arguments = (
        "-A",
        "peers.stock_celery",
        "worker",
        "-P",
        pool,
        "-c",
        str(SLOTS),
        "--loglevel",
        "WARNING",  # as ours
    )
    worker = stack.enter_context(run.peer("celery", *arguments, ready=" ready."))
    app = Celery(broker=run.redis_url, set_as_current=False)
    client = stack.enter_context(redis.Redis.from_url(run.redis_url))
    noop: Any = app.signature("noop", ({"job": MessageToDict(Job())},))

    def round_of(tasks: int) -> float:
        started = time.perf_counter()
        for _ in range(tasks):
            noop.delay()
        until(
            lambda: not (client.llen("celery") or client.hlen("unacked")),
            PATIENCE_SECONDS,
            twice=True,
        )
        return time.perf_counter() - started

    return Side(round_of, worker.child.pid, {"valkey": run.valkey_pid})


if __name__ == "__main__":
    if quick(__doc__):
        main(1, 40)
    else:
        main(9, 500)
