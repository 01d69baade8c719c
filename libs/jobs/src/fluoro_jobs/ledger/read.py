"""Reads a job, or its events, as protos. Never writes."""

import threading
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

from fluoro.v1 import event_pb2, job_pb2, job_service_pb2
from psycopg import Cursor
from psycopg.rows import TupleRow

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.planning import Part
from fluoro_jobs.ledger.rows import (
    ARTIFACT_COLUMNS,
    ATTEMPT_COLUMNS,
    ITEM_COLUMNS,
    JOB_COLUMNS,
    STEP_COLUMNS,
    TASK_COLUMNS,
    TASKS,
    artifact_of,
    attempt_of,
    event_of,
    item_of,
    job_of,
    rows_of,
    set_result,
    step_of,
    task_of,
)
from fluoro_jobs.states import JobState, is_terminal

View: TypeAlias = "job_service_pb2.JobView.ValueType"
BASIC: Final = job_service_pb2.JOB_VIEW_BASIC
FULL: Final = job_service_pb2.JOB_VIEW_FULL

FEW_ROWS: Final = 2_000
"""Jobs of more rows are put together one at a time."""
_ONE_AT_A_TIME: Final = threading.Lock()
"""Held while a large job is put together.

Each thread that computes takes Python's interpreter lock from threads that should not wait, such as
that of an event loop.
"""
MAX_JOB_BYTES: Final = 4 * 2**20 - 2**10
"""Most that a job takes in an answer, which stays below the 4 MiB that gRPC's clients accept."""
SMALL_JOB_PARTS: Final = 200
"""A job with more inputs, tasks and items is read alone: others would wait for it."""
SMALL_JOB_BYTES: Final = 32 * 2**10
"""So is a job that takes more, say of results, attempts or artifacts."""
MAX_EARLIER_BYTES: Final = 64 * 2**20
"""Most that the results weigh, serialized, which one task reads of earlier steps."""
MAX_SEQUENCE: Final = 2**63 - 1

