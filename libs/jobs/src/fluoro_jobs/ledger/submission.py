"""Checks a SubmitJobRequest and turns it into rows. Pure."""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Literal, NamedTuple
from uuid import UUID

from fluoro.v1 import job_pb2, job_service_pb2
from google.protobuf.message import Message

from fluoro_jobs import operations, rules
from fluoro_jobs.errors import FieldViolation, FluoroError, Reason
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger.audit import Entry
from fluoro_jobs.ledger.records import MAX_TASKS
from fluoro_jobs.ledger.sources import ORIGINALS, Source, Wired, wire
from fluoro_jobs.operations import Operation
from fluoro_jobs.wellknown import is_time, seconds

MAX_LABELS: Final = 64
MAX_TEXT: Final = 256
"""Characters of a label's key or value."""
MAX_OPERATION_BYTES: Final = 16 * 2**10
"""Most that an operation's message weighs; it may hold fields that only a newer worker knows."""
REMEMBERED: Final = 1024
REMEMBERED_BYTES: Final = 2 * 2**10
"""Most that a step, or the rest of a request, weighs for what is known of it to be remembered.

Some 5 MiB of steps in all, and 2 MiB of the others.
"""
FEW_INPUTS: Final = 16
"""Most inputs of a job of which the rest is remembered: to take more away costs more than rules."""
MAX_TOLD: Final = 20
"""Most bad fields that one refusal names."""

_PLAIN_ID: Final = re.compile("[0-9A-Za-z-]{0,64}")
"""A `request_id` that no rule can be against."""
_BLOB_LENGTHS: Final = range(32, 46)
"""Characters of the UUID in a blob's name, in any of its spellings."""
OUTPUT_ONLY_JOB: Final = (
    "name",
    "state",
    "owner",
    "reason",
    "message",
    "create_time",
    "start_time",
    "end_time",
    "last_sequence",
    "input_count",
    "pipeline",
    "provenance",
)
OUTPUT_ONLY_STEP: Final = (
    "state",
    "reason",
    "message",
    "tasks",
    "items",
    "artifacts",
    "large_result",
    "counts",
    "result",
)

DEFAULT_MAX_ATTEMPTS: Final = 3
DEFAULT_INITIAL_BACKOFF_SECONDS: Final = 2.0
DEFAULT_MAX_BACKOFF_SECONDS: Final = 300.0


# Not frozen, as below: each submit makes one, and freezing makes that three times as dear.
@dataclass(slots=True)
class NewStep:
    """A row of `steps` to be, and its first tasks: id, first input, number of inputs.

    A step that comes after others has no tasks yet.

    sources: what it works on; None for just the job's inputs. inputs_per_task: most
    that one task works on; 0 for one task.
    """

    ordinal: int
    name: str
    operation: Operation
    request: bytes
    after: Sequence[int]
    sources: Sequence[Source] | None
    inputs_per_task: int
    max_attempts: int
    initial_backoff_seconds: float
    max_backoff_seconds: float
    timeout_seconds: float
    requires_all: bool
    allow_identifiable: bool
    tasks: Sequence[tuple[UUID, int, int]]


@dataclass(slots=True)
class Submission:
    """A checked request, as rows. sha256 is that of the request without what the server sets.

    pipeline: id of the pipeline that the steps were made from, and its version; "" and 0 for none.
    audit: who submits, for the row that is written with the job; None writes none.
    """

    id: UUID
    owner: str
    request_id: str
    sha256: bytes
    inputs: Sequence[UUID]
    labels: dict[str, str]
    priority: int
    schedule_time: datetime | None
    expire_time: datetime | None
    steps: Sequence[NewStep]
    pipeline: str = ""
    pipeline_version: int = 0
    audit: Entry | None = None

    @property
    def name(self) -> str:
        """Of the job that it becomes."""
        return f"jobs/{self.id}"

    @property
    def queues(self) -> set[str]:
        """Those that have tasks of it from the beginning."""
        return {step.operation.queue for step in self.steps if step.tasks}

    @property
    def row_bytes(self) -> int:
        """About what its rows weigh as JSON."""
        labels = sum(len(key) + len(value) for key, value in self.labels.items())
        steps = sum(
            400 + 2 * len(step.request) + 4 * len(step.after) + 250 * len(step.tasks)
            for step in self.steps
        )
        return 400 + 40 * len(self.inputs) + labels + steps

    def as_job(self) -> job_pb2.Job:
        """The job as accepted, without inputs, steps and times."""
        job = job_pb2.Job(
            name=f"jobs/{self.id}",
            input_count=len(self.inputs),
            labels=self.labels,
            priority=self.priority,
            state=job_pb2.Job.STATE_PENDING,
            owner=self.owner,
            last_sequence=1,
            pipeline=pipeline_name(self.pipeline, self.pipeline_version),
        )
        if self.schedule_time:
            job.schedule_time.FromDatetime(self.schedule_time)
        if self.expire_time:
            job.expire_time.FromDatetime(self.expire_time)
        return job


