"""When a step may be expected to start and to end, from how long such work took lately. Pure.

All times are seconds from now. Each comes as three: as early as the fastest tenth of what was
measured would have it, expected, and as late as the slowest tenth.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

FEWEST_SAMPLES: Final = 3
"""With fewer attempts measured, the workers' average says more."""
SPREAD: Final = 2.0
"""How many times shorter or longer than the workers' average a task is taken to be."""


class Span(NamedTuple):
    """A time with its error bars: early ≤ mid ≤ late."""

    early: float
    mid: float
    late: float

    def plus(self, other: "Span", times: float = 1) -> "Span":
        """This one, and then the other so many times."""
        return Span(*(a + b * times for a, b in zip(self, other, strict=True)))

    def less(self, seconds: float) -> "Span":
        """What is left of it after that many seconds."""
        return Span(*(max(0.0, each - seconds) for each in self))


NOW: Final = Span(0.0, 0.0, 0.0)


class Rate(NamedTuple):
    """How long one task takes. samples: attempts that this was measured on."""

    seconds: Span
    samples: int


def rate(samples: Sequence[float], average: float) -> Rate | None:
    """From attempts measured, or else from the workers' average; None if neither is known."""
    # One or two attempts may both be outliers.
    if len(samples) >= FEWEST_SAMPLES:
        ordered = sorted(samples)
        last = len(ordered) - 1
        early, late = ordered[math.floor(last * 0.1)], ordered[math.ceil(last * 0.9)]
        mean = sum(ordered) / len(ordered)
        # One very long sample pulls the mean over the slowest tenth. Bounded, the three stay in
        # order.
        return Rate(Span(early, min(max(mean, early), late), late), len(ordered))
    if average > 0:
        return Rate(Span(average / SPREAD, average, average * SPREAD), 0)
    return None


class Work(NamedTuple):
    """What a step has still to do.

    open_tasks: that have not ended, at least 1. running: those of them that run.
    elapsed_seconds: for how long the first of these has. tasks_ahead: in the queue before the first
    that waits. free_slots, slots: of the queue. wait_seconds: until its time comes.
    """

    open_tasks: int
    running: int
    elapsed_seconds: float
    tasks_ahead: int
    free_slots: int
    slots: int
    wait_seconds: float


def start(work: Work, after: Span, each: Rate) -> Span:
    """When the first task starts. after: when the steps before have ended."""
    # A task runs already, so the step has started, whatever waits behind it.
    if work.running:
        return NOW
    begun = Span(*(max(when, work.wait_seconds) for when in after))
    # Tasks ahead take the free slots first. Only the ones beyond those make this one wait.
    before = max(0, work.tasks_ahead + 1 - work.free_slots)
    # Slots become free evenly, so one of many is free after a fraction of a task's length.
    return begun.plus(each.seconds, before / work.slots)


def finish(work: Work, after: Span, each: Rate) -> Span:
    """When the last task ends: its tasks run side by side, as many as there are slots."""
    rounds = math.ceil(work.open_tasks / work.slots)
    # The running ones are in their first round, part of which is over.
    first = each.seconds.less(work.elapsed_seconds) if work.running else each.seconds
    return start(work, after, each).plus(first).plus(each.seconds, rounds - 1)


def latest(spans: Iterable[Span]) -> Span:
    """When all of them have come."""
    return Span(*(max(each) for each in zip(NOW, *spans, strict=True)))
