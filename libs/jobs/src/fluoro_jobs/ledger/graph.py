"""A job as the ledger holds it, and what happens to it. Pure: no I/O, no clock.

Every transition of a job goes through here: it moves states by `fluoro_jobs.states`, numbers the
events, and notes what changed; `store.py` makes the notes durable in one statement, guarded by the
job's version.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from fluoro.v1 import job_pb2

from fluoro_jobs.errors import STORE_OUTAGES, Reason
from fluoro_jobs.states import (
    JOB_REOPENINGS,
    JobState,
    Outcome,
    StepState,
    TaskState,
    is_terminal,
    move,
)

MAX_RETURNS: Final[dict[str, int]] = {**dict.fromkeys(STORE_OUTAGES, 100), Reason.SCRATCH_FULL: 10}
"""How often a task comes back without a charge, by what ended its attempt: a fault of its surroundings, not of its own.

Bounded, so that one blob that a healthy store cannot read does not circulate for ever. A full
scratch may be the task's own doing: fewer.
"""
MAX_RETURN_DELAY_SECONDS: Final = 30
"""Longest wait before a task that came back is tried again.

The first is a second, each other one twice as long.
"""


@dataclass(slots=True)
class Task:
    """A row of `tasks`.

    allowed: claims it may have without a result; one more for each that was handed back.
    counts: its items (total, succeeded, skipped, failed) once it has a result.
    returned: how many of its claims came back without a charge, for a reason in `MAX_RETURNS`,
    since it was accepted or retried. result: serialized result message, set by the transition that
    ends it. delay_seconds: from now until it may be dispatched again.
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
    delay_seconds: float = 0

    def may_return(self, reason: str) -> bool:
        """Whether an attempt that ends for this reason costs nothing."""
        return self.returned < MAX_RETURNS.get(reason, 0)


@dataclass(slots=True)
class Step:
    """A row of `steps`.

    after: ordinals. fans_out: its inputs are split over tasks. requires_all: a failed item fails
    it.
    """

    ordinal: int
    name: str
    operation: str
    after: Sequence[int]
    max_attempts: int
    initial_backoff_seconds: float
    max_backoff_seconds: float
    fans_out: bool
    requires_all: bool
    state: StepState
    reason: str = ""
    message: str = ""

    def backoff_seconds(self, attempt: int) -> float:
        """Wait before the attempt after `attempt`."""
        return _growing(self.initial_backoff_seconds, attempt - 1, self.max_backoff_seconds)


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
class TaskResult:
    """What an attempt brought home. message: serialized result message."""

    message: bytes
    items: Sequence[job_pb2.Item] = ()
    artifacts: Sequence[job_pb2.Artifact] = ()