def pipeline_name(pipeline: str | None, version: int | None) -> str:
    """Its resource name; "" if there is none."""
    return f"pipelines/{pipeline}/versions/{version}" if pipeline else ""


class _Violations:
    """The bad fields of a request: the first ones, and how many there are."""

    def __init__(self) -> None:
        self._told: list[FieldViolation] = []
        self._count = 0

    def add(self, field: str, description: str) -> None:
        """One more."""
        self._count += 1
        if len(self._told) < MAX_TOLD:
            self._told.append(FieldViolation(field, description))

    def extend(self, violations: Iterable[FieldViolation]) -> None:
        """Some more."""
        for violation in violations:
            self.add(violation.field, violation.description)

    def check(self) -> None:
        """FluoroError INVALID_ARGUMENT if there is one."""
        if self._told:
            first = self._told[0]
            text = f"{self._count} bad field(s): {first.field}: {first.description}"
            raise FluoroError(
                Reason.INVALID_ARGUMENT,
                text,
                self._told,
                more_violations=self._count - len(self._told),
            )


def validate(request: job_service_pb2.SubmitJobRequest, owner: str) -> Submission:
    """The request as rows. Takes it over: clears what is output only.

    FluoroError with the bad fields named, the first 20 of them, or with the reason JOB_EMPTY or one
    of `sources.wire`. Numbers are checked before anything is made of what they count.
    """
    job = request.job
    if not job.steps:
        raise _empty("steps")
    violations = _Violations()
    # Counts first: what is made of a request must not grow before its size was checked.
    violations.extend(rules.too_many(request))
    violations.check()
    clear_output_only(job)  # or the rules would look at each message in it
    looked_at = [_look_at(step) for step in job.steps]
    inputs = [_blob_id(name, f"job.inputs[{i}]", violations) for i, name in enumerate(job.inputs)]
    violations.extend(_faults_beside_steps(request))
    for i, (step, seen) in enumerate(zip(job.steps, looked_at, strict=True)):
        for fault in seen.faults:
            violations.add(f"job.steps[{i}].{fault.field}".rstrip("."), fault.description)
        _check_fan_out(i, step, violations)
    violations.check()
    # Steps of their own limits may be too much together: a cancel takes all tasks of a job in one
    # statement.
    if sum(_task_count(step, len(inputs)) for step in job.steps) > MAX_TASKS:
        violation = FieldViolation(
            "job.steps", f"At most {MAX_TASKS} tasks in all: raise max_inputs_per_task."
        )
        raise FluoroError(
            Reason.INVALID_ARGUMENT, f"The job would have more than {MAX_TASKS} tasks.", [violation]
        )
    # Unknown operations were refused above, as a rule of the proto.
    rows = [operations.BY_FIELD[seen.field] for seen in looked_at]
    wired = wire(job.steps, rows)
    # Only now is it known whether any step reads them: a fetch from a PACS needs no inputs.
    if not inputs and any(each.reads_originals for each in wired):
        raise _empty("inputs")
    steps = [
        _new_step(i, step, seen, row, place, len(inputs))
        for i, (step, seen, row, place) in enumerate(
            zip(job.steps, looked_at, rows, wired, strict=True)
        )
    ]
    return Submission(
        id=new_id(),
        owner=owner,
        request_id=request.request_id,
        # After the fields that the server sets were cleared: a caller may send back a job that it
        # has read, and means the same.
        sha256=hashlib.sha256(job.SerializeToString(deterministic=True)).digest(),
        inputs=[blob for blob in inputs if blob],
        labels=dict(job.labels),
        priority=job.priority,
        schedule_time=_time(job, "schedule_time"),
        expire_time=_time(job, "expire_time"),
        steps=steps,
    )


