"""An attempt's beginning and its end: claim; then commit, fail, lose, time out or release.

All ends go through `end`. A claim is one statement, and so is an end, if nobody has moved the job
meanwhile. Otherwise they read again, under the lock of the job's row. All are safe to repeat.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from uuid import UUID

from fluoro.v1 import job_pb2
from psycopg.errors import CheckViolation

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger import read, store
from fluoro_jobs.ledger.beside import Beside
from fluoro_jobs.ledger.connection import LedgerConnection, fetch_one, fetch_together
from fluoro_jobs.ledger.graph import JobGraph
from fluoro_jobs.ledger.origins import Origins, origins_of
from fluoro_jobs.ledger.planning import Part, StepInput
from fluoro_jobs.ledger.records import Task, TaskResult
from fluoro_jobs.operations import BY_FIELD, Operation
from fluoro_jobs.states import JobState, Outcome, TaskState

LEASE_SECONDS: Final = 15
"""How long a claim holds without being renewed."""


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


class Attempt(NamedTuple):
    """Which attempt of which task of which job."""

    job: UUID
    task: UUID
    number: int


@dataclass(frozen=True, slots=True)
class Claim:
    """One attempt, and what it needs to run.

    graph: the job as this claim left it, with this task alone. inputs: of the task. waited_seconds:
    from when it was due to the claim.
    """

    graph: JobGraph
    task_id: UUID
    attempt: int
    operation: Operation | None
    request: bytes
    inputs: Sequence[StepInput]
    waited_seconds: float

    @property
    def of(self) -> Attempt:
        """The attempt that it began."""
        return Attempt(self.graph.id, self.task_id, self.attempt)

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
            # An operation of a later release has no row in this table. Its queue cannot be nudged
            # from here; the scheduler's turn finds its tasks within a second.
            BY_FIELD.get(step.operation)
            for step in self.graph.steps.values()
            if self.task.step in step.after
        )
        return {operation.queue for operation in operations if operation}

    def outcome_of(self, error: FluoroError) -> Outcome:
        """RELEASED if an attempt that ends with this error costs the task nothing.

        Ask before the attempt ends.
        """
        return (
            Outcome.RELEASED
            if error.may_retry and self.task.may_return(error.reason)
            else Outcome.FAILED
        )


# The list is kept once, under the first step with these sources; steps that share it have no rows
# of their own (ADR 0017).
_INPUTS: Final = """CASE WHEN t.sources IS NULL THEN (
    SELECT json_agg(json_build_array(i.number, i.number, i.number,
      json_build_array(json_build_array(
      i.blob_id, 'input', '', b.media_type, NULL))) ORDER BY i.number) FROM job_inputs i
        JOIN blobs b ON b.id = i.blob_id
    WHERE i.job_id = t.job_id AND i.number >= t.first_input
      AND i.number < t.first_input + t.input_count)
  ELSE (
    SELECT json_agg(json_build_array(i.number, i.key, i.input, i.parts) ORDER BY i.number)
      FROM step_inputs i
    WHERE i.job_id = t.job_id AND i.step = (  -- as JobGraph.inputs_of has it
        SELECT min(ordinal) FROM steps WHERE job_id = t.job_id AND sources = t.sources)
      AND i.number >= t.first_input
      AND i.number < t.first_input + t.input_count) END"""


def _claim_statement(free: str = "", if_free: str = "") -> str:
    return f"""WITH task AS (
  SELECT t.id, t.job_id, t.step, t.shard, t.allowed, t.first_input, t.input_count, t.item_counts,
    t.returned, o.attempt + 1 AS attempt, o.due_time, s.request, s.sources,
    j.owner, j.state AS job_state, j.input_count AS job_inputs, j.last_sequence AS version,
    -- Not a condition here: the planner would go through all that is queued instead of looking the
    -- id up.
    o.state = 'QUEUED' AND o.attempt + 1 = coalesce(%(number)s::int, o.attempt + 1) AS queued,
    (j.state = 'PENDING')::int AS first_of_job, (s.state = 'PENDING')::int AS first_of_step
  FROM open_tasks o JOIN tasks t ON t.id = o.task_id JOIN jobs j ON j.id = t.job_id
    JOIN steps s ON s.job_id = t.job_id AND s.ordinal = t.step
  WHERE o.task_id = %(task)s
){free}, job AS (
  UPDATE jobs j SET state = 'RUNNING', start_time = coalesce(j.start_time, now()),
    last_sequence = t.version + t.first_of_job + t.first_of_step + 1
  FROM task t WHERE t.queued AND j.id = t.job_id AND j.last_sequence = t.version {if_free}
    RETURNING j.id, j.owner
), steps_ AS (
  UPDATE steps s SET state = 'RUNNING' FROM job, task t
    WHERE t.first_of_step = 1 AND s.job_id = job.id AND s.ordinal = t.step
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
    (t.first_of_job + t.first_of_step + 1, t.step, t.shard, t.attempt, 1)) e(number, step, shard,
      attempt, happens)
  WHERE e.happens = 1
)
SELECT t.job_id, t.owner, t.job_state, t.version, t.job_inputs, {store.STEPS % "t.job_id"},
  t.step, t.shard, t.attempt - 1, t.allowed, t.first_input, t.input_count, t.item_counts,
  t.returned, {_INPUTS}, t.request, extract(epoch FROM now() - t.due_time)::float8,
  EXISTS (SELECT FROM job)
