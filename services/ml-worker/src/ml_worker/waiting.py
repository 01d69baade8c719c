"""What waits for a model: samples of many jobs, and which of them run next."""

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Event
from typing import Any, Final, NamedTuple, Protocol

from fluoro_jobs.errors import FluoroError
from numpy.typing import NDArray

from ml_worker.running import Tensors

Shapes = tuple[tuple[str, tuple[int, ...], str], ...]
"""Name, shape of one sample and dtype of each input: what fits into one run together."""
MOST_PADDING: Final = 0.25
"""Share of a run that may be filling. With more, the next smaller rung runs, and the rest after."""


class Caller(Protocol):
    """Whose samples they are. A StepContext is one."""

    @property
    def owner(self) -> str:
        """Whose job it is."""

    @property
    def cancelled(self) -> Event:
        """Set once nobody wants them any more, or their time is over."""


@dataclass(frozen=True, slots=True)
class Alone:
    """A caller without a job."""

    owner: str = ""
    cancelled: Event = field(default_factory=Event)


@dataclass(eq=False)
class Work:
    """Samples that one caller wants run, all of one shape.

    most: samples of that shape in one run. delay_seconds: how long it may wait for company.
    arrived: time.monotonic(). taken: samples that runs have
    got. parts: outputs by the first sample they are of. left: nobody waits for it any more.
    over: all is there, or error is.
    """

    inputs: Tensors
    most: int
    caller: Caller
    delay_seconds: float = 0
    arrived: float = field(default_factory=time.monotonic)
    taken: int = 0
    parts: dict[int, dict[str, NDArray[Any]]] = field(default_factory=dict)
    error: FluoroError | None = None
    left: bool = False
    over: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        """Counts the samples."""
        self._open = self.samples

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for it, and may still get it."""
        return not self.left and not self.over.is_set()

    def got(self, start: int, outputs: dict[str, NDArray[Any]], samples: int) -> None:
        """Takes outputs of so many samples from this one on."""
        self.parts[start] = outputs
        self._open -= samples
        if self._open == 0:
            self.over.set()

    def fail(self, error: FluoroError) -> None:
        """Ends it, unless it is over."""
        if not self.over.is_set():
            self.error = error
            self.over.set()

    @cached_property
    def samples(self) -> int:
        """How many there are."""
        return len(next(iter(self.inputs.values())))

    @cached_property
    def shapes(self) -> Shapes:
        """What else may be in a run with it."""
        return tuple((name, x.shape[1:], x.dtype.str) for name, x in sorted(self.inputs.items()))

    @cached_property
    def voxels(self) -> int:
        """Values of one sample, of all inputs."""
        return sum(math.prod(shape) for _, shape, _ in self.shapes)


class Slice(NamedTuple):
    """Some samples of a work."""

    work: Work
    start: int
    stop: int


Slices = Sequence[Slice]
Limit = Callable[[Work], int]
"""Most samples of a run with this work."""


def count(slices: Slices) -> int:
    """How many samples."""
    return sum(stop - start for _, start, stop in slices)


def halves(slices: Slices) -> tuple[list[Slice], list[Slice]]:
    """The first half of the samples, and the second."""
    room, first, second = count(slices) // 2, [], []
    for work, start, stop in slices:
        middle = min(stop, start + room)
        # A work may be cut in the middle; its outputs are joined again by their first sample.
        room -= middle - start
        if middle > start:
            first.append(Slice(work, start, middle))
        if stop > middle:
            second.append(Slice(work, middle, stop))
    return first, second


class Waiting:
    """Work by owner. The batcher's lock guards it."""

    def __init__(self, ladder: Sequence[int]) -> None:
        """ladder: sizes of runs, as in the manifest."""
        self._ladder = ladder
        self._owners: OrderedDict[str, deque[Work]] = OrderedDict()

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._owners)

    def samples(self) -> int:
        """How many wait."""
        return sum(one.samples - one.taken for works in self._owners.values() for one in works)

    def everything(self) -> list[Slice]:
        """All that waits, where it is."""
        works = [work for each in self._owners.values() for work in each]
        return [Slice(work, work.taken, work.samples) for work in works]

    def add(self, work: Work) -> None:
        """Behind the other work of its owner."""
        self._owners.setdefault(work.caller.owner, deque()).append(work)

    def remove(self, work: Work) -> None:
        """Takes it out, if it still waits."""
        works = self._owners.get(work.caller.owner)
        # Another thread may have taken its last samples meanwhile.
        if works and work in works:
            works.remove(work)
            if not works:
                del self._owners[work.caller.owner]

    def state(self, limit: Limit) -> tuple[bool, float]:
        """Whether a full run waits, and by when (time.monotonic()) the next one is to begin."""
        together = [work for works in self._together() for work in works]
        there = sum(work.samples - work.taken for work in together)
        # Whoever is in the greatest hurry decides for all of the run.
        until = min(work.arrived + work.delay_seconds for work in together)
        return there >= limit(together[0]), until

    def take(self, limit: Limit) -> list[Slice]:
        """The samples of the next run, for which owners take turns.

        The owner who has waited longest for a turn says which shape it is.
        """
        lines = deque(deque(works) for works in self._together())
        first = lines[0][0]
        # Of each work, in the order in which they go into the run.
        shares = {work: 0 for works in lines for work in works}
        there = sum(work.samples - work.taken for work in shares)
        for _ in range(self._fitting(min(there, limit(first)))):
            # Sample by sample and owner by owner: a job of 10,000 images does not keep others from
            # the run.
            works = lines.popleft()
            shares[works[0]] += 1
            if works[0].taken + shares[works[0]] == works[0].samples:
                works.popleft()
            if works:
                lines.append(works)
        found = []
        for work, share in shares.items():
            if share:
                found.append(Slice(work, work.taken, work.taken + share))
                work.taken += share
            if work.taken == work.samples:
                self.remove(work)
        if first.caller.owner in self._owners:
            # Its turn is over. Others keep their places, though they had room in the run.
            self._owners.move_to_end(first.caller.owner)
        return found

    def _together(self) -> Iterator[list[Work]]:
        """What may run next, owner by owner."""
        # The owner in front chooses the shape: if the commonest one ran first, a rare one would
        # wait for ever.
        shapes = next(iter(self._owners.values()))[0].shapes
        for works in self._owners.values():
            # Other shapes of the same owner wait for a run of their own.
            if same := [work for work in works if work.shapes == shapes]:
                yield same

    def _fitting(self, samples: int) -> int:
        """So many of the samples that hardly any filling is needed."""
        above = next((rung for rung in self._ladder if rung >= samples), samples)
        below = [rung for rung in self._ladder if rung <= samples]
        # Filling costs as much as samples do: rather a full run now, and the rest after it.
        if below and (above - samples) / above > MOST_PADDING:
            return below[-1]
        return samples
