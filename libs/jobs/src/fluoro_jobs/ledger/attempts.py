"""Claim, renew, commit, fail, lose: the life of one attempt.

Every function is one or two statements and safe to repeat.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from fluoro.v1 import job_pb2
from psycopg.errors import CheckViolation

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger import read, store
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.graph import JobGraph
from fluoro_jobs.ledger.planning import Part, StepInput
from fluoro_jobs.ledger.records import Task, TaskResult
from fluoro_jobs.ledger.store import Tasks
from fluoro_jobs.ledger.sweeps import Backoff, one_by_one
from fluoro_jobs.operations import BY_FIELD, Operation
from fluoro_jobs.states import JobState, Outcome, TaskState, is_terminal

LEASE_SECONDS: Final = 15
"""How long a claim holds without being renewed."""
WORKER_EXPIRE_SECONDS: Final = 30
"""A worker whose heartbeat is older is taken for dead: it no longer counts for the dispatch window."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process as the ledger lists it. name: `host:pid`. slots: tasks it runs at once.

    operations: Celery task names of those that it runs; empty for any.
    """

    id: UUID
    name: str
    queue: str
    slots: int
    version: str
    operations: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """One attempt, and what it needs to run.

    graph: the job as this claim left it, with this task alone. inputs: of the
    task. waited_seconds: from when it was due to the claim.
    """

    graph: JobGraph
    task_id: UUID
    attempt: int
    operation: Operation | None
    request: bytes
    inputs: Sequence[StepInput]
    waited_seconds: float

    @property
    def task(self) -> Task:
        """The task in the graph."""
        return self.graph.tasks[self.task_id]

    @property
    def step_name(self) -> str:
        """Name of its step."""
        return self.graph.steps[self.task.step].name

    @property
    def queues_after(self) -> set[str]:
        """The queues of the steps that wait for its step, as far as this release knows them."""
        operations = (
            BY_FIELD.get(step.operation)
            for step in self.graph.steps.values()
            if self.task.step in step.after
        )
        return {operation.queue for operation in operations if operation}

    def outcome_of(self, error: FluoroError) -> Outcome:
        """RELEASED if an attempt that ends with this error costs the task nothing.

        To be asked before it ends.
        """
        return (
            Outcome.RELEASED
            if error.may_retry and self.task.may_return(error.reason)
            else Outcome.FAILED
        )


_INPUTS: Final = """CASE WHEN t.sources IS NULL THEN (
    SELECT json_agg(json_build_array(i.number, i.number, i.number, json_build_array(json_build_array(
      i.blob_id, 'input', '', b.media_type, NULL))) ORDER BY i.number) FROM job_inputs i JOIN blobs b ON b.id = i.blob_id
    WHERE i.job_id = t.job_id AND i.number >= t.first_input AND i.number < t.first_input + t.input_count)
  ELSE (
    SELECT json_agg(json_build_array(i.number, i.key, i.input, i.parts) ORDER BY i.number) FROM step_inputs i
    WHERE i.job_id = t.job_id AND i.step = t.step AND i.number >= t.first_input AND i.number < t.first_input + t.input_count) END"""

_CLAIM: Final = f"""
WITH task AS (
  SELECT t.id, t.job_id, t.step, t.shard, t.first_input, t.input_count, o.attempt + 1 AS attempt, o.due_time, s.request, s.sources,
    j.last_sequence AS version,
    -- Not a condition here: the planner would go through all that is queued instead of looking the id up.
    o.state = 'QUEUED' AND o.attempt + 1 = coalesce(%(number)s::int, o.attempt + 1) AS queued,
    (j.state = 'PENDING')::int AS first_of_job, (s.state = 'PENDING')::int AS first_of_step
  FROM open_tasks o JOIN tasks t ON t.id = o.task_id JOIN jobs j ON j.id = t.job_id
    JOIN steps s ON s.job_id = t.job_id AND s.ordinal = t.step
  WHERE o.task_id = %(task)s
), job AS (
  UPDATE jobs j SET state = 'RUNNING', start_time = coalesce(j.start_time, now()),
    last_sequence = t.version + t.first_of_job + t.first_of_step + 1
  FROM task t WHERE t.queued AND j.id = t.job_id AND j.last_sequence = t.version RETURNING j.id, j.owner
), steps_ AS (
  UPDATE steps s SET state = 'RUNNING' FROM job, task t WHERE t.first_of_step = 1 AND s.job_id = job.id AND s.ordinal = t.step
), open_ AS (
  UPDATE open_tasks SET state = 'RUNNING', attempt = t.attempt, worker_id = %(worker_id)s,
    lease_expire_time = now() + interval '{LEASE_SECONDS} s'
  FROM job, task t WHERE open_tasks.task_id = t.id
), attempts_ AS (
  INSERT INTO attempts (task_id, number, worker) SELECT t.id, t.attempt, %(worker)s FROM job, task t
), events_ AS (
  INSERT INTO events (job_id, owner, state, sequence, step, shard, attempt)
  SELECT job.id, job.owner, 'RUNNING', t.version + e.number, e.step, e.shard, e.attempt
  FROM job, task t, LATERAL (VALUES
    (t.first_of_job, NULL, NULL, NULL, t.first_of_job),
    (t.first_of_job + t.first_of_step, t.step, NULL, NULL, t.first_of_step),
    (t.first_of_job + t.first_of_step + 1, t.step, t.shard, t.attempt, 1)) e(number, step, shard, attempt, happens)
  WHERE e.happens = 1
)
SELECT {store.PICTURE % "t.id = %(task)s"}, {_INPUTS}, t.request, extract(epoch FROM now() - t.due_time)::float8,
  EXISTS (SELECT FROM job)
