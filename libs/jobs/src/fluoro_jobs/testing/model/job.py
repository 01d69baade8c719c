"""What a job is, said a second time and another way.

Nothing but tasks and attempts has a state of its own here; where steps and the job stand follows
from them. Jobs of this model have two inputs. States are the names in `fluoro_jobs.states`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

USEFUL: Final = {"SUCCEEDED", "PARTIALLY_SUCCEEDED"}
ENDS: Final = {*USEFUL, "FAILED", "CANCELLED"}


@dataclass
class Task:
    """One task.

    inputs and worker: their numbers. items: a letter per input, S(ucceeded), K for skipped,
    F(ailed); None without result.

    allowed: claims until it fails for good. returned: those that cost nothing, of all it ever had.
    due: its back-off is over. expired: its lease is.
    """

    inputs: range
    allowed: int
    stage: str = "WAITING"
    attempt: int = 0
    returned: int = 0
    due: bool = True
    expired: bool = False
    worker: int = -1
    items: str | None = None


@dataclass
class Step:
    """One step.

    fans_out: a task per input. requires_all: a failed item fails it. started: since it was
    accepted, or retried.
    """

    after: Sequence[int]
    max_attempts: int
    fans_out: bool
    requires_all: bool
    started: bool = False
    tasks: list[Task] = field(default_factory=list)

    def __post_init__(self) -> None:
        shares = [range(1), range(1, 2)] if self.fans_out else [range(2)]
        self.tasks = [Task(share, self.max_attempts) for share in shares]

    def verdict(self) -> str:
        """What it is worth once all its tasks have ended."""
        items = "".join("F" if task.items is None else task.items for task in self.tasks)
        if (items and "S" not in items) or ("F" in items and self.requires_all):
            return "FAILED"
        return "PARTIALLY_SUCCEEDED" if "F" in items else "SUCCEEDED"


@dataclass
class Job:
    """One job. end: what it was ended as before its steps had ended."""

    owner: str
    steps: list[Step]
    started: bool = False
    end: str = ""

    def step_state(self, number: int) -> str:
        """Where a step stands."""
        step = self.steps[number]
        if all(task.stage in ENDS for task in step.tasks):
            return step.verdict()
        if self.end or any(
            self.step_state(other) in {"FAILED", "CANCELLED"} for other in step.after
        ):
            return "CANCELLED"
        return "RUNNING" if step.started else "PENDING"

    def task_state(self, number: int, shard: int) -> str:
        """Where a task stands."""
        stage = self.steps[number].tasks[shard].stage
        if stage in ENDS:
            return stage
        if self.step_state(number) == "CANCELLED":
            return "CANCELLED"
        if stage == "WAITING":
            return (
                "READY"
                if all(self.step_state(other) in ENDS for other in self.steps[number].after)
                else "BLOCKED"
            )
        return stage

    @property
    def state(self) -> str:
        """Where the job stands."""
        states = {self.step_state(number) for number in range(len(self.steps))}
        if self.end:
            return self.end
        if not states <= ENDS:
            return "RUNNING" if self.started else "PENDING"
        return next(
            state for state in ("FAILED", "PARTIALLY_SUCCEEDED", "SUCCEEDED") if state in states
        )

    def stop(self, end: str) -> None:
        """Before its time: cancelled by its owner, or failed because its time ran out."""
        if self.state not in ENDS:
            self.end = end

    def retry(self) -> None:
        """What did not succeed, and all after it, is as new; of a step with some results only what has none, or a failed item."""
        states = [self.step_state(number) for number in range(len(self.steps))]
        again: set[int] = set()
        for number, step in enumerate(self.steps):
            waits = not again.isdisjoint(step.after)
            if states[number] == "SUCCEEDED" and not waits:
                continue
            again.add(number)
            step.started = False
            bad = [task for task in step.tasks if task.items is None or "F" in task.items]
            for task in step.tasks:
                if waits or not bad or task in bad:
                    task.stage, task.due, task.items = "WAITING", True, None
                    task.allowed = task.attempt + step.max_attempts
        self.end, self.started = "", False


class Key(NamedTuple):
    """A task, by numbers."""

    job: int
    step: int
    shard: int


class Try(NamedTuple):
    """One attempt, by numbers."""

    task: Key
    number: int


@dataclass
class Model:
    """All jobs, and what happens to them."""

    jobs: list[Job] = field(default_factory=list)

    def __getitem__(self, key: Key) -> Task:
        return self.jobs[key.job].steps[key.step].tasks[key.shard]

    def state(self, key: Key) -> str:
        """Where the task stands."""
        return self.jobs[key.job].task_state(key.step, key.shard)

    def having(self, state: str) -> list[Key]:
        """The tasks that stand there."""
        keys = [
            Key(j, s, t)
            for j, job in enumerate(self.jobs)
            for s, step in enumerate(job.steps)
            for t in range(len(step.tasks))
        ]
        return [key for key in keys if self.state(key) == state]

    def runs(self, attempt: Try) -> bool:
        """Whether this is the attempt that the task runs in, and so may end it."""
        return (
            self.state(attempt.task) == "RUNNING" and self[attempt.task].attempt == attempt.number
        )

    def claim(self, key: Key, worker: int) -> None:
        """A worker starts the next attempt."""
        task = self[key]
        task.stage, task.worker, task.expired, task.attempt = (
            "RUNNING",
            worker,
            False,
            task.attempt + 1,
        )
        self.jobs[key.job].started = self.jobs[key.job].steps[key.step].started = True

    def end(self, key: Key, how: str) -> None:
        """The attempt ends.

        how: letters of items for a result; "again" or "never" for an error, by whether one may mend
        it; "released" by a worker that shuts down; "outage" of a store.
        """
        task = self[key]
        if how in {"released", "outage"}:
            task.stage, task.due = "WAITING", how == "released"
            task.allowed, task.returned = task.allowed + 1, task.returned + 1
        elif how == "again" and task.attempt < task.allowed:
            task.stage, task.due = "WAITING", False
        elif how in {"again", "never"}:
            task.stage = "FAILED"
        else:
            task.stage, task.items = "SUCCEEDED", how[: len(task.inputs)]