def _empty(what: str) -> FluoroError:
    violation = FieldViolation(f"job.{what}", "Add at least one.")
    return FluoroError(Reason.JOB_EMPTY, f"The job has no {what}. Add at least one.", [violation])


def _task_count(step: job_pb2.Step, inputs: int) -> int:
    return math.ceil(inputs / (step.max_inputs_per_task or inputs or 1))


def _time(job: job_pb2.Job, field: Literal["schedule_time", "expire_time"]) -> datetime | None:
    return getattr(job, field).ToDatetime(UTC) if job.HasField(field) else None


def _blob_id(name: str, field: str, violations: _Violations) -> UUID | None:
    prefix, _, text = name.partition("/")
    try:
        # Python's UUID takes braces and URNs too. The length bounds what it has to look at.
        if prefix == "blobs" and len(text) in _BLOB_LENGTHS:
            return UUID(text)
    except ValueError:
        prefix = ""
    violations.add(
        field, "Must be the resource name of a blob, blobs/{uuid}, as UploadBlob returns it."
    )
    return None


class _Seen(NamedTuple):
    """What there is to know of a step without its job.

    faults: with the field's path in the step. field, request: of the operation, "" for none.
    Numbers are 0 for the default.
    """

    faults: Sequence[FieldViolation]
    field: str
    request: bytes
    max_attempts: int
    initial_backoff_seconds: float
    max_backoff_seconds: float
    timeout_seconds: float


class _FaultyError(Exception):
    """Keeps a step that has faults from being remembered: they may weigh 50 times as much."""

    def __init__(self, seen: _Seen) -> None:
        self.seen = seen


def _look_at(step: job_pb2.Step) -> _Seen:
    """Steps repeat from job to job, those of a pipeline above all, so small ones are remembered."""
    data = step.SerializeToString()
    # What is remembered is counted in steps, so each of them has to be small.
    if len(data) > REMEMBERED_BYTES:
        return _seen(step)
    try:
        return _seen_before(data)
    except _FaultyError as error:
        return error.seen


@lru_cache(maxsize=REMEMBERED)
def _seen_before(data: bytes) -> _Seen:
    seen = _seen(job_pb2.Step.FromString(data))
    if seen.faults:
        # lru_cache remembers what a function returns, and never what it raises.
        raise _FaultyError(seen)
    return seen


def _seen(step: job_pb2.Step) -> _Seen:
    field = step.WhichOneof("operation") or ""
    policy = step.retry_policy
    return _Seen(
        faults=(*rules.broken(step), *_times_that_are_none(step)),
        field=field,
        request=getattr(step, field).SerializeToString() if field else b"",
        max_attempts=policy.max_attempts,
        initial_backoff_seconds=seconds(policy.initial_backoff),
        max_backoff_seconds=seconds(policy.max_backoff),
        timeout_seconds=seconds(step.attempt_timeout),
    )


def _faults_beside_steps(request: job_service_pb2.SubmitJobRequest) -> Iterator[FieldViolation]:
    """Those of all but the steps. Leaves the request as it is."""
    job = request.job
    steps = list(job.steps)
    # Without the steps, whose faults are remembered step by step.
    job.ClearField("steps")
    try:
        if not _is_known_to_be_sound(request):
            yield from rules.broken(request)
    finally:
        job.steps.extend(steps)
    # protovalidate compares times without asking whether they are any.
    for name in ("schedule_time", "expire_time"):
        if job.HasField(name) and not is_time(getattr(job, name)):
            yield FieldViolation(f"job.{name}", "Must be a time in the years 1 to 9999.")


def _is_known_to_be_sound(request: job_service_pb2.SubmitJobRequest) -> bool:
    """Whether a request like this one, without steps, broke no rule. Leaves it as it is.

    Those of one caller mostly differ in inputs alone, of which only the number has a rule, and in
    `request_id`.
    """
    job, request_id = request.job, request.request_id
    # A rule may forbid the id, and a long list takes time to remove: checking the rules is cheaper
    # then.
    if len(job.inputs) > FEW_INPUTS or not _PLAIN_ID.fullmatch(request_id):
        return False
    inputs = list(job.inputs)
    job.ClearField("inputs")
    request.ClearField("request_id")
    try:
        # Deterministic, because a map of labels has no order of its own.
        data = request.SerializeToString(deterministic=True)
        return len(data) <= REMEMBERED_BYTES and _is_sound(data)
    # The request is the caller's; it must be whole again even if this raises.
    finally:
        request.request_id = request_id
        job.inputs.extend(inputs)


