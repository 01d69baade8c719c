"""Reads jobs and events as protos. Never writes."""

import base64
import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from fluoro.v1 import event_pb2, job_pb2, job_service_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from psycopg import Cursor
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from fluoro_jobs.errors import FieldViolation, FluoroError, Reason
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.operations import BY_FIELD
from fluoro_jobs.states import JobState, is_terminal

FEW_ROWS: Final = 2_000
"""A job of more rows is made in turn with other such jobs."""
_ONE_AT_A_TIME: Final = threading.Lock()
"""Threads that compute take turns of Python's interpreter lock with those that should not wait, such as an event loop's."""
FETCHED_ROWS: Final = 500
"""Rows that a read takes from its result at a time."""
DEFAULT_PAGE: Final = 50
MAX_PAGE: Final = 1000
PAGE_CHARACTERS: Final = 2**20
"""Of names of inputs and of labels, after which a page takes no further job."""
INPUT_CHARACTERS: Final = 44
"""Of the name of an input, with what the protocol adds."""
LONGEST_TOKEN: Final = 128
"""Characters of a page token, and more."""
MAX_SEQUENCE: Final = 2**63 - 1

SMALL_JOB_INPUTS: Final = 50
"""A job of more inputs is not read together with others: they would wait for it."""

_ONE_MOMENT: Final = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"
_JOB_COLUMNS: Final = """id, owner, inputs, labels, priority, state, reason, message, last_sequence,
  create_time, schedule_time, expire_time, start_time, end_time"""
_JOB: Final = f"SELECT {_JOB_COLUMNS} FROM jobs WHERE id = %s AND owner = %s"
_HEADS: Final = f"""
SELECT {_JOB_COLUMNS.replace("inputs", "CASE WHEN cardinality(inputs) <= %s THEN inputs END")} FROM jobs WHERE id = ANY(%s)
"""
# What follows is of any number of jobs, each row with its job first.
_STEPS: Final = """
SELECT s.job_id, s.ordinal, s.name, s.operation, s.request, s.after, s.max_attempts, s.initial_backoff_seconds, s.max_backoff_seconds,
  s.timeout_seconds, s.requires_all, s.state, s.reason, s.message, (SELECT string_agg(t.result, '' ORDER BY t.shard) FROM tasks t
    WHERE t.job_id = s.job_id AND t.step = s.ordinal AND s.state IN ('SUCCEEDED', 'PARTIALLY_SUCCEEDED')),
  (SELECT max(t.input_count) FROM tasks t WHERE t.job_id = s.job_id AND t.step = s.ordinal AND s.fans_out)
FROM steps s WHERE s.job_id = ANY(%s) ORDER BY s.job_id, s.ordinal
"""
_TASKS: Final = """
SELECT job_id, id, step, shard, queue, state, run_after, first_input, input_count FROM tasks WHERE job_id = ANY(%s)
ORDER BY job_id, step, shard
"""
_ATTEMPTS: Final = """
SELECT a.task_id, a.number, a.worker, a.start_time, a.end_time, a.outcome, a.reason, a.message
FROM tasks t JOIN attempts a ON a.task_id = t.id WHERE t.job_id = ANY(%s) ORDER BY a.task_id, a.number
"""
_ITEMS: Final = """
SELECT job_id, step, input, state, reason, message FROM items WHERE job_id = ANY(%s) ORDER BY job_id, step, input
"""
_ARTIFACTS: Final = """
SELECT a.job_id, a.step, a.name, a.role, b.media_type, a.input, a.blob_id, b.size_bytes, b.sha256
FROM artifacts a JOIN blobs b ON b.id = a.blob_id WHERE a.job_id = ANY(%s) ORDER BY a.job_id, a.step, a.name
"""
# A job may have 10,000 inputs, and a page 1000 jobs: it ends with the one that takes it over
# PAGE_CHARACTERS.
_LIST: Final = f"""
SELECT {_JOB_COLUMNS}, found FROM (
  SELECT *, count(*) OVER () AS found, sum(characters) OVER (ORDER BY id DESC) - characters AS before FROM (
    SELECT {_JOB_COLUMNS}, cardinality(inputs) * {INPUT_CHARACTERS} + length(labels::text) AS characters FROM jobs
    WHERE owner = %(owner)s AND (%(before)s::uuid IS NULL OR id < %(before)s) AND (%(states)s::text[] = '{{}}' OR state = ANY(%(states)s))
      AND labels @> %(labels)s
    ORDER BY id DESC LIMIT %(limit)s
  ) candidates
) weighed WHERE before < {PAGE_CHARACTERS} ORDER BY id DESC
"""
_HEAD: Final = "SELECT last_sequence, state FROM jobs WHERE id = %s AND owner = %s"
_ENDED: Final = "SELECT id FROM jobs WHERE id = ANY(%s) AND state <> ALL(%s)"
# The upper bound stands outside: between two bounds PostgreSQL expects few rows and would rather
# sort all of them than follow the index.
_EVENTS: Final = """
SELECT e.job_id, e.sequence, e.time, e.step, e.shard, e.attempt, e.state, e.reason, e.message, e.item_counts,
  (SELECT s.name FROM steps s WHERE s.job_id = e.job_id AND s.ordinal = e.step)
FROM unnest(%s::uuid[], %s::int8[], %s::int8[]) w(job_id, after, upto)
CROSS JOIN LATERAL (SELECT * FROM events WHERE job_id = w.job_id AND sequence > w.after ORDER BY sequence LIMIT %s::int8) e
WHERE e.sequence <= w.upto
LIMIT %s::int8
"""


