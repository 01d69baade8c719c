"""Accepts jobs: concurrent submits share a transaction, and hear OK only after its COMMIT (I1)."""

import json
import threading
import time
import traceback
from base64 import b64encode
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

import structlog
from fluoro.v1 import job_pb2
from fluoro_telemetry import metrics
from google.protobuf.timestamp_pb2 import Timestamp

from fluoro_jobs.errors import FieldViolation, FluoroError, Reason
from fluoro_jobs.ledger.connection import Ledger, LedgerConnection
from fluoro_jobs.ledger.line import Line
from fluoro_jobs.ledger.planning import ALL
from fluoro_jobs.ledger.rows import JOB_COLUMNS, job_of, rows_of
from fluoro_jobs.ledger.submission import MAX_TOLD, NewStep, Submission, pipeline_name, validate

__all__ = ["GroupCommit", "Submission", "accept", "repeated", "validate"]

MAX_BATCH: Final = 256
"""Most submits in one transaction."""
MAX_BATCH_BYTES: Final = 2**20
"""Most bytes of JSON that the rows of one transaction make. A heavier submit goes alone.

Encoding them holds up the other threads.
"""
MAX_WAITING: Final = 20_000
"""Most submits that wait for their transaction."""
MAX_WAITING_BYTES: Final = 64 * 2**20
"""Most bytes of JSON that their rows make."""
LINGER_SECONDS: Final = 0.002
"""How long a transaction waits for more submits right after one of several.

Callers who got their answers together do not submit again at the same moment. Without this pause a
busy gateway spends its time on small transactions: with 64 in flight they held ten each.
"""
BUSY_TRIES: Final = 3
"""How often a transaction is tried that PostgreSQL gives up, say because of a deadlock."""
BUSY_SECONDS: Final = 5
"""After this long there is no further try: other submits wait behind it."""

log = structlog.get_logger(__name__)