@lru_cache(maxsize=REMEMBERED)
def _is_sound(data: bytes) -> bool:
    return not any(rules.broken(job_service_pb2.SubmitJobRequest.FromString(data)))


def _times_that_are_none(step: job_pb2.Step) -> Iterator[FieldViolation]:
    policy = step.retry_policy
    durations = (
        ("retry_policy.initial_backoff", policy.initial_backoff),
        ("retry_policy.max_backoff", policy.max_backoff),
        ("attempt_timeout", step.attempt_timeout),
    )
    for name, duration in durations:
        # `seconds` returns NaN for a duration that is out of range.
        if math.isnan(seconds(duration)):
            yield FieldViolation(name, "Must be a duration.")


def _check_fan_out(i: int, step: job_pb2.Step, violations: _Violations) -> None:
    operation = operations.of_step(step) if step.max_inputs_per_task else None
    # 0 means one task for all, which every operation takes.
    if operation and not operation.fans_out:
        violations.add(
            f"job.steps[{i}].max_inputs_per_task",
            "This operation makes one document of all inputs and does not fan out; leave it 0.",
        )


def _new_step(
    ordinal: int, step: job_pb2.Step, seen: _Seen, operation: Operation, wired: Wired, inputs: int
) -> NewStep:
    # Operations of later releases have no rules here, so their size is bounded for all.
    if len(seen.request) > MAX_OPERATION_BYTES:
        violation = FieldViolation(
            f"job.steps[{ordinal}].{operation.field}", f"At most {MAX_OPERATION_BYTES} bytes."
        )
        raise FluoroError(
            Reason.INVALID_ARGUMENT, f"The operation of step {step.name} is too large.", [violation]
        )
    return NewStep(
        ordinal=ordinal,
        name=step.name,
        operation=operation,
        request=seen.request,
        after=wired.after,
        sources=_stored(wired),
        inputs_per_task=step.max_inputs_per_task,
        max_attempts=seen.max_attempts or DEFAULT_MAX_ATTEMPTS,
        initial_backoff_seconds=seen.initial_backoff_seconds or DEFAULT_INITIAL_BACKOFF_SECONDS,
        max_backoff_seconds=seen.max_backoff_seconds or DEFAULT_MAX_BACKOFF_SECONDS,
        timeout_seconds=seen.timeout_seconds or operation.timeout_seconds,
        requires_all=step.item_failure_policy == job_pb2.Step.ITEM_FAILURE_POLICY_FAIL_STEP,
        allow_identifiable=step.allow_identifiable,
        # A step that waits gets its tasks when it is unblocked: its inputs are not known before
        # (ADR 0017).
        tasks=[] if wired.after else _tasks(step, _first_inputs(wired, inputs)),
    )


def _first_inputs(wired: Wired, inputs: int) -> int:
    """How many inputs a step has that comes after nothing: the job's, or all of them as one."""
    if not wired.sources:
        return 0
    return 1 if wired.sources[0].group else inputs


def _tasks(step: job_pb2.Step, inputs: int) -> list[tuple[UUID, int, int]]:
    # A job without inputs still has one task for each such step.
    size = step.max_inputs_per_task or inputs or 1
    return [(new_id(), first, min(size, inputs - first)) for first in range(0, inputs or 1, size)]


def _stored(wired: Wired) -> Sequence[Source] | None:
    """None stands for the job's inputs where only those can be meant, so most rows stay small.

    A caller who reads the job and submits it again with a step that de-identifies has then not
    named the originals.
    """
    plain = wired.sources == ORIGINALS and not (wired.named and wired.after)
    return None if plain else wired.sources


def clear_output_only(job: job_pb2.Job) -> None:
    """Clears what a caller may send but never decides."""
    messages: list[tuple[Message, tuple[str, ...]]] = [(job, OUTPUT_ONLY_JOB)]
    messages += [(step, OUTPUT_ONLY_STEP) for step in job.steps]
    for message, fields in messages:
        for field in fields:
            message.ClearField(field)