_ONE_MOMENT: Final = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"
# Each of these reads any number of jobs. The first column of a row names its job.
_JOBS: Final = f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = ANY(%(jobs)s)"
_STEPS: Final = f"""
SELECT s.job_id, {STEP_COLUMNS} FROM steps s
WHERE s.job_id = ANY(%(jobs)s) ORDER BY s.job_id, s.ordinal
"""
# Never more bytes than the view FULL has, so no job is refused that would have fitted.
# Without OFFSET 0, before the first ANALYZE, PostgreSQL walks through all attempts there are.
_WEIGHTS: Final = """
SELECT w.id,
  (SELECT input_count * 44 FROM jobs WHERE id = w.id) +
  (SELECT coalesce(sum(task_count * (8 + octet_length(queue))), 0) FROM steps WHERE job_id = w.id) +
  (SELECT coalesce(sum(r.weight), 0) FROM (
    SELECT CASE WHEN bool_or(t.result_blob IS NOT NULL) THEN 0 ELSE sum(octet_length(t.result)) END
    FROM steps s JOIN tasks t ON t.job_id = s.job_id AND t.step = s.ordinal
    WHERE s.job_id = w.id AND s.state IN ('SUCCEEDED', 'PARTIALLY_SUCCEEDED') GROUP BY t.step
  ) r(weight)) +
  (SELECT coalesce(sum(a.weight), 0) FROM tasks t CROSS JOIN LATERAL (
    SELECT 14 + octet_length(worker) + octet_length(reason) + octet_length(message) AS weight
    FROM attempts WHERE task_id = t.id OFFSET 0) a WHERE t.job_id = w.id) +
  (SELECT coalesce(sum(6 + octet_length(key) + octet_length(reason) + octet_length(message)), 0)
    FROM items WHERE job_id = w.id) +
  (SELECT coalesce(sum(80 + octet_length(name) + octet_length(role) + octet_length(key)), 0)
    FROM artifacts WHERE job_id = w.id)
FROM unnest(%(jobs)s::uuid[]) w(id)
"""
_INPUTS: Final = """
SELECT job_id, blob_id FROM job_inputs WHERE job_id = ANY(%(jobs)s) ORDER BY job_id, number
"""
# If one task's result is in a blob, those of the step's other tasks need not be read.
_RESULTS: Final = """
SELECT s.job_id, s.ordinal, s.operation, CASE WHEN NOT large THEN (
  SELECT string_agg(result, '' ORDER BY shard) FROM tasks
    WHERE job_id = s.job_id AND step = s.ordinal
) END
FROM steps s CROSS JOIN LATERAL (
  SELECT bool_or(result_blob IS NOT NULL) AS large FROM tasks
  WHERE job_id = s.job_id AND step = s.ordinal AND result IS NOT NULL HAVING count(*) > 0
) t
WHERE s.job_id = ANY(%(jobs)s) AND s.state IN ('SUCCEEDED', 'PARTIALLY_SUCCEEDED')
"""
_TASKS: Final = f"""
SELECT t.job_id, t.id, t.step, {TASK_COLUMNS} FROM {TASKS}
WHERE t.job_id = ANY(%(jobs)s) ORDER BY t.job_id, t.step, t.shard
"""
_ATTEMPTS: Final = f"""
SELECT a.task_id, {ATTEMPT_COLUMNS} FROM tasks t
CROSS JOIN LATERAL (SELECT * FROM attempts WHERE task_id = t.id OFFSET 0) a
WHERE t.job_id = ANY(%(jobs)s) ORDER BY a.task_id, a.number
"""
_ITEMS: Final = f"""
SELECT job_id, step, {ITEM_COLUMNS} FROM items WHERE job_id = ANY(%(jobs)s)
ORDER BY job_id, step, number
"""
_ARTIFACTS: Final = f"""
SELECT a.job_id, a.step, {ARTIFACT_COLUMNS}
FROM artifacts a JOIN blobs b ON b.id = a.blob_id WHERE a.job_id = ANY(%(jobs)s)
ORDER BY a.job_id, a.step, a.name
"""
_REST: Final = (_INPUTS, _RESULTS, _TASKS, _ATTEMPTS, _ITEMS, _ARTIFACTS)
"""What the view FULL has beyond BASIC."""
_HEAD: Final = "SELECT last_sequence, state FROM jobs WHERE id = %s AND owner = %s"
_ENDED: Final = "SELECT id FROM jobs WHERE id = ANY(%s) AND state <> ALL(%s)"
# The upper bound stands outside: between two bounds PostgreSQL expects few rows and would rather
# sort all of them than follow the index.
_EVENTS: Final = """
SELECT e.job_id, e.sequence, e.time, e.step, e.shard, e.attempt, e.state, e.reason, e.message,
  e.item_counts,
  (SELECT s.name FROM steps s WHERE s.job_id = e.job_id AND s.ordinal = e.step)
FROM unnest(%s::uuid[], %s::int8[], %s::int8[]) w(job_id, after, upto)
CROSS JOIN LATERAL (SELECT * FROM events WHERE job_id = w.job_id AND sequence > w.after
  ORDER BY sequence LIMIT %s::int8) e
WHERE e.sequence <= w.upto
LIMIT %s::int8
"""


def job_not_found(job_id: UUID) -> FluoroError:
    """The error for a job that does not exist or is another owner's."""
    return FluoroError(
        Reason.JOB_NOT_FOUND,
        f"jobs/{job_id} does not exist for this caller.",
        metadata={"job": f"jobs/{job_id}"},
    )


