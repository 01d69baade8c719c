"""One job and everything that happens to it, by the rules of Fluoro's ledger.

Pure, but for the clock.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fluoro.v1 import event_pb2, job_pb2
from google.protobuf.message import Message

from fluoro_client.testing.checks import waits_for
from fluoro_client.testing.views import BASIC, shown
from fluoro_client.watching import TERMINAL

Job, Step, Task, Item, Attempt = (
    job_pb2.Job,
    job_pb2.Step,
    job_pb2.Task,
    job_pb2.Item,
    job_pb2.Attempt,
)

STEP_TERMINAL: Final = frozenset(
    (Step.STATE_SUCCEEDED, Step.STATE_PARTIALLY_SUCCEEDED, Step.STATE_FAILED, Step.STATE_CANCELLED)
)
TASK_TERMINAL: Final = frozenset((Task.STATE_SUCCEEDED, Task.STATE_FAILED, Task.STATE_CANCELLED))

Change = event_pb2.JobChanged | event_pb2.StepChanged | event_pb2.TaskChanged
"""What an event tells."""


@dataclass(frozen=True, slots=True)
class File:
    """An output of a step.

    role and media_type as in fluoro.v1.Artifact. input: index of the job's input it came from; None
    if of several. key: as in fluoro.v1.Artifact; that input's number if empty.
    """

    name: str
    data: bytes
    role: str = "result"
    media_type: str = "application/octet-stream"
    input: int | None = None
    key: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step comes to.

    reason, message: with a reason the step has no result and fails: one of docs/errors.md, or any
    of your own. items: what became of the inputs. Failed ones make the step PARTIALLY_SUCCEEDED or
    FAILED, as its policy says. artifacts: what it leaves. result: a message of its operation,
    RenderDicomResult say; None is an empty one.
    """

    reason: str = ""
    message: str = ""
    items: Sequence[job_pb2.Item] = ()
    artifacts: Sequence[File] = ()
    result: Message | None = None


