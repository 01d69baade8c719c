"""What time brings to many jobs, one after the other: leases that expire, and jobs that do.

A job that it cannot be done to keeps no other from its turn.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final
from uuid import UUID

import structlog
from fluoro_telemetry import metrics
from psycopg.rows import TupleRow

from fluoro_jobs.errors import LEDGER_OUTAGES, FluoroError, Reason
from fluoro_jobs.ledger import store
from fluoro_jobs.ledger.attempts import LEASE_SECONDS, Attempt, lose
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.graph import JobGraph
from fluoro_jobs.ledger.outages import reason_of
from fluoro_jobs.ledger.store import Tasks
from fluoro_jobs.states import JobState, is_terminal

log = structlog.get_logger(__name__)

PAGE: Final = 1000
"""Rows read at a time."""
ROUND_SECONDS: Final = 1.0
"""How long one sweep takes at most, so that others get their turn. The next round does the rest."""
FIRST_PAUSE_SECONDS: Final = 10
LONGEST_PAUSE_SECONDS: Final = 600
MAX_FAILED: Final = 100_000
"""Most failed jobs that are remembered; of more the oldest are tried again sooner."""


class Backoff:
    """Jobs that an action failed for, and when it is tried again.

    In memory: another process finds out by itself.
    """

    def __init__(self, action: str) -> None:
        """action: as in the label of `fluoro_sweep_failures_total`."""
        self._action = action
        self._failed: dict[UUID, tuple[float, float]] = {}

    def __contains__(self, job: UUID) -> bool:
        return job in self._failed

    def is_due(self, job: UUID) -> bool:
        """Whether it is time to try this job again."""
        due, _ = self._failed.get(job, (0.0, 0.0))
        return time.monotonic() >= due

    def failed(self, job: UUID, error: Exception) -> None:
        """Counts and logs the failure by type: the text may quote the job."""
        metrics.SWEEP_FAILURES.labels(action=self._action).inc()
        # A failure doubles the pause of the one before; the first of a job is FIRST_PAUSE_SECONDS.
        _, before = self._failed.pop(job, (0.0, FIRST_PAUSE_SECONDS / 2))
        pause = min(2 * before, LONGEST_PAUSE_SECONDS)
        # Popped and put back, so that the dictionary is in order of the last failure, and the
        # oldest goes first.
        self._failed[job] = time.monotonic() + pause, pause
        if len(self._failed) > MAX_FAILED:
            del self._failed[next(iter(self._failed))]
        kind = error.reason if isinstance(error, FluoroError) else type(error).__qualname__
        log.error(
            "job_not_swept",
            action=self._action,
            job=f"jobs/{job}",
            error=kind,
            again_in_seconds=pause,
        )

    def forget(self, job: UUID) -> None:
        """It worked."""
        self._failed.pop(job, None)


def one_by_one(
    connection: LedgerConnection,
    due: str,
    act: Callable[..., object],
    backoff: Backoff,
    seconds: float = ROUND_SECONDS,
) -> Iterator[UUID]:
    """`act(job, id, …)` for each row of `due`; the jobs for which it is truthy, as it goes.

    Raises for an outage of the ledger alone.

    due: a query of time, id, job and what else `act` takes, ordered by the first two and after
    %(time)s and %(id)s; %(limit)s rows. Jobs that failed come after all others, so that however
    many fall due first, the good ones get their turn.
    """
    # Reckoned from the first: getting past those that failed may take long, and must not be all
    # that a round does.
    until = None
    for _, row_id, job, *rest in _unknown_first(_rows(connection, due), backoff):
        until = until or time.monotonic() + seconds
        if time.monotonic() > until:
            return
        if _done(act, job, row_id, rest, backoff):
            yield job


def _rows(connection: LedgerConnection, due: str) -> Iterator[TupleRow]:
    after = ("-infinity", UUID(int=0))
    while True:
        # From the key of the last row: rows that were dealt with are gone, and an OFFSET would skip
        # others.
        page = connection.execute(due, {"time": after[0], "id": after[1], "limit": PAGE}).fetchall()
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1][:2]


def _unknown_first(rows: Iterator[TupleRow], backoff: Backoff) -> Iterator[TupleRow]:
    again = []
    for row in rows:
        job = row[2]
        # Known to fail: it comes after all others, or a thousand such jobs would use up every
        # round.
        if job not in backoff:
            yield row
        elif backoff.is_due(job):
            again.append(row)
    yield from again


def _done(
    act: Callable[..., object], job: UUID, row_id: UUID, rest: list[Any], backoff: Backoff
) -> object:
    try:
        done = act(job, row_id, *rest)
    except Exception as error:
        reason = error.reason if isinstance(error, FluoroError) else reason_of(error)
        # Busy may be this job's row alone. An outage affects every job. Counting it against each
        # would delay them all for minutes.
        if reason in LEDGER_OUTAGES and reason != Reason.LEDGER_BUSY:
            raise
        backoff.failed(job, error)
        return None
    backoff.forget(job)
    return done


# --- what is swept ---

# Without an index, so that renewing a lease is cheap: what is in flight is little, and small.
_EXPIRED_LEASES: Final = """
SELECT lease_expire_time, task_id, job_id, attempt FROM open_tasks
WHERE queued_time IS NOT NULL AND lease_expire_time < now()
  AND (lease_expire_time, task_id) > (%(time)s::timestamptz, %(id)s)
ORDER BY lease_expire_time, task_id LIMIT %(limit)s
"""
_EXPIRED_JOBS: Final = """
SELECT expire_time, id, id FROM jobs
WHERE end_time IS NULL AND expire_time < now()
  AND (expire_time, id) > (%(time)s::timestamptz, %(id)s)
ORDER BY expire_time, id LIMIT %(limit)s
"""


def expired_leases(connection: LedgerConnection, backoff: Backoff) -> Iterator[UUID]:
    """Ends attempts whose lease has expired, for about a second. Yields the jobs that moved."""
    text = f"Its worker stopped renewing the lease for {LEASE_SECONDS} s."

    def act(job: UUID, task: UUID, number: int) -> object:
        # `lose` checks the attempt: a heartbeat may have renewed the lease since the page was read.
        return lose(connection, Attempt(job, task, number), text)

    return one_by_one(connection, _EXPIRED_LEASES, act, backoff)


def expired_jobs(connection: LedgerConnection, backoff: Backoff) -> Iterator[UUID]:
    """Fails jobs whose expire_time has passed, for about a second.

    Yields them; notify their workers, as for a cancel.
    """

    def end(graph: JobGraph) -> JobState | None:
        ends = not is_terminal(graph.state)
        graph.cancel(
            Reason.JOB_EXPIRED, "The job had not ended by its expire_time.", end=JobState.FAILED
        )
        return graph.state if ends else None

    def act(job: UUID, _: UUID) -> bool:
        store.count_end(store.transition(connection, job, end, Tasks.OPEN))
        # Yielded even if the job has just ended, because work for it must stop in any case.
        return True

    return one_by_one(connection, _EXPIRED_JOBS, act, backoff)