_INSERT: Final = """
WITH given AS MATERIALIZED (
  SELECT * FROM json_to_recordset(%(jobs)s::json) u(id uuid, owner text, request_id text,
    sha256 text, inputs uuid[], labels jsonb,
    priority int2, schedule_time timestamptz, expire_time timestamptz, pipeline text,
    pipeline_version int, principal text, how text, roles text[], method text, peer text,
    agent text)
), given_tasks AS MATERIALIZED (
  SELECT * FROM json_to_recordset(%(tasks)s::json) u(id uuid, job_id uuid, step int2, shard int2,
    queue text, task_name text,
    first_input int, input_count int, allowed int)
), wanted AS MATERIALIZED (
  -- In the order in which a removal locks them (deletion.py), lest the two wait for each other.
  SELECT u.id, u.owner, i.blob, i.place
  FROM given u, unnest(u.inputs) WITH ORDINALITY i(blob, place) ORDER BY i.blob
), missing AS MATERIALIZED (
  -- A look-up for each, lest the planner joins them with all blobs there are. What a job made may
  -- be deleted with that job at this moment, so it is locked; an upload never is.
  SELECT w.id, array_agg(w.place - 1 ORDER BY w.place) AS places
  FROM wanted w
  WHERE coalesce(
    (SELECT b.owner FROM blobs b WHERE b.id = w.blob AND b.uploaded),
    (SELECT b.owner FROM blobs b WHERE b.id = w.blob AND NOT b.uploaded FOR KEY SHARE)
  ) IS DISTINCT FROM w.owner
  GROUP BY w.id
), new_jobs AS (
  INSERT INTO jobs (id, owner, request_id, request_sha256, input_count, labels, priority,
    schedule_time, expire_time, pipeline, pipeline_version, state, last_sequence)
  SELECT u.id, u.owner, nullif(u.request_id, ''), decode(u.sha256, 'hex'), cardinality(u.inputs),
    u.labels, u.priority, u.schedule_time,
    u.expire_time, u.pipeline, u.pipeline_version, 'PENDING', 1
  FROM given u WHERE NOT EXISTS (SELECT FROM missing m WHERE m.id = u.id)
  ON CONFLICT DO NOTHING
  RETURNING id, owner, priority, create_time, schedule_time
), new_inputs AS (
  INSERT INTO job_inputs (job_id, number, blob_id)
  SELECT j.id, i.place - 1, i.blob
  FROM new_jobs j JOIN given u ON u.id = j.id, unnest(u.inputs) WITH ORDINALITY i(blob, place)
), new_steps AS (
  INSERT INTO steps (job_id, ordinal, name, operation, queue, task_name, request, after,
    max_attempts, initial_backoff_seconds,
    max_backoff_seconds, timeout_seconds, sources, inputs_per_task, requires_all,
      allow_identifiable, input_count, task_count, state)
  SELECT j.id, u.ordinal, u.name, u.operation, u.queue, u.task_name, decode(u.request, 'base64'),
    u.after, u.max_attempts,
    u.initial_backoff, u.max_backoff, u.timeout, u.sources, u.inputs_per_task, u.requires_all,
      u.allow_identifiable, u.input_count, u.task_count, 'PENDING'
  FROM new_jobs j JOIN json_to_recordset(%(steps)s::json) u(job_id uuid, ordinal int2, name text,
    operation text, queue text,
    task_name text, request text, after int2[], max_attempts int2, initial_backoff float8,
      max_backoff float8, timeout float8,
    sources jsonb, inputs_per_task int, requires_all bool, allow_identifiable bool,
      input_count int, task_count int) ON u.job_id = j.id
), new_tasks AS (
  INSERT INTO tasks (id, job_id, step, shard, first_input, input_count, allowed, state)
  SELECT u.id, j.id, u.step, u.shard, u.first_input, u.input_count, u.allowed, 'OPEN'
  FROM new_jobs j JOIN given_tasks u ON u.job_id = j.id
), new_open_tasks AS (
  INSERT INTO open_tasks (task_id, job_id, queue, owner, task_name, priority, due_time, order_time,
    state, dispatch_order)
  SELECT u.id, j.id, u.queue, j.owner, u.task_name, j.priority, due.time, due.time,
    CASE WHEN due.time > now() THEN 'WAITING' ELSE 'READY' END,
    CASE WHEN due.time <= now() THEN due.time - j.priority * interval '1 minute' END
  FROM new_jobs j JOIN given_tasks u ON u.job_id = j.id,
    LATERAL (SELECT greatest(j.create_time, j.schedule_time) AS time) due
), groups AS MATERIALIZED (
  SELECT * FROM json_to_recordset(%(groups)s::json) u(job_id uuid, step int2, key text)
), grouped AS MATERIALIZED (
  SELECT u.id, CASE WHEN cardinality(u.inputs) = 1 THEN 0 END AS input,
    (SELECT jsonb_agg(jsonb_build_array(b.id, 'input', '', b.media_type, NULL) ORDER BY i.place)
      FROM unnest(u.inputs) WITH ORDINALITY i(blob, place) JOIN blobs b ON b.id = i.blob) AS parts
  FROM given u WHERE u.id IN (SELECT job_id FROM groups)
), new_step_inputs AS (
  INSERT INTO step_inputs (job_id, step, number, key, input, parts)
  SELECT j.id, u.step, 0, u.key, g.input, g.parts
  FROM new_jobs j JOIN groups u ON u.job_id = j.id JOIN grouped g ON g.id = j.id
), new_events AS (
  INSERT INTO events (job_id, sequence, state, owner) SELECT id, 1, 'PENDING', owner FROM new_jobs
), new_audit AS (
  INSERT INTO audit (id, principal, how, roles, owner, method, action, thing, peer, agent)
  SELECT j.id, u.principal, u.how, u.roles, j.owner, u.method, 'C', 'jobs/' || j.id, u.peer, u.agent
  FROM new_jobs j JOIN given u ON u.id = j.id WHERE u.principal IS NOT NULL
)
SELECT id, create_time, NULL FROM new_jobs UNION ALL SELECT id, NULL, places FROM missing
"""
"""Inserts the jobs that are new and whose blobs all exist and belong to the job's owner.

Returns for each when it was made, or which of its inputs are missing.
"""

_EARLIER: Final = """
SELECT owner, request_id, id, request_sha256, create_time, state, last_sequence, pipeline,
  pipeline_version FROM jobs
WHERE (owner, request_id) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
UNION ALL
SELECT owner, NULL, id, request_sha256, create_time, state, last_sequence, pipeline,
  pipeline_version FROM jobs
  WHERE id = ANY(%s)
"""