class Story:
    """A job, its events, and what can happen to it.

    The rules are those of `fluoro_jobs.ledger.graph`; a contract test compares.
    """

    def __init__(
        self, owner: str, job: job_pb2.Job, told: Callable[[event_pb2.Event], object]
    ) -> None:
        """job: as it shall be, with its steps. told: hears of every event, in order."""
        self.job = Job()
        self.job.CopyFrom(job)
        self.job.name, self.job.owner, self.job.state = (
            f"jobs/{uuid.uuid4()}",
            owner,
            Job.STATE_PENDING,
        )
        self.job.create_time.GetCurrentTime()
        self.events: list[event_pb2.Event] = []
        self.progress: list[event_pb2.Progress] = []
        self._told = told
        self.tell(job_changed=event_pb2.JobChanged(state=Job.STATE_PENDING))

    @property
    def ended(self) -> bool:
        """Whether the job is terminal."""
        return self.job.state in TERMINAL

    def has_news(self, position: int, told: int) -> bool:
        """Whether there are more events, or more progress, than these; or will be none."""
        return len(self.events) > position or len(self.progress) > told or self.ended

    def tell(
        self,
        *,
        job_changed: event_pb2.JobChanged | None = None,
        step_changed: event_pb2.StepChanged | None = None,
        task_changed: event_pb2.TaskChanged | None = None,
    ) -> None:
        """Adds the next event."""
        sequence = self.job.last_sequence + 1
        event = event_pb2.Event(
            sequence=sequence,
            job=self.job.name,
            job_changed=job_changed,
            step_changed=step_changed,
            task_changed=task_changed,
        )
        event.time.GetCurrentTime()
        self.job.last_sequence = sequence
        self.events.append(event)
        self._told(event)

    def change(self, change: Change) -> None:
        """Adds an event that no rule brings about. The job, or the step, takes its state."""
        if isinstance(change, event_pb2.TaskChanged):
            self.tell(task_changed=change)
        elif isinstance(change, event_pb2.JobChanged):
            self.move_job(change.state, change.reason, change.message)
        else:
            for step in self.job.steps:
                if step.name == change.step:
                    step.state, step.reason, step.message = (
                        change.state,
                        change.reason,
                        change.message,
                    )
            self.tell(step_changed=change)

    def head(self) -> job_pb2.Job:
        """The job without its inputs and steps."""
        head = shown(self.job, BASIC)
        head.ClearField("steps")
        return head

    def ready(self) -> list[job_pb2.Step]:
        """Steps that have not ended, and wait for no other."""
        return [
            step
            for step in self.job.steps
            if any(task.state in {Task.STATE_READY, Task.STATE_RUNNING} for task in step.tasks)
        ]

    # --- what can happen ---

    def start(self, step: job_pb2.Step) -> None:
        """A worker claims every task of the step that is ready."""
        for task in step.tasks:
            if task.state == Task.STATE_READY:
                if self.job.state == Job.STATE_PENDING:
                    self.job.start_time.GetCurrentTime()
                    self.move_job(Job.STATE_RUNNING)
                if step.state == Step.STATE_PENDING:
                    self._move_step(step, Step.STATE_RUNNING)
                attempt = task.attempts.add(number=len(task.attempts) + 1, worker="fake")
                attempt.start_time.GetCurrentTime()
                self._move_task(step, task, Task.STATE_RUNNING)

    def end(
        self, step: job_pb2.Step, outcome: Outcome, artifacts: Sequence[job_pb2.Artifact]
    ) -> None:
        """Every task of the step that runs ends as told.

        TypeError if the result is not one of the step's operation.
        """
        result = f"{step.WhichOneof('operation')}_result"
        if not outcome.reason and outcome.result:
            getattr(step, result).CopyFrom(outcome.result)
        for task in step.tasks:
            if task.state == Task.STATE_RUNNING and outcome.reason:
                self._fail(step, task, outcome)
            elif task.state == Task.STATE_RUNNING:
                inputs = range(task.first_input, task.first_input + task.input_count)
                items = [item for item in outcome.items if item.input in inputs]
                step.items.extend(items)
                _close(task.attempts[-1], Attempt.OUTCOME_SUCCEEDED)
                self._move_task(
                    step, task, Task.STATE_SUCCEEDED, counts=_count(items) if items else None
                )
        for item in step.items:
            item.key = item.key or str(item.input)
        step.items.sort(key=lambda item: item.input)
        step.artifacts.extend(artifacts)
        self._join(step)
        if step.state in {Step.STATE_SUCCEEDED, Step.STATE_PARTIALLY_SUCCEEDED}:
            getattr(step, result).SetInParent()
        else:
            step.ClearField("result")
        self._settle(step)

    def cancel(self, state: "job_pb2.Job.State.ValueType", reason: str, message: str) -> None:
        """Ends the job and everything in it that has not ended."""
        for step in self.job.steps:
            self._cancel_tasks(step, reason, message)
        for step in self.job.steps:
            if step.state not in STEP_TERMINAL:
                self._move_step(step, Step.STATE_CANCELLED, reason, message)
        self.move_job(state, reason, message)

    def retry(self) -> bool:
        """Opens the ended job again: what failed, was cancelled or did not run, and all after it.

        False if there is no such thing.
        """
        redo = {step.name for step in self.job.steps if step.state != Step.STATE_SUCCEEDED}
        if self.job.state == Job.STATE_SUCCEEDED or not redo:
            return False
        while more := {
            step.name
            for step in self.job.steps
            if step.name not in redo and redo.intersection(step.after)
        }:
            redo |= more
        self.job.ClearField("end_time")
        self.move_job(Job.STATE_PENDING, message="Retried.")
        self.job.message = ""
        for step in self.job.steps:
            if step.name in redo:
                self._reopen(step, redo)
        return True

    def _reopen(self, step: job_pb2.Step, redo: set[str]) -> None:
        waits = bool(redo.intersection(step.after))
        bad = [
            task
            for task in step.tasks
            if task.state != Task.STATE_SUCCEEDED or any(map(_failed, _items_of(step, task)))
        ]
        redone = list(step.tasks) if waits or not bad else bad
        inputs = {
            number
            for task in redone
            for number in range(task.first_input, task.first_input + task.input_count)
        }
        kept = [item for item in step.items if item.input not in inputs]
        kept_artifacts = [
            each for each in step.artifacts if each.HasField("input") and each.input not in inputs
        ]
        for name in ("items", "artifacts", "result"):
            step.ClearField(name)
        step.items.extend(kept)
        step.artifacts.extend(kept_artifacts)
        for task in redone:
            if waits:  # it stays on record until its step is unblocked, and works on nothing
                task.first_input = task.input_count = 0
            else:
                task.state = Task.STATE_READY
        self._move_step(step, Step.STATE_PENDING)

    # --- what follows from it ---

    def _fail(self, step: job_pb2.Step, task: job_pb2.Task, outcome: Outcome) -> None:
        if step.max_inputs_per_task:
            numbers = range(task.first_input, task.first_input + task.input_count)
            step.items.extend(
                Item(
                    input=i, state=Item.STATE_FAILED, reason=outcome.reason, message=outcome.message
                )
                for i in numbers
            )
        _close(task.attempts[-1], Attempt.OUTCOME_FAILED, outcome.reason, outcome.message)
        self._move_task(step, task, Task.STATE_FAILED, outcome.reason, outcome.message)

    def _join(self, step: job_pb2.Step) -> None:
        """What the step is worth: the sum of its items, and its policy."""
        lost = [task for task in step.tasks if task.state == Task.STATE_FAILED]
        counts = _count(
            [item for task in step.tasks if task not in lost for item in _items_of(step, task)]
        )
        if lost and (len(lost) == len(step.tasks) or not counts.succeeded):
            self._move_step(
                step, Step.STATE_FAILED, lost[0].attempts[-1].reason, lost[0].attempts[-1].message
            )
        elif counts.total and not counts.succeeded:
            reason = "ALL_ITEMS_FAILED" if counts.failed else "NO_APPLICABLE_INPUT"
            text = (
                f"Of {counts.total} items, {counts.failed} failed and {counts.skipped} "
                "were skipped; none succeeded."
            )
            self._move_step(step, Step.STATE_FAILED, reason, text)
        elif counts.failed or lost:
            gone = sum(task.input_count for task in lost)
            state = Step.STATE_PARTIALLY_SUCCEEDED
            if step.item_failure_policy == Step.ITEM_FAILURE_POLICY_FAIL_STEP:
                state = Step.STATE_FAILED
            self._move_step(
                step,
                state,
                "ITEMS_FAILED",
                f"{counts.failed + gone} of {counts.total + gone} items failed.",
            )
        else:
            self._move_step(step, Step.STATE_SUCCEEDED)

    def _settle(self, step: job_pb2.Step) -> None:
        """Passes the end of a step on to those after it, and to the job."""
        useful = step.state in {Step.STATE_SUCCEEDED, Step.STATE_PARTIALLY_SUCCEEDED}
        by_name = {other.name: other for other in self.job.steps}
        for follower in self.job.steps:
            if step.name not in follower.after or follower.state in STEP_TERMINAL:
                continue
            if not useful:
                message = f"Step {step.name} has no result."
                self._cancel_tasks(follower, "UPSTREAM_FAILED", message)
                self._move_step(follower, Step.STATE_CANCELLED, "UPSTREAM_FAILED", message)
                self._settle(follower)
            elif all(by_name[name].state in STEP_TERMINAL for name in follower.after):
                plan(follower, len(self.job.inputs))
        if not self.ended and all(other.state in STEP_TERMINAL for other in self.job.steps):
            self.close()

    def close(self) -> None:
        """Ends a job whose steps have all ended, by what they are worth."""
        failed = [step.name for step in self.job.steps if step.state == Step.STATE_FAILED]
        partial = [
            step.name for step in self.job.steps if step.state == Step.STATE_PARTIALLY_SUCCEEDED
        ]
        if failed:
            self.move_job(Job.STATE_FAILED, "STEP_FAILED", f"Failed: {', '.join(failed)}.")
        elif partial:
            self.move_job(
                Job.STATE_PARTIALLY_SUCCEEDED,
                "ITEMS_FAILED",
                f"Some items failed in: {', '.join(partial)}.",
            )
        else:
            self.move_job(Job.STATE_SUCCEEDED)

    def _cancel_tasks(self, step: job_pb2.Step, reason: str, message: str) -> None:
        for task in step.tasks:
            if task.state == Task.STATE_RUNNING:
                _close(task.attempts[-1], Attempt.OUTCOME_CANCELLED, reason, message)
            if task.state not in TASK_TERMINAL:
                self._move_task(step, task, Task.STATE_CANCELLED, reason, message)

    # --- moves, each with its event ---

    def _move_task(
        self,
        step: job_pb2.Step,
        task: job_pb2.Task,
        state: "job_pb2.Task.State.ValueType",
        reason: str = "",
        message: str = "",
        counts: event_pb2.ItemCounts | None = None,
    ) -> None:
        task.state = state
        change = event_pb2.TaskChanged(
            step=step.name,
            shard=task.shard,
            state=state,
            attempt=len(task.attempts),
            reason=reason,
            message=message,
            items=counts,
        )
        self.tell(task_changed=change)

    def _move_step(
        self,
        step: job_pb2.Step,
        state: "job_pb2.Step.State.ValueType",
        reason: str = "",
        message: str = "",
    ) -> None:
        step.state, step.reason, step.message = state, reason, message
        self.tell(
            step_changed=event_pb2.StepChanged(
                step=step.name, state=state, reason=reason, message=message
            )
        )

    def move_job(
        self, state: "job_pb2.Job.State.ValueType", reason: str = "", message: str = ""
    ) -> None:
        """The job itself reaches a state."""
        self.job.state, self.job.reason, self.job.message = state, reason, message
        if state in TERMINAL:
            self.job.end_time.GetCurrentTime()
        self.tell(job_changed=event_pb2.JobChanged(state=state, reason=reason, message=message))