@dataclass(slots=True)
class JobGraph:
    """A job, its steps and tasks at one version, and the notes of what was done to it since it was read."""

    id: UUID
    owner: str
    state: JobState
    version: int
    steps: dict[int, Step]
    tasks: dict[UUID, Task]
    reason: str = ""
    message: str = ""

    changes: list[Change] = field(default_factory=list)
    changed_steps: set[int] = field(default_factory=set)
    changed_tasks: set[UUID] = field(default_factory=set)
    ended_attempts: list[AttemptEnd] = field(default_factory=list)
    results: list[tuple[Task, TaskResult]] = field(default_factory=list)
    redone: list[Task] = field(default_factory=list)

    def clear_notes(self) -> None:
        """After the notes were made durable: this object is then the job at its new version."""
        self.version += len(self.changes)
        for notes in (
            self.changes,
            self.changed_steps,
            self.changed_tasks,
            self.ended_attempts,
            self.results,
            self.redone,
        ):
            notes.clear()

    def tasks_of(self, step: int) -> Iterator[Task]:
        """The tasks of a step."""
        return (task for task in self.tasks.values() if task.step == step)

    # --- what can happen to a task ---

    def start(self, task: Task) -> None:
        """A worker claims a queued task: what `attempts.claim` does in SQL, done to this picture.

        It counts, whatever comes of it (I7).
        """
        task.attempt += 1
        if self.state is JobState.PENDING:
            self._move_job(JobState.RUNNING)
        step = self.steps[task.step]
        if step.state is StepState.PENDING:
            self._move_step(step, StepState.RUNNING)
        self._move_task(task, TaskState.RUNNING)

    def succeed(self, task: Task, result: TaskResult) -> None:
        """An attempt brought a result.

        What its items are worth is the step's to say, once all its tasks have ended.
        """
        self.ended_attempts.append(AttemptEnd(task.id, task.attempt, Outcome.SUCCEEDED))
        self.results.append((task, result))
        task.counts, task.result = _count(result.items), result.message
        self._move_task(task, TaskState.SUCCEEDED, counts=task.counts if result.items else None)
        self._join(self.steps[task.step])

    def fail(
        self, task: Task, outcome: Outcome, reason: str, message: str, *, may_retry: bool
    ) -> None:
        """An attempt ended without a result: another one, if that may help and one is left; otherwise the task fails.

        For a fault of its surroundings it is released instead, and waits for them to recover.
        """
        if may_retry and task.may_return(reason):
            self.release(
                task, reason, message, _growing(1, task.returned, MAX_RETURN_DELAY_SECONDS)
            )
            task.returned += 1
            return
        self.ended_attempts.append(AttemptEnd(task.id, task.attempt, outcome, reason, message))
        step = self.steps[task.step]
        if may_retry and task.attempt < task.allowed:
            task.delay_seconds = step.backoff_seconds(task.attempt)
            self._move_task(task, TaskState.READY, reason, message)
            return
        if (
            step.fans_out
        ):  # its inputs failed with it; beside other tasks' items that is worth telling one by one
            numbers = range(task.first_input, task.first_input + task.input_count)
            items = [
                job_pb2.Item(
                    input=i, state=job_pb2.Item.STATE_FAILED, reason=reason, message=message
                )
                for i in numbers
            ]
            self.results.append((task, TaskResult(b"", items)))
        self._move_task(task, TaskState.FAILED, reason, message)
        self._join(step)

    def release(
        self, task: Task, reason: str = "", message: str = "", delay_seconds: float = 0
    ) -> None:
        """A worker hands an attempt back: ready for another worker, and it costs the task none of its attempts. No reason: a shutdown."""
        self.ended_attempts.append(
            AttemptEnd(task.id, task.attempt, Outcome.RELEASED, reason, message)
        )
        task.allowed, task.delay_seconds = task.allowed + 1, delay_seconds
        self._move_task(task, TaskState.READY, reason, message)

    def cancel(self, reason: str, message: str, *, end: JobState = JobState.CANCELLED) -> None:
        """Ends the job and everything in it that has not ended.

        No-op on a terminal job. end: FAILED when its time ran out.
        """
        if is_terminal(self.state):
            return
        for task in self.tasks.values():
            self._cancel_task(task, reason, message)
        for step in self.steps.values():
            if not is_terminal(step.state):
                self._move_step(step, StepState.CANCELLED, reason, message)
        self._move_job(end, reason, message)

    def retry(self) -> bool:
        """Opens an ended job again: what failed, was cancelled or did not run, and all after it.

        False if there is no such thing.
        """
        redo = {
            step.ordinal for step in self.steps.values() if step.state is not StepState.SUCCEEDED
        }
        if self.state not in JOB_REOPENINGS or not redo:
            return False
        while more := {
            s.ordinal
            for s in self.steps.values()
            if s.ordinal not in redo and redo.intersection(s.after)
        }:
            redo |= more
        self.state, self.reason, self.message = JobState.PENDING, "", ""
        self.changes.append(Change(JobState.PENDING, message="Retried."))
        for ordinal in sorted(redo):
            self._reopen(self.steps[ordinal], redo)
        return True

    def _reopen(self, step: Step, redo: set[int]) -> None:
        waits = bool(redo.intersection(step.after))
        step.state, step.reason, step.message = StepState.PENDING, "", ""
        self.changed_steps.add(step.ordinal)
        self.changes.append(Change(StepState.PENDING, step.ordinal))
        tasks = list(self.tasks_of(step.ordinal))
        bad = [
            task
            for task in tasks
            if task.state is not TaskState.SUCCEEDED or (task.counts and task.counts[3])
        ]
        for task in tasks if waits or not bad else bad:
            task.state = TaskState.BLOCKED if waits else TaskState.READY
            task.allowed, task.returned, task.delay_seconds = task.attempt + step.max_attempts, 0, 0
            task.counts, task.result = None, None
            self.changed_tasks.add(task.id)
            self.redone.append(task)

    # --- what follows from it ---

    def _join(self, step: Step) -> None:
        """Ends a step once its last task has ended.

        What it is worth is the sum of its items, and its policy.
        """
        tasks = list(self.tasks_of(step.ordinal))
        if not all(is_terminal(task.state) for task in tasks):
            return
        total, succeeded, skipped, failed = (
            sum(column)
            for column in zip(*(task.counts or (0, 0, 0, 0) for task in tasks), strict=True)
        )
        lost = [task for task in tasks if task.state is TaskState.FAILED]
        if lost and (len(lost) == len(tasks) or not succeeded):
            reason, message = self._last_word(lost[0])
            self._move_step(step, StepState.FAILED, reason, message)
        elif total and not succeeded:
            reason = Reason.ALL_ITEMS_FAILED if failed else Reason.NO_APPLICABLE_INPUT
            text = f"Of {total} items, {failed} failed and {skipped} were skipped; none succeeded."
            self._move_step(step, StepState.FAILED, reason, text)
        elif failed or lost:
            text = f"{failed + sum(task.input_count for task in lost)} of {total + sum(task.input_count for task in lost)} items failed."
            state = StepState.FAILED if step.requires_all else StepState.PARTIALLY_SUCCEEDED
            self._move_step(step, state, Reason.ITEMS_FAILED, text)
        else:
            self._move_step(step, StepState.SUCCEEDED)
        self._settle(step)

    def _last_word(self, task: Task) -> tuple[str, str]:
        """Why a task failed, if it did so in this transition."""
        for change in reversed(self.changes):
            if (change.step, change.shard) == (task.step, task.shard):
                return change.reason, change.message
        return Reason.STEP_FAILED, "A task failed; its attempts say why."

    def _settle(self, step: Step) -> None:
        """Passes the end of a step on to those after it, and to the job."""
        useful = step.state in {StepState.SUCCEEDED, StepState.PARTIALLY_SUCCEEDED}
        for follower in self.steps.values():
            if step.ordinal not in follower.after or is_terminal(follower.state):
                continue
            if not useful:
                self._skip(follower, f"Step {step.name} has no result.")
            elif all(is_terminal(self.steps[other].state) for other in follower.after):
                for task in self.tasks_of(follower.ordinal):
                    task.state = move(task.state, TaskState.READY)
                    self.changed_tasks.add(task.id)
        if not is_terminal(self.state) and all(
            is_terminal(other.state) for other in self.steps.values()
        ):
            self._end_job()

    def _skip(self, step: Step, message: str) -> None:
        for task in self.tasks_of(step.ordinal):
            self._cancel_task(task, Reason.UPSTREAM_FAILED, message)
        self._move_step(step, StepState.CANCELLED, Reason.UPSTREAM_FAILED, message)
        self._settle(step)

    def _end_job(self) -> None:
        failed = [step.name for step in self.steps.values() if step.state is StepState.FAILED]
        partial = [
            step.name for step in self.steps.values() if step.state is StepState.PARTIALLY_SUCCEEDED
        ]
        if failed:
            self._move_job(JobState.FAILED, Reason.STEP_FAILED, f"Failed: {', '.join(failed)}.")
        elif partial:
            self._move_job(
                JobState.PARTIALLY_SUCCEEDED,
                Reason.ITEMS_FAILED,
                f"Some items failed in: {', '.join(partial)}.",
            )
        else:
            self._move_job(JobState.SUCCEEDED)

    def _cancel_task(self, task: Task, reason: str, message: str) -> None:
        if is_terminal(task.state):
            return
        if task.state is TaskState.RUNNING:
            self.ended_attempts.append(
                AttemptEnd(task.id, task.attempt, Outcome.CANCELLED, reason, message)
            )
        self._move_task(task, TaskState.CANCELLED, reason, message)

    # --- moves, each with its note ---

    def _move_task(
        self,
        task: Task,
        state: TaskState,
        reason: str = "",
        message: str = "",
        counts: Sequence[int] | None = None,
    ) -> None:
        task.state = move(task.state, state)
        self.changed_tasks.add(task.id)
        self.changes.append(
            Change(state, task.step, task.shard, task.attempt, reason, message, counts)
        )

    def _move_step(self, step: Step, state: StepState, reason: str = "", message: str = "") -> None:
        step.state, step.reason, step.message = move(step.state, state), reason, message
        self.changed_steps.add(step.ordinal)
        self.changes.append(Change(state, step.ordinal, reason=reason, message=message))

    def _move_job(self, state: JobState, reason: str = "", message: str = "") -> None:
        self.state, self.reason, self.message = move(self.state, state), reason, message
        self.changes.append(Change(state, reason=reason, message=message))


def _growing(first_seconds: float, doublings: int, most_seconds: float) -> float:
    """A wait: doubled each time, capped, with jitter of up to half."""
    ceiling: float = min(first_seconds * 2.0**doublings, most_seconds)
    return ceiling * random.uniform(0.5, 1)  # noqa: S311 - spreads load, guards nothing


def _count(items: Sequence[job_pb2.Item]) -> tuple[int, int, int, int]:
    """Items in all, succeeded, skipped, failed."""
    states = [item.state for item in items]
    kinds = (job_pb2.Item.STATE_SUCCEEDED, job_pb2.Item.STATE_SKIPPED, job_pb2.Item.STATE_FAILED)
    succeeded, skipped, failed = (states.count(kind) for kind in kinds)
    return len(states), succeeded, skipped, failed
