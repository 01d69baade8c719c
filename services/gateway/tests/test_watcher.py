import asyncio

import pytest
from fluoro.v1 import event_pb2
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ids import new_id
from gateway.watcher import Watcher


def watcher(sequence: int | None = 0, limit: int = 4) -> Watcher:
    made = Watcher(new_id(), limit, now=0)
    made.sequence = sequence
    return made


def event(sequence: int) -> event_pb2.Event:
    return event_pb2.Event(sequence=sequence)


def progress(step: str, fraction: float, shard: int = 0) -> bytes:
    return event_pb2.Progress(step=step, shard=shard, fraction=fraction).SerializeToString()


async def test_events_come_once_in_order_and_without_gaps_however_often_they_are_put() -> None:
    one = watcher(sequence=2)
    for some in (range(1, 2), range(1, 4), range(3, 4), range(5, 6), range(4, 6), range(2, 6)):
        one.put_events([event(sequence) for sequence in some])
    assert [taken.sequence for taken in (await one.take()).events] == [3, 4, 5]


async def test_nothing_is_put_before_the_watcher_knows_where_it_starts() -> None:
    one = watcher(sequence=None)
    one.put_events([event(1)])
    one.put_bookmark()
    assert (await one.take()).events == []


async def test_a_watcher_without_room_takes_what_fits_and_lags() -> None:
    one = watcher(limit=2)
    one.put_events([event(sequence) for sequence in (1, 2, 3)])
    one.put_events([event(3)])
    assert (one.sequence, one.lagging, one.behind) == (2, True, False)
    assert len((await one.take()).events) == 2
    assert one.behind


async def test_only_the_latest_progress_of_each_task_waits() -> None:
    one = watcher()
    for update in (
        progress("a", 0.1),
        progress("b", 0.1),
        progress("a", 0.7),
        progress("a", 0.2, shard=1),
    ):
        one.put_progress(update)
    one.put_progress(progress("b", 0.0), replace=False)
    assert (await one.take()).progress == [
        progress("a", 0.7),
        progress("b", 0.1),
        progress("a", 0.2, shard=1),
    ]


async def test_progress_of_before_does_not_replace_the_only_one_that_came_since() -> None:
    one = watcher()
    one.put_progress(progress("a", 0.7))
    one.put_progress(progress("a", 0.1), replace=False)
    assert (await one.take()).progress == [progress("a", 0.7)]


async def test_a_sleeping_reader_is_woken() -> None:
    one = watcher()
    reader = asyncio.create_task(one.take())
    await asyncio.sleep(0)
    one.put_events([event(1)])
    assert len((await reader).events) == 1


async def test_an_ended_watcher_gives_what_it_holds_first_when_it_may_keep_it() -> None:
    one = watcher()
    one.put_events([event(1)])
    one.end(FluoroError(Reason.SHUTTING_DOWN, "Bye."), keep=True)
    assert len((await one.take()).events) == 1
    with pytest.raises(FluoroError, match="Bye"):
        await one.take()


async def test_an_ended_watcher_that_was_too_slow_gives_its_memory_back_and_takes_no_more() -> None:
    one = watcher()
    one.put_events([event(1)])
    one.end(FluoroError(Reason.WATCH_TOO_SLOW, "Too slow."), keep=False)
    one.put_events([event(2)])
    one.put_progress(progress("a", 0.5))
    with pytest.raises(FluoroError, match="Too slow"):
        await one.take()
