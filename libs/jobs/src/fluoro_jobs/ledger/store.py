"""Reads a job's graph and makes changes of it durable, one statement each.

`jobs.last_sequence` is the version. Every transition emits at least one event, so it bumps the
version, and a write says `WHERE last_sequence = what I read`: a writer that acted on an old picture
writes nothing and reads again. That guard is what fences late attempts off (I2), writes terminal
states once (I3) and keeps the event sequence free of gaps (I5).

An attempt that ends beside others of its step would lose to them all the time. Its write locks the
job first, and asks instead whether its own task still runs it and is not the last to end. Dispatch
moves tasks WAITING → READY → QUEUED without either: nothing decided here depends on which of the
three a task has.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cache
from typing import Any, Final, TypeVar
from uuid import UUID

from fluoro.v1 import job_pb2
from fluoro_telemetry import metrics

from fluoro_jobs.ledger.beside import Beside
from fluoro_jobs.ledger.connection import (
    LedgerConnection,
    Statement,
    fetch_one,
    fetch_together,
)
from fluoro_jobs.ledger.graph import JobGraph
from fluoro_jobs.ledger.notes import counts_row, parts_of
from fluoro_jobs.ledger.planning import Planner
from fluoro_jobs.ledger.records import Counters, Step, Task
from fluoro_jobs.ledger.sources import Source
from fluoro_jobs.states import JobState, TaskState, is_terminal


class Tasks(Enum):
    """Which tasks of a job a transition needs; a task's id stands for that one alone."""

    ALL = "true"
    OPEN = "t.state = 'OPEN'"


_COUNTERS: Final = """json_build_array(s.input_count, s.task_count, s.ended_tasks, s.failed_tasks,
     s.lost_inputs, s.items_total, s.items_succeeded, s.items_skipped, s.items_failed)"""
STEPS: Final = f"""(SELECT json_agg(json_build_array(s.ordinal, s.name, s.operation, s.after,
    s.max_attempts, s.initial_backoff_seconds,
     s.max_backoff_seconds, s.sources, s.inputs_per_task, s.requires_all, s.state, s.reason,
       s.message, {_COUNTERS}))
   FROM steps s WHERE s.job_id = %s)"""
"""The steps of a job, as `parse` takes them, given its id."""
PICTURE: Final = f"""j.id, j.owner, j.state, j.last_sequence, j.input_count, {STEPS % "j.id"},
  (SELECT json_agg(json_build_array(t.id, t.step, t.shard,
     CASE WHEN t.state <> 'OPEN' THEN t.state WHEN o.state = 'WAITING' THEN 'READY'
       ELSE o.state END,
     coalesce(o.attempt, t.attempt), t.allowed, t.first_input, t.input_count, t.item_counts,
       t.returned))
   FROM tasks t LEFT JOIN open_tasks o ON o.task_id = t.id WHERE %s)"""
"""Columns that `parse` makes a graph of, given which tasks; j is the job."""
_LOAD: Final = {
    which: f"SELECT {PICTURE % f't.job_id = j.id AND {which.value}'} FROM jobs j"
    " WHERE j.id = %(job)s"
    for which in Tasks
}
_LOAD_ONE: Final = f"SELECT {PICTURE % 't.id = %(task)s'} FROM jobs j WHERE j.id = %(job)s"

Answer = TypeVar("Answer")


def load(
    connection: LedgerConnection, job: UUID, which: UUID | Tasks = Tasks.ALL
) -> JobGraph | None:
    """The graph of a job with these of its tasks, at one moment; None if there is no such job."""
    statement = _LOAD[which] if isinstance(which, Tasks) else _LOAD_ONE
    row = connection.execute(statement, {"job": job, "task": which}).fetchone()
    return None if row is None else parse(row)


def locking(job: UUID) -> Statement:
    """Holds the job's row until the transaction ends.

    A process that stops meanwhile loses lock and transaction after seconds (connection.py).

    This is a statement of its own. One that waits for the lock and reads at once would see the row
    as it is after the wait, but steps and tasks as they were before it.
    """
    return "SELECT 1 FROM jobs WHERE id = %(job)s FOR UPDATE", {"job": job}


