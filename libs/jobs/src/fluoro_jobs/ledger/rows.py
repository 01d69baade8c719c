"""Rows of the ledger as protos."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

from fluoro.v1 import event_pb2, job_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from psycopg import Cursor
from psycopg.rows import TupleRow

from fluoro_jobs.ledger.submission import pipeline_name
from fluoro_jobs.operations import BY_FIELD

FETCHED_ROWS: Final = 500
"""Rows that a read takes from its result at a time."""

JOB_COLUMNS: Final = """id, owner, input_count, labels, priority, state, reason, message,
  last_sequence, pipeline, pipeline_version, create_time, schedule_time, expire_time, start_time,
  end_time"""
"""What `job_of` takes, of the table of jobs."""


def rows_of(cursor: Cursor[TupleRow]) -> Iterator[TupleRow]:
    """All rows. A few at a time: a fetch keeps Python's interpreter lock until it is through."""
    while rows := cursor.fetchmany(FETCHED_ROWS):
        yield from rows


def set_time(field: Timestamp, value: datetime | None) -> None:
    """Leaves the field unset for None: a Timestamp that is only looked at does not count as set."""
    if value is not None:
        field.FromDatetime(value)


def job_of(row: TupleRow) -> job_pb2.Job:
    """The job alone, without inputs and steps."""
    id_, owner, inputs, labels, priority, state, reason, message, last_sequence = row[:9]
    pipeline, version, *times = row[9:]
    job = job_pb2.Job(
        name=f"jobs/{id_}",
        owner=owner,
        input_count=inputs,
        labels=labels,
        priority=priority,
        state=job_pb2.Job.State.Value(f"STATE_{state}"),
        reason=reason,
        message=message,
        last_sequence=last_sequence,
        pipeline=pipeline_name(pipeline, version),
    )
    fields = (job.create_time, job.schedule_time, job.expire_time, job.start_time, job.end_time)
    for field, value in zip(fields, times, strict=True):
        set_time(field, value)
    return job


STEP_COLUMNS: Final = """s.ordinal, s.name, s.operation, s.request, s.after, s.max_attempts,
  s.initial_backoff_seconds, s.max_backoff_seconds, s.timeout_seconds, s.requires_all,
  s.allow_identifiable, s.state, s.reason, s.message, s.inputs_per_task, s.sources,
  ARRAY[s.task_count, s.ended_tasks, s.failed_tasks,
    s.items_total + CASE WHEN s.inputs_per_task > 0 THEN s.lost_inputs ELSE 0 END,
    s.items_succeeded, s.items_skipped,
    s.items_failed + CASE WHEN s.inputs_per_task > 0 THEN s.lost_inputs ELSE 0 END]"""
"""What `step_of` takes."""


def step_of(row: Any, names: list[str]) -> job_pb2.Step:
    """The step without tasks, items, artifacts and result. names: of all steps, by ordinal."""
    _, name, field, request, after, max_attempts, *seconds = row[:9]
    requires_all, allow_identifiable, state, reason, message, per_task, sources, counts = row[9:]
    step = job_pb2.Step(
        name=name,
        after=[names[i] for i in after],
        state=job_pb2.Step.State.Value(f"STATE_{state}"),
        reason=reason,
        message=message,
        max_inputs_per_task=per_task,
        allow_identifiable=allow_identifiable,
    )
    for ordinal, role, group in sources or ():
        step.inputs.add(step="" if ordinal is None else names[ordinal], role=role, group=group)
    if field in BY_FIELD:  # else a newer gateway accepted it; this one cannot show what it does
        getattr(step, field).SetInParent()
        getattr(step, field).ParseFromString(request)
    step.retry_policy.max_attempts = max_attempts
    policy = step.retry_policy
    durations = (policy.initial_backoff, policy.max_backoff, step.attempt_timeout)
    for duration, value in zip(durations, seconds, strict=True):
        duration.FromMilliseconds(round(value * 1000))
    step.item_failure_policy = (
        job_pb2.Step.ITEM_FAILURE_POLICY_FAIL_STEP
        if requires_all
        else job_pb2.Step.ITEM_FAILURE_POLICY_ALLOW
    )
    done = step.counts
    done.tasks, done.ended_tasks, done.failed_tasks, done.items = counts[:4]
    done.succeeded_items, done.skipped_items, done.failed_items = counts[4:]
    return step


def set_result(step: job_pb2.Step, operation: str, result: bytes | None) -> None:
    """Gives a step its result, if this release knows the operation. None: it lies in blobs."""
    step.large_result = result is None
    if operation in BY_FIELD and result is not None:
        getattr(step, f"{operation}_result").SetInParent()
        getattr(step, f"{operation}_result").ParseFromString(result)


TASK_COLUMNS: Final = """t.shard, s.queue,
  CASE WHEN t.state <> 'OPEN' THEN t.state WHEN o.state = 'WAITING' THEN 'READY'
    ELSE o.state END AS state,
  o.due_time, t.first_input, t.input_count"""
"""What `task_of` takes, of `TASKS`."""
TASKS: Final = """tasks t
  JOIN LATERAL (SELECT * FROM steps WHERE job_id = t.job_id AND ordinal = t.step OFFSET 0) s ON true
  LEFT JOIN LATERAL (SELECT * FROM open_tasks WHERE task_id = t.id OFFSET 0) o ON true"""
"""Tasks, their steps, and where those stand that have not ended.

Without OFFSET 0, PostgreSQL may join them with all steps there are, or all open tasks.
"""


def task_of(row: Any) -> job_pb2.Task:
    """The task without its attempts."""
    shard, queue, state, due_time, first_input, input_count = row
    task = job_pb2.Task(
        shard=shard,
        queue=queue,
        state=job_pb2.Task.State.Value(f"STATE_{state}"),
        first_input=first_input,
        input_count=input_count,
    )
    set_time(task.run_after_time, due_time)
    return task


ATTEMPT_COLUMNS: Final = (
    "a.number, a.worker, a.start_time, a.end_time, a.outcome, a.reason, a.message"
)
"""What `attempt_of` takes."""


def attempt_of(row: Any) -> job_pb2.Attempt:
    """The attempt."""
    number, worker, start_time, end_time, outcome, reason, message = row
    attempt = job_pb2.Attempt(number=number, worker=worker, reason=reason, message=message)
    attempt.outcome = job_pb2.Attempt.Outcome.Value(f"OUTCOME_{outcome or 'UNSPECIFIED'}")
    set_time(attempt.start_time, start_time)
    set_time(attempt.end_time, end_time)
    return attempt


ITEM_COLUMNS: Final = "coalesce(input, -1), key, state, reason, message"
"""What `item_of` takes, of the table of items."""


def item_of(row: Any) -> job_pb2.Item:
    """The item."""
    number, key, state, reason, message = row
    return job_pb2.Item(input=number, key=key, state=state, reason=reason, message=message)


ARTIFACT_COLUMNS: Final = (
    "a.name, a.role, b.media_type, a.input, a.key, a.blob_id, b.size_bytes, b.sha256"
)
"""What `artifact_of` takes, of artifacts and their blobs."""


def artifact_of(row: Any) -> job_pb2.Artifact:
    """The artifact."""
    name, role, media_type, number, key, blob_id, size_bytes, sha256 = row
    return job_pb2.Artifact(
        name=name,
        role=role,
        media_type=media_type,
        input=number,
        key=key,
        blob=f"blobs/{blob_id}",
        size_bytes=size_bytes,
        sha256=sha256,
    )


def event_of(row: TupleRow) -> event_pb2.Event:
    """The event."""
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
