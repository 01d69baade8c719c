"""The state machines of jobs, steps and tasks, and of what ends an attempt.

Pure; everything else asks this module.

The names are those of the enums in protos/fluoro/v1/job.proto without their prefix, and are what
the ledger stores.
"""

from enum import StrEnum
from typing import Final, TypeVar


class JobState(StrEnum):
    """State of a job; of a step as well, which has the same life."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    PARTIALLY_SUCCEEDED = "PARTIALLY_SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


StepState = JobState


class TaskState(StrEnum):
    """State of a task. One whose step waits for others does not exist yet."""

    READY = "READY"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class OpenState(StrEnum):
    """Where a task that has not ended stands, as the ledger stores it.

    WAITING and READY are one to the API: a task that waits is due later.
    """

    WAITING = "WAITING"
    READY = "READY"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"


class Outcome(StrEnum):
    """How an attempt ended."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    LOST = "LOST"
    CANCELLED = "CANCELLED"
    RELEASED = "RELEASED"


_JOB_ENDS: Final = frozenset(
    {JobState.SUCCEEDED, JobState.PARTIALLY_SUCCEEDED, JobState.FAILED, JobState.CANCELLED}
)
_TASK_ENDS: Final = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED})

JOB_TRANSITIONS: Final[dict[JobState, frozenset[JobState]]] = {
    JobState.PENDING: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: _JOB_ENDS,
    **dict.fromkeys(_JOB_ENDS, frozenset[JobState]()),
}
"""From each state of a job or step to those it may go to. Terminal states go nowhere (I3)."""

TASK_TRANSITIONS: Final[dict[TaskState, frozenset[TaskState]]] = {
    TaskState.READY: frozenset({TaskState.QUEUED, TaskState.CANCELLED}),
    TaskState.QUEUED: frozenset({TaskState.RUNNING, TaskState.READY, TaskState.CANCELLED}),
    TaskState.RUNNING: _TASK_ENDS | {TaskState.READY},
    **dict.fromkeys(_TASK_ENDS, frozenset[TaskState]()),
}
"""The same for tasks."""

TASK_ENDS: Final = tuple(sorted(_TASK_ENDS))
"""The terminal states of a task."""

JOB_REOPENINGS: Final = frozenset(
    {JobState.PARTIALLY_SUCCEEDED, JobState.FAILED, JobState.CANCELLED}
)
"""Terminal states that RetryJob, and nothing else, leads back to PENDING.

A step that succeeded is redone if one before it is.
"""

State = TypeVar("State", JobState, TaskState)


class IllegalTransitionError(Exception):
    """A bug: something tried a transition that the machine does not have."""


def is_terminal(state: JobState | TaskState) -> bool:
    """Whether nothing can change any more."""
    return not (JOB_TRANSITIONS[state] if isinstance(state, JobState) else TASK_TRANSITIONS[state])


def move(old: State, new: State) -> State:
    """`new`, if the machine allows it from `old`; IllegalTransitionError otherwise."""
    # Two tables, not one: members of different StrEnums are equal when their names are.
    if new not in (JOB_TRANSITIONS[old] if isinstance(old, JobState) else TASK_TRANSITIONS[old]):
        raise IllegalTransitionError(f"{type(old).__name__} {old} -> {new}")
    return new
