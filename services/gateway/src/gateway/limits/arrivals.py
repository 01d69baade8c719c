"""Calls that have come and have yet to begin: owners take turns, and who has too many is refused.

gRPC's core lets calls wait in the order of their coming, and refuses whoever comes when too many
do: it knows no owners. So calls are taken out of it as they come, and wait here. A refusal here
costs a third of what it costs to serve a call, one by core a tenth. So there are only so many of
them, and under a flood that lasts, calls wait in core again, and core refuses what is too much.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

REFUSALS_PER_CALL: Final = 0.5
"""Refusals that are earned by each call that begins: they take a seventh of the gateway's time."""
SAVED_REFUSALS: Final = 1024
"""As many may be saved up, for a burst: they take 0.2 s."""
MAX_KNOWN: Final = 10_000
"""Proofs of callers of which the owner is known at first sight, some 150 bytes each."""

Begin = Callable[[], object]
"""Begins a call; does not wait."""
Metadata = Sequence[tuple[str, str | bytes]]


class Credit:
    """How many calls may be refused; for all methods of a gateway together."""

    def __init__(self) -> None:
        self._left: float = SAVED_REFUSALS

    def earn(self) -> None:
        """A call begins."""
        self._left = min(SAVED_REFUSALS, self._left + REFUSALS_PER_CALL)

    def spend(self) -> bool:
        """Whether one may be refused; then it is counted."""
        if self.is_spent:
            return False
        self._left -= 1
        return True

    @property
    def is_spent(self) -> bool:
        """Whether none may."""
        return self._left < 1


class Arrivals:
    """The calls of one method that wait to begin, for one event loop. One begins in each turn."""

    def __init__(
        self, most: int, credit: Credit, call_soon: Callable[[Callable[[], None]], object]
    ) -> None:
        """most: calls that may wait. call_soon: of the event loop."""
        self._most, self._credit, self._call_soon = most, credit, call_soon
        self._owners: OrderedDict[str, deque[Begin]] = OrderedDict()
        self._size = 0
        self._has_begun = False
        self._places: deque[asyncio.Future[None]] = deque()

    async def place(self) -> None:
        """Returns once a call may be taken: there is a place for it, or it may be refused."""
        while self._size >= self._most and self._credit.is_spent:
            place = asyncio.get_running_loop().create_future()
            self._places.append(place)
            await place

    def takes(self, owner: str, begin: Begin) -> bool:
        """Takes a call, which begins at once if none waits. False if it is to be refused.

        Only what is over the owner's share of the places is refused, so no owner is because of
        another.
        """
        if self._size >= self._most and self._is_over_share(owner) and self._credit.spend():
            return False
        if self._has_begun:
            self._owners.setdefault(owner, deque()).append(begin)
            self._size += 1
        else:
            self._begin(begin)
        return True

    def _is_over_share(self, owner: str) -> bool:
        mine = self._owners.get(owner)
        if mine is None:
            # Many owners with a call each are too many as well.
            return self._size >= 2 * self._most
        return len(mine) >= self._most // len(self._owners)

    def _begin(self, begin: Begin) -> None:
        self._has_begun = True
        self._credit.earn()
        begin()
        # Calls of other methods, and those under way, have their turn in between.
        self._call_soon(self._next)

    def _next(self) -> None:
        self._has_begun = False
        if not self._size:
            return
        owner, calls = self._owners.popitem(last=False)
        begin = calls.popleft()
        if calls:
            self._owners[owner] = calls  # behind the others
        self._size -= 1
        while self._places:
            place = self._places.popleft()
            if not place.done():
                place.set_result(None)
                break
        self._begin(begin)


class FirstSight:
    """Tells the owner of a call before anybody has looked at its proof.

    It goes by what earlier calls with the same proof turned out to be. Who is not known counts as
    its address, so that made-up proofs are not as many owners. An answer decides whose turn it is,
    and nothing else.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[int, str] = OrderedDict()

    def owner(self, metadata: Metadata, peer: Callable[[], str]) -> str:
        """The owner, or the address without its port, which is no owner's name."""
        return self._known.get(_proof(metadata, peer)) or peer().rpartition(":")[0]

    def learn(self, metadata: Metadata, peer: Callable[[], str], owner: str) -> None:
        """Whose call it was."""
        proof = _proof(metadata, peer)
        self._known[proof] = owner
        self._known.move_to_end(proof)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)


def _proof(metadata: Metadata, peer: Callable[[], str]) -> int:
    """What a call shows of its caller, as a number, because tokens are long."""
    shown: Mapping[str, str | bytes] = dict(metadata)
    token, named = shown.get("authorization"), shown.get("fluoro-owner")
    # Without either, the connection's certificate is the proof.
    return hash((token, named) if token or named else peer())