def parse(row: Sequence[Any]) -> JobGraph:
    """A graph from the columns of `PICTURE`."""
    job_id, owner, state, version, input_count, steps, tasks = row
    return JobGraph(
        id=job_id,
        owner=owner,
        state=JobState(state),
        version=version,
        input_count=input_count,
        # By ordinal: JSON's aggregate has no order, and the graph goes through its steps in theirs.
        steps={s.ordinal: s for s in map(_step, sorted(steps))},
        tasks={t.id: t for t in map(_task, tasks or ())},
    )


def _step(given: list[Any]) -> Step:
    columns = [*given]
    columns[7] = columns[7] and [Source(*source) for source in columns[7]]
    columns[10], columns[13] = JobState(columns[10]), Counters(*columns[13])
    return Step(*columns)


def _task(given: list[Any]) -> Task:
    id_, step, shard, state, *others = given
    return Task(UUID(id_), step, shard, TaskState(state), *others)


def transition(
    connection: LedgerConnection,
    job: UUID,
    act: Callable[[JobGraph], Answer],
    which: UUID | Tasks = Tasks.ALL,
    picture: JobGraph | None = None,
    *,
    crowded: bool = False,
    beside: Beside | None = None,
) -> Answer | None:
    """Reads the job, lets `act` do something to it, makes that durable.

    which: the tasks that `act` needs to see. picture: the job as the caller has read it before, and
    left it. beside: what may go along with the write. None if there is no such job.

    If another writer was faster, `act` runs again on a fresh read, this time with the job's row
    locked. crowded: others write all the time, so what concerns one task alone goes in among them.
    """
    # A worker still has the picture of its claim. If nobody moved the job since, it needs no read.
    graph = load(connection, job, which) if picture is None else picture
    if graph is None:
        return None
    answer = act(graph)
    write = _save_among_others if crowded else save
    if write(connection, graph, beside):
        return answer
    # If the first try sent it, it may be durable, so it is not sent again.
    goes_along = beside if beside is not None and not beside.sent else None
    # Others wait for the row from here on: the fewer exchanges, the better.
    with connection.pipeline(), connection.transaction():
        # Locked before it is read: this time nobody can move the job between the read and the
        # write.
        connection.execute(*locking(job))
        graph = load(connection, job, which)
        if graph is None:
            return None
        # On a fresh graph: the first try's notes belong to a picture that was out of date.
        answer = act(graph)
        # Nobody can have been faster this time: the job's row is locked.
        save(connection, graph, goes_along)
    if goes_along is not None and goes_along.sent:
        goes_along.settle()
    return answer


def count_end(state: JobState | None) -> None:
    """Counts a job that this process ended in the metrics, if its new state is an end."""
    if state is not None and is_terminal(state):
        metrics.JOBS_FINISHED.labels(state=state.lower()).inc()


def save(connection: LedgerConnection, graph: JobGraph, beside: Beside | None = None) -> bool:
    """Makes the graph's notes durable and clears them. beside: goes along if this is one statement.

    False, and nothing written, if the job has moved on since it was read.
    """
    # An attempt that was fenced off changes nothing, and must not cost a write.
    if not graph.changes:
        return True
    if not graph.unplanned:
        return _write(connection, graph, beside)
    # The write that unblocks a step may leave what the step works on, so that is read afterwards.
    # The write also locks the job's row, so every further one finds the job as this one left it.
    # One transaction: a step that is unblocked and has no tasks would wait for ever.
    with connection.transaction():
        if not _write(connection, graph):
            return False
        planner = Planner(connection, graph)
        while graph.unplanned:
            planner.plan(graph.steps[graph.unplanned.pop(0)])
            # Planning may end a step at once, and unblock or skip others; each write has its own
            # version.
            _write(connection, graph)
    return True


