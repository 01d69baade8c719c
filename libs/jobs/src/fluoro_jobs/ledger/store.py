"""Reads a job's graph and makes what was done to it durable: one statement each, no lock held in between.

`jobs.last_sequence` is the version. Every transition emits at least one event, so it bumps the
version, and every write says `WHERE last_sequence = what I read`: a writer that acted on an old
picture writes nothing and reads again. That one guard is what fences late attempts off (I2), writes
terminal states once (I3) and keeps the event sequence free of gaps (I5). Dispatch alone moves tasks
READY → QUEUED without it; nothing decided here depends on which of the two a task is in.
"""

import json
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final, TypeVar
from uuid import UUID

from fluoro.v1 import job_pb2
from fluoro_telemetry import metrics

from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.graph import Change, JobGraph, Step, Task
from fluoro_jobs.states import JobState, TaskState, is_terminal

PICTURE: Final = """j.id, j.owner, j.state, j.last_sequence,
  (SELECT json_agg(json_build_array(s.ordinal, s.name, s.operation, s.after, s.max_attempts, s.initial_backoff_seconds,
     s.max_backoff_seconds, s.fans_out, s.requires_all, s.state, s.reason, s.message)) FROM steps s WHERE s.job_id = j.id),
  (SELECT json_agg(json_build_array(t.id, t.step, t.shard, t.state, t.attempt, t.allowed, t.first_input, t.input_count, t.item_counts,
     t.returned)) FROM tasks t WHERE t.job_id = j.id)"""
"""Columns that `parse` makes a graph of; j is the job."""
_LOAD: Final = f"SELECT {PICTURE} FROM jobs j WHERE j.id = %s"

Answer = TypeVar("Answer")


def load(connection: LedgerConnection, job: UUID) -> JobGraph | None:
    """The graph of a job, as of one moment; None if there is no such job."""
    row = connection.execute(_LOAD, (job,)).fetchone()
    return None if row is None else parse(row)


def lock(connection: LedgerConnection, job: UUID) -> None:
    """Holds the job's row until the transaction ends; a process that stops meanwhile loses both after a few seconds (connection.py).

    A statement of its own: one that waits for the lock and reads in one go sees the row as it is
    after the wait, but its steps and tasks as they were before.
    """
    connection.execute("SELECT FROM jobs WHERE id = %s FOR UPDATE", (job,))


def parse(row: Sequence[Any]) -> JobGraph:
    """A graph from the columns of `PICTURE`."""
    job_id, owner, state, version, steps, tasks = row
    return JobGraph(
        id=job_id,
        owner=owner,
        state=JobState(state),
        version=version,
        steps={s.ordinal: s for s in map(_step, sorted(steps))},
        tasks={t.id: t for t in map(_task, tasks)},
    )


def _step(columns: list[Any]) -> Step:
    columns[9] = JobState(columns[9])
    return Step(*columns)


def _task(columns: list[Any]) -> Task:
    columns[0], columns[3] = UUID(columns[0]), TaskState(columns[3])
    return Task(*columns)


def transition(
    connection: LedgerConnection, job: UUID, act: Callable[[JobGraph], Answer]
) -> Answer | None:
    """Reads the job, lets `act` do something to it, makes that durable.

    None if there is no such job.

    When somebody else was faster `act` runs again on a fresh read, this time with the job's row
    locked.
    """
    graph = load(connection, job)
    if graph is None:
        return None
    answer = act(graph)
    if save(connection, graph):
        return answer
    with connection.transaction():
        lock(connection, job)
        graph = load(connection, job)
        if graph is None:
            return None
        answer = act(graph)
        save(connection, graph)
        return answer


def count_end(state: JobState | None) -> None:
    """For the metrics: a process that serves them ended a job, if the state that it moved one to is an end."""
    if state is not None and is_terminal(state):
        metrics.JOBS_FINISHED.labels(state=state.lower()).inc()