FROM task t JOIN jobs j ON j.id = t.job_id WHERE t.queued
"""
"""Says in SQL what `JobGraph.start` says, because a claim is half of what a short task costs.

Returns the picture from before it.
"""


def claim(
    connection: LedgerConnection, task_id: UUID, worker: Worker, number: int | None = None
) -> Claim | None:
    """Takes a queued task: QUEUED → RUNNING, attempt + 1, a lease.

    number: of the attempt that the message asks for; None for whichever is next. None if the
    message is stale: someone else has the task, or had it and it is queued for a later attempt, or
    it ended.
    """
    try:
        job, claimed = _try_claim(connection, task_id, worker, number)
        if job is None or claimed is not None:
            return claimed
        with connection.transaction():  # another task of the same job moved meanwhile
            store.lock(connection, job)
            return _try_claim(connection, task_id, worker, number)[1]
    except CheckViolation:
        # Dispatch took it back while the statement waited for its row. A row that runs cannot also
        # be ready or wait, so nothing of the statement was written.
        return None


def _try_claim(
    connection: LedgerConnection, task_id: UUID, worker: Worker, number: int | None
) -> tuple[UUID | None, Claim | None]:
    """The job, if the task is queued; and the claim, unless the job moved while the statement waited for its row."""
    parameters = {"task": task_id, "number": number, "worker_id": worker.id, "worker": worker.name}
    row = connection.execute(_CLAIM, parameters).fetchone()
    if row is None:
        return None, None
    *picture, inputs, request, waited_seconds, done = row
    if not done:
        return picture[0], None
    graph = store.parse(picture)
    task = graph.tasks[task_id]
    graph.start(task)
    graph.clear_notes()
    return graph.id, Claim(
        graph,
        task_id,
        task.attempt,
        BY_FIELD.get(graph.steps[task.step].operation),
        request,
        [_input(*one) for one in inputs or ()],
        waited_seconds,
    )


def _input(number: int, key: object, origin: int | None, parts: list[list[Any]]) -> StepInput:
    return StepInput(number, str(key), origin, [Part(UUID(blob), *rest) for blob, *rest in parts])


def upstream(
    connection: LedgerConnection, claimed: Claim
) -> list[tuple[read.StoredResult, list[job_pb2.Item], list[job_pb2.Artifact]]]:
    """Result, items and artifacts of the finished steps that the claimed one comes after."""
    after = claimed.graph.steps[claimed.task.step].after
    return read.upstream_of(connection, claimed.graph.id, after) if after else []


def results(connection: LedgerConnection, claimed: Claim) -> list[read.StoredResult]:
    """By step, what those of its tasks returned that left inputs of the claimed task."""
    parts = [part for one in claimed.inputs for part in one.parts if part.step is not None]
    return read.results_of(connection, claimed.graph.id, parts) if parts else []


def commit(connection: LedgerConnection, claimed: Claim, result: TaskResult) -> JobState | None:
    """Makes a result visible, and READY what waited for it.

    The job's state then; None, and nothing written, if it was fenced off.
    """
    return _end(connection, claimed, lambda graph, task: graph.succeed(task, result))


def fail(connection: LedgerConnection, claimed: Claim, error: FluoroError) -> JobState | None:
    """Ends the attempt with an error: another attempt if the error allows it and one is left.

    The job's state then; None if fenced off.

    `Claim.outcome_of` says whether that counts.
    """

    def act(graph: JobGraph, task: Task) -> None:
        graph.fail(task, Outcome.FAILED, error.reason, error.message, may_retry=error.may_retry)

    return _end(connection, claimed, act)


def _end(
    connection: LedgerConnection, claimed: Claim, act: Callable[[JobGraph, Task], None]
) -> JobState | None:
    """Uses the graph of the claim while nobody moved the job since; otherwise reads it again and checks the fencing token."""
    if (
        claimed.task.state is TaskState.RUNNING
    ):  # else an earlier try has ended it in this picture, be it durable or not
        act(claimed.graph, claimed.task)
        if store.save(connection, claimed.graph):
            return claimed.graph.state
    return end_attempt(connection, claimed.graph.id, claimed.task_id, claimed.attempt, act)


def end_attempt(
    connection: LedgerConnection,
    job_id: UUID,
    task_id: UUID,
    attempt: int,
    act: Callable[[JobGraph, Task], None],
) -> JobState | None:
    """Does `act` to the task if this attempt still runs it.

    The job's state then; None if it was fenced off, or there is no such task.
    """

    def guarded(graph: JobGraph) -> JobState | None:
        task = graph.tasks.get(task_id)
        if task is None or task.state is not TaskState.RUNNING or task.attempt != attempt:
            return None
        act(graph, task)
        return graph.state

    return store.transition(connection, job_id, guarded, task_id)


def lose(
    connection: LedgerConnection, job_id: UUID, task_id: UUID, attempt: int, message: str
) -> bool:
    """Ends an attempt whose worker is gone: another one, or WORKER_LOST when none is left (I7)."""

    def act(graph: JobGraph, task: Task) -> None:
        graph.fail(task, Outcome.LOST, Reason.WORKER_LOST, message, may_retry=True)

    state = end_attempt(connection, job_id, task_id, attempt, act)
    store.count_end(state)
    return state is not None


def time_out(
    connection: LedgerConnection, job_id: UUID, task_id: UUID, attempt: int, seconds: float
) -> bool:
    """Ends an attempt that took longer than it may."""

    def act(graph: JobGraph, task: Task) -> None:
        text = f"The attempt took longer than {seconds:g} s."
        graph.fail(task, Outcome.FAILED, Reason.ATTEMPT_TIMEOUT, text, may_retry=True)

    state = end_attempt(connection, job_id, task_id, attempt, act)
    store.count_end(state)
    return state is not None


def release(connection: LedgerConnection, job_id: UUID, task_id: UUID, attempt: int) -> bool:
    """Hands an attempt back, for a worker that shuts down: READY at once."""
    return (
        end_attempt(connection, job_id, task_id, attempt, lambda graph, task: graph.release(task))
        is not None
    )


# --- heartbeats and sweeps ---

_BEAT: Final = f"""
WITH beat AS (
  INSERT INTO workers (id, name, queue, slots, version, task_seconds, operations, expire_time)
  VALUES (%(id)s, %(worker)s, %(queue)s, %(slots)s, %(version)s, %(task_seconds)s, %(operations)s,
    now() + interval '{WORKER_EXPIRE_SECONDS} s')
  ON CONFLICT (id) DO UPDATE SET expire_time = excluded.expire_time, task_seconds = excluded.task_seconds,
    slots = excluded.slots, operations = excluded.operations
), asked AS (
  SELECT task_id, number FROM unnest(%(tasks)s::uuid[], %(numbers)s::int[]) asked(task_id, number)
), renewed AS (
  UPDATE open_tasks SET lease_expire_time = now() + interval '{LEASE_SECONDS} s' WHERE task_id IN (
    SELECT o.task_id FROM asked JOIN open_tasks o ON o.task_id = asked.task_id
    WHERE o.worker_id = %(id)s AND o.attempt = coalesce(asked.number, o.attempt)  -- only what runs has a worker
    FOR UPDATE OF o SKIP LOCKED)
)
SELECT t.id, asked.number, t.job_id, a.number, a.outcome, a.reason, extract(epoch FROM now() - a.start_time)::float8, s.timeout_seconds
FROM asked JOIN tasks t ON t.id = asked.task_id JOIN steps s ON s.job_id = t.job_id AND s.ordinal = t.step
LEFT JOIN open_tasks o ON o.task_id = t.id
JOIN attempts a ON a.task_id = t.id AND a.number = coalesce(asked.number, o.attempt, t.attempt) WHERE a.worker = %(worker)s
"""

TaskAttempt = tuple[UUID, int | None]
"""A task, and the number of an attempt of it.

