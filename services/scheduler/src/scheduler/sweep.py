"""One round of the scheduler: expired leases, lost messages, ready tasks, and the backlog's figures.

Rounds of several schedulers may overlap: every write is guarded by the ledger, and a message sent twice is dropped at the claim.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
from fluoro_jobs.dispatch import Dispatcher
from fluoro_jobs.errors import LEDGER_OUTAGES, FluoroError
from fluoro_jobs.ledger import attempts, backlog
from fluoro_jobs.ledger.connection import Ledger
from fluoro_jobs.wakeups import Publisher
from fluoro_telemetry import metrics

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Sweeper:
    """What a round needs. beat: told before each part of a round."""

    ledger: Ledger
    dispatcher: Dispatcher
    publisher: Publisher
    beat: Callable[[], None] = lambda: None

    def run(self, stop: threading.Event, interval_seconds: float) -> None:
        """Round after round until told to stop. No error ends it."""
        while not stop.is_set():
            self.sweep()
            stop.wait(interval_seconds)

    def sweep(self) -> None:
        """One round. What fails in one part keeps no other from its turn, except that without the ledger there is none to do."""
        for part in PARTS:
            self.beat()
            try:
                part(self)
            except FluoroError as error:
                log.warning("sweep_waits", part=part.__name__, reason=error.reason)
                if error.reason in LEDGER_OUTAGES:
                    return  # the next round catches up
            except Exception as error:  # noqa: BLE001 - whatever it is: without the scheduler nothing recovers
                log.error("sweep_failed", part=part.__name__, exception=type(error).__qualname__)

    def leases(self) -> None:
        """Takes back the tasks of workers that are gone."""
        with self.ledger.connection() as connection:
            moved = attempts.sweep(connection)
        if moved:
            log.warning("leases_expired", tasks=len(moved))
            metrics.LEASES_EXPIRED.inc(len(moved))
            self.publisher.events(*moved)
        metrics.SWEEPS.labels(action="lease_expired").inc(len(moved))

    def expiries(self) -> None:
        """Ends the jobs whose time is over."""
        with self.ledger.connection() as connection:
            expired = attempts.expire(connection)
        for job in expired:
            self.publisher.cancel(job)
        metrics.SWEEPS.labels(action="job_expired").inc(len(expired))

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
        """Sets the gauges of the backlog, for dashboards and scaling."""
        with self.ledger.connection() as connection:
            queues = backlog.by_queue(connection)
        for queue in queues:
            for state, tasks in queue.tasks.items():
                metrics.QUEUE_TASKS.labels(queue=queue.name, state=state).set(tasks)
            metrics.QUEUE_BACKLOG_SECONDS.labels(queue=queue.name).set(queue.seconds)
            metrics.QUEUE_OLDEST_READY_AGE_SECONDS.labels(queue=queue.name).set(queue.oldest_ready_seconds)
            metrics.WORKERS.labels(queue=queue.name).set(queue.workers)
            metrics.WORKER_SLOTS.labels(queue=queue.name).set(queue.slots)


PARTS: Final = (Sweeper.leases, Sweeper.expiries, Sweeper.messages, Sweeper.tasks, Sweeper.measure)
"""A round, in order."""