def get_job(
    connection: LedgerConnection,
    owner: str,
    job_id: UUID,
    into: job_pb2.Job | None = None,
    *,
    view: View = FULL,
) -> job_pb2.Job:
    """The job as of one moment. FluoroError JOB_NOT_FOUND if it is not the owner's.

    into: an empty job to fill and return, say a part of an answer: copying a large job takes as
    long as making it. view: unspecified is FULL. FluoroError ANSWER_TOO_LARGE if FULL would take
    more than MAX_JOB_BYTES.
    """
    job = job_pb2.Job() if into is None else into
    # One snapshot for all the reads: otherwise a step could show tasks of a later moment than the
    # job's state.
    with connection.transaction():
        with connection.pipeline():
            connection.execute(_ONE_MOMENT)
            heads = connection.execute(_JOBS, {"jobs": [job_id]})
            steps = connection.execute(_STEPS, {"jobs": [job_id]})
            # Weighed in the same exchange: to learn that a job is too large must not cost as much
            # as reading it.
            weights = connection.execute(_WEIGHTS, {"jobs": [job_id]}) if view != BASIC else None
            head = heads.fetchone()
        if head is None or head[1] != owner:
            raise job_not_found(job_id)
        job.MergeFrom(job_of(head))
        _add_steps({job_id: job}, steps.fetchall())
        if weights is None:
            return job
        # Refused before its rows are fetched: a job of 10,000 items would take this process's
        # memory for an answer that is not sent.
        if sum(weight for _, weight in weights.fetchall()) > MAX_JOB_BYTES:
            raise _too_large(job_id)
        with connection.pipeline():
            rest = _rest(connection, [job_id])
    _fill({job_id: job}, rest)
    # The weights are a lower bound, and spared reading what could not fit.
    if job.ByteSize() > MAX_JOB_BYTES:
        raise _too_large(job_id)
    return job


def get_jobs(
    connection: LedgerConnection, wanted: Sequence[tuple[str, tuple[UUID, View]]]
) -> list[job_pb2.Job | FluoroError | None]:
    """Does `get_job` for each owner, job and view, at little more than the cost of one.

    FluoroError in a job's place; None if it is too large to be read with others.
    """
    ids = list({job_id for _, (job_id, _) in wanted})
    # Several callers may ask for the same job in different views, and a caller for another's job.
    full = {(owner, job_id) for owner, (job_id, view) in wanted if view != BASIC}
    small: dict[UUID, job_pb2.Job] = {}
    with connection.transaction():
        connection.execute(_ONE_MOMENT)
        with connection.pipeline():
            heads = connection.execute(_JOBS, {"jobs": ids})
            steps = connection.execute(_STEPS, {"jobs": ids})
            weights = connection.execute(_WEIGHTS, {"jobs": list({job_id for _, job_id in full})})
            basic = {row[0]: job_of(row) for row in heads.fetchall()}
            _add_steps(basic, steps.fetchall())
        for job_id, weight in weights.fetchall():
            job = basic.get(job_id)
            # Of a job that is not the caller's, nothing more is read.
            if job is None or (job.owner, job_id) not in full:
                continue
            # Large jobs are left to `get_job`: the many small ones of this read would wait for one
            # of them.
            if _parts_of(job) <= SMALL_JOB_PARTS and weight <= SMALL_JOB_BYTES:
                small[job_id] = job_pb2.Job()
                small[job_id].CopyFrom(job)
        if small:
            with connection.pipeline():
                rest = _rest(connection, list(small))
            _fill(small, rest)

    def answer(owner: str, job_id: UUID, view: View) -> job_pb2.Job | FluoroError | None:
        if job_id not in basic or basic[job_id].owner != owner:
            return job_not_found(job_id)
        if view == BASIC:
            return basic[job_id]
        job = small.get(job_id)
        # The weight is a lower bound, so a job may still be too large.
        return _too_large(job_id) if job and job.ByteSize() > MAX_JOB_BYTES else job

    return [answer(owner, job_id, view) for owner, (job_id, view) in wanted]


def _too_large(job_id: UUID) -> FluoroError:
    return FluoroError(
        Reason.ANSWER_TOO_LARGE,
        "The job does not fit into one answer. Ask for the view BASIC, and page the rest with "
        "ListInputs, ListTasks, ListItems, ListArtifacts and ListResults.",
        metadata={"job": f"jobs/{job_id}"},
    )


def _parts_of(job: job_pb2.Job) -> int:
    """Inputs, tasks and items."""
    return job.input_count + sum(step.counts.tasks + step.counts.items for step in job.steps)


def _rest(connection: LedgerConnection, jobs: list[UUID]) -> list[Cursor[TupleRow]]:
    return [connection.execute(query, {"jobs": jobs}) for query in _REST]


