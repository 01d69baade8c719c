"""Where a job stands: what of it is open, and what it competes with. Reads only.

Each statement looks at so many rows at most, whatever the ledger and the queues hold.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from fluoro.v1 import job_pb2

from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.models import READY, serves
from fluoro_jobs.ledger.read import job_not_found
from fluoro_jobs.ledger.rows import ATTEMPT_COLUMNS, JOB_COLUMNS, attempt_of, job_of
from fluoro_jobs.named_models import FIELDS, Named, models_of_step
from fluoro_jobs.operations import QUEUES, task_names_of
from fluoro_jobs.states import JobState, is_terminal

LOOKED_AT: Final = 1_000
"""Most tasks of a job that are looked at, and most attempts."""
MOST_AHEAD: Final = 1_000
"""Where more tasks come before, they are not counted further."""
MAX_LINES: Final = 256
"""Most lines of a queue that are looked at, as in a turn of dispatch."""
TOLD_ATTEMPTS: Final = 100
"""Most attempts in an answer."""
_OF_ONE_TASK: Final = 10
"""Most of one task among them."""
_MEASURED_JOBS: Final = 20
_MEASURED_TASKS: Final = 10
_MEASURED: Final = 100
"""Most jobs of the owner, tasks of each, and attempts in all that are measured."""

_HEAD: Final = f"SELECT now(), {JOB_COLUMNS} FROM jobs WHERE id = %(job)s AND owner = %(owner)s"
_STEPS: Final = """
SELECT ordinal, name, queue, task_name, after, state, task_count, ended_tasks, inputs_per_task,
  operation, CASE WHEN operation = ANY(%(naming)s) THEN request ELSE '' END
FROM steps WHERE job_id = %(job)s ORDER BY ordinal
"""
# Limits are hidden from the planner in a SELECT: it would not follow the index for many rows.
_OPEN: Final = f"""
SELECT t.step, t.shard, t.id, o.state, o.attempt, o.due_time,
  row_number() OVER (PARTITION BY t.step ORDER BY o.dispatch_order)
FROM (
  SELECT id, step, shard FROM tasks WHERE job_id = %(job)s AND state = 'OPEN'
  ORDER BY step, shard LIMIT (SELECT {LOOKED_AT} + 1)
) t CROSS JOIN LATERAL (SELECT * FROM open_tasks WHERE task_id = t.id OFFSET 0) o
ORDER BY t.step, t.shard
"""
_ATTEMPTS: Final = f"""
SELECT t.step, t.shard, t.id, {ATTEMPT_COLUMNS} FROM (
  SELECT id, step, shard FROM tasks WHERE job_id = %(job)s
  ORDER BY step, shard LIMIT (SELECT {LOOKED_AT})
) t CROSS JOIN LATERAL (
  SELECT * FROM attempts WHERE task_id = t.id ORDER BY number DESC LIMIT {_OF_ONE_TASK}
) a ORDER BY a.start_time DESC, a.number DESC LIMIT {TOLD_ATTEMPTS} + 1
"""
_NAMED_ATTEMPTS: Final = f"""
SELECT a.task_id, {ATTEMPT_COLUMNS} FROM unnest(%s::uuid[], %s::int4[]) w(task, number)
CROSS JOIN LATERAL (
  SELECT * FROM attempts WHERE task_id = w.task AND number = w.number OFFSET 0
) a
"""
_WORKERS: Final = """
SELECT queue, count(*), sum(slots), coalesce(avg(nullif(task_seconds, 0)), 0),
  CASE WHEN bool_and(cardinality(operations) > 0) THEN (
    SELECT array_agg(DISTINCT known) FROM workers l, unnest(l.operations) known
    WHERE l.queue = w.queue AND l.expire_time > now()
  ) END
FROM workers w WHERE queue = ANY(%(queues)s) AND expire_time > now() GROUP BY queue
"""
# What is in flight is bounded by the queue's window.
_IN_FLIGHT: Final = """
SELECT queue, count(*) FILTER (WHERE state = 'RUNNING') FROM open_tasks
WHERE queue = ANY(%(queues)s) AND queued_time IS NOT NULL GROUP BY queue
"""
_LIMIT: Final = """
SELECT o.max_tasks, (SELECT count(*) FROM open_tasks t
  WHERE t.queue = ANY(%(queues)s) AND t.owner = o.owner AND t.queued_time IS NOT NULL)