def _save_among_others(
    connection: LedgerConnection, graph: JobGraph, beside: Beside | None
) -> bool:
    """Makes the end of an attempt durable, whatever other tasks have done since it was read.

    False, and nothing written, if it is more than a change of this task, or the job is not as it
    was but for what others have done to their own.
    """
    # The end of a step, or of the job, depends on the counters of all tasks: that needs a fresh
    # read.
    if len(graph.changes) != 1 or graph.changes[0].shard is None:
        return False
    (task,) = (graph.tasks[id_] for id_ in graph.changed_tasks)
    parts, counted = parts_of(graph), Counters()
    if parts.pop("steps", None):
        # The difference alone: other tasks have changed the step's row since the picture was read.
        counted.add(task)
        parts["counts"] = [counts_row(counted)]
    write = _filled(
        graph,
        parts,
        _JOB_AMONG_OTHERS,
        task=task.id,
        # Its own task instead of the job's version: others raise that all the time.
        attempt=task.attempt,
        step=task.step,
        ended_now=counted.ended,
    )
    both = locking(graph.id), write
    rows = beside.fetch(connection, *both) if beside else fetch_together(connection, *both)
    # The first row is that of the lock.
    return rows[1] is not None


def _write(connection: LedgerConnection, graph: JobGraph, beside: Beside | None = None) -> bool:
    statement = _filled(graph, parts_of(graph), _JOB)
    row = beside.fetch(connection, statement)[0] if beside else fetch_one(connection, *statement)
    if row is not None:
        # Cleared only after success: if the guard fails, the caller decides again from the ledger.
        graph.clear_notes()
    return row is not None


def _filled(
    graph: JobGraph,
    parts: Mapping[str, Sequence[dict[str, Any]]],
    guard: str,
    **of_guard: object,
) -> Statement:
    """What makes the graph's notes durable. guard: the job's update. of_guard: its parameters."""
    closed = [id_ for id_ in graph.changed_tasks if is_terminal(graph.tasks[id_].state)]
    # Most transitions change one task of one step, which plain parameters tell at half the cost.
    ones = frozenset(name for name, rows in parts.items() if len(rows) == 1 and name in _ONE)
    parameters: dict[str, Any] = {
        "job": graph.id,
        "owner": graph.owner,
        "version": graph.version,
        "bump": len(graph.changes),
        "state": str(graph.state),
        "reason": str(graph.reason),
        "message": graph.message,
        "ended": is_terminal(graph.state),
        "again": graph.reopened,
        "ended_tasks": [end.task for end in graph.ended_attempts],
        "changed": list(graph.changed_tasks),
        "closed": closed,
        "forgotten": graph.forgotten,
        "stale_inputs": graph.stale_inputs,
        **of_guard,
    }
    if len(closed) == 1:
        ones |= {"closed"}
        parameters["closed"] = closed[0]
    for name, rows in parts.items():
        if rows and name in ones:
            parameters |= {f"{name}_{column}": value for column, value in rows[0].items()}
        elif rows:
            parameters[name] = json.dumps(rows)
    return _statement(guard, tuple(parts), ones), parameters


@cache
def _statement(guard: str, parts: tuple[str, ...], ones: frozenset[str]) -> str:
    """The job's update and one data-modifying CTE per part. ones: the parts of a single row.

    Cached text, so that psycopg prepares each combination once.
    """
    return (
        f"WITH job AS ({guard})"
        f"{''.join(f', {name}_ AS ({(_ONE if name in ones else _PARTS)[name]})' for name in parts)}"
        " SELECT 1 FROM job"
    )


# A job that is retried after its expire_time would expire again at once, so it loses that.
_JOB: Final = """
  UPDATE jobs SET state = %(state)s, reason = %(reason)s, message = %(message)s,
    last_sequence = last_sequence + %(bump)s,
    end_time = CASE WHEN %(ended)s THEN coalesce(end_time, now()) END,
    expire_time = CASE WHEN %(again)s AND expire_time < now() THEN NULL ELSE expire_time END
  WHERE id = %(job)s AND last_sequence = %(version)s
  RETURNING id, schedule_time, priority, last_sequence"""
