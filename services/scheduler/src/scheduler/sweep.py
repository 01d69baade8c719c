"""One round of the scheduler: expired leases, lost messages, ready tasks, the backlog's figures.

Rounds of several schedulers may overlap: every write is guarded by the ledger, and a message sent
twice is dropped at the claim.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from traceback import format_tb
from typing import Final
from uuid import UUID

import structlog
from fluoro_jobs.dispatch import Dispatcher
from fluoro_jobs.errors import LEDGER_OUTAGES, FluoroError, Reason
from fluoro_jobs.ledger import backlog, deletion, heartbeats, sweeps
from fluoro_jobs.ledger.audience import audience
from fluoro_jobs.ledger.clock import Clock
from fluoro_jobs.ledger.connection import Ledger
from fluoro_jobs.ledger.sweeps import Backoff
from fluoro_jobs.wakeups import Publisher
from fluoro_telemetry import metrics

log = structlog.get_logger(__name__)


MEASURE_FACTOR: Final = 20
"""After a look at the backlog: this many times as long as it took, until the next one."""
LONGEST_MEASURE_SECONDS: Final = 15
"""Most time between two looks at the backlog."""
CATCH_UP_SECONDS: Final = 5
"""How long no lease is taken back after an outage of the ledger.

Workers could not renew their leases either.
"""


@dataclass(slots=True)
class Sweeper:
    """What a round needs. beat: told before each part of a round.

    leases_from: when leases may be taken back again, by the monotonic clock. measures_from: when
    the backlog is looked at again.
    """

    ledger: Ledger
    dispatcher: Dispatcher
    publisher: Publisher
    beat: Callable[[], None] = lambda: None
    clock: Clock = field(default_factory=Clock)
    leases_from: float = 0
    measures_from: float = 0
    bad_leases: Backoff = field(default_factory=lambda: Backoff("lease_expired"))
    bad_expiries: Backoff = field(default_factory=lambda: Backoff("job_expired"))

    def run(self, stop: threading.Event, interval_seconds: float) -> None:
        """Round after round until told to stop. No error ends it."""
        while not stop.is_set():
            self.sweep()
            stop.wait(interval_seconds)

    def sweep(self) -> None:
        """One round.

        What fails in one part keeps no other from its turn, except that without the ledger there is
        none to do.
        """
        for action, part in PARTS.items():
            # Before each part: a round may take longer than the probe waits.
            self.beat()
            try:
                part(self)
            except FluoroError as error:
                log.warning("sweep_waits", action=action, reason=error.reason)
                # Busy may be the row of one job: the other parts can go on.
                if error.reason in LEDGER_OUTAGES and error.reason != Reason.LEDGER_BUSY:
                    self.leases_from = time.monotonic() + CATCH_UP_SECONDS
                    return  # the next round catches up
            except Exception as error:  # noqa: BLE001 - without the scheduler nothing recovers
                metrics.SWEEP_FAILURES.labels(action=action).inc()
                log.error(
                    "sweep_failed",
                    action=action,
                    exception=type(error).__qualname__,
                    where=format_tb(error.__traceback__)[-1],
                )

    def leases(self) -> None:
        """Takes back the tasks of workers that are gone."""
        if time.monotonic() < self.leases_from:
            return
        # Filled as it goes, so that what moved before an error is known.
        moved: list[UUID] = []
        try:
            with self.ledger.connection() as connection:
                moved.extend(sweeps.expired_leases(connection, self.bad_leases))
        finally:  # what moved before an error is told all the same
            if moved:
                log.warning("leases_expired", tasks=len(moved))
                metrics.LEASES_EXPIRED.inc(len(moved))
                # Another connection: the one before may be what failed.
                with self.ledger.connection() as connection:
                    for one in audience(connection, moved):
                        self.publisher.events(one.job, one.owner)
            metrics.SWEEPS.labels(action="lease_expired").inc(len(moved))

    def expiries(self) -> None:
        """Ends the jobs whose time is over."""
        expired: list[UUID] = []
        try:
            with self.ledger.connection() as connection:
                expired.extend(sweeps.expired_jobs(connection, self.bad_expiries))
        finally:
            # As for leases: what ended before an error is told all the same.
            if expired:
                with self.ledger.connection() as connection:
                    for one in audience(connection, expired):
                        # As a cancel: what computes for it has to stop.
                        self.publisher.cancel(*one)
            metrics.SWEEPS.labels(action="job_expired").inc(len(expired))

    def workers(self) -> None:
        """Forgets workers long dead."""
        with self.ledger.connection() as connection:
            # They count as dead after seconds; this only keeps the table small.
            heartbeats.forget_workers(connection)

    def deletions(self) -> None:
        """Removes what is left of deleted jobs."""
        with self.ledger.connection() as connection:
            metrics.SWEEPS.labels(action="job_deleted").inc(deletion.remove_deleted(connection))

    def messages(self) -> None:
        """Publishes again what Redis has lost."""
        again = self.dispatcher.reconcile()
        if again:
            log.warning("messages_published_again", tasks=again)
        metrics.SWEEPS.labels(action="published_again").inc(again)

    def tasks(self) -> None:
        """Dispatches what has become ready."""
        metrics.SWEEPS.labels(action="dispatched").inc(self.dispatcher.dispatch())

    def measure(self) -> None:
        """Sets the gauges of the backlog, for dashboards and scaling.

        The more is open, the longer it takes, and the longer it waits for the next time.
        """
        started = time.monotonic()
        # The figures of a large backlog take long, and PostgreSQL has other work.
        if started < self.measures_from:
            return
        with self.ledger.connection() as connection:
            queues = backlog.by_queue(connection)
            self.clock.compare(connection)
        now = time.monotonic()
        # Measured by what it cost: a twentieth of the time at most goes into it.
        self.measures_from = now + min(MEASURE_FACTOR * (now - started), LONGEST_MEASURE_SECONDS)
        for queue in queues:
            for state, tasks in queue.tasks.items():
                metrics.QUEUE_TASKS.labels(queue=queue.name, state=state).set(tasks)
            metrics.QUEUE_HELD_TASKS.labels(queue=queue.name).set(queue.held)
            metrics.QUEUE_BACKLOG_SECONDS.labels(queue=queue.name).set(queue.seconds)
            metrics.QUEUE_OLDEST_READY_AGE_SECONDS.labels(queue=queue.name).set(
                queue.oldest_ready_seconds
            )
            metrics.WORKERS.labels(queue=queue.name).set(queue.workers)
            metrics.WORKER_SLOTS.labels(queue=queue.name).set(queue.slots)


PARTS: Final = {
    "lease_expired": Sweeper.leases,
    "job_expired": Sweeper.expiries,
    "published_again": Sweeper.messages,
    "dispatched": Sweeper.tasks,
    "job_deleted": Sweeper.deletions,
    "workers_forgotten": Sweeper.workers,
    "measured": Sweeper.measure,
}
"""A round, in order, by the action that metrics and logs call it."""