FROM owners o WHERE o.owner = %(owner)s AND o.max_tasks IS NOT NULL
"""
# As a turn of dispatch has it: an owner's n-th ready task competes as the (in flight + n)-th. From
# each line of others those count that compete before ours; `walk` stops when they are too many.
_AHEAD: Final = f"""
WITH RECURSIVE in_flight AS MATERIALIZED (
  SELECT owner, count(*) AS tasks FROM open_tasks
  WHERE queue = %(queue)s AND queued_time IS NOT NULL GROUP BY owner
), mine AS MATERIALIZED (
  SELECT count(*) AS before,
    coalesce((SELECT tasks FROM in_flight WHERE owner = %(owner)s), 0) AS in_flight
  FROM (
    SELECT FROM unnest(%(names)s::text[]) known CROSS JOIN LATERAL (
      SELECT FROM open_tasks t
      WHERE t.queue = %(queue)s AND t.dispatch_order IS NOT NULL AND t.task_name = known
        AND t.owner = %(owner)s AND t.dispatch_order < (
          SELECT dispatch_order FROM open_tasks WHERE task_id = %(task)s)
      LIMIT {MOST_AHEAD} + 1
    ) each LIMIT {MOST_AHEAD} + 1
  ) earlier
), walk AS (
  SELECT ''::text AS task_name, ''::text AS owner, before AS ahead, 0 AS n FROM mine
  UNION ALL
  SELECT next.task_name, next.owner, w.ahead + next.ahead, w.n + 1
  FROM walk w, mine, LATERAL (
    SELECT line.task_name, line.owner, (
      SELECT count(*) FROM (
        SELECT FROM open_tasks t
        WHERE t.queue = %(queue)s AND t.dispatch_order IS NOT NULL
          AND t.task_name = line.task_name AND t.owner = line.owner
        ORDER BY t.dispatch_order
        LIMIT CASE WHEN line.owner = %(owner)s THEN 0 ELSE greatest(0, mine.before + mine.in_flight
          - coalesce((SELECT tasks FROM in_flight f WHERE f.owner = line.owner), 0)) END
      ) competing
    ) AS ahead
    FROM (
      SELECT t.task_name, t.owner FROM open_tasks t
      WHERE t.queue = %(queue)s AND t.dispatch_order IS NOT NULL
        AND (t.task_name, t.owner) > (w.task_name, w.owner)
      ORDER BY t.task_name, t.owner LIMIT 1
    ) line
  ) next
  WHERE w.n < {MAX_LINES} AND w.ahead <= {MOST_AHEAD}
)
SELECT max(ahead), max(n) FROM walk
"""
# Of this job, and of those of the owner that ended last.
_MEASURED_SECONDS: Final = f"""
SELECT w.task_name, s.seconds
FROM unnest(%(names)s::text[]) w(task_name) CROSS JOIN LATERAL (
  SELECT extract(epoch FROM a.end_time - a.start_time)::float8 AS seconds
  FROM (
    SELECT %(job)s::uuid AS id UNION ALL (
      SELECT id FROM jobs WHERE owner = %(owner)s AND end_time IS NOT NULL AND id <> %(job)s
      ORDER BY end_time DESC LIMIT (SELECT {_MEASURED_JOBS}))
  ) j
  CROSS JOIN LATERAL (
    SELECT ordinal FROM steps WHERE job_id = j.id AND task_name = w.task_name OFFSET 0
  ) e
  CROSS JOIN LATERAL (
    SELECT id FROM tasks WHERE job_id = j.id AND step = e.ordinal
    ORDER BY shard LIMIT (SELECT {_MEASURED_TASKS})
  ) t
  CROSS JOIN LATERAL (
    SELECT * FROM attempts WHERE task_id = t.id AND outcome = 'SUCCEEDED'
    ORDER BY number DESC LIMIT 1
  ) a
  LIMIT {_MEASURED}
) s
"""


class OpenTask(NamedTuple):
    """A task that has not ended. place: in the order of dispatch, among those of its step."""

    shard: int
    id: UUID
    state: str
    attempt: int
    due_time: datetime
    place: int


@dataclass(slots=True)
class StandingStep:
    """A step, and those of its open tasks that were looked at.

    request: of steps that name models; empty for others.
    """

    ordinal: int
    name: str
    queue: str
    task_name: str
    after: list[int]
    state: str
    task_count: int
    ended_tasks: int
    inputs_per_task: int
    operation: str = ""
    request: bytes = b""
    open: list[OpenTask] = field(default_factory=list)

    @property
    def models(self) -> Sequence[Named]:
        """The models that it needs."""
        return models_of_step(self.operation, self.request)

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing to explain."""
        return is_terminal(JobState(self.state))


@dataclass(frozen=True, slots=True)
class QueueStanding:
    """A queue: its live workers. operations: that they know; None if one of them does not say."""

    workers: int = 0
    slots: int = 0
    task_seconds: float = 0
    operations: frozenset[str] | None = None
    running: int = 0

    def knows(self, task_name: str) -> bool:
        """Whether a live worker runs such tasks."""
        return bool(self.workers) and (self.operations is None or task_name in self.operations)


@dataclass(slots=True)
class Standing:
    """A job as of one moment.

    attempts: step's ordinal, shard and attempt, newest first. limit: most tasks of the owner in
    flight, and how many there are; None without a limit. ahead: by queue and task name. measured:
    seconds of attempts, by task name. unserved: models that steps name and no live worker serves.
    """

    now: datetime
    job: job_pb2.Job
    steps: list[StandingStep]
    attempts: list[tuple[int, int, job_pb2.Attempt]]
    attempts_truncated: bool
    current: dict[UUID, job_pb2.Attempt] = field(default_factory=dict)
    queues: dict[str, QueueStanding] = field(default_factory=dict)
    limit: tuple[int, int] | None = None
    ahead: dict[int, tuple[int, bool]] = field(default_factory=dict)
    measured: dict[str, list[float]] = field(default_factory=dict)
    unserved: set[Named] = field(default_factory=set)


