"""What comes from other threads, and what does not come in time."""

import asyncio
from concurrent.futures import Future

import pytest
from gateway.ledger_calls import Landing

SECONDS = 0.2


async def test_what_takes_too_long_is_given_up_in_its_turn_and_the_rest_lands() -> None:
    landing = Landing(SECONDS)
    never, soon, late = (Future[str]() for _ in range(3))
    loop = asyncio.get_running_loop()
    started = loop.time()
    first, second = (asyncio.ensure_future(landing.of(each)) for each in (never, soon))
    loop.call_later(SECONDS / 2, soon.set_result, "landed")
    assert await second == "landed"
    third = asyncio.ensure_future(landing.of(late))
    with pytest.raises(TimeoutError):
        await first
    assert not third.done(), "its time began later"
    with pytest.raises(TimeoutError):
        await third
    assert loop.time() - started >= 1.5 * SECONDS
    assert never.set_running_or_notify_cancel(), "the future itself is left alone"
    never.set_result("too late, and nobody minds")


async def test_without_a_limit_a_future_takes_as_long_as_it_likes() -> None:
    future: Future[str] = Future()
    asyncio.get_running_loop().call_later(SECONDS, future.set_result, "landed")
    assert await Landing().of(future) == "landed"