_REPEATED: Final = f"""
SELECT request_id, request_sha256, {JOB_COLUMNS} FROM jobs
WHERE (owner, request_id) IN (SELECT %s, unnest(%s::text[]))
"""

_CONFIRM: Final = "SELECT pg_logical_emit_message(true, 'fluoro', 'repeated')"
"""A commit that writes: PostgreSQL acknowledges it once the standby has all that came before.

Reading alone proves nothing: after a restart the primary shows jobs whose standby never got them.
"""

Answer = job_pb2.Job | FluoroError


def accept(connection: LedgerConnection, submissions: Sequence[Submission]) -> list[Answer]:
    """Makes the submissions durable in one statement, so in one transaction.

    One answer each, in order: the job, or why it was refused.

    May be repeated: a submission that an earlier try made durable is found by its id.
    """
    # All gateways insert in one order: two that hold the same request_ids wait for each other,
    # rather than in a circle.
    ordered = sorted(submissions, key=attrgetter("owner", "request_id"))
    times: dict[UUID, datetime] = {}
    missing: dict[UUID, list[int]] = {}
    for job_id, create_time, places in connection.execute(_INSERT, _rows(ordered)).fetchall():
        if places is None:
            times[job_id] = create_time
        else:
            missing[job_id] = places
    repeated = [s for s in ordered if s.id not in times and s.id not in missing]
    earlier = _earlier(connection, repeated) if repeated else {}
    if earlier:
        connection.execute(_CONFIRM)
    metrics.JOBS_ACCEPTED.inc(len(times))
    made = Timestamp()
    if times:
        made.FromDatetime(next(iter(times.values())))  # one transaction, so one time
    return [
        _accepted(s, made)
        if s.id in times
        else _no_such_blob(missing[s.id])
        if s.id in missing
        else earlier[s.id]
        for s in submissions
    ]


def repeated(
    connection: LedgerConnection, owner: str, keys: Sequence[tuple[str, bytes]]
) -> dict[tuple[str, bytes], job_pb2.Job]:
    """The jobs of earlier submits of the same requests, without inputs and steps.

    For requests that are not taken any more. keys: `request_id` and digest of each; those that had
    no submit, or one with another body, are missing.
    """
    rows = connection.execute(_REPEATED, (owner, [request_id for request_id, _ in keys]))
    wanted = set(keys)
    found = {key: job_of(row[2:]) for row in rows_of(rows) if (key := row[:2]) in wanted}
    if found:
        connection.execute(_CONFIRM)
    return found


def _no_such_blob(places: Sequence[int]) -> FluoroError:
    violations = [
        FieldViolation(f"job.inputs[{i}]", "No such blob for this caller. Upload it first.")
        for i in places[:MAX_TOLD]
    ]
    text = f"{len(places)} of the inputs do not exist for this caller."
    return FluoroError(
        Reason.BLOB_NOT_FOUND, text, violations, more_violations=len(places) - len(violations)
    )


def _rows(submissions: Sequence[Submission]) -> dict[str, str]:
    """The JSON arguments of `_INSERT`."""
    ids = [str(s.id) for s in submissions]
    jobs = [
        {
            "id": job_id,
            "owner": s.owner,
            "request_id": s.request_id,
            "sha256": s.sha256.hex(),
            "inputs": list(map(str, s.inputs)),
            "labels": s.labels,
            "priority": s.priority,
            "schedule_time": s.schedule_time.isoformat() if s.schedule_time else None,
            "expire_time": s.expire_time.isoformat() if s.expire_time else None,
            "pipeline": s.pipeline or None,
            "pipeline_version": s.pipeline_version or None,
            **(s.audit.caller() if s.audit else {}),
        }
        for job_id, s in zip(ids, submissions, strict=True)
    ]
    each = [(i, step) for i, s in zip(ids, submissions, strict=True) for step in s.steps]
    steps = [_step_row(job_id, step) for job_id, step in each]
    tasks = [row for job_id, step in each for row in _task_rows(job_id, step)]
    # A step that comes after nothing and has sources works on all of the job's inputs as one.
    # Steps with the same sources share them (planning.py).
    groups = [
        {"job_id": str(s.id), "step": shared, "key": ALL}
        for s in submissions
        for shared in {
            min(other.ordinal for other in s.steps if other.sources == step.sources)
            for step in s.steps
            if step.sources and not step.after
        }
    ]
    return {
        "jobs": json.dumps(jobs),
        "steps": json.dumps(steps),
        "tasks": json.dumps(tasks),
        "groups": json.dumps(groups),
    }