FROM task t WHERE t.queued
"""


_CLAIM: Final = _claim_statement()
"""Does in SQL what `JobGraph.start` does: a claim is half of what a short task costs.

Returns the picture from before the claim.
"""
_CLAIM_BESIDE: Final = _claim_statement(
    """, free AS MATERIALIZED (
  SELECT j.id FROM task t JOIN jobs j ON j.id = t.job_id JOIN open_tasks o ON o.task_id = t.id
  WHERE t.queued AND o.state = 'QUEUED' FOR NO KEY UPDATE OF j, o SKIP LOCKED
)""",
    "AND EXISTS (SELECT FROM free)",
)
"""The same for `Beside`: it takes nothing that somebody else is about to change."""


def claim(
    connection: LedgerConnection, task_id: UUID, worker: Worker, number: int | None = None
) -> Claim | None:
    """Takes a queued task: QUEUED → RUNNING, attempt + 1, a lease.

    number: of the attempt that the message asks for; None for whichever is next. Returns None if
    the message is stale: someone else has the task, or it is queued for a later attempt, or it has
    ended.
    """
    statement = _CLAIM, _claim_parameters(task_id, worker, number)
    try:
        row = fetch_one(connection, *statement)
        if row is None:
            return None
        # The picture tells two cases apart. No row: the message is stale. A row that says not done:
        # the task is still queued, but the guard on the job's number failed.
        claimed = _claimed(task_id, row)
        if claimed is None:  # another task of the same job moved meanwhile
            # With the job's row locked first, the same statement cannot lose twice (ADR 0003).
            _, row = fetch_together(connection, store.locking(row[0]), statement)
            claimed = None if row is None else _claimed(task_id, row)
    except CheckViolation:
        # Dispatch took it back while the statement waited for its row. A row that runs cannot also
        # be ready or wait, so nothing of the statement was written.
        return None
    return claimed


def _claim_parameters(task_id: UUID, worker: Worker, number: int | None) -> dict[str, Any]:
    return {"task": task_id, "number": number, "worker_id": worker.id, "worker": worker.name}


def _claimed(task_id: UUID, row: Sequence[Any]) -> Claim | None:
    """The claim that the statement made; None if it found the task queued and did not take it."""
    job, owner, state, version, job_inputs, steps, *columns, inputs, request, waited, done = row
    if not done:
        return None
    step, shard, *counts = columns
    task = Task(task_id, step, shard, TaskState.QUEUED, *counts)
    graph = store.parse((job, owner, state, version, job_inputs, steps, ()))
    graph.tasks[task_id] = task
    # The statement returned the job from before the claim. Now the picture is that from after it.
    # Python repeats what the statement did, so that the commit can begin from this picture without
    # a read.
    graph.start(task)
    # The events of the claim are durable already; left in the graph, the commit would write them a
    # second time.
    graph.clear_notes()
    return Claim(
        graph,
        task_id,
        task.attempt,
        BY_FIELD.get(graph.steps[task.step].operation),
        request,
        [_input(*one) for one in inputs or ()],
        waited,
    )


class Following:
    """A claim that goes along with a commit: the slot's next task begins when one ends."""

    def __init__(self, worker: Worker, task_id: UUID, number: int | None) -> None:
        """As for `claim`."""
        self._task_id = task_id
        self.beside = Beside(_CLAIM_BESIDE, _claim_parameters(task_id, worker, number))

    @property
    def claim(self) -> Claim | None:
        """What it claimed. None says nothing: `claim` tries with more patience."""
        # A claim in doubt shows as None here: acting on a claim that was never durable would run a
        # task that another worker may have.
        row = self.beside.row
        return None if row is None else _claimed(self._task_id, row)


def _input(number: int, key: object, origin: int | None, parts: list[list[Any]]) -> StepInput:
    return StepInput(number, str(key), origin, [Part(UUID(blob), *rest) for blob, *rest in parts])


def upstream(
    connection: LedgerConnection, claimed: Claim
) -> list[tuple[read.StoredResult, list[job_pb2.Item], list[job_pb2.Artifact]]]:
    """Result, items and artifacts of the finished steps that the claimed one comes after."""
    after = claimed.graph.steps[claimed.task.step].after
    return read.upstream_of(connection, claimed.graph.id, after) if after else []