_JOB_AMONG_OTHERS: Final = """
  UPDATE jobs SET last_sequence = last_sequence + 1
  WHERE id = %(job)s
    AND EXISTS (SELECT FROM open_tasks
      WHERE task_id = %(task)s AND state = 'RUNNING' AND attempt = %(attempt)s)
    AND EXISTS (SELECT FROM steps
      WHERE job_id = %(job)s AND ordinal = %(step)s AND ended_tasks + %(ended_now)s < task_count)
  RETURNING id, schedule_time, priority, last_sequence"""
"""For one event, of a task that still runs this attempt (then its job and step run, too) and is not
the last of its step to end."""

# A job retried before its schedule_time waits for it.
_DUE: Final = "greatest(now() + u.delay_seconds * interval '1 s', job.schedule_time)"

_ONE: Final[dict[str, str]] = {
    "steps": """
  UPDATE steps s SET state = %(steps_state)s, reason = %(steps_reason)s,
    message = %(steps_message)s, input_count = %(steps_input_count)s,
    task_count = %(steps_task_count)s, ended_tasks = %(steps_ended_tasks)s,
    failed_tasks = %(steps_failed_tasks)s, lost_inputs = %(steps_lost_inputs)s,
    items_total = %(steps_items_total)s, items_succeeded = %(steps_items_succeeded)s,
    items_skipped = %(steps_items_skipped)s, items_failed = %(steps_items_failed)s
  FROM job WHERE s.job_id = %(job)s AND s.ordinal = %(steps_ordinal)s""",
    "counts": """
  UPDATE steps s SET ended_tasks = ended_tasks + %(counts_ended_tasks)s,
    failed_tasks = failed_tasks + %(counts_failed_tasks)s,
    lost_inputs = lost_inputs + %(counts_lost_inputs)s,
    items_total = items_total + %(counts_items_total)s,
    items_succeeded = items_succeeded + %(counts_items_succeeded)s,
    items_skipped = items_skipped + %(counts_items_skipped)s,
    items_failed = items_failed + %(counts_items_failed)s
  FROM job WHERE s.job_id = %(job)s AND s.ordinal = %(step)s""",
    "tasks": """
  UPDATE tasks t SET state = %(tasks_state)s, attempt = %(tasks_attempt)s,
    allowed = %(tasks_allowed)s, returned = %(tasks_returned)s,
    item_counts = %(tasks_item_counts)s::int[],
    result = CASE WHEN %(tasks_item_counts)s::int[] IS NOT NULL
      THEN coalesce(decode(%(tasks_result)s::text, 'base64'), t.result) END,
    result_blob = CASE WHEN %(tasks_item_counts)s::int[] IS NOT NULL
      THEN coalesce(%(tasks_result_blob)s::uuid, t.result_blob) END
  FROM job WHERE t.id = %(tasks_id)s::uuid""",
    "ends": """
  UPDATE attempts a SET end_time = now(), outcome = %(ends_outcome)s,
    reason = %(ends_reason)s, message = %(ends_message)s
  FROM job WHERE a.task_id = %(ends_task_id)s::uuid AND a.number = %(ends_number)s""",
    # Deleted by the write that ends the task, so that the table holds open work only.
    "closed": "DELETE FROM open_tasks o USING job WHERE o.task_id = %(closed)s",
    "events": """
  INSERT INTO events (job_id, owner, sequence, step, shard, attempt, state, reason, message,
    item_counts)
  SELECT job.id, %(owner)s, job.last_sequence, %(events_step)s::int2, %(events_shard)s::int2,
    %(events_attempt)s::int, %(events_state)s, %(events_reason)s, %(events_message)s,
    %(events_item_counts)s::int[]
  FROM job""",
}
"""The same parts as in `_PARTS`, for a single row each, and `counts`, for what a step counts more.

Every key is a parameter: a plan made while a table is small would walk through it for a join.
"""