def _step_row(job_id: str, step: NewStep) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "ordinal": step.ordinal,
        "name": step.name,
        "operation": step.operation.field,
        "queue": step.operation.queue,
        "task_name": step.operation.task_name,
        "request": b64encode(step.request).decode(),
        "after": step.after,
        "max_attempts": step.max_attempts,
        "initial_backoff": step.initial_backoff_seconds,
        "max_backoff": step.max_backoff_seconds,
        "timeout": step.timeout_seconds,
        "sources": step.sources,
        "inputs_per_task": step.inputs_per_task,
        "requires_all": step.requires_all,
        "allow_identifiable": step.allow_identifiable,
        "input_count": sum(inputs for _, _, inputs in step.tasks),
        "task_count": len(step.tasks),
    }


def _task_rows(job_id: str, step: NewStep) -> Iterator[dict[str, Any]]:
    for shard, (task_id, first_input, input_count) in enumerate(step.tasks):
        yield {
            "id": str(task_id),
            "job_id": job_id,
            "step": step.ordinal,
            "shard": shard,
            "queue": step.operation.queue,
            "task_name": step.operation.task_name,
            "first_input": first_input,
            "input_count": input_count,
            "allowed": step.max_attempts,
        }


def _accepted(submission: Submission, create_time: Timestamp) -> job_pb2.Job:
    job = submission.as_job()
    job.create_time.CopyFrom(create_time)
    return job


def _earlier(connection: LedgerConnection, repeated: Sequence[Submission]) -> dict[UUID, Answer]:
    """What an earlier submit with this request_id left: its job, or an error if bodies differ."""
    keys = [s.owner for s in repeated], [s.request_id for s in repeated], [s.id for s in repeated]
    found: dict[Any, Sequence[Any]] = {}
    for row in connection.execute(_EARLIER, keys).fetchall():
        owner, request_id, job_id, *_ = row
        found[(owner, request_id) if request_id else job_id] = row[2:]
    # The insert may have met a unique key for two reasons: this very submit, sent before a
    # connection broke, or another with its request_id.
    return {
        s.id: _again(s, found.get(s.id) or found.get((s.owner, s.request_id))) for s in repeated
    }


