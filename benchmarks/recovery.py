"""How long until work goes on after a kill, and until Redis holds everything again after a wipe.

- child: a pool child kills itself with SIGKILL while another one is up; until its task runs again.
  In turn with its peer, stock Celery with `task_reject_on_worker_lost`.
- worker: SIGKILL of a whole worker; until the ledger says that attempt 2 runs elsewhere. Peer:
  stock Celery, whose only clock for this is the visibility timeout: set to 30 s here (a task may
  then take no longer), with its own default pace of looking. Its default of an hour is the lower
  bound of an unchanged installation.
- wipe: FLUSHALL while 20,000 jobs wait; until Redis holds all that the dispatch window allows, for
  a window of 32 and one of all. `fresh`: the messages were sent right before; the scheduler gives
  those 5 s to be found.

Back-off is 0.05 s in all. Last line: `ratio` = p50 of child, ours / Celery's; smaller is better.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import redis
from celery import Celery
from fluoro_jobs.dispatch import LOST_AFTER_SECONDS
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import heartbeats
from fluoro_jobs.ledger.attempts import Worker
from fluoro_jobs.ledger.connection import Ledger
from fluoro_jobs.testing.rig import Rig, until
from peers import VISIBILITY_SECONDS
from rig.figures import latencies, quick, say
from rig.servers import Process, Servers, servers
from streams import submit

SLOTS: Final = 2
WINDOW_SLOTS: Final = 16
"""Slots of the workers that are pretended for the small window: it holds two tasks for each."""
STAGGER_SECONDS: Final = 0.9
"""Between the kills of workers: they fall on all phases of a heartbeat."""
HEARTBEAT_SECONDS: Final = 5
CHILDREN_SECONDS: Final = 100
"""No further pool child is killed after this."""
POLL_SECONDS: Final = 0.02
PATIENCE_SECONDS: Final = 60
"""How long anything of ours may take."""


def main(kills: int, workers: int, celery_seconds: float, queued: int) -> None:
    """Each question on servers of its own.

    celery_seconds: how long Celery may take to give a killed worker's task to another.
    """
    with rig_and_servers() as (run, rig):
        ours, theirs = children(run, rig, kills)
    mine, its = latencies(ours), latencies(theirs)
    say("child", **mine, aim_p99_ms=3000, kills=len(ours))
    say("child celery", **its, kills=len(theirs))
    with rig_and_servers() as (run, rig), ThreadPoolExecutor(1) as beside:
        peer = beside.submit(celery_worker, run, celery_seconds)
        moved = whole_workers(run, rig, workers)
        say("worker", **latencies(moved), aim_p99_ms=20_000, kills=workers, lease_seconds=15)
        say(
            "worker celery",
            **peer.result(),
            visibility_timeout_seconds=VISIBILITY_SECONDS,
            default_seconds=3600,
            kills=1,
        )
    with servers() as run:
        wiped = wipe(run, queued)
    say("wipe", **wiped, jobs=queued, aim_seconds=10)
    summary = {
        "child_p99_ms": mine["p99_ms"],
        "worker_p99_ms": latencies(moved)["p99_ms"],
        "wipe_seconds": wiped["all_seconds"],
    }
    say(
        "recovery",
        ratio=mine["p50_ms"] / its["p50_ms"],
        **summary,
        cpus=os.cpu_count(),
        load=os.getloadavg()[0],
    )


@contextmanager
def rig_and_servers() -> Iterator[tuple[Servers, Rig]]:
    """Servers, a scheduler, and a rig to submit with."""
    with servers() as run, run.service("scheduler"):
        rig = Rig(run.database_url, run.redis_url, run.blob_url, run.folder)
        yield run, rig
        rig.close()


def worker(run: Servers, pool: str, slots: int) -> AbstractContextManager[Process]:
    """One of ours."""
    return run.service("fluoro_jobs.testing.worker", "dicom", pool, slots=slots)


def celery(run: Servers, pool: str, slots: int) -> AbstractContextManager[Process]:
    """One of theirs."""
    return run.peer(
        "celery",
        "-A",
        "peers.stock_recovery",
        "worker",
        "-P",
        pool,
        "-c",
        str(slots),
        "--loglevel",
        "INFO",
        ready=" ready.",
    )


def children(run: Servers, rig: Rig, kills: int) -> tuple[list[float], list[float]]:
    """Seconds from the death of a pool child to the next run of its task, ours and Celery's.

    In turn. The times of the files tell.
    """
    ours: list[float] = []
    theirs: list[float] = []
    app = Celery(broker=run.redis_url, set_as_current=False)
    with worker(run, "prefork", SLOTS) as mine, celery(run, "prefork", SLOTS) as its:
        until_then = time.monotonic() + CHILDREN_SECONDS
        for number in range(kills):
            if ours and time.monotonic() > until_then:
                break
            fill(run, rig, number)
            died, again = run.folder / f"died-{number}", run.folder / f"again-{number}"
            rig.submit(
                rig.job_of(
                    {"do": "die_once", "path": str(died)}, {"do": "touch", "path": str(again)}
                )
            )
            ours.append(between(died, again))
            died, again = (
                run.folder / f"celery-died-{number}",
                run.folder / f"celery-again-{number}",
            )
            app.send_task("die_once", (str(died), str(again)))
            theirs.append(between(died, again))
        for process in (mine, its):
            process.child.kill()  # how it ends is not the question
    return ours, theirs


def fill(run: Servers, rig: Rig, number: int) -> None:
    """Returns once every slot has been at work: no child is still starting after the last kill."""
    go = run.folder / f"go-{number}"
    jobs = [rig.submit(rig.job_of({"do": "wait", "path": str(go)})) for _ in range(SLOTS)]
    for job in jobs:
        rig.running(job, PATIENCE_SECONDS)
    go.touch()
    for job in jobs:
        rig.finished(job, PATIENCE_SECONDS)


def between(died: Path, again: Path) -> float:
    """Seconds between the making of the two files."""
    until(again.exists, PATIENCE_SECONDS, "the second run")
    return again.stat().st_mtime - died.stat().st_mtime


def whole_workers(run: Servers, rig: Rig, count: int) -> list[float]:
    """Seconds from the death of a worker to attempt 2 of what it ran, each."""
    go = run.folder / "go"
    with ExitStack() as stack:
        victims = [stack.enter_context(worker(run, "threads", 1)).child for _ in range(count)]
        jobs = [rig.submit(rig.job_of({"do": "wait", "path": str(go)})) for _ in victims]
        held = {rig.running(job, PATIENCE_SECONDS).worker.rpartition(":")[2]: job for job in jobs}
        stack.enter_context(worker(run, "threads", count))
        killed: dict[UUID, float] = {}
        for victim in victims:
            time.sleep(STAGGER_SECONDS)
            killed[held[str(victim.pid)]] = time.time()
            victim.kill()
        seconds = [second_attempt(rig, job) - moment for job, moment in killed.items()]
        go.touch()
    return seconds


def second_attempt(rig: Rig, job: UUID) -> float:
    """When it started, by PostgreSQL's clock: that of this machine."""
    found: list[Any] = until(
        lambda: rig.job(job).steps[0].tasks[0].attempts[1:], PATIENCE_SECONDS, "a second attempt"
    )
    return float(found[0].start_time.ToNanoseconds()) / 1e9


