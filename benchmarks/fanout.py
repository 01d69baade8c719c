"""What it costs that many tasks are of one job: one job of N tasks against N jobs of one.

Ours on both sides, in turn, on the same idle, warm worker; the tasks do nothing. Seconds count from
the first submit to the last end. Then jobs of more and more tasks: what a task costs must not grow
with how many siblings it has. Last line: `ratio` = one job / many jobs, the median of neighbouring
rounds; `growth` = seconds per task in the largest job / in one of a few.
"""

import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import wait
from contextlib import ExitStack
from typing import Final
from uuid import UUID, uuid4

import psycopg
from fluoro.v1.job_pb2 import Job
from fluoro.v1.job_service_pb2 import SubmitJobRequest
from fluoro_jobs.dispatch import Dispatcher
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger.accept import GroupCommit, validate
from fluoro_jobs.ledger.connection import Ledger
from fluoro_jobs.ledger.records import MAX_TASKS
from rig.figures import quick, ratio, say
from rig.load import until
from rig.servers import Servers, cpu_seconds, servers

SLOTS: Final = 2
OWNER: Final = "bench"
PATIENCE_SECONDS: Final = 240
"""How long one round may take."""
SIZES: Final = [size for size in (1000, 2500, 5000, 10_000) if size <= MAX_TASKS]

_BLOBS: Final = """
INSERT INTO blobs (id, owner, size_bytes, sha256, media_type, uploaded)
SELECT u.id, %s, 1, sha256(u.id::text::bytea), 'application/dicom', true
FROM unnest(%s::uuid[]) u(id)
"""


class Fluoro:
    """A worker, and a submitter in this process."""

    def __init__(self, stack: ExitStack, run: Servers, inputs: int) -> None:
        """inputs: how many there are to make jobs of."""
        self._run = run
        self._worker = stack.enter_context(
            run.service("fluoro_jobs.testing.worker", "dicom", "prefork", slots=SLOTS)
        )
        ledger = Ledger(run.database_url)
        stack.callback(ledger.close)
        self._commits, self._dispatcher = GroupCommit(ledger), Dispatcher(ledger, run.redis_url)
        stack.callback(self._dispatcher.close)
        stack.callback(self._commits.close)
        self._dispatcher.start()
        self._looking = stack.enter_context(psycopg.connect(run.database_url, autocommit=True))
        blobs = [new_id() for _ in range(inputs)]
        self._looking.execute(_BLOBS, (OWNER, blobs))
        self._inputs = [f"blobs/{blob}" for blob in blobs]

    def one_job(self, tasks: int) -> dict[str, float]:
        """A job of so many tasks."""
        return self._round([self._job(tasks)], tasks)

    def many_jobs(self, tasks: int) -> dict[str, float]:
        """So many jobs of one task."""
        return self._round([self._job(1)] * tasks, tasks)

    def _job(self, inputs: int) -> Job:
        job = Job(inputs=self._inputs[:inputs])
        job.steps.add(name="noop", max_inputs_per_task=1).render_dicom.SetInParent()
        return job

    def _round(self, jobs: Sequence[Job], tasks: int) -> dict[str, float]:
        before, started = self._cpu_seconds(), time.perf_counter()
        answers = [
            self._commits.submit(
                validate(SubmitJobRequest(job=job, request_id=str(uuid4())), OWNER)
            )
            for job in jobs
        ]
        for answer in answers:
            answer.add_done_callback(lambda _: self._dispatcher.wake())
        wait(answers)
        names = [answer.result().name for answer in answers]
        until(self._all_ended, PATIENCE_SECONDS)
        seconds = time.perf_counter() - started
        if self._succeeded(names) != len(jobs):
            raise SystemExit("a job did not succeed")
        return {
            "seconds": seconds,
            "task_ms": 1000 * seconds / tasks,
            "postgres_ms": 1000 * (self._cpu_seconds() - before) / tasks,
        }

    def _cpu_seconds(self) -> float:
        return sum(cpu_seconds(self._run.postgres_pid))

    def _all_ended(self) -> bool:
        row = self._looking.execute("SELECT FROM jobs WHERE end_time IS NULL LIMIT 1").fetchone()
        return row is None

    def _succeeded(self, names: Sequence[str]) -> int:
        ids = [UUID(name.removeprefix("jobs/")) for name in names]
        row = self._looking.execute(
            "SELECT count(*) FROM jobs WHERE id = ANY(%s) AND state = 'SUCCEEDED'", (ids,)
        ).fetchone()
        return int(row[0]) if row else 0


def main(rounds: int, tasks: int, sizes: Sequence[int]) -> None:
    """Rounds in turn, then the sizes, figures at the end."""
    with servers() as run, ExitStack() as stack:
        fluoro = Fluoro(stack, run, max(tasks, *sizes))
        fluoro.many_jobs(max(20, tasks // 4))
        together, apart = [], []
        for _ in range(rounds):
            together.append(fluoro.one_job(tasks))
            apart.append(fluoro.many_jobs(tasks))
        for name, figures in {"one job": together, "many jobs": apart}.items():
            say(name, **_medians(figures), tasks=tasks, rounds=rounds)
        costs = []
        for size in sizes:
            figures_of_size = fluoro.one_job(size)
            say("one job", **figures_of_size, tasks=size)
            costs.append(figures_of_size["task_ms"])
    say(
        "fanout",
        ratio=ratio([one["seconds"] for one in together], [one["seconds"] for one in apart]),
        growth=max(costs) / costs[0],
        tasks=tasks,
        most_tasks=max(sizes),
        slots=SLOTS,
        cpus=os.cpu_count(),
    )


def _medians(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(one[key] for one in figures) for key in figures[0]}


if __name__ == "__main__":
    if quick(__doc__):
        main(1, 20, (20, 40))
    else:
        main(3, 1000, SIZES)
