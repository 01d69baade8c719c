"""From the event loop to the ledger, whose calls block."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Concatenate, ParamSpec, TypeVar

from fluoro_jobs.ledger.connection import Ledger, LedgerConnection

Args = ParamSpec("Args")
Result = TypeVar("Result")


class LedgerCalls:
    """Runs functions of `fluoro_jobs.ledger` in a few threads, each call on a connection of its own."""

    def __init__(self, ledger: Ledger, threads: int) -> None:
        self._ledger = ledger
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="ledger")

    async def run(self, function: Callable[Concatenate[LedgerConnection, Args], Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
        """`function(connection, *args)`. FluoroError LEDGER_UNAVAILABLE, and whatever the function raises."""

        def on_connection() -> Result:
            with self._ledger.connection() as connection:
                return function(connection, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._threads, on_connection)

    def aside(self, function: Callable[Args, object], *args: Args.args, **kwargs: Args.kwargs) -> None:
        """Runs a blocking function that does not raise, and waits for nothing."""
        self._threads.submit(function, *args, **kwargs)

    async def check(self) -> None:
        """FluoroError LEDGER_UNAVAILABLE if the ledger does not answer."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._ledger.check)

    def close(self) -> None:
        """Waits for what runs."""
        self._threads.shutdown()


class Landing:
    """Awaits futures that another thread completes in batches, with one wake-up of the event loop per batch.

    asyncio.wrap_future wakes the loop once per future: at 64 submits in flight that is 64 writes to the loop's pipe per commit.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._landed: deque[tuple[Future[Any], asyncio.Future[Any]]] = deque()
        self._waking = False

    async def of(self, future: Future[Result]) -> Result:
        """The future's result. Cancelling the await leaves the future alone: what was handed over is carried out."""
        waiter: asyncio.Future[Result] = self._loop.create_future()
        future.add_done_callback(lambda done: self._land(done, waiter))
        return await waiter

    def _land(self, done: Future[Any], waiter: asyncio.Future[Any]) -> None:
        self._landed.append((done, waiter))
        if not self._waking:
            self._waking = True
            self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        self._waking = False  # before the queue is emptied: what lands from here on wakes the loop again
        while self._landed:
            done, waiter = self._landed.popleft()
            if waiter.done():
                continue
            if error := done.exception():
                waiter.set_exception(error)
            else:
                waiter.set_result(done.result())