def origins(connection: LedgerConnection, claimed: Claim) -> Origins:
    """The job's inputs, and when the steps ran that the claimed one comes after.

    A job that de-identifies tells of no input: a hash leads whoever has the original from the clean
    results to the patient.
    """
    graph = claimed.graph
    known = origins_of(connection, graph.id, graph.steps[claimed.task.step].after)
    operations = (BY_FIELD.get(step.operation) for step in graph.steps.values())
    cleans = any(operation and operation.deidentifies for operation in operations)
    return known._replace(inputs=[]) if cleans else known


def results(connection: LedgerConnection, claimed: Claim) -> list[read.StoredResult]:
    """What the tasks returned that left the inputs of the claimed one, by step."""
    parts = [part for one in claimed.inputs for part in one.parts if part.step is not None]
    return read.results_of(connection, claimed.graph.id, parts) if parts else []


def commit(
    connection: LedgerConnection,
    claimed: Claim,
    result: TaskResult,
    following: Following | None = None,
) -> JobState | None:
    """Makes a result visible, and the tasks that waited for it READY.

    following: may be claimed along with it, whether or not the attempt was fenced off.

    Returns the job's state after it; None, with nothing written, if the attempt was fenced off.
    """

    def act(graph: JobGraph, task: Task) -> None:
        graph.succeed(task, result)

    beside = following.beside if following else None
    return end(connection, claimed.of, act, claimed.graph, beside)


def fail(connection: LedgerConnection, claimed: Claim, error: FluoroError) -> JobState | None:
    """Ends the attempt with an error. Another one follows if the error allows it and one is left.

    Returns the job's state after it; None if the attempt was fenced off. `Claim.outcome_of` says
    whether it counts.
    """

    def act(graph: JobGraph, task: Task) -> None:
        graph.fail(task, Outcome.FAILED, error.reason, error.message, may_retry=error.may_retry)

    return end(connection, claimed.of, act, claimed.graph)


def lose(connection: LedgerConnection, attempt: Attempt, message: str) -> JobState | None:
    """Ends an attempt whose worker is gone. After the last one the task fails: WORKER_LOST (I7)."""

    def act(graph: JobGraph, task: Task) -> None:
        graph.fail(task, Outcome.LOST, Reason.WORKER_LOST, message, may_retry=True)

    # Counted after the transition, which may be repeated: counted within it, one end could count
    # twice.
    state = end(connection, attempt, act)
    store.count_end(state)
    return state


def time_out(connection: LedgerConnection, attempt: Attempt, seconds: float) -> JobState | None:
    """Ends an attempt that took longer than it may."""

    def act(graph: JobGraph, task: Task) -> None:
        text = f"The attempt took longer than {seconds:g} s."
        graph.fail(task, Outcome.FAILED, Reason.ATTEMPT_TIMEOUT, text, may_retry=True)

    state = end(connection, attempt, act)
    store.count_end(state)
    return state


def release(connection: LedgerConnection, attempt: Attempt) -> JobState | None:
    """Hands an attempt back, for a worker that shuts down: READY at once."""
    return end(connection, attempt, lambda graph, task: graph.release(task))


def end(
    connection: LedgerConnection,
    attempt: Attempt,
    act: Callable[[JobGraph, Task], None],
    picture: JobGraph | None = None,
    beside: Beside | None = None,
) -> JobState | None:
    """Does `act` to job and task if this attempt still runs the task (I2).

    picture: the job as the claim left it, for the first try. beside: may go along with the write.

    Returns the job's state after it; None if the attempt was over, or there is no such task.
    """

    def act_if_it_runs(graph: JobGraph) -> JobGraph | None:
        task = graph.tasks.get(attempt.task)
        if task is None or task.state is not TaskState.RUNNING or task.attempt != attempt.number:
            return None
        act(graph, task)
        return graph

    if picture is not None and picture.tasks[attempt.task].state is not TaskState.RUNNING:
        picture = None  # an earlier try has ended it there, be it durable or not
    # Beside other tasks of its step it would hardly be the first to move the job since its claim.
    crowded = picture is not None and _has_open_siblings(picture, attempt.task)
    ended = store.transition(
        connection,
        attempt.job,
        act_if_it_runs,
        attempt.task,
        picture,
        crowded=crowded,
        beside=beside,
    )
    return None if ended is None else ended.state


def _has_open_siblings(graph: JobGraph, task: UUID) -> bool:
    # Counters, not tasks: the claim's picture holds this task alone, however many its step has.
    counters = graph.steps[graph.tasks[task].step].counters
    return counters.tasks - counters.ended > 1