def accepted(job: job_pb2.Job) -> job_pb2.Job:
    """The job that a gateway makes of a submitted one: with tasks and the defaults of job.proto."""
    made = Job(inputs=job.inputs, labels=job.labels, priority=job.priority, pipeline=job.pipeline)
    for name in ("schedule_time", "expire_time"):
        if job.HasField(name):
            getattr(made, name).CopyFrom(getattr(job, name))
    made.steps.extend(_accepted(step, len(job.inputs)) for step in job.steps)
    return made


def _accepted(step: job_pb2.Step, inputs: int) -> job_pb2.Step:
    made = Step(
        name=step.name,
        after=waits_for(step),
        inputs=step.inputs,
        allow_identifiable=step.allow_identifiable,
        state=Step.STATE_PENDING,
    )
    for name in (step.WhichOneof("operation"), "retry_policy", "attempt_timeout"):
        if name:
            getattr(made, name).CopyFrom(getattr(step, name))
    policy = made.retry_policy
    policy.max_attempts = policy.max_attempts or 3
    for duration, default in (
        (policy.initial_backoff, 2),
        (policy.max_backoff, 300),
        (made.attempt_timeout, 1800),
    ):
        if not duration.ToNanoseconds():
            duration.FromSeconds(default)
    made.item_failure_policy = step.item_failure_policy or Step.ITEM_FAILURE_POLICY_ALLOW
    made.max_inputs_per_task = step.max_inputs_per_task
    if not made.after:
        plan(made, inputs)
    return made