def _again(submission: Submission, row: Sequence[Any] | None) -> Answer:
    if row is None:  # it kept ours from being inserted, and was gone a moment later
        return FluoroError(
            Reason.LEDGER_BUSY, "An earlier job with this request_id was just removed. Try again."
        )
    job_id, sha256, create_time, state, last_sequence, *pipeline = row
    if sha256 != submission.sha256:
        violation = FieldViolation(
            "request_id", "Was used for a job with another body. Take a new one."
        )
        return FluoroError(
            Reason.REQUEST_ID_REUSED, "The request_id was used for another body.", [violation]
        )
    job = submission.as_job()
    job.create_time.FromDatetime(create_time)
    job.name, job.last_sequence, job.state = (
        f"jobs/{job_id}",
        last_sequence,
        job_pb2.Job.State.Value(f"STATE_{state}"),
    )
    job.pipeline = pipeline_name(*pipeline)  # the newest of then
    return job


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A submission that waits for its transaction, and the future that its caller waits for."""

    submission: Submission
    row_bytes: int
    future: "Future[job_pb2.Job]"


class GroupCommit(threading.Thread):
    """Gathers the submits that arrive while a transaction is under way into the next one.

    Adds no delay of its own while one submit comes at a time, and LINGER_SECONDS while many do.

    Every future gets an answer, and the thread goes on, whatever happens to a batch.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        max_waiting: int = MAX_WAITING,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        """Starts at once; `close()` ends it after what was submitted is answered.

        max_waiting, max_waiting_bytes: how many submits, and how many bytes of rows, may wait. A
        single submit may always.
        """
        super().__init__(name="group-commit", daemon=True)
        self._ledger = ledger
        self._max_waiting, self._max_waiting_bytes = max_waiting, max_waiting_bytes
        self._waiting = self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._line = Line[_Waiting]()
        self._next: _Waiting | None = None
        self._last_batch = 0
        self.start()

    def submit(self, submission: Submission) -> "Future[job_pb2.Job]":
        """A future of the job, or of the FluoroError that says why it was not accepted.

        Once the future cannot be cancelled any more, the job may be durable. FluoroError
        GATEWAY_BUSY, at once, if too much waits already.
        """
        waiting = _Waiting(submission, submission.row_bytes, Future())
        with self._lock:
            if self._waiting and (
                self._waiting >= self._max_waiting
                or self._waiting_bytes + waiting.row_bytes > self._max_waiting_bytes
            ):
                raise FluoroError(
                    Reason.GATEWAY_BUSY,
                    "Too many submits wait for the ledger. Nothing was stored; try again.",
                )
            self._waiting += 1
            self._waiting_bytes += waiting.row_bytes
        self._line.put(submission.owner, waiting)
        return waiting.future

    def close(self) -> None:
        """Waits until everything submitted before is answered."""
        self._line.close()
        self.join()

    def run(self) -> None:
        """One transaction after another, each with all that is waiting."""
        while batch := self._gather():
            # From here on callers cannot cancel: what they wait for may become durable.
            wanted = [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]
            if not wanted:
                continue  # nobody waits for them any more, and nothing of them was written
            metrics.GROUP_COMMIT_BATCH_SIZE.observe(len(wanted))
            for waiting, answer in zip(
                wanted, self._accept([waiting.submission for waiting in wanted]), strict=True
            ):
                if isinstance(answer, FluoroError):
                    waiting.future.set_exception(answer)
                else:
                    waiting.future.set_result(answer)

    def _gather(self) -> list[_Waiting]:
        """What waits, within the limits of one transaction. Owners take turns.

        Waits for the first; empty once closed.
        """
        first = self._next or self._line.take(wait=True)
        if first is None:
            return []
        self._next = None
        # Fewer wait than the last transaction answered: others are likely on their way.
        if 1 < self._last_batch > len(self._line):
            time.sleep(LINGER_SECONDS)
        batch, row_bytes = [first], first.row_bytes
        while len(batch) < MAX_BATCH and (waiting := self._line.take(wait=False)):
            row_bytes += waiting.row_bytes
            if row_bytes > MAX_BATCH_BYTES:
                self._next = waiting
                break
            batch.append(waiting)
        self._last_batch = len(batch)
        with self._lock:
            self._waiting -= len(batch)
            self._waiting_bytes -= sum(waiting.row_bytes for waiting in batch)
        return batch

    def _accept(self, batch: Sequence[Submission]) -> Sequence[Answer]:
        try:
            return self._accept_together(batch)
        except FluoroError as error:
            return [error] * len(batch)
        except Exception as error:  # noqa: BLE001 - the last stop: a thread that ended here would leave all submits without an answer
            if len(batch) > 1:  # one bad apple: the halves on their own, so that the others get in
                half = len(batch) // 2
                return [*self._accept(batch[:half]), *self._accept(batch[half:])]
            # Not the exception's text: it may quote the request.
            log.error(
                "submit_failed",
                exception=type(error).__qualname__,
                sqlstate=getattr(error, "sqlstate", None),
                where="".join(traceback.format_tb(error.__traceback__)),
            )
            return [
                FluoroError(
                    Reason.INTERNAL, "The job could not be stored. This is a bug in Fluoro."
                )
            ]

    def _accept_together(self, batch: Sequence[Submission]) -> Sequence[Answer]:
        """Accepts them in one transaction, and tries again if PostgreSQL gives it up."""
        started = time.monotonic()
        for tries_left in reversed(range(BUSY_TRIES)):
            try:
                with self._ledger.connection() as connection:
                    return accept(connection, batch)
            except FluoroError as error:
                if (
                    error.reason is not Reason.LEDGER_BUSY
                    or not tries_left
                    or time.monotonic() - started > BUSY_SECONDS
                ):
                    raise
        raise AssertionError("the last try returns or raises")
