"""What the ledger holds of a job, as plain data: its steps, its tasks, and their changes."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from fluoro.v1 import job_pb2

from fluoro_jobs.errors import STORE_OUTAGES, Reason
from fluoro_jobs.ledger.sources import Source
from fluoro_jobs.states import JobState, Outcome, StepState, TaskState

MAX_INPUTS: Final = 10_000
"""Of a job, and of a step."""
MAX_PARTS: Final = 50_000
"""Most blobs that the inputs of one step are made of."""
MAX_PARTS_TOGETHER: Final = 200_000
"""Of all steps that one transaction unblocks; steps with the same sources count once."""
MAX_TASKS: Final = 10_000
"""Of a job, where a step that has but one is not counted against it once the job runs."""
MAX_RETURNS: Final[dict[str, int]] = {
    **dict.fromkeys(STORE_OUTAGES | {Reason.OPERATION_UNKNOWN, Reason.MODEL_UNAVAILABLE}, 100),
    Reason.SCRATCH_FULL: 10,
}
"""How often a task comes back without a charge, by the reason: a fault of its surroundings.

Bounded, so that one blob that a healthy store cannot read does not circulate for ever. A full
scratch may be the task's own doing: fewer.
"""


@dataclass(slots=True)
class Task:
    """A row of `tasks`, and of `open_tasks` until it has ended.

    allowed: claims it may have without a result; one more for each that was handed back.
    counts: its items (total, succeeded, skipped, failed) once it has a result.
    returned: how many of its claims came back without a charge, for a reason in `MAX_RETURNS`,
    since it was made or retried. result: serialized result message, set by the transition that
    ends it. result_blob: name of the blob that holds it instead. delay_seconds: from now until it
    may be dispatched again.
    """

    id: UUID
    step: int
    shard: int
    state: TaskState
    attempt: int
    allowed: int
    first_input: int
    input_count: int
    counts: Sequence[int] | None = None
    returned: int = 0
    result: bytes | None = None
    result_blob: str | None = None
    delay_seconds: float = 0

    def may_return(self, reason: str) -> bool:
        """Whether an attempt that ends for this reason costs nothing."""
        return self.returned < MAX_RETURNS.get(reason, 0)


@dataclass(slots=True)
class Counters:
    """What a step needs to know of its tasks, so that nobody has to look at them all.

    inputs, tasks: how many it has; none before it is unblocked. ended, failed: of its tasks.
    lost_inputs: inputs of its failed tasks. The rest: items of its tasks that have a result.
    """

    inputs: int = 0
    tasks: int = 0
    ended: int = 0
    failed: int = 0
    lost_inputs: int = 0
    total: int = 0
    succeeded: int = 0
    skipped: int = 0
    failed_items: int = 0

    def add(self, task: Task) -> None:
        """Counts a task that has ended."""
        self.ended += 1
        if task.state is TaskState.FAILED:
            self.failed += 1
            self.lost_inputs += task.input_count
        total, succeeded, skipped, failed = task.counts or (0, 0, 0, 0)
        self.total += total
        self.succeeded += succeeded
        self.skipped += skipped
        self.failed_items += failed


@dataclass(slots=True)
class Step:
    """A row of `steps`.

    after: ordinals. sources: where its inputs come from; None for the job alone, empty for nowhere.
    inputs_per_task: 0 if one task has them all. requires_all: a failed item fails it.
    """

    ordinal: int
    name: str
    operation: str
    after: Sequence[int]
    max_attempts: int
    initial_backoff_seconds: float
    max_backoff_seconds: float
    sources: Sequence[Source] | None
    inputs_per_task: int
    requires_all: bool
    state: StepState
    reason: str = ""
    message: str = ""
    counters: Counters = field(default_factory=Counters)

    @property
    def fans_out(self) -> bool:
        """Whether its inputs are split over tasks."""
        return self.inputs_per_task > 0

    def backoff_seconds(self, attempt: int) -> float:
        """Wait before the attempt after `attempt`."""
        return growing(self.initial_backoff_seconds, attempt - 1, self.max_backoff_seconds)


@dataclass(frozen=True, slots=True)
class Change:
    """One event to be. step and shard are None where the job, or the step, itself changed."""

    state: JobState | TaskState
    step: int | None = None
    shard: int | None = None
    attempt: int | None = None
    reason: str = ""
    message: str = ""
    item_counts: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """How an attempt ended."""

    task: UUID
    number: int
    outcome: Outcome
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What became of one input of a step.

    number, key: of the input, in the step. input: number of the job's input that it comes from;
    None if it comes from none, or from several.
    """

    number: int
    key: str
    input: int | None
    state: "job_pb2.Item.State.ValueType"
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What an attempt brought home.

    message: serialized result message; empty if it is large. blob: the record of the blob that
    holds it then, without name and role.
    """

    message: bytes
    items: Sequence[ItemResult] = ()
    artifacts: Sequence[job_pb2.Artifact] = ()
    blob: job_pb2.Artifact | None = None


def growing(first_seconds: float, doublings: int, most_seconds: float) -> float:
    """A wait: doubled each time, capped, with jitter of up to half."""
    ceiling: float = min(first_seconds * 2.0**doublings, most_seconds)
    return ceiling * random.uniform(0.5, 1)  # noqa: S311 - spreads load, guards nothing