def plan(step: job_pb2.Step, inputs: int) -> None:
    """Gives a step that waits for nothing its tasks; tasks of before a retry keep their number."""
    if step.HasField("export_report"):  # it reads results, and has no inputs of its own
        inputs = 0
    size = step.max_inputs_per_task or inputs or 1
    for shard, first in enumerate(range(0, inputs or 1, size)):
        task = step.tasks[shard] if shard < len(step.tasks) else step.tasks.add(shard=shard)
        task.state, task.first_input = Task.STATE_READY, first
        task.input_count = min(size, inputs - first)


def _close(
    attempt: job_pb2.Attempt,
    outcome: "job_pb2.Attempt.Outcome.ValueType",
    reason: str = "",
    message: str = "",
) -> None:
    attempt.end_time.GetCurrentTime()
    attempt.outcome, attempt.reason, attempt.message = outcome, reason, message


def _failed(item: job_pb2.Item) -> bool:
    return item.state == Item.STATE_FAILED


def _items_of(step: job_pb2.Step, task: job_pb2.Task) -> Iterator[job_pb2.Item]:
    inputs = range(task.first_input, task.first_input + task.input_count)
    return (item for item in step.items if item.input in inputs)


def _count(items: Sequence[job_pb2.Item]) -> event_pb2.ItemCounts:
    states = [item.state for item in items]
    succeeded, skipped, failed = (
        states.count(kind) for kind in (Item.STATE_SUCCEEDED, Item.STATE_SKIPPED, Item.STATE_FAILED)
    )
    return event_pb2.ItemCounts(
        total=len(items), succeeded=succeeded, skipped=skipped, failed=failed
    )