_PARTS: Final[dict[str, str]] = {
    "steps": """
  UPDATE steps s SET state = u.state, reason = u.reason, message = u.message,
    input_count = u.input_count, task_count = u.task_count,
    ended_tasks = u.ended_tasks, failed_tasks = u.failed_tasks, lost_inputs = u.lost_inputs,
      items_total = u.items_total,
    items_succeeded = u.items_succeeded, items_skipped = u.items_skipped,
      items_failed = u.items_failed
  FROM job, json_to_recordset(%(steps)s::json) u(ordinal int2, state text, reason text,
    message text, input_count int, task_count int,
    ended_tasks int, failed_tasks int, lost_inputs int, items_total int, items_succeeded int,
      items_skipped int, items_failed int)
  WHERE s.job_id = job.id AND s.ordinal = u.ordinal""",
    # A result once there stays, until a retry takes it back together with the counts.
    "tasks": """
  UPDATE tasks t SET state = u.state, attempt = u.attempt, allowed = u.allowed,
    returned = u.returned, item_counts = u.item_counts,
    result = CASE WHEN u.item_counts IS NULL THEN NULL
      ELSE coalesce(decode(u.result, 'base64'), t.result) END,
    result_blob = CASE WHEN u.item_counts IS NULL THEN NULL
      ELSE coalesce(u.result_blob, t.result_blob) END
  FROM job, json_to_recordset(%(tasks)s::json)
    u(id uuid, state text, attempt int, allowed int, returned int, item_counts int[], result text,
      result_blob uuid)
  WHERE t.id = ANY(%(changed)s) AND t.id = u.id""",
    "closed": "DELETE FROM open_tasks o USING job WHERE o.task_id = ANY(%(closed)s)",
    # `order_time` stays: a back-off does not send a task behind those that came later.
    "returned": f"""
  UPDATE open_tasks o SET state = CASE WHEN {_DUE} > now() THEN 'WAITING'
    ELSE 'READY' END, due_time = {_DUE}, queued_time = NULL,
    dispatch_order = CASE
      WHEN {_DUE} <= now() THEN o.order_time - o.priority * interval '1 minute' END,
    attempt = u.attempt, worker_id = NULL, lease_expire_time = NULL
  FROM job, json_to_recordset(%(returned)s::json) u(id uuid, attempt int, delay_seconds float8)
  WHERE o.task_id = ANY(%(changed)s) AND o.task_id = u.id""",
    "reopened": f"""
  INSERT INTO open_tasks (task_id, job_id, queue, owner, task_name, attempt, priority, due_time,
    order_time, state, dispatch_order)
  SELECT t.id, job.id, s.queue, %(owner)s, s.task_name, u.attempt, job.priority, {_DUE}, {_DUE},
    CASE WHEN {_DUE} > now() THEN 'WAITING' ELSE 'READY' END,
    CASE WHEN {_DUE} <= now() THEN {_DUE} - job.priority * interval '1 minute' END
  FROM job, json_to_recordset(%(reopened)s::json) u(id uuid, attempt int, delay_seconds float8)
    JOIN tasks t ON t.id = u.id JOIN steps s ON s.job_id = t.job_id AND s.ordinal = t.step""",
    # A shard of an earlier plan goes on under its old id, so its attempts stay on record and its
    # numbers go on counting.
    "planned": """
  INSERT INTO tasks AS t (id, job_id, step, shard, first_input, input_count, allowed, state)
  SELECT u.id, job.id, u.step, u.shard, u.first_input, u.input_count, u.allowed, 'OPEN'
  FROM job, json_to_recordset(%(planned)s::json) u(id uuid, step int2, shard int2, first_input int,
    input_count int, allowed int)
  ON CONFLICT (job_id, step, shard) DO UPDATE
    SET state = 'OPEN', first_input = excluded.first_input,
    input_count = excluded.input_count, allowed = t.attempt + excluded.allowed, returned = 0
  RETURNING t.id, t.step, t.attempt
), open_ AS (
  INSERT INTO open_tasks (task_id, job_id, queue, owner, task_name, attempt, priority, due_time,
    order_time, state, dispatch_order)
  SELECT p.id, job.id, s.queue, %(owner)s, s.task_name, p.attempt, job.priority, due.time, due.time,
    CASE WHEN due.time > now() THEN 'WAITING' ELSE 'READY' END,
    CASE WHEN due.time <= now() THEN due.time - job.priority * interval '1 minute' END
  FROM job, planned_ p, steps s, LATERAL (SELECT greatest(now(), job.schedule_time) AS time) due
  WHERE s.job_id = job.id AND s.ordinal = p.step""",
    "redone": """
  DELETE FROM items i USING job, json_to_recordset(%(redone)s::json) u(step int2, shard int2)
  WHERE i.job_id = job.id AND i.step = u.step AND i.shard = u.shard
), redone_artifacts_ AS (
  DELETE FROM artifacts a USING job, json_to_recordset(%(redone)s::json) u(step int2, shard int2)
  WHERE a.job_id = job.id AND a.step = u.step AND a.shard = u.shard""",
    # Of a step that is planned anew nothing counts any more but its attempts. Its tasks work on
    # nothing until the plan takes them up again.
    "forgotten": """
  UPDATE tasks t SET result = NULL, result_blob = NULL, item_counts = NULL, first_input = 0,
    input_count = 0
  FROM job WHERE t.job_id = job.id AND t.step = ANY(%(forgotten)s)
), forgotten_inputs_ AS (
  DELETE FROM step_inputs i USING job WHERE i.job_id = job.id AND i.step = ANY(%(stale_inputs)s)
), forgotten_items_ AS (
  DELETE FROM items i USING job WHERE i.job_id = job.id AND i.step = ANY(%(forgotten)s)
), forgotten_artifacts_ AS (
  DELETE FROM artifacts a USING job WHERE a.job_id = job.id AND a.step = ANY(%(forgotten)s)""",
    "ends": """
  UPDATE attempts a
    SET end_time = now(), outcome = u.outcome, reason = u.reason, message = u.message
  FROM job, json_to_recordset(%(ends)s::json) u(task_id uuid, number int, outcome text,
    reason text, message text)
  WHERE a.task_id = ANY(%(ended_tasks)s) AND a.task_id = u.task_id AND a.number = u.number""",
    "events": """
  INSERT INTO events (job_id, owner, sequence, step, shard, attempt, state, reason, message,
    item_counts)
  SELECT job.id, %(owner)s, u.* FROM job, json_to_recordset(%(events)s::json)
    u(sequence int8, step int2, shard int2, attempt int, state text, reason text, message text,
      item_counts int[])""",
    "items": """
  INSERT INTO items (job_id, step, shard, number, key, input, state, reason, message)
  SELECT job.id, u.* FROM job, json_to_recordset(%(items)s::json)
    u(step int2, shard int2, number int, key text, input int, state int2, reason text,
      message text)""",
    # Each input of a lost task becomes a failed item, so that every input of the step has one.
    "lost": f"""
  INSERT INTO items (job_id, step, shard, number, key, input, state, reason, message)
  SELECT job.id, u.step, u.shard, n, coalesce(i.key, n::text), CASE WHEN i.key IS NULL THEN n
    ELSE i.input END,
    {job_pb2.Item.STATE_FAILED}, u.reason, u.message
  FROM job
  CROSS JOIN json_to_recordset(%(lost)s::json) u(step int2, shard int2, inputs_of int2,
    first_input int, last_input int, reason text, message text)
  CROSS JOIN generate_series(u.first_input, u.last_input) n
  LEFT JOIN step_inputs i ON i.job_id = %(job)s AND i.step = u.inputs_of AND i.number = n""",
    "blobs": """
  INSERT INTO blobs (id, owner, size_bytes, sha256, media_type, uploaded)
  SELECT u.id, %(owner)s, u.size_bytes, decode(u.sha256, 'hex'), u.media_type, false
  FROM job, json_to_recordset(%(blobs)s::json) u(id uuid, size_bytes int8, sha256 text,
    media_type text)""",
    "artifacts": """
  INSERT INTO artifacts (job_id, step, shard, position, name, role, key, input, blob_id)
  SELECT job.id, u.* FROM job, json_to_recordset(%(artifacts)s::json)
    u(step int2, shard int2, position int, name text, role text, key text, input int,
      blob_id uuid)""",
}
