"""Calls that wait to begin: plain logic, without a server."""

import weakref
from collections import deque
from collections.abc import Callable

from gateway.limits.arrivals import (
    MAX_KNOWN,
    MOST_HELD,
    REFUSALS_PER_CALL,
    SAVED_REFUSALS,
    Arrival,
    Arrivals,
    FirstSight,
    Refusals,
)


class Loop:
    """An event loop of which the test does each turn."""

    def __init__(self) -> None:
        self._soon: deque[Callable[[], None]] = deque()

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def turn(self) -> None:
        for _ in range(len(self._soon)):
            self._soon.popleft()()


class Seen:
    """What became of calls, by name and in order."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.refused: list[str] = []

    def call(self, name: str) -> Arrival:
        return Arrival(lambda: self.begun.append(name), lambda: self.refused.append(name))


def test_one_call_begins_in_a_turn_and_owners_take_turns() -> None:
    loop, seen = Loop(), Seen()
    arrivals = Arrivals(100, Refusals(), loop.call_soon)
    for name in ("ada 1", "ada 2", "ada 3", "eve 1"):
        assert arrivals.takes(name[:3], seen.call(name))
    assert seen.begun == ["ada 1"], "it does not wait for a turn"
    for _ in range(5):
        loop.turn()
    assert seen.begun == ["ada 1", "ada 2", "eve 1", "ada 3"]


def test_only_who_fills_the_places_is_refused() -> None:
    loop, seen = Loop(), Seen()
    arrivals = Arrivals(10, Refusals(), loop.call_soon)
    taken = [arrivals.takes("ada", seen.call("ada")) for _ in range(50)]
    assert taken == [True] * 11 + [False] * 39
    assert arrivals.takes("eve", seen.call("eve"))
    assert not arrivals.takes("ada", seen.call("ada"))
    assert seen.refused == ["ada"] * 40
    loop.turn()
    loop.turn()
    assert seen.begun == ["ada", "ada", "eve"], "whoever comes later has the next turn but one"


def test_owners_without_number_do_not_make_the_places_endless() -> None:
    arrivals, seen = Arrivals(10, Refusals(), Loop().call_soon), Seen()
    taken = [arrivals.takes(f"owner-{number}", seen.call("")) for number in range(100)]
    assert sum(taken) == 1 + 2 * 10


def test_a_flood_that_lasts_is_held_back_until_calls_that_begin_earn_refusals() -> None:
    loop, seen = Loop(), Seen()
    arrivals = Arrivals(10, Refusals(), loop.call_soon)
    for number in range(11 + SAVED_REFUSALS + 100):
        arrivals.takes("ada", seen.call(str(number)))
    told = len(seen.refused)
    assert told == SAVED_REFUSALS
    turns = round(4 / REFUSALS_PER_CALL)
    for _ in range(turns):
        loop.turn()
        arrivals.takes("ada", seen.call("new"))
    assert len(seen.refused) - told == 4
    first_held = 11 + SAVED_REFUSALS
    assert seen.refused[told:] == [str(first_held + number) for number in range(4)]
    assert arrivals.takes("eve", seen.call("eve")), "who has a share is not held back"


def test_who_floods_delays_no_refusal_of_another_owner() -> None:
    loop, seen = Loop(), Seen()
    arrivals = Arrivals(10, Refusals(), loop.call_soon)
    for _ in range(11 + SAVED_REFUSALS + 1000):
        arrivals.takes("ada", seen.call("ada"))
    for _ in range(11):
        arrivals.takes("eve", seen.call("eve"))
    told = len(seen.refused)
    for _ in range(round(8 / REFUSALS_PER_CALL)):
        loop.turn()
        for owner in ("ada", "eve"):
            arrivals.takes(owner, seen.call(owner))
    assert seen.refused[told:] == ["ada", "eve"] * 4


def test_who_was_held_back_begins_when_nothing_else_does() -> None:
    loop, seen = Loop(), Seen()
    arrivals = Arrivals(10, Refusals(), loop.call_soon)
    count = 11 + SAVED_REFUSALS + 100
    for number in range(count):
        arrivals.takes("ada", seen.call(str(number)))
    for _ in range(count):
        loop.turn()
    assert len(seen.begun) + len(seen.refused) == count
    assert len(seen.begun) > 11


def test_there_is_an_end_to_what_is_held_back_and_what_is_more_is_let_go_of() -> None:
    refusals, seen = Refusals(), Seen()
    arrivals, others = (Arrivals(10, refusals, Loop().call_soon) for _ in range(2))
    for each in (arrivals, others):
        each.takes("ada", seen.call("begins"))
        for _ in range(10):
            each.takes("ada", seen.call("waits"))
    alive = [seen.call("too many") for _ in range(SAVED_REFUSALS + MOST_HELD + 50)]
    kept = [weakref.ref(call.begin) for call in alive]
    for number, call in enumerate(alive):
        (arrivals if number % 2 else others).takes("ada", call)
    del alive, call
    assert sum(ref() is not None for ref in kept) == MOST_HELD


def test_who_floods_keeps_no_other_connection_of_its_address_out() -> None:
    loop, seen = Loop(), Seen()
    arrivals = Arrivals(10, Refusals(), loop.call_soon)
    for _ in range(50):
        arrivals.takes("10.0.0.1", seen.call("flood"), "10.0.0.1:1")
    for number in range(20):
        arrivals.takes("10.0.0.1", seen.call(f"new {number}"), f"10.0.0.1:2{number}")
    assert seen.refused[39:] == ["flood"] * 9 + [f"new {number}" for number in range(9, 20)]
    assert arrivals.takes("ada", seen.call("ada"))
    for _ in range(4):
        loop.turn()
    assert seen.begun == ["flood", "flood", "ada", "new 0", "new 1"]


def test_a_caller_is_known_again_by_its_proof_and_a_stranger_by_its_address() -> None:
    sight = FirstSight()

    def here() -> str:
        return "ipv4:10.0.0.1:4711"

    def there() -> str:
        return "ipv4:10.0.0.1:4712"

    token = (("authorization", "Bearer abc"),)
    assert sight.owner(token, here) == ("ipv4:10.0.0.1", here())
    sight.learn(token, here(), "ada")
    assert sight.owner(token, there) == ("ada", "")
    assert sight.owner((("authorization", "Bearer forged"),), here) == ("ipv4:10.0.0.1", here())
    sight.learn((), here(), "by-certificate")
    assert sight.owner((), here) == ("by-certificate", "")
    assert sight.owner((), there) == ("ipv4:10.0.0.1", there())
    for number in range(MAX_KNOWN):
        sight.learn((("fluoro-owner", f"o{number}"),), here(), f"o{number}")
    assert sight.owner(token, here) == ("ipv4:10.0.0.1", here()), "forgotten"