def _add_steps(jobs: Mapping[UUID, job_pb2.Job], rows: Sequence[TupleRow]) -> None:
    names: dict[UUID, list[str]] = defaultdict(list)
    for job_id, _, name, *_ in rows:
        names[job_id].append(name)
    for job_id, *step in rows:
        jobs[job_id].steps.append(step_of(step, names[job_id]))


def _fill(jobs: Mapping[UUID, job_pb2.Job], parts: Sequence[Cursor[TupleRow]]) -> None:
    """Adds to the jobs what `_REST` found of them. A step's ordinal is its place."""
    # Rows were counted by PostgreSQL; nothing has been turned into messages yet.
    large = sum(part.rowcount for part in parts) > FEW_ROWS
    with _ONE_AT_A_TIME if large else nullcontext():
        inputs, results, tasks, attempts, items, artifacts = map(rows_of, parts)
        for job_id, blob in inputs:
            jobs[job_id].inputs.append(f"blobs/{blob}")
        for job_id, ordinal, operation, result in results:
            set_result(jobs[job_id].steps[ordinal], operation, result)
        attempts_of: dict[UUID, list[job_pb2.Attempt]] = defaultdict(list)
        for task_id, *attempt in attempts:
            attempts_of[task_id].append(attempt_of(attempt))
        for job_id, task_id, ordinal, *columns in tasks:
            task = jobs[job_id].steps[ordinal].tasks.add()
            task.MergeFrom(task_of(columns))
            task.attempts.extend(attempts_of[task_id])
        for job_id, ordinal, *item in items:
            jobs[job_id].steps[ordinal].items.append(item_of(item))
        for job_id, ordinal, *artifact in artifacts:
            jobs[job_id].steps[ordinal].artifacts.append(artifact_of(artifact))


def job_head(
    connection: LedgerConnection, owner: str, job_id: UUID
) -> tuple[int, job_pb2.Job.State.ValueType]:
    """Newest sequence and state of a job, whatever its size.

    FluoroError JOB_NOT_FOUND if it is not the owner's.
    """
    row = connection.execute(_HEAD, (job_id, owner)).fetchone()
    if row is None:
        raise job_not_found(job_id)
    return row[0], job_pb2.Job.State.Value(f"STATE_{row[1]}")


def ended(connection: LedgerConnection, jobs: Collection[UUID]) -> set[UUID]:
    """Those of the jobs that are terminal."""
    rows = connection.execute(
        _ENDED, (list(jobs), [state for state in JobState if not is_terminal(state)])
    ).fetchall()
    return {job_id for (job_id,) in rows}


def events_after(
    connection: LedgerConnection,
    after: Mapping[UUID, int],
    *,
    upto: Mapping[UUID, int] | None = None,
    each: int | None = None,
    limit: int | None = None,
) -> list[event_pb2.Event]:
    """Events newer than the given sequence of each job, job by job and by sequence.

    It is one query, however many jobs, and costs what it returns.

    upto: newest sequence wanted of each job. each, limit: most events of one job, and of all
    together.
    """
    most = limit if each is None else each
    newest = [MAX_SEQUENCE] * len(after) if upto is None else [upto[job] for job in after]
    found = connection.execute(_EVENTS, (list(after), list(after.values()), newest, most, limit))
    return [event_of(row) for row in rows_of(found)]


# --- what a step sees of those before it; see attempts.py ---

