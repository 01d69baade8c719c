"""How much work waits, by queue: what dashboards show and scaling follows.

From the ledger, so honest about what runs already.
"""

from dataclasses import dataclass
from typing import Final

from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.operations import QUEUES
from fluoro_jobs.states import TaskState

# Each part as the condition of an index has it.
_TASKS: Final = """
SELECT queue, state, count(*), 0 FROM open_tasks WHERE queued_time IS NOT NULL GROUP BY queue, state
UNION ALL
SELECT queue, 'READY', count(*), max(extract(epoch FROM now() - due_time)) FROM open_tasks
WHERE dispatch_order IS NOT NULL GROUP BY queue
UNION ALL
SELECT queue, 'READY', count(*), max(extract(epoch FROM now() - due_time)) FROM open_tasks
WHERE dispatch_order IS NULL AND queued_time IS NULL AND due_time <= now() GROUP BY queue
"""
_WORKERS: Final = "SELECT queue, count(*), sum(slots), max(task_seconds) FROM workers WHERE expire_time > now() GROUP BY queue"


@dataclass(slots=True)
class QueueBacklog:
    """One queue.

    tasks: by state. oldest_ready_seconds: how long the oldest dispatchable task has waited.
    task_seconds: how long one runs, lately.
    """

    name: str
    tasks: dict[TaskState, int]
    oldest_ready_seconds: float = 0
    workers: int = 0
    slots: int = 0
    task_seconds: float = 0

    @property
    def seconds(self) -> float:
        """Work at hand over capacity: how long the slots there are need for it.

        Without any slot, as if there were one.
        """
        return sum(self.tasks.values()) * (self.task_seconds or 1) / max(self.slots, 1)


def by_queue(connection: LedgerConnection) -> list[QueueBacklog]:
    """Every queue, also those without work."""
    queues = {
        name: QueueBacklog(
            name, dict.fromkeys((TaskState.READY, TaskState.QUEUED, TaskState.RUNNING), 0)
        )
        for name in QUEUES
    }
    for name, state, tasks, oldest in connection.execute(_TASKS):
        if name in queues:
            queues[name].tasks[TaskState(state)] += tasks
            queues[name].oldest_ready_seconds = max(
                queues[name].oldest_ready_seconds, float(oldest)
            )
    for name, workers, slots, task_seconds in connection.execute(_WORKERS):
        if name in queues:
            queues[name].workers, queues[name].slots, queues[name].task_seconds = (
                workers,
                slots,
                task_seconds,
            )
    return list(queues.values())