def job_not_found(job_id: UUID) -> FluoroError:
    """What a caller hears of a job that does not exist or is another's."""
    return FluoroError(
        Reason.JOB_NOT_FOUND,
        f"jobs/{job_id} does not exist for this caller.",
        metadata={"job": f"jobs/{job_id}"},
    )


def get_job(
    connection: LedgerConnection, owner: str, job_id: UUID, into: job_pb2.Job | None = None
) -> job_pb2.Job:
    """The whole job as of one moment. FluoroError JOB_NOT_FOUND if it is not the owner's.

    into: an empty job to fill and return, part of an answer say: copying a large one takes as long
    as making it.
    """
    with connection.transaction(), connection.pipeline():
        connection.execute(_ONE_MOMENT)
        head = connection.execute(_JOB, (job_id, owner))
        parts = _parts(connection, [job_id])
        row = head.fetchone()
    if row is None:
        raise job_not_found(job_id)
    job = job_pb2.Job() if into is None else into
    job.MergeFrom(_job(row))
    _fill({job_id: job}, parts)
    return job


def get_jobs(
    connection: LedgerConnection, wanted: Sequence[tuple[str, UUID]]
) -> list[job_pb2.Job | FluoroError | None]:
    """As `get_job` for each owner and job, for little more than one of them costs.

    FluoroError JOB_NOT_FOUND in a job's place; None if it is too large to be read with others.
    """
    jobs: dict[UUID, job_pb2.Job | None] = {}
    ids = list({job_id for _, job_id in wanted})
    with connection.transaction():
        connection.execute(_ONE_MOMENT)
        for row in connection.execute(_HEADS, (SMALL_JOB_INPUTS, ids)).fetchall():
            jobs[row[0]] = None if row[2] is None else _job(row)
        small = {job_id: job for job_id, job in jobs.items() if job is not None}
        with connection.pipeline():
            parts = _parts(connection, list(small))
    _fill(small, parts)
    owners = {job_id: job.owner for job_id, job in small.items()}
    return [
        job_not_found(job_id)
        if job_id not in jobs or owners.get(job_id, owner) != owner
        else jobs[job_id]
        for owner, job_id in wanted
    ]


def _parts(connection: LedgerConnection, jobs: list[UUID]) -> list[Cursor[TupleRow]]:
    """Steps, tasks, attempts, items and artifacts of the jobs."""
    return [
        connection.execute(query, (jobs,))
        for query in (_STEPS, _TASKS, _ATTEMPTS, _ITEMS, _ARTIFACTS)
    ]


def _fill(jobs: Mapping[UUID, job_pb2.Job], parts: Sequence[Cursor[TupleRow]]) -> None:
    """Adds the parts to their jobs."""
    large = sum(part.rowcount for part in parts) > FEW_ROWS
    with _ONE_AT_A_TIME if large else nullcontext():
        steps, (tasks, attempts, items, artifacts) = list(_rows(parts[0])), map(_rows, parts[1:])
        names: dict[UUID, list[str]] = defaultdict(list)
        for job_id, _, name, *_ in steps:
            names[job_id].append(name)
        added: dict[tuple[UUID, int], job_pb2.Step] = {}
        for job_id, *step in steps:
            added[job_id, step[0]] = jobs[job_id].steps.add()
            added[job_id, step[0]].MergeFrom(_step(step, names[job_id]))
        attempts_of: dict[UUID, list[job_pb2.Attempt]] = defaultdict(list)
        for attempt in attempts:
            attempts_of[attempt[0]].append(_attempt(attempt))
        for job_id, task_id, ordinal, shard, queue, state, run_after, first, count in tasks:
            task = added[job_id, ordinal].tasks.add(
                shard=shard, queue=queue, state=job_pb2.Task.State.Value(f"STATE_{state}")
            )
            task.first_input, task.input_count = first, count
            _set_time(task.run_after_time, run_after)
            task.attempts.extend(attempts_of[task_id])
        for job_id, ordinal, *item in items:
            added[job_id, ordinal].items.append(_item(item))
        for job_id, ordinal, *artifact in artifacts:
            added[job_id, ordinal].artifacts.append(_artifact(artifact))