_FINISHED: Final = """
FROM steps s JOIN tasks t ON t.job_id = s.job_id AND t.step = s.ordinal AND t.result IS NOT NULL
WHERE s.job_id = %s AND s.ordinal = ANY(%s) AND s.state IN ('SUCCEEDED', 'PARTIALLY_SUCCEEDED')
"""
_UPSTREAM: Final = f"""
SELECT s.ordinal, s.name, s.operation, array_agg(t.result ORDER BY t.shard),
  array_agg(t.result_blob ORDER BY t.shard)
{_FINISHED} GROUP BY s.ordinal, s.name, s.operation ORDER BY s.ordinal
"""
_UPSTREAM_ITEMS: Final = f"""
SELECT step, {ITEM_COLUMNS} FROM items WHERE job_id = %s AND step = ANY(%s) ORDER BY step, number
"""
_UPSTREAM_ARTIFACTS: Final = f"""
SELECT a.step, {ARTIFACT_COLUMNS} FROM artifacts a JOIN blobs b ON b.id = a.blob_id
WHERE a.job_id = %s AND a.step = ANY(%s) ORDER BY a.step, a.name
"""
_LEAVING: Final = """FROM (
  SELECT DISTINCT a.step, a.shard FROM unnest(%(steps)s::int2[], %(names)s::text[]) u(step, name)
  JOIN artifacts a ON a.job_id = %(job)s AND a.step = u.step AND a.name = u.name
) l
JOIN tasks t ON t.job_id = %(job)s AND t.step = l.step AND t.shard = l.shard
JOIN steps s ON s.job_id = %(job)s AND s.ordinal = l.step
WHERE t.result IS NOT NULL"""
_LEFT: Final = f"""
SELECT s.name, s.operation, array_agg(t.result ORDER BY t.shard),
  array_agg(t.result_blob ORDER BY t.shard)
{_LEAVING} GROUP BY s.ordinal, s.name, s.operation ORDER BY s.ordinal
"""
# Without OFFSET 0, PostgreSQL may join them with all blobs there are.
_BYTES: Final = """
SELECT coalesce(sum(octet_length(t.result) + coalesce(
  (SELECT size_bytes FROM blobs WHERE id = t.result_blob OFFSET 0), 0)), 0)::int8
"""
_LEFT_BYTES: Final = _BYTES + _LEAVING


class StoredResult(NamedTuple):
    """What tasks of a step returned.

    operation: of the step. parts: of each task the serialized message, or the id of the blob that
    it is in; concatenated they are the result.
    """

    step: str
    operation: str
    parts: list[bytes | UUID]


def upstream_of(
    connection: LedgerConnection, job_id: UUID, ordinals: Iterable[int]
) -> list[tuple[StoredResult, list[job_pb2.Item], list[job_pb2.Artifact]]]:
    """Result, items and artifacts of these finished steps.

    FluoroError RESULT_TOO_LARGE if the results weigh more than MAX_EARLIER_BYTES.
    """
    wanted = list(ordinals)
    # Before the results are fetched: a worker that reads too much dies of memory, and its attempt
    # says nothing.
    _bounded(connection.execute(_BYTES + _FINISHED, (job_id, wanted)))
    with connection.pipeline():
        parts = [
            connection.execute(query, (job_id, wanted))
            for query in (_UPSTREAM, _UPSTREAM_ITEMS, _UPSTREAM_ARTIFACTS)
        ]
        steps, items, artifacts = (part.fetchall() for part in parts)
    return [
        (
            _stored(*stored),
            [item_of(i[1:]) for i in items if i[0] == ordinal],
            [artifact_of(a[1:]) for a in artifacts if a[0] == ordinal],
        )
        for ordinal, *stored in steps
    ]


def results_of(
    connection: LedgerConnection, job_id: UUID, parts: Iterable[Part]
) -> list[StoredResult]:
    """The results of the tasks that left these parts, by step. FluoroError as `upstream_of`."""
    left = {(part.step, part.name) for part in parts}
    parameters = {
        "job": job_id,
        "steps": [step for step, _ in left],
        "names": [name for _, name in left],
    }
    _bounded(connection.execute(_LEFT_BYTES, parameters))
    return [_stored(*row) for row in connection.execute(_LEFT, parameters).fetchall()]


def _bounded(found: Cursor[TupleRow]) -> None:
    ((weight,),) = found.fetchall()
    if weight > MAX_EARLIER_BYTES:
        raise FluoroError(
            Reason.RESULT_TOO_LARGE,
            f"The results of the earlier steps have {weight} bytes, over the limit of "
            f"{MAX_EARLIER_BYTES} for what one task reads. Set a smaller max_inputs_per_task, or "
            "split the job.",
        )


def _stored(
    step: str, operation: str, results: list[bytes], blobs: list[UUID | None]
) -> StoredResult:
    return StoredResult(step, operation, [b or r for r, b in zip(results, blobs, strict=True)])
