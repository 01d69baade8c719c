"""A job as the ledger holds it, and what happens to it. Pure: no I/O, no clock.

Every transition of a job goes through here: it moves states by `fluoro_jobs.states`, numbers the
events, and notes what changed; `store.py` makes the notes durable in one statement, guarded by the
job's version.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from fluoro.v1 import job_pb2

from fluoro_jobs.errors import Reason
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger.records import (
    MAX_TASKS,
    AttemptEnd,
    Change,
    Counters,
    ItemResult,
    Step,
    Task,
    TaskResult,
    growing,
)
from fluoro_jobs.states import (
    JOB_REOPENINGS,
    JobState,
    Outcome,
    StepState,
    TaskState,
    is_terminal,
    move,
)

MAX_RETURN_DELAY_SECONDS: Final = 30
"""Longest wait before a task that came back is tried again.

The first is a second, each other one twice as long.
"""


@dataclass(slots=True)
class JobGraph:
    """A job, its steps and some of its tasks at one version, and the notes of what was done to it.

    tasks: those that the transition at hand changes; the others are known by the counters of their
    steps. input_count: of the job.
    """

    id: UUID
    owner: str
    state: JobState
    version: int
    input_count: int
    steps: dict[int, Step]
    tasks: dict[UUID, Task]
    reason: str = ""
    message: str = ""

    changes: list[Change] = field(default_factory=list)
    changed_steps: set[int] = field(default_factory=set)
    changed_tasks: set[UUID] = field(default_factory=set)
    reopened_tasks: set[UUID] = field(default_factory=set)
    planned_tasks: list[Task] = field(default_factory=list)
    ended_attempts: list[AttemptEnd] = field(default_factory=list)
    results: list[tuple[Task, TaskResult]] = field(default_factory=list)
    lost: list[tuple[Task, str, str]] = field(default_factory=list)
    redone: list[Task] = field(default_factory=list)
    forgotten: list[int] = field(default_factory=list)
    stale_inputs: list[int] = field(default_factory=list)
    unplanned: list[int] = field(default_factory=list)
    reopened: bool = False

    def clear_notes(self) -> None:
        """After the notes were made durable: this object is then the job at its new version.

        `unplanned` stays: it is yet to be done.
        """
        self.version += len(self.changes)
        self.reopened = False
        for notes in (
            self.changes,
            self.changed_steps,
            self.changed_tasks,
            self.reopened_tasks,
            self.planned_tasks,
            self.ended_attempts,
            self.results,
            self.lost,
            self.redone,
            self.forgotten,
            self.stale_inputs,
        ):
            notes.clear()

    def tasks_of(self, step: int) -> Iterator[Task]:
        """The tasks of a step that are here."""
        return (task for task in self.tasks.values() if task.step == step)

    def inputs_of(self, step: Step) -> int:
        """Ordinal under which `step_inputs` has its inputs: the first step with these sources."""
        # The first in the graph and not the first to be planned, because every transition must find
        # the same one.
        return min(
            (other.ordinal for other in self.steps.values() if other.sources == step.sources),
            default=step.ordinal,
        )

    # --- what can happen to a task ---

    def start(self, task: Task) -> None:
        """A worker claims a queued task: what `attempts.claim` does in SQL, done to this picture.

        It counts, whatever comes of it (I7).
        """
        # Counted at the claim and not at the end: an attempt that kills its worker has no end of
        # its own.
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
        # Counts come from the items, which the task's own row keeps: a retry needs them without
        # reading the items.
        task.counts, task.result = _count(result.items), result.message
        task.result_blob = result.blob.blob if result.blob else None
        self._move_task(task, TaskState.SUCCEEDED, counts=task.counts if result.items else None)
        self._join(self.steps[task.step])

    def fail(
        self, task: Task, outcome: Outcome, reason: str, message: str, *, may_retry: bool
    ) -> None:
        """An attempt ended without a result. There is another, if it may help and one is left.

        Otherwise the task fails.
        For a fault of its surroundings it is released instead, and waits for them to recover.
        """
        # A worker's disk or a store failed, not the task. Its attempts are for its own faults, so
        # these returns are counted apart, and bounded.
        if may_retry and task.may_return(reason):
            self.release(task, reason, message, growing(1, task.returned, MAX_RETURN_DELAY_SECONDS))
            # Raised after the delay was computed: the first return waits one second.
            task.returned += 1
            return
        self.ended_attempts.append(AttemptEnd(task.id, task.attempt, outcome, reason, message))
        step = self.steps[task.step]
        # The claim has raised `attempt` already, so the last attempt allowed does not get another
        # one.
        if may_retry and task.attempt < task.allowed:
            task.delay_seconds = step.backoff_seconds(task.attempt)
            self._move_task(task, TaskState.READY, reason, message)
            return
        if step.fans_out:
            # Its inputs failed with it. Each becomes an item beside those of other tasks.
            self.lost.append((task, reason, message))
        self._move_task(task, TaskState.FAILED, reason, message)
        self._join(step)

    def release(
        self, task: Task, reason: str = "", message: str = "", delay_seconds: float = 0
    ) -> None:
        """A worker hands an attempt back, without cost to the task: another worker may take it.

        reason: empty for a shutdown.
        """
        self.ended_attempts.append(
            AttemptEnd(task.id, task.attempt, Outcome.RELEASED, reason, message)
        )
        # The number of the attempt stays used (I7), so one more is allowed in its place.
        task.allowed, task.delay_seconds = task.allowed + 1, delay_seconds
        self._move_task(task, TaskState.READY, reason, message)

    def cancel(self, reason: str, message: str, *, end: JobState = JobState.CANCELLED) -> None:
        """Ends the job and everything in it that has not ended: all its open tasks must be here.

        No-op on a terminal job. end: FAILED when its time ran out.
        """
        # A cancel is safe to repeat, and an expiry may meet a job that has just ended.
        if is_terminal(self.state):
            return
        # From the inside out: a watch ends with the event that ends the job, so that one has to be
        # the last.
        for task in self.tasks.values():
            self._cancel_task(task, reason, message)
        for step in self.steps.values():
            if not is_terminal(step.state):
                self._move_step(step, StepState.CANCELLED, reason, message)
        self._move_job(end, reason, message)

    def retry(self) -> bool:
        """Opens an ended job again: what failed, was cancelled or did not run, and all after it.

        All its tasks must be here. False if there is no such thing.
        """
        redo = {
            step.ordinal for step in self.steps.values() if step.state is not StepState.SUCCEEDED
        }
        if self.state not in JOB_REOPENINGS or not redo:
            return False
        # A step after a redone one worked on what will be replaced, so it is redone too. It takes
        # along those after it: repeated until none is added.
        while more := {
            s.ordinal
            for s in self.steps.values()
            if s.ordinal not in redo and redo.intersection(s.after)
        }:
            redo |= more
        self.state, self.reason, self.message = JobState.PENDING, "", ""
        self.reopened = True
        # The events go on counting: watchers that kept a cursor see the job begin again.
        self.changes.append(Change(JobState.PENDING, message="Retried."))
        for ordinal in sorted(redo):
            step = self.steps[ordinal]
            step.state, step.reason, step.message = StepState.PENDING, "", ""
            self.changed_steps.add(ordinal)
            self.changes.append(Change(StepState.PENDING, ordinal))
        waiting = {ordinal for ordinal in redo if redo.intersection(self.steps[ordinal].after)}
        # These first: what they had does not count when others are planned.
        for ordinal in (*sorted(waiting), *sorted(redo - waiting)):
            self._redo(self.steps[ordinal], waits=ordinal in waiting)
        for ordinal in waiting:
            # All that share these inputs are planned anew, for they wait for what left them.
            if any(source.step in redo for source in self.steps[ordinal].sources or ()):
                self.stale_inputs.append(self.inputs_of(self.steps[ordinal]))
        return True

    def _redo(self, step: Step, *, waits: bool) -> None:
        """Its bad tasks again, or all if none is bad. If it waits for others it is planned anew."""
        tasks = list(self.tasks_of(step.ordinal))
        if waits:
            # Its tasks stay on record but belong to no plan: what it counts begins anew with the
            # next one.
            step.counters = Counters()
            self.forgotten.append(step.ordinal)
            return
        if not step.counters.tasks:  # it could not be planned
            self._unblock(step)
            return
        # Shards beyond are left from an earlier plan that had more.
        tasks = [task for task in tasks if task.shard < step.counters.tasks]
        # The step may have failed without a bad task, because every item was skipped. Then all run
        # again.
        bad = [
            task
            for task in tasks
            if task.state is not TaskState.SUCCEEDED or (task.counts and task.counts[3])
        ] or tasks
        # Counted anew from those that stay, so that no task counts twice.
        step.counters = Counters(inputs=step.counters.inputs, tasks=step.counters.tasks)
        redone = {task.id for task in bad}
        for task in tasks:
            if task.id not in redone:
                step.counters.add(task)
        for task in bad:
            task.state = TaskState.READY
            # Counted from the attempts there were, because their numbers never repeat (I7). The
            # task may have as many again as at first.
            task.allowed, task.returned, task.delay_seconds = task.attempt + step.max_attempts, 0, 0
            task.counts, task.result, task.result_blob = None, None, None
            self.changed_tasks.add(task.id)
            self.reopened_tasks.add(task.id)
            self.redone.append(task)

    # --- tasks come to be ---

    def _unblock(self, step: Step) -> None:
        """Nothing that it waits for is left: it gets its inputs and its tasks."""
        # None means each input of the job. An empty list means an operation without items, which
        # has one task.
        if step.sources is None:
            self.plan(step, self.input_count)
        elif not step.sources:
            self.plan(step, 0)
        else:
            self.unplanned.append(step.ordinal)  # whoever saves this reads what earlier steps left

    def plan(self, step: Step, inputs: int, refusal: str = "") -> None:
        """Makes the tasks of a step that was unblocked and has so many inputs.

        refusal: why it cannot have so many; it fails then.
        """
        # Without a size the step has one task for all its inputs.
        size = step.inputs_per_task or inputs
        tasks = math.ceil(inputs / size) if size else 1
        self.changed_steps.add(step.ordinal)
        if refusal:
            self._move_step(step, StepState.FAILED, Reason.TOO_MANY_INPUTS, refusal)
        # An empty step would succeed without having looked at anything.
        elif step.sources and not inputs:
            text = "No earlier step left anything for this one to work on."
            self._move_step(step, StepState.FAILED, Reason.NO_APPLICABLE_INPUT, text)
        elif tasks > 1 and tasks + self._tasks_beside(step) > MAX_TASKS:
            # Of the whole job: cancel, expiry and retry take all its tasks in one statement.
            text = (
                f"With its {tasks} tasks the job would have more than {MAX_TASKS}. "
                "Raise max_inputs_per_task, or split the job."
            )
            self._move_step(step, StepState.FAILED, Reason.TOO_MANY_INPUTS, text)
        else:
            step.counters = Counters(inputs=inputs, tasks=tasks)
            for shard in range(tasks):
                first = shard * size
                task = Task(
                    new_id(),
                    step.ordinal,
                    shard,
                    TaskState.READY,
                    0,
                    step.max_attempts,
                    first,
                    min(size, inputs - first),
                )
                self.tasks[task.id] = task
                self.planned_tasks.append(task)
            return
        # A step that failed here has no task whose end could pass this on.
        self._settle(step)

    def _tasks_beside(self, step: Step) -> int:
        """How many tasks the other steps have."""
        return sum(other.counters.tasks for other in self.steps.values() if other is not step)

    # --- what follows from it ---

    def _join(self, step: Step) -> None:
        """Ends a step once its last task has ended.

        What it is worth is the sum of its items, and its policy.
        """
        counters = step.counters
        self.changed_steps.add(step.ordinal)
        # Other tasks still run. The last of them ends the step; the job's version makes sure that
        # one is the last.
        if counters.ended < counters.tasks:
            return
        total, succeeded, failed = counters.total, counters.succeeded, counters.failed_items
        # Tasks failed and nothing succeeded. A task's own reason says more than a count of items.
        if counters.failed and (counters.failed == counters.tasks or not succeeded):
            self._move_step(step, StepState.FAILED, *self._last_word(step))
        # Every item was skipped or failed, so the step has nothing for those after it.
        elif total and not succeeded:
            reason = Reason.ALL_ITEMS_FAILED if failed else Reason.NO_APPLICABLE_INPUT
            text = (
                f"Of {total} items, {failed} failed and {counters.skipped} were skipped; "
                "none succeeded."
            )
            self._move_step(step, StepState.FAILED, reason, text)
        # A lost task has no items of its own, so its inputs count as failed.
        elif failed or counters.failed:
            lost = counters.lost_inputs
            text = f"{failed + lost} of {total + lost} items failed."
            state = StepState.FAILED if step.requires_all else StepState.PARTIALLY_SUCCEEDED
            self._move_step(step, state, Reason.ITEMS_FAILED, text)
        else:
            self._move_step(step, StepState.SUCCEEDED)
        self._settle(step)

    def _last_word(self, step: Step) -> tuple[str, str]:
        """Why a task of the step failed, if one did so in this transition."""
        for change in reversed(self.changes):
            if change.step == step.ordinal and change.state is TaskState.FAILED:
                # The newest failure is the one that ended the step.
                return change.reason, change.message
        # The others failed in earlier transitions, whose changes are not here.
        return Reason.STEP_FAILED, "A task failed; its attempts say why."

    def _settle(self, step: Step) -> None:
        """Passes the end of a step on to those after it, and to the job."""
        useful = step.state in {StepState.SUCCEEDED, StepState.PARTIALLY_SUCCEEDED}
        for follower in self.steps.values():
            # A follower of two failed steps was skipped with the first one.
            if step.ordinal not in follower.after or is_terminal(follower.state):
                continue
            if not useful:
                self._skip(follower, f"Step {step.name} has no result.")
            elif all(is_terminal(self.steps[other].state) for other in follower.after):
                self._unblock(follower)
        # Skipping recurses: the innermost call may have ended the job already.
        if not is_terminal(self.state) and all(
            is_terminal(other.state) for other in self.steps.values()
        ):
            self._end_job()

    def _skip(self, step: Step, message: str) -> None:
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
        # Only an attempt that runs has a row to end. A queued task was never claimed.
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
        if is_terminal(state):
            self.steps[task.step].counters.add(task)
            self.changed_steps.add(task.step)
        # No state changes without an event: the event is what raises the version that guards the
        # write (ADR 0003).
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


def _count(items: Sequence[ItemResult]) -> tuple[int, int, int, int]:
    """Items in all, succeeded, skipped, failed."""
    states = [item.state for item in items]
    kinds = (job_pb2.Item.STATE_SUCCEEDED, job_pb2.Item.STATE_SKIPPED, job_pb2.Item.STATE_FAILED)
    succeeded, skipped, failed = (states.count(kind) for kind in kinds)
    return len(states), succeeded, skipped, failed