def celery_worker(run: Servers, patience_seconds: float) -> dict[str, object]:
    """Seconds from the death of a worker of stock Celery to the next run of its task.

    `more_than_seconds` if that takes too long.
    """
    folder = run.folder / "held"
    folder.mkdir()
    with celery(run, "threads", 1) as victim:
        Celery(broker=run.redis_url, set_as_current=False).send_task("hold", (str(folder),))
        until(lambda: list(folder.iterdir()), PATIENCE_SECONDS, "Celery's task")
        with celery(run, "threads", 1) as survivor:
            killed = time.time()
            victim.child.kill()
            while (
                len(files := list(folder.iterdir())) == 1
                and time.time() < killed + patience_seconds
            ):
                time.sleep(POLL_SECONDS)
            survivor.child.kill()
    if len(files) == 1:
        return {"more_than_seconds": patience_seconds}
    return {"seconds": max(file.stat().st_mtime for file in files) - killed}


def wipe(run: Servers, jobs: int) -> dict[str, float]:
    """Seconds until Redis holds again what it held before a wipe.

    The small window, everything, and everything just sent.
    """
    submit(run, jobs)
    ledger = Ledger(run.database_url, max_connections=1)
    client = redis.Redis.from_url(run.redis_url)

    def pretend(slots: int) -> Worker:
        return Worker(new_id(), "pretended:0", "dicom", slots, "benchmark")

    def filled(worker: Worker, messages: int) -> float:
        started = beaten = time.perf_counter() - HEARTBEAT_SECONDS
        while client.llen("dicom") < messages:
            if time.perf_counter() - beaten >= HEARTBEAT_SECONDS:
                with ledger.connection() as connection:
                    heartbeats.beat(connection, worker, [])
                beaten = time.perf_counter()
            if beaten - started > PATIENCE_SECONDS:
                raise SystemExit(f"Redis holds {client.llen('dicom')} of {messages} messages")
            time.sleep(POLL_SECONDS)
        return time.perf_counter() - started - HEARTBEAT_SECONDS

    def wiped(worker: Worker, messages: int, *, fresh: bool = False) -> float:
        time.sleep(0 if fresh else LOST_AFTER_SECONDS)
        client.flushall()
        return filled(worker, messages)

    with closing(ledger), client, run.service("scheduler"):
        few, many = pretend(WINDOW_SLOTS), pretend(jobs // 2)
        window = min(2 * WINDOW_SLOTS, jobs)
        filled(few, window)
        figures: dict[str, float] = {"window_seconds": wiped(few, window), "window": window}
        figures["first_fill_seconds"] = filled(many, jobs)
        figures["fresh_seconds"] = wiped(many, jobs, fresh=True)
        return figures | {"all_seconds": wiped(many, jobs)}


if __name__ == "__main__":
    if quick(__doc__):
        main(1, 1, 1, 200)
    else:
        main(24, 10, 160, 20_000)