None: its newest, for messages of the previous release, which do not say.
"""


@dataclass(frozen=True, slots=True)
class Held:
    """What the ledger says of an attempt that a worker process has claimed.

    seconds: since then, of timeout_seconds.

    asked: what the worker called it. outcome: None while it runs.
    """

    asked: TaskAttempt
    job_id: UUID
    attempt: int
    outcome: Outcome | None
    reason: str
    seconds: float
    timeout_seconds: float

    @property
    def taken_away(self) -> bool:
        """Whether it was ended by others than who runs it, and so may go on computing for nobody."""
        by_others = (
            self.outcome in {Outcome.LOST, Outcome.CANCELLED}
            or self.reason == Reason.ATTEMPT_TIMEOUT
        )
        return by_others or (self.outcome is Outcome.RELEASED and not self.reason)


def beat(
    connection: LedgerConnection,
    worker: Worker,
    running: Sequence[TaskAttempt],
    task_seconds: float = 0,
) -> list[Held]:
    """One heartbeat of a worker process: its row, the leases of all it runs, and what the ledger says of them. One statement.

    Says nothing of what it has not claimed (yet). task_seconds: how long a task ran lately, on
    average; 0 if none has.
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
    """A worker process goes: its slots count no longer."""
    connection.execute("DELETE FROM workers WHERE id = %s", (worker.id,))


