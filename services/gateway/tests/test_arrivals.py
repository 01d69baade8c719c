"""Calls that wait to begin: plain logic, without a server."""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from gateway.limits.arrivals import MAX_KNOWN, SAVED_REFUSALS, Arrivals, Credit, FirstSight


class Loop:
    """An event loop of which the test does each turn."""

    def __init__(self) -> None:
        self._soon: deque[Callable[[], None]] = deque()

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def turn(self) -> None:
        for _ in range(len(self._soon)):
            self._soon.popleft()()


def test_one_call_begins_in_a_turn_and_owners_take_turns() -> None:
    loop, begun = Loop(), list[str]()
    arrivals = Arrivals(100, Credit(), loop.call_soon)
    for name in ("ada 1", "ada 2", "ada 3", "eve 1"):
        assert arrivals.takes(name[:3], partial(begun.append, name))
    assert begun == ["ada 1"], "it does not wait for a turn"
    for _ in range(5):
        loop.turn()
    assert begun == ["ada 1", "ada 2", "eve 1", "ada 3"]


def test_only_who_fills_the_places_is_refused() -> None:
    loop, begun = Loop(), list[str]()
    arrivals = Arrivals(10, Credit(), loop.call_soon)
    taken = [arrivals.takes("ada", partial(begun.append, "ada")) for _ in range(50)]
    assert taken == [True] * 11 + [False] * 39
    assert arrivals.takes("eve", partial(begun.append, "eve"))
    assert not arrivals.takes("ada", partial(begun.append, "ada"))
    loop.turn()
    loop.turn()
    assert begun == ["ada", "ada", "eve"], "whoever comes later has the next turn but one"


def test_owners_without_number_do_not_make_the_places_endless() -> None:
    arrivals = Arrivals(10, Credit(), Loop().call_soon)
    taken = [arrivals.takes(f"owner-{number}", int) for number in range(100)]
    assert sum(taken) == 1 + 2 * 10


async def test_refusals_are_so_many_and_then_calls_are_left_where_they_are() -> None:
    loop, credit = Loop(), Credit()
    arrivals = Arrivals(10, credit, loop.call_soon)
    refused = 0
    while not credit.is_spent:
        await arrivals.place()
        refused += not arrivals.takes("ada", int)
    # Each call that begins earns half a refusal.
    assert refused in (SAVED_REFUSALS, SAVED_REFUSALS + 1)
    places = [asyncio.create_task(arrivals.place()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(place.done() for place in places)
    loop.turn()
    await asyncio.wait(places, return_when=asyncio.FIRST_COMPLETED)
    assert sum(place.done() for place in places) == 1, "for the one that began"
    for place in places:
        place.cancel()


def test_a_caller_is_known_again_by_its_proof_and_a_stranger_by_its_address() -> None:
    sight = FirstSight()

    def here() -> str:
        return "ipv4:10.0.0.1:4711"

    def there() -> str:
        return "ipv4:10.0.0.1:4712"

    token = (("authorization", "Bearer abc"),)
    assert sight.owner(token, here) == "ipv4:10.0.0.1"
    sight.learn(token, here, "ada")
    assert sight.owner(token, there) == "ada"
    assert sight.owner((("authorization", "Bearer forged"),), here) == "ipv4:10.0.0.1"
    sight.learn((), here, "by-certificate")
    assert sight.owner((), here) == "by-certificate"
    assert sight.owner((), there) == "ipv4:10.0.0.1"
    for number in range(MAX_KNOWN):
        sight.learn((("fluoro-owner", f"o{number}"),), here, f"o{number}")
    assert sight.owner(token, here) == "ipv4:10.0.0.1", "forgotten"