def _rows(cursor: Cursor[TupleRow]) -> Iterator[TupleRow]:
    """All rows. A few at a time: a fetch keeps Python's interpreter lock until it is through."""
    while rows := cursor.fetchmany(FETCHED_ROWS):
        yield from rows


def list_jobs(
    connection: LedgerConnection, owner: str, request: job_service_pb2.ListJobsRequest
) -> job_service_pb2.ListJobsResponse:
    """One page, newest first, by key: nothing repeats or hides when jobs come in meanwhile.

    Jobs with many inputs make it shorter.
    """
    if request.page_size < 0:
        raise FluoroError(
            Reason.INVALID_ARGUMENT,
            "page_size is negative.",
            [FieldViolation("page_size", "Must not be negative.")],
        )
    limit = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
    parameters = {
        "owner": owner,
        "before": _read_token(request),
        "states": [
            job_pb2.Job.State.Name(state).removeprefix("STATE_") for state in request.states
        ],
        "labels": Jsonb(dict(request.labels)),
        "limit": limit + 1,
    }
    rows = list(_rows(connection.execute(_LIST, parameters)))[:limit]
    token = _write_token(request, rows[-1][0]) if rows and rows[0][-1] > len(rows) else ""
    return job_service_pb2.ListJobsResponse(
        jobs=(_job(row[:-1]) for row in rows), next_page_token=token
    )


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

    One query, however many jobs.

    upto: newest sequence wanted of each job. each, limit: most events of one job, and of all
    together. It costs what it returns.
    """
    each = limit if each is None else each
    newest = [MAX_SEQUENCE] * len(after) if upto is None else [upto[job] for job in after]
    return list(
        map(
            _event,
            _rows(
                connection.execute(
                    _EVENTS, (list(after), list(after.values()), newest, each, limit)
                )
            ),
        )
    )


# --- upstream: what a step sees of those before it; see attempts.py ---


def upstream_of(
    connection: LedgerConnection, job_id: UUID, ordinals: Iterable[int]
) -> list[tuple[str, str, bytes, list[job_pb2.Item], list[job_pb2.Artifact]]]:
    """Name, operation, serialized result, items and artifacts of these finished steps."""
    wanted = set(ordinals)
    with connection.pipeline():
        parts = [connection.execute(query, ([job_id],)) for query in (_STEPS, _ITEMS, _ARTIFACTS)]
        steps, items, artifacts = ([row[1:] for row in part.fetchall()] for part in parts)
    return [
        (
            s[1],
            s[2],
            s[13],
            [_item(i[1:]) for i in items if i[0] == s[0]],
            [_artifact(a[1:]) for a in artifacts if a[0] == s[0]],
        )
        for s in steps
        if s[0] in wanted and s[13] is not None
    ]


# --- rows to protos ---


def _set_time(field: Timestamp, value: datetime | None) -> None:
    """Leaves the field unset for None: a Timestamp that is only looked at does not count as set."""
    if value is not None:
        field.FromDatetime(value)


def _job(row: TupleRow) -> job_pb2.Job:
    id_, owner, inputs, labels, priority, state, reason, message, last_sequence, *times = row
    job = job_pb2.Job(
        name=f"jobs/{id_}",
        owner=owner,
        inputs=[f"blobs/{blob}" for blob in inputs],
        labels=labels,
        priority=priority,
        state=job_pb2.Job.State.Value(f"STATE_{state}"),
        reason=reason,
        message=message,
        last_sequence=last_sequence,
    )
    fields = (job.create_time, job.schedule_time, job.expire_time, job.start_time, job.end_time)
    for field, value in zip(fields, times, strict=True):
        _set_time(field, value)
    return job


def _step(row: Sequence[Any], names: list[str]) -> job_pb2.Step:
    (
        _,
        name,
        field,
        request,
        after,
        max_attempts,
        *seconds,
        requires_all,
        state,
        reason,
        message,
        result,
        inputs_per_task,
    ) = row
    step = job_pb2.Step(
        name=name,
        after=[names[i] for i in after],
        state=job_pb2.Step.State.Value(f"STATE_{state}"),
        reason=reason,
        message=message,
    )
    operation = BY_FIELD.get(field)
    if operation is not None:  # a newer gateway accepted it; this one cannot show what it does
        getattr(step, field).SetInParent()
        getattr(step, field).ParseFromString(request)
        if result is not None:
            getattr(step, f"{field}_result").SetInParent()
            getattr(step, f"{field}_result").ParseFromString(result)
    step.retry_policy.max_attempts = max_attempts
    durations = (
        step.retry_policy.initial_backoff,
        step.retry_policy.max_backoff,
        step.attempt_timeout,
    )
    for duration, value in zip(durations, seconds, strict=True):
        duration.FromMilliseconds(round(value * 1000))
    step.max_inputs_per_task = inputs_per_task or 0
    step.item_failure_policy = (
        job_pb2.Step.ITEM_FAILURE_POLICY_FAIL_STEP
        if requires_all
        else job_pb2.Step.ITEM_FAILURE_POLICY_ALLOW
    )
    return step


def _attempt(row: TupleRow) -> job_pb2.Attempt:
    _, number, worker, start_time, end_time, outcome, reason, message = row
    attempt = job_pb2.Attempt(number=number, worker=worker, reason=reason, message=message)
    attempt.outcome = job_pb2.Attempt.Outcome.Value(f"OUTCOME_{outcome or 'UNSPECIFIED'}")
    _set_time(attempt.start_time, start_time)
    _set_time(attempt.end_time, end_time)
    return attempt


def _item(row: Any) -> job_pb2.Item:
    number, state, reason, message = row
    return job_pb2.Item(input=number, state=state, reason=reason, message=message)


def _artifact(row: Any) -> job_pb2.Artifact:
    name, role, media_type, number, blob_id, size_bytes, sha256 = row
    return job_pb2.Artifact(
        name=name,
        role=role,
        media_type=media_type,
        input=number,
        blob=f"blobs/{blob_id}",
        size_bytes=size_bytes,
        sha256=sha256,
    )


def _event(row: TupleRow) -> event_pb2.Event:
    job_id, sequence, time, step, shard, attempt, state, reason, message, counts, name = row
    event = event_pb2.Event(sequence=sequence, job=f"jobs/{job_id}")
    event.time.FromDatetime(time)
    change: event_pb2.JobChanged | event_pb2.StepChanged | event_pb2.TaskChanged
    if step is None:
        change = event.job_changed
        event.job_changed.state = job_pb2.Job.State.Value(f"STATE_{state}")
    elif shard is None:
        change = event.step_changed
        event.step_changed.state = job_pb2.Step.State.Value(f"STATE_{state}")
        event.step_changed.step = name
    else:
        change = event.task_changed
        event.task_changed.state = job_pb2.Task.State.Value(f"STATE_{state}")
        event.task_changed.step, event.task_changed.shard, event.task_changed.attempt = (
            name,
            shard,
            attempt,
        )
        if counts:
            total, succeeded, skipped, failed = counts
            event.task_changed.items.CopyFrom(
                event_pb2.ItemCounts(
                    total=total, succeeded=succeeded, skipped=skipped, failed=failed
                )
            )
    change.reason, change.message = reason, message
    return event


# --- page tokens: opaque, and good for the filter they were made with only ---


def _filter_digest(request: job_service_pb2.ListJobsRequest) -> str:
    text = json.dumps([list(request.states), sorted(request.labels.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write_token(request: job_service_pb2.ListJobsRequest, last: UUID) -> str:
    return base64.urlsafe_b64encode(f"{last}/{_filter_digest(request)}".encode()).decode()


def _read_token(request: job_service_pb2.ListJobsRequest) -> UUID | None:
    if not request.page_token:
        return None
    try:
        last, digest = (
            base64.urlsafe_b64decode(request.page_token[:LONGEST_TOKEN].encode())
            .decode()
            .split("/")
        )
        if digest == _filter_digest(request):
            return UUID(last)
    except ValueError:
        digest = ""
    text = (
        "Must be the next_page_token of a call with the same filter."
        if digest
        else "Must be a next_page_token."
    )
    raise FluoroError(
        Reason.INVALID_ARGUMENT,
        "The page_token does not fit.",
        [FieldViolation("page_token", text)],
    )
