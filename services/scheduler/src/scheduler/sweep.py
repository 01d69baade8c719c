"""One round of the scheduler: expired leases, lost messages, ready tasks, and the backlog's figures.

Rounds of several schedulers may overlap: every write is guarded by the ledger, and a message sent twice is dropped at the claim.
"""

from dataclasses import dataclass

import structlog
from fluoro_jobs.dispatch import Dispatcher
from fluoro_jobs.ledger import attempts, backlog
from fluoro_jobs.ledger.connection import Ledger
from fluoro_jobs.wakeups import Publisher
from fluoro_telemetry import metrics

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Sweeper:
    """What a round needs."""

    ledger: Ledger
    dispatcher: Dispatcher
    publisher: Publisher

    def sweep(self) -> None:
        """One round. FluoroError LEDGER_UNAVAILABLE when PostgreSQL cannot be reached; the next round catches up."""
        with self.ledger.connection() as connection:
            moved, expired = attempts.sweep(connection), attempts.expire(connection)
        if moved:
            log.warning("leases_expired", tasks=len(moved))
            metrics.LEASES_EXPIRED.inc(len(moved))
            self.publisher.events(*moved)
        for job in expired:
            self.publisher.cancel(job)
        again = self.dispatcher.reconcile()
        if again:
            log.warning("messages_published_again", tasks=again)
        dispatched = self.dispatcher.dispatch()
        for action, count in (
            ("lease_expired", len(moved)),
            ("job_expired", len(expired)),
            ("published_again", again),
            ("dispatched", dispatched),
        ):
            metrics.SWEEPS.labels(action=action).inc(count)
        self.measure()

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
