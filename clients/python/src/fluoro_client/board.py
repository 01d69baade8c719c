"""What is known of a watched job at one moment, put together from the messages of its watch.

Knows nothing of terminals.
"""

from dataclasses import dataclass, field
from typing import Final

from fluoro.v1 import event_pb2, job_pb2, job_service_pb2

StepState = job_pb2.Step.State
_FINISHED: Final = (job_pb2.Step.STATE_SUCCEEDED, job_pb2.Step.STATE_PARTIALLY_SUCCEEDED)
_OPEN: Final = (job_pb2.Step.STATE_PENDING, job_pb2.Step.STATE_RUNNING)
_TERMINAL_TASKS: Final = (
    job_pb2.Task.STATE_SUCCEEDED,
    job_pb2.Task.STATE_FAILED,
    job_pb2.Task.STATE_CANCELLED,
)

_SNAPSHOT: Final = -1
"""Key of the counts that the snapshot brought; those of shards are added to them."""


@dataclass(slots=True)
class StepView:
    """One step.

    stage: what a worker does just now. attempt: number of the newest attempt of any shard that was
    told of, 0 before the first. tasks, ended: as the snapshot counted them. fractions: done so far
    by shard that was told of since, 0 to 1. counts: items by shard.
    """

    name: str
    state: "StepState.ValueType" = job_pb2.Step.STATE_PENDING
    reason: str = ""
    message: str = ""
    stage: str = ""
    attempt: int = 0
    tasks: int = 0
    ended: int = 0
    fractions: dict[int, float] = field(default_factory=dict)
    counts: dict[int, event_pb2.ItemCounts] = field(default_factory=dict)

    @property
    def fraction(self) -> float:
        """Done so far, 0 to 1."""
        if self.state in _FINISHED:
            return 1.0
        tasks = max(self.tasks, self.ended + len(self.fractions))
        return (self.ended + sum(self.fractions.values())) / tasks if tasks else 0.0

    @property
    def items(self) -> event_pb2.ItemCounts:
        """Items of all shards by outcome."""
        total = event_pb2.ItemCounts()
        for counts in self.counts.values():
            total.total += counts.total
            total.succeeded += counts.succeeded
            total.skipped += counts.skipped
            total.failed += counts.failed
        return total


@dataclass(slots=True)
class Board:
    """One job: its state and its steps in the order of the job."""

    state: "job_pb2.Job.State.ValueType" = job_pb2.Job.STATE_PENDING
    reason: str = ""
    message: str = ""
    steps: dict[str, StepView] = field(default_factory=dict)

    def apply(self, message: job_service_pb2.WatchJobResponse) -> None:
        """Takes in the next message of a watch."""
        match message.WhichOneof("update"):
            case "snapshot":
                self._snapshot(message.snapshot)
            case "event":
                self._event(message.event)
            case "progress":
                self._progress(message.progress)

    def step(self, name: str) -> StepView:
        """The step of that name."""
        return self.steps.setdefault(name, StepView(name))

    def _snapshot(self, job: job_pb2.Job) -> None:
        self.state, self.reason, self.message = job.state, job.reason, job.message
        self.steps = {step.name: _view(step) for step in job.steps}

    def _event(self, event: event_pb2.Event) -> None:
        match event.WhichOneof("change"):
            case "job_changed":
                job = event.job_changed
                self.state, self.reason, self.message = job.state, job.reason, job.message
            case "step_changed":
                change = event.step_changed
                step = self.step(change.step)
                step.state, step.reason, step.message = change.state, change.reason, change.message
                if step.state not in _OPEN:
                    step.stage = ""
                if step.state == job_pb2.Step.STATE_PENDING:  # retried: what is redone is told anew
                    step.ended, step.fractions = 0, {}
            case "task_changed":
                self._task(event.task_changed)

    def _task(self, change: event_pb2.TaskChanged) -> None:
        step = self.step(change.step)
        step.attempt = max(step.attempt, change.attempt)
        step.fractions[change.shard] = 1.0 if change.state in _TERMINAL_TASKS else 0.0
        step.stage = ""
        if change.HasField("items"):
            step.counts[change.shard] = change.items
        elif change.state not in _TERMINAL_TASKS:
            step.counts.pop(change.shard, None)

    def _progress(self, progress: event_pb2.Progress) -> None:
        step = self.step(progress.step)
        if progress.attempt < step.attempt or step.state not in _OPEN:
            return
        step.attempt, step.stage = progress.attempt, progress.stage
        step.fractions[progress.shard] = progress.fraction
        step.counts[progress.shard] = progress.items


def step_items(step: job_pb2.Step) -> event_pb2.ItemCounts:
    """Items of a step by outcome."""
    return event_pb2.ItemCounts(
        total=step.counts.items,
        succeeded=step.counts.succeeded_items,
        skipped=step.counts.skipped_items,
        failed=step.counts.failed_items,
    )


def _view(step: job_pb2.Step) -> StepView:
    return StepView(
        step.name,
        step.state or job_pb2.Step.STATE_PENDING,
        step.reason,
        step.message,
        attempt=max((len(task.attempts) for task in step.tasks), default=0),
        tasks=step.counts.tasks,
        ended=step.counts.ended_tasks,
        counts={_SNAPSHOT: step_items(step)},
    )