def save(connection: LedgerConnection, graph: JobGraph) -> bool:
    """Makes the graph's notes durable and clears them.

    False, and nothing written, if the job has moved on since it was read.
    """
    if not graph.changes:
        return True
    parts = _parts(graph)
    parameters: dict[str, Any] = {
        "job": graph.id,
        "owner": graph.owner,
        "version": graph.version,
        "bump": len(graph.changes),
        "state": str(graph.state),
        "reason": str(graph.reason),
        "message": graph.message,
        "ended": is_terminal(graph.state),
        "reopened": bool(graph.redone),
        "ended_tasks": [end.task for end in graph.ended_attempts],
    }
    parameters |= {name: json.dumps(rows) for name, rows in parts.items()}
    done = connection.execute(_statement(tuple(parts)), parameters).fetchone() is not None
    if done:
        graph.clear_notes()
    return done


def _parts(graph: JobGraph) -> dict[str, list[dict[str, Any]]]:
    """The rows of each part of the statement, by column. Parts without rows are left out."""
    outputs = [(task, artifact) for task, result in graph.results for artifact in result.artifacts]
    rows: dict[str, list[dict[str, Any]]] = {
        "steps": [_step_row(graph.steps[ordinal]) for ordinal in graph.changed_steps],
        "tasks": [_task_row(graph.tasks[task]) for task in graph.changed_tasks],
        "redone": [{"step": t.step, "shard": t.shard} for t in graph.redone],
        "ends": [
            {
                "task_id": str(e.task),
                "number": e.number,
                "outcome": e.outcome,
                "reason": e.reason,
                "message": e.message,
            }
            for e in graph.ended_attempts
        ],
        "events": [
            _event_row(graph.version + n, change) for n, change in enumerate(graph.changes, 1)
        ],
        "items": [_item_row(task, item) for task, result in graph.results for item in result.items],
        "blobs": [
            {
                "id": a.blob.removeprefix("blobs/"),
                "size_bytes": a.size_bytes,
                "sha256": a.sha256.hex(),
                "media_type": a.media_type,
            }
            for _, a in outputs
        ],
        "artifacts": [_artifact_row(task, artifact) for task, artifact in outputs],
    }
    return {name: part for name, part in rows.items() if part}


def _step_row(step: Step) -> dict[str, Any]:
    return {
        "ordinal": step.ordinal,
        "state": step.state,
        "reason": step.reason,
        "message": step.message,
    }


def _task_row(task: Task) -> dict[str, Any]:
    return {
        "id": str(task.id),
        "state": task.state,
        "attempt": task.attempt,
        "allowed": task.allowed,
        "returned": task.returned,
        "delay_seconds": task.delay_seconds,
        "item_counts": task.counts,
        "result": None if task.result is None else b64encode(task.result).decode(),
    }


def _event_row(sequence: int, change: Change) -> dict[str, Any]:
    return {
        "sequence": sequence,
        "step": change.step,
        "shard": change.shard,
        "attempt": change.attempt,
        "state": change.state,
        "reason": change.reason,
        "message": change.message,
        "item_counts": change.item_counts,
    }


def _item_row(task: Task, item: job_pb2.Item) -> dict[str, Any]:
    return {
        "step": task.step,
        "shard": task.shard,
        "input": item.input,
        "state": item.state,
        "reason": item.reason,
        "message": item.message,
    }


def _artifact_row(task: Task, artifact: job_pb2.Artifact) -> dict[str, Any]:
    return {
        "step": task.step,
        "shard": task.shard,
        "name": artifact.name,
        "role": artifact.role,
        "input": artifact.input if artifact.HasField("input") else None,
        "blob_id": artifact.blob.removeprefix("blobs/"),
    }


@cache
def _statement(parts: tuple[str, ...]) -> str:
    """The job's update and one data-modifying CTE per part.

    Cached text, so that psycopg prepares each combination once.
    """
    return f"WITH {_JOB}{''.join(f', {name}_ AS ({_PARTS[name]})' for name in parts)} SELECT 1 FROM job"