# Without an index, so that renewing a lease is cheap: what is in flight is little, and small.
_EXPIRED_LEASES: Final = """
SELECT lease_expire_time, task_id, job_id, attempt FROM open_tasks
WHERE queued_time IS NOT NULL AND lease_expire_time < now() AND (lease_expire_time, task_id) > (%(time)s::timestamptz, %(id)s)
ORDER BY lease_expire_time, task_id LIMIT %(limit)s
"""
_EXPIRED_JOBS: Final = """
SELECT expire_time, id, id FROM jobs
WHERE end_time IS NULL AND expire_time < now() AND (expire_time, id) > (%(time)s::timestamptz, %(id)s)
ORDER BY expire_time, id LIMIT %(limit)s
"""


def sweep(connection: LedgerConnection, backoff: Backoff) -> Iterator[UUID]:
    """Ends attempts whose lease has expired, for about a second. Yields the jobs that moved."""
    text = f"Its worker stopped renewing the lease for {LEASE_SECONDS} s."

    def act(job: UUID, task: UUID, attempt: int) -> bool:
        return lose(connection, job, task, attempt, text)

    return one_by_one(connection, _EXPIRED_LEASES, act, backoff)


def expire(connection: LedgerConnection, backoff: Backoff) -> Iterator[UUID]:
    """Fails jobs whose expire_time has passed, for about a second.

    Yields them; their workers should be told, as for a cancel.
    """

    def end(graph: JobGraph) -> JobState | None:
        ends = not is_terminal(graph.state)
        graph.cancel(
            Reason.JOB_EXPIRED, "The job had not ended by its expire_time.", end=JobState.FAILED
        )
        return graph.state if ends else None

    def act(job: UUID, _: UUID) -> bool:
        store.count_end(store.transition(connection, job, end, Tasks.OPEN))
        return True

    return one_by_one(connection, _EXPIRED_JOBS, act, backoff)


def forget_workers(connection: LedgerConnection) -> None:
    """Takes workers long dead off the list."""
    connection.execute("DELETE FROM workers WHERE expire_time < now() - interval '1 hour'")


_OF_WORKER: Final = "SELECT job_id, task_id, attempt FROM open_tasks WHERE queued_time IS NOT NULL AND worker_id = %s"
_OF_ATTEMPT: Final = f"{_OF_WORKER} AND task_id = %s AND attempt = coalesce(%s::int, attempt)"


def lose_of_worker(connection: LedgerConnection, worker: Worker, lost: TaskAttempt) -> list[UUID]:
    """Ends this attempt if this worker process holds it: its pool child died.

    Returns the job if it moved.
    """
    rows = connection.execute(_OF_ATTEMPT, (worker.id, *lost)).fetchall()
    return [
        job
        for job, task, attempt in rows
        if lose(connection, job, task, attempt, "The process that ran it died.")
    ]


def release_of_worker(
    connection: LedgerConnection, worker: Worker, attempt: TaskAttempt
) -> list[UUID]:
    """Hands this attempt back if this worker process holds it. Returns the job if it moved."""
    rows = connection.execute(_OF_ATTEMPT, (worker.id, *attempt)).fetchall()
    return [job for job, task, number in rows if release(connection, job, task, number)]


def release_all(connection: LedgerConnection, worker: Worker) -> list[UUID]:
    """Hands back everything this worker process still holds. Returns the jobs that moved."""
    rows = connection.execute(_OF_WORKER, (worker.id,)).fetchall()
    return [job for job, task, attempt in rows if release(connection, job, task, attempt)]