def standing(connection: LedgerConnection, owner: str, job_id: UUID) -> Standing:
    """Where the job stands. FluoroError JOB_NOT_FOUND if it is not the owner's."""
    given = {"job": job_id, "owner": owner, "queues": list(QUEUES), "naming": list(FIELDS)}
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        head = connection.execute(_HEAD, given).fetchone()
        # The same answer for another's job: the caller must not learn that it exists.
        if head is None:
            raise job_not_found(job_id)
        with connection.pipeline():
            steps = connection.execute(_STEPS, given)
            tasks = connection.execute(_OPEN, given)
            attempts = connection.execute(_ATTEMPTS, given)
        found = _begun(head, steps.fetchall(), tasks.fetchall(), attempts.fetchall())
        # Of a job that has ended, nothing competes any more.
        if any(not step.has_ended for step in found.steps):
            _surroundings(connection, found, given)
    return found


def _begun(head: Any, steps: list[Any], tasks: list[Any], attempts: list[Any]) -> Standing:
    rows = [StandingStep(*row) for row in steps]
    # One row more was read, to know that there are more.
    for ordinal, *task in tasks[:LOOKED_AT]:
        rows[ordinal].open.append(OpenTask(*task))
    oldest: dict[UUID, int] = {}
    count: dict[UUID, int] = defaultdict(int)
    for _, _, task_id, number, *_ in attempts:
        oldest[task_id] = min(number, oldest.get(task_id, number))
        count[task_id] += 1
    # If the oldest attempt read is not the first, some attempts of the task are missing.
    cut_off = any(count[task] == _OF_ONE_TASK and oldest[task] > 1 for task in count)
    more = len(attempts) > TOLD_ATTEMPTS or sum(step.task_count for step in rows) > LOOKED_AT
    return Standing(
        now=head[0],
        job=job_of(head[1:]),
        steps=rows,
        attempts=[(row[0], row[1], attempt_of(row[3:])) for row in attempts[:TOLD_ATTEMPTS]],
        attempts_truncated=more or cut_off,
    )


def _surroundings(connection: LedgerConnection, found: Standing, given: dict[str, Any]) -> None:
    """What the job's open steps depend on and compete with."""
    wanted = [(task.id, task.attempt) for step in found.steps for task in _told_of(step)]
    names = sorted({step.task_name for step in found.steps if not step.has_ended})
    with connection.pipeline():
        current = connection.execute(
            _NAMED_ATTEMPTS, ([task for task, _ in wanted], [number for _, number in wanted])
        )
        workers = connection.execute(_WORKERS, given)
        in_flight = connection.execute(_IN_FLIGHT, given)
        limit = connection.execute(_LIMIT, given)
        measured = connection.execute(_MEASURED_SECONDS, {**given, "names": names})
        ahead = {
            step.ordinal: connection.execute(_AHEAD, {**given, **_first_ready(step)})
            # Only what is ready has a place in the queue; what is queued has left it.
            for step in found.steps
            if any(task.state == "READY" for task in step.open)
        }
        needed = {model for step in found.steps if not step.has_ended for model in step.models}
        ready = {model: connection.execute(READY, serves(*model)) for model in needed}
    found.current = {task: attempt_of(row) for task, *row in current.fetchall()}
    running: dict[str, int] = dict(in_flight.fetchall())
    for queue, count, slots, seconds, known in workers.fetchall():
        operations = None if known is None else frozenset(known)
        found.queues[queue] = QueueStanding(
            count, slots, float(seconds), operations, running.get(queue, 0)
        )
    found.limit = limit.fetchone()
    found.unserved = {model for model, cursor in ready.items() if cursor.fetchone() == (False,)}
    times: dict[str, list[float]] = defaultdict(list)
    for name, seconds in measured.fetchall():
        times[name].append(seconds)
    found.measured = times
    for ordinal, cursor in ahead.items():
        before, lines = cursor.fetchone() or (0, 0)
        found.ahead[ordinal] = min(before, MOST_AHEAD), before > MOST_AHEAD or lines >= MAX_LINES


def _first_ready(step: StandingStep) -> dict[str, Any]:
    # The other tasks of the step are behind its first one, so that one's place counts.
    first = min((task for task in step.open if task.state == "READY"), key=lambda task: task.place)
    return {"queue": step.queue, "names": task_names_of(step.queue), "task": first.id}


TOLD_RUNNING: Final = 5
"""Most running tasks of a step that are listed one by one."""


def _told_of(step: StandingStep) -> list[OpenTask]:
    """Tasks whose newest attempt is shown: the first that run, and the first that backs off."""
    runs = [task for task in step.open if task.state == "RUNNING"][:TOLD_RUNNING]
    # A task that never ran waits for its start time, and has no attempt to show.
    waits = [task for task in step.open if task.state == "WAITING" and task.attempt]
    return runs + sorted(waits, key=lambda task: task.due_time)[:1]