_JOB: Final = """job AS (
  UPDATE jobs SET state = %(state)s, reason = %(reason)s, message = %(message)s, last_sequence = last_sequence + %(bump)s,
    end_time = CASE WHEN %(ended)s THEN coalesce(end_time, now()) END,
    expire_time = CASE WHEN %(reopened)s AND expire_time < now() THEN NULL ELSE expire_time END
  WHERE id = %(job)s AND last_sequence = %(version)s RETURNING id, schedule_time
)"""

_PARTS: Final[dict[str, str]] = {
    "steps": """
  UPDATE steps s SET state = u.state, reason = u.reason, message = u.message
  FROM job, json_to_recordset(%(steps)s::json) u(ordinal int2, state text, reason text, message text)
  WHERE s.job_id = job.id AND s.ordinal = u.ordinal""",
    # A result once there stays, until a retry takes it back together with the counts. A job retried
    # before its schedule_time waits for it.
    "tasks": """
  UPDATE tasks t SET state = u.state, attempt = u.attempt, allowed = u.allowed, returned = u.returned,
    run_after = greatest(now() + u.delay_seconds * interval '1 s', job.schedule_time), queued_time = NULL, item_counts = u.item_counts,
    result = CASE WHEN u.item_counts IS NULL THEN NULL ELSE coalesce(decode(u.result, 'base64'), t.result) END,
    worker_id = NULL, lease_expire_time = NULL
  FROM job, json_to_recordset(%(tasks)s::json)
    u(id uuid, state text, attempt int2, allowed int2, returned int2, delay_seconds float8, item_counts int[], result text)
  WHERE t.id = u.id AND t.job_id = job.id""",
    "redone": """
  DELETE FROM items i USING job, json_to_recordset(%(redone)s::json) u(step int2, shard int2)
  WHERE i.job_id = job.id AND i.step = u.step AND i.shard = u.shard
), redone_artifacts_ AS (
  DELETE FROM artifacts a USING job, json_to_recordset(%(redone)s::json) u(step int2, shard int2)
  WHERE a.job_id = job.id AND a.step = u.step AND a.shard = u.shard""",
    "ends": """
  UPDATE attempts a SET end_time = now(), outcome = u.outcome, reason = u.reason, message = u.message
  FROM job, json_to_recordset(%(ends)s::json) u(task_id uuid, number int2, outcome text, reason text, message text)
  WHERE a.task_id = ANY(%(ended_tasks)s) AND a.task_id = u.task_id AND a.number = u.number""",
    "events": """
  INSERT INTO events (job_id, owner, sequence, step, shard, attempt, state, reason, message, item_counts)
  SELECT job.id, %(owner)s, u.* FROM job, json_to_recordset(%(events)s::json)
    u(sequence int8, step int2, shard int2, attempt int2, state text, reason text, message text, item_counts int[])""",
    "items": """
  INSERT INTO items (job_id, step, shard, input, state, reason, message)
  SELECT job.id, u.* FROM job, json_to_recordset(%(items)s::json)
    u(step int2, shard int2, input int, state int2, reason text, message text)""",
    "blobs": """
  INSERT INTO blobs (id, owner, size_bytes, sha256, media_type, uploaded)
  SELECT u.id, %(owner)s, u.size_bytes, decode(u.sha256, 'hex'), u.media_type, false
  FROM job, json_to_recordset(%(blobs)s::json) u(id uuid, size_bytes int8, sha256 text, media_type text)""",
    "artifacts": """
  INSERT INTO artifacts (job_id, step, shard, name, role, input, blob_id)
  SELECT job.id, u.* FROM job, json_to_recordset(%(artifacts)s::json)
    u(step int2, shard int2, name text, role text, input int, blob_id uuid)""",
}
