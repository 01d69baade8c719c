"""The heartbeat of a worker process: its row, its leases, and attempts that it must end."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final
from uuid import UUID

from fluoro_jobs.errors import Reason
from fluoro_jobs.ledger.attempts import LEASE_SECONDS, Attempt, Worker, lose, release
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.states import Outcome

WORKER_EXPIRE_SECONDS: Final = 30
"""A worker whose heartbeat is older counts as dead. Nothing is dispatched for its slots."""

_BEAT: Final = f"""
WITH beat AS (
  INSERT INTO workers (id, name, queue, slots, version, task_seconds, operations, expire_time)
  VALUES (%(id)s, %(worker)s, %(queue)s, %(slots)s, %(version)s, %(task_seconds)s, %(operations)s,
    now() + interval '{WORKER_EXPIRE_SECONDS} s')
  ON CONFLICT (id) DO UPDATE
    SET expire_time = excluded.expire_time, task_seconds = excluded.task_seconds,
    slots = excluded.slots, operations = excluded.operations
), asked AS (
  SELECT task_id, number FROM unnest(%(tasks)s::uuid[], %(numbers)s::int[]) asked(task_id, number)
), renewed AS (
  UPDATE open_tasks SET lease_expire_time = now() + interval '{LEASE_SECONDS} s' WHERE task_id IN (
    SELECT o.task_id FROM asked JOIN open_tasks o ON o.task_id = asked.task_id
    -- only what runs has a worker
    WHERE o.worker_id = %(id)s AND o.attempt = coalesce(asked.number, o.attempt)
    FOR UPDATE OF o SKIP LOCKED)
)
SELECT t.id, asked.number, t.job_id, a.number, a.outcome, a.reason, extract(epoch
  FROM now() - a.start_time)::float8, s.timeout_seconds
FROM asked JOIN tasks t ON t.id = asked.task_id
  JOIN steps s ON s.job_id = t.job_id AND s.ordinal = t.step
LEFT JOIN open_tasks o ON o.task_id = t.id
JOIN attempts a ON a.task_id = t.id AND a.number = coalesce(asked.number, o.attempt, t.attempt)
  WHERE a.worker = %(worker)s
"""

TaskAttempt = tuple[UUID, int | None]
"""A task, and the number of one of its attempts.

None stands for the newest: messages of the previous release name no attempt.
"""


class Standing(Enum):
    """Where an attempt stands, for the worker process that claimed it."""

    IN_TIME = "it runs"
    OVERDUE = "it runs, for longer than it may"
    TAKEN_AWAY = "others have ended it, so it may go on computing for nobody"
    ENDED = "who ran it has ended it"


@dataclass(frozen=True, slots=True)
class Held:
    """What the ledger says of an attempt that a worker process has claimed.

    asked: what the worker called it. outcome: None while it runs. seconds: since it began;
    timeout_seconds: how long it may run.
    """

    asked: TaskAttempt
    job_id: UUID
    attempt: int
    outcome: Outcome | None
    reason: str
    seconds: float
    timeout_seconds: float

    @property
    def standing(self) -> Standing:
        """Where it stands."""
        # Time is the ledger's, also the attempt's start: a worker's clock may be wrong.
        match self.outcome, self.reason:
            case None, _:
                return Standing.OVERDUE if self.seconds > self.timeout_seconds else Standing.IN_TIME
            case (Outcome.LOST | Outcome.CANCELLED, _) | (_, Reason.ATTEMPT_TIMEOUT):
                return Standing.TAKEN_AWAY
            # Whoever runs an attempt and gives it up says why. Without a reason, the main process
            # has handed it back.
            case Outcome.RELEASED, "":
                return Standing.TAKEN_AWAY
            case _:
                return Standing.ENDED


def beat(
    connection: LedgerConnection,
    worker: Worker,
    running: Sequence[TaskAttempt],
    task_seconds: float = 0,
) -> list[Held]:
    """Renews the worker's row and all its leases. Returns what the ledger says of its attempts.

    It is one statement. What the worker has not claimed (yet) is left out of the answer.
    task_seconds: how long a task ran lately, on average; 0 if none has.
    """
    parameters: dict[str, Any] = {
        "id": worker.id,
        "worker": worker.name,
        "queue": worker.queue,
        "slots": worker.slots,
        "version": worker.version,
        "task_seconds": task_seconds,
        "operations": list(worker.operations),
        "tasks": [task for task, _ in running],
        "numbers": [number for _, number in running],
    }
    rows = connection.execute(_BEAT, parameters).fetchall()
    return [
        Held((task, asked), job, number, outcome and Outcome(outcome), *rest)
        for task, asked, job, number, outcome, *rest in rows
    ]


def leave(connection: LedgerConnection, worker: Worker) -> None:
    """Takes a worker process that ends off the list: its slots count no longer."""
    # Without it, dispatch would count slots that are gone until the row expires.
    connection.execute("DELETE FROM workers WHERE id = %s", (worker.id,))


def forget_workers(connection: LedgerConnection) -> None:
    """Takes workers long dead off the list."""
    connection.execute("DELETE FROM workers WHERE expire_time < now() - interval '1 hour'")


_OF_WORKER: Final = (
    "SELECT job_id, task_id, attempt FROM open_tasks"
    " WHERE queued_time IS NOT NULL AND worker_id = %s"
)
_OF_ATTEMPT: Final = f"{_OF_WORKER} AND task_id = %s AND attempt = coalesce(%s::int, attempt)"


def lose_of_worker(connection: LedgerConnection, worker: Worker, lost: TaskAttempt) -> list[UUID]:
    """Ends this attempt if this worker process holds it: its pool child died.

    Returns the job if it moved.
    """
    held = connection.execute(_OF_ATTEMPT, (worker.id, *lost)).fetchall()
    # The attempt may end on its own between this read and `lose`, which then writes nothing.
    return [
        one[0] for one in held if lose(connection, Attempt(*one), "The process that ran it died.")
    ]


def release_of_worker(
    connection: LedgerConnection, worker: Worker, attempt: TaskAttempt
) -> list[UUID]:
    """Hands this attempt back if this worker process holds it. Returns the job if it moved."""
    held = connection.execute(_OF_ATTEMPT, (worker.id, *attempt)).fetchall()
    # No reason: that is how `Held.standing` tells a handed-back attempt from one that gave up.
    return [one[0] for one in held if release(connection, Attempt(*one))]


def release_all(connection: LedgerConnection, worker: Worker) -> list[UUID]:
    """Hands back everything this worker process still holds. Returns the jobs that moved."""
    held = connection.execute(_OF_WORKER, (worker.id,)).fetchall()
    return [one[0] for one in held if release(connection, Attempt(*one))]
