"""What a job is, said a second time and another way.

Nothing but tasks and attempts has a state of its own here; where steps and the job stand follows
from them. States are the names in `fluoro_jobs.states`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

USEFUL: Final = {"SUCCEEDED", "PARTIALLY_SUCCEEDED"}
ENDS: Final = {*USEFUL, "FAILED", "CANCELLED"}
INPUTS: Final = 2
"""Of a job."""


@dataclass
class Task:
    """One task.

    inputs and worker: their numbers. items: a letter per input, S(ucceeded), K for skipped,
    F(ailed); None without result.

    allowed: claims until it fails for good. returned: those that cost nothing, of all it ever had.
    due: its back-off is over. expired: its lease is. past: how it ended before its step was retried
    and lost it; empty if it did not exist.
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
    past: str = ""


@dataclass
class Step:
    """One step.

    fans_out: a task per input. requires_all: a failed item fails it. takes_up: its inputs are what
    the steps before it left. started: since it was accepted, or retried. planned: it has its tasks,
    `live` of them; further ones are of an earlier plan.
    """

    after: Sequence[int]
    max_attempts: int
    fans_out: bool
    requires_all: bool
    takes_up: bool
    started: bool = False
    planned: bool = False
    live: int = 0
    tasks: list[Task] = field(default_factory=list)

    def plan(self, inputs: int) -> None:
        """It gets its tasks."""
        shares = [range(i, i + 1) for i in range(inputs)] if self.fans_out else [range(inputs)]
        self.planned, self.live = True, len(shares) if inputs else 0
        for shard, share in enumerate(shares[: self.live]):
            if shard == len(self.tasks):
                self.tasks.append(Task(share, self.max_attempts))
            task = self.tasks[shard]
            task.inputs, task.stage, task.due, task.items = share, "WAITING", True, None
            task.allowed = task.attempt + self.max_attempts

    def left(self) -> list[str]:
        """Name and key of what its tasks left: each one artifact, if it had items."""
        return [
            f"{shard}-{task.attempt}"
            for shard, task in enumerate(self.tasks[: self.live])
            if task.items
        ]

    def verdict(self) -> str:
        """What it is worth once all its tasks have ended."""
        tasks = self.tasks[: self.live]
        items = "".join("F" if task.items is None else task.items for task in tasks)
        if not tasks or (items and "S" not in items) or ("F" in items and self.requires_all):
            return "FAILED"
        return "PARTIALLY_SUCCEEDED" if "F" in items else "SUCCEEDED"


@dataclass
class Job:
    """One job. end: what it was ended as before its steps had ended."""

    owner: str
    steps: list[Step]
    started: bool = False
    end: str = ""

    def __post_init__(self) -> None:
        self.plan()

    def plan(self) -> None:
        """Every step that waits for nothing any more gets its tasks."""
        for step in self.steps:
            if not step.planned and all(self.step_state(o) in USEFUL for o in step.after):
                keys = {key for other in step.after for key in self.steps[other].left()}
                step.plan(len(keys) if step.takes_up and step.after else INPUTS)

    def step_state(self, number: int) -> str:
        """Where a step stands."""
        step = self.steps[number]
        if step.planned and all(task.stage in ENDS for task in step.tasks[: step.live]):
            return step.verdict()
        if self.end or any(
            self.step_state(other) in {"FAILED", "CANCELLED"} for other in step.after
        ):
            return "CANCELLED"
        return "RUNNING" if step.started else "PENDING"

    def task_state(self, number: int, shard: int) -> str:
        """Where a task stands; empty if it does not exist."""
        step = self.steps[number]
        task = step.tasks[shard]
        if not step.planned or shard >= step.live:
            return task.past
        if task.stage in ENDS:
            return task.stage
        if self.step_state(number) == "CANCELLED":
            return "CANCELLED"
        return "READY" if task.stage == "WAITING" else task.stage

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
        """What did not succeed, and all after it, is as new.

        Of a step with some results, only the tasks without one, or with a failed item.
        """
        states = [self.step_state(number) for number in range(len(self.steps))]
        ends = [
            [self.task_state(number, shard) for shard in range(len(step.tasks))]
            for number, step in enumerate(self.steps)
        ]
        again: set[int] = set()
        for number, step in enumerate(self.steps):
            waits = not again.isdisjoint(step.after)
            if states[number] == "SUCCEEDED" and not waits:
                continue
            again.add(number)
            step.started = False
            if waits or not step.live:
                step.planned, step.live = False, 0
                for task, end in zip(step.tasks, ends[number], strict=True):
                    task.past, task.items = end, None
                continue
            tasks = step.tasks[: step.live]
            bad = [task for task in tasks if task.items is None or "F" in task.items]
            for task in bad or tasks:
                task.stage, task.due, task.items = "WAITING", True, None
                task.allowed = task.attempt + step.max_attempts
        self.end, self.started = "", False
        self.plan()


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

    def claimable(self, attempt: Try) -> bool:
        """Whether the task is queued for this attempt."""
        waits = self.state(attempt.task) == "QUEUED"
        return waits and self[attempt.task].attempt + 1 == attempt.number

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
        self.jobs[key.job].plan()
