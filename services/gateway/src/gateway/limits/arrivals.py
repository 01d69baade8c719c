"""Calls that have come and have yet to begin: owners take turns, and who has too many is refused.

gRPC's core lets calls wait in the order of their coming, and refuses whoever comes when too many
do: it knows no owners. So calls are taken out of it as they come, however many they are, and wait
here.

A refusal costs a fifth of what it costs to serve a call, and whoever opens another call for each
refusal gets as many of them as it can be told. So a gateway tells only so many, and holds the other
calls back until it may. Owners take turns there, too. Held calls keep their places among the
streams of their connection, and a connection has only so many: that is what slows such a caller
down. Where even more come, over many connections, they are dropped: a tenth of what it costs to
serve them.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

REFUSALS_PER_CALL: Final = 0.125
"""Refusals that are earned by each call that begins: they take 3 % of the gateway's time."""
SAVED_REFUSALS: Final = 1024
"""As many may be saved up, for a burst: they take 0.1 s."""
MOST_HELD: Final = 8192
"""Calls that may be held back until they can be refused, 20 to 30 KiB each."""
MAX_KNOWN: Final = 10_000
"""Proofs of callers of which the owner is known at first sight, some 150 bytes each."""

Metadata = Sequence[tuple[str, str | bytes]]


class Arrival(NamedTuple):
    """A call that has come. Let go of, it is cancelled.

    begin, refuse: neither waits.
    """

    begin: Callable[[], object]
    refuse: Callable[[], object]


class Refusals:
    """How many calls may be refused, or held back until then; for all methods of a gateway."""

    def __init__(self) -> None:
        self._saved: float = SAVED_REFUSALS
        self._held = 0

    def earn(self) -> None:
        """A call begins."""
        self._saved = min(SAVED_REFUSALS, self._saved + REFUSALS_PER_CALL)

    def spend(self) -> bool:
        """Whether one may be refused; then it is counted."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True

    def hold(self) -> bool:
        """Whether one may be held back; then it is counted."""
        if self._held >= MOST_HELD:
            return False
        self._held += 1
        return True

    def let_go(self) -> None:
        """One is no longer held back."""
        self._held -= 1


_Lines = OrderedDict[str, deque[Arrival]]
"""Calls of one owner; its lines take turns."""


class Arrivals:
    """The calls of one method that wait to begin, for one event loop. One begins in each turn."""

    def __init__(
        self, most: int, refusals: Refusals, call_soon: Callable[[Callable[[], None]], object]
    ) -> None:
        """most: calls that may wait. call_soon: of the event loop."""
        self._most, self._refusals, self._call_soon = most, refusals, call_soon
        self._owners: OrderedDict[str, _Lines] = OrderedDict()
        self._size = 0
        self._has_begun = False
        self._held: OrderedDict[str, deque[Arrival]] = OrderedDict()

    def takes(self, owner: str, call: Arrival, line: str = "") -> bool:
        """Takes a call, which begins at once if none waits. False if there are too many.

        Then one is refused, now or later, or let go of: the last of the owner's longest line. Only
        what is over the owner's share of the places is, so no owner is refused because of another.
        """
        fits = self._size < self._most or not self._is_over_share(owner)
        if not fits:
            lines: _Lines = self._owners.get(owner) or OrderedDict()
            longest = max(lines.values(), key=len, default=())
            # The newest of the longest line goes, so that those who came first are served.
            if not longest or len(lines.get(line, ())) + 1 >= len(longest):
                self._turn_away(owner, call)
                return False
            self._turn_away(owner, longest.pop())
            self._size -= 1
        if self._has_begun:
            self._owners.setdefault(owner, OrderedDict()).setdefault(line, deque()).append(call)
            self._size += 1
        else:
            self._begin(call)
        return fits

    def _is_over_share(self, owner: str) -> bool:
        mine = self._owners.get(owner)
        if mine is None:
            # Many owners with a call each are too many as well.
            return self._size >= 2 * self._most
        return sum(map(len, mine.values())) >= self._most // len(self._owners)

    def _turn_away(self, owner: str, call: Arrival) -> None:
        if self._refusals.spend():
            call.refuse()
        # Held calls are bounded too. Beyond the bound a call is dropped, which cancels it.
        elif self._refusals.hold():
            self._held.setdefault(owner, deque()).append(call)

    def _begin(self, call: Arrival) -> None:
        self._has_begun = True
        self._refusals.earn()
        call.begin()
        # Each call that begins may pay for the refusal of a held one.
        if self._held and self._refusals.spend():
            self._next_held().refuse()
        # Calls of other methods, and those under way, have their turn in between.
        self._call_soon(self._next)

    def _next(self) -> None:
        self._has_begun = False
        if self._size:
            owner, lines = self._owners.popitem(last=False)
            line, calls = lines.popitem(last=False)
            call = calls.popleft()
            if calls:
                lines[line] = calls  # behind the others
            if lines:
                self._owners[owner] = lines
            self._size -= 1
            self._begin(call)
        elif self._held:  # the flood is over
            self._begin(self._next_held())

    def _next_held(self) -> Arrival:
        self._refusals.let_go()
        owner, calls = self._held.popitem(last=False)
        call = calls.popleft()
        if calls:
            self._held[owner] = calls  # behind the others, who may have few
        return call


class FirstSight:
    """Tells the owner of a call before anybody has looked at its proof.

    It goes by what earlier calls with the same proof turned out to be. Who is not known counts as
    its address, so that made-up proofs are not as many owners. Connections of an address are lines,
    or who makes proofs up would keep out whoever comes from there with a new one. An answer decides
    whose turn it is, and nothing else.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[int, str] = OrderedDict()

    def owner(self, metadata: Metadata, peer: Callable[[], str]) -> tuple[str, str]:
        """The owner and its line; the address, which is no owner's name, and the connection."""
        if known := self._known.get(_proof(metadata, peer)):
            return known, ""
        connection = peer()
        return connection.rpartition(":")[0], connection

    def learn(self, metadata: Metadata, peer: str, owner: str) -> None:
        """Whose call it was."""
        proof = _proof(metadata, lambda: peer)
        self._known[proof] = owner
        self._known.move_to_end(proof)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)


def _proof(metadata: Metadata, peer: Callable[[], str]) -> int:
    """What a call shows of its caller, as a number, because tokens are long."""
    token = named = None
    for key, value in metadata:
        if key == "authorization":
            token = value
        elif key == "fluoro-owner":
            named = value
    # Without either, the connection's certificate is the proof.
    return hash((token, named) if token or named else peer())
