"""How much work waits, by queue: what dashboards show and scaling follows.

From the ledger, so honest about what runs already. It costs what is open, whatever has been.
"""

from dataclasses import dataclass
from typing import Final

from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.operations import QUEUES
from fluoro_jobs.states import OpenState

# Each part as the condition of an index has it.
_TASKS: Final = """
SELECT queue, state, task_name, count(*), 0 FROM open_tasks
WHERE queued_time IS NOT NULL GROUP BY queue, state, task_name
UNION ALL
SELECT queue, 'READY', task_name, count(*), max(extract(epoch FROM now() - due_time))
FROM open_tasks WHERE dispatch_order IS NOT NULL GROUP BY queue, task_name
UNION ALL
SELECT queue, 'WAITING', '', count(*), 0 FROM open_tasks
WHERE dispatch_order IS NULL AND queued_time IS NULL GROUP BY queue
"""
_WORKERS: Final = """
SELECT queue, count(*), sum(slots), max(task_seconds),
  CASE WHEN bool_and(cardinality(operations) > 0) THEN (
    SELECT array_agg(DISTINCT known) FROM workers l, unnest(l.operations) known
    WHERE l.queue = w.queue AND l.expire_time > now()
  ) END
FROM workers w WHERE expire_time > now() GROUP BY queue
"""


@dataclass(slots=True)
class QueueBacklog:
    """One queue.

    tasks: by state; those that wait for their time are no work at hand yet. held: those of the
    ready ones whose operation no live worker of the queue knows; 0 without any worker.
    oldest_ready_seconds: how long the oldest dispatchable task has waited.
    task_seconds: how long one runs, lately.
    """

    name: str
    tasks: dict[OpenState, int]
    held: int = 0
    oldest_ready_seconds: float = 0
    workers: int = 0
    slots: int = 0
    task_seconds: float = 0

    @property
    def seconds(self) -> float:
        """Work at hand over capacity: how long the slots there are need for it.

        Without any slot, as if there were one.
        """
        tasks = sum(self.tasks.values()) - self.tasks[OpenState.WAITING]
        # A queue that has not ended a task yet has no measure. A second each is a guess that still
        # lets the figure rise with the backlog.
        return tasks * (self.task_seconds or 1) / max(self.slots, 1)


def by_queue(connection: LedgerConnection) -> list[QueueBacklog]:
    """Every queue, also those without work."""
    queues = {name: QueueBacklog(name, dict.fromkeys(OpenState, 0)) for name in QUEUES}
    known: dict[str, list[str]] = {}
    for name, workers, slots, task_seconds, operations in connection.execute(_WORKERS):
        # A worker of a later release may serve a queue that this one has not heard of.
        if name in queues:
            queue = queues[name]
            queue.workers, queue.slots, queue.task_seconds = workers, slots, task_seconds
            # Null if a worker of the previous release is among them, which gets any task.
            if operations is not None:
                known[name] = operations
    for name, state, operation, tasks, oldest in connection.execute(_TASKS):
        if name in queues:
            queue = queues[name]
            queue.tasks[OpenState(state)] += tasks
            queue.oldest_ready_seconds = max(queue.oldest_ready_seconds, float(oldest))
            # Not counted when nobody is alive: a queue without workers is its own alarm.
            if state == OpenState.READY and name in known and operation not in known[name]:
                queue.held += tasks
    return list(queues.values())
