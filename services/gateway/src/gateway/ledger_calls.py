"""From the event loop to the ledger, whose calls block."""

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger.connection import Ledger, LedgerConnection

Args = ParamSpec("Args")
Result = TypeVar("Result")

CHECK_SECONDS: Final = 2
"""A ledger that takes longer to answer a check does not answer."""


class LedgerCalls:
    """Runs functions of `fluoro_jobs.ledger` in a few threads, each on a connection of its own.

    Calls that wait for a thread do so by owner, and owners take turns: the haste of one is not the
    delay of the others.
    """

    def __init__(self, ledger: Ledger, threads: int, max_waiting: int = 4096) -> None:
        """max_waiting: calls of one owner that may wait for a thread.

        Made in the event loop that calls come from.
        """
        self._ledger = ledger
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="ledger")
        self._waiting = _Turns(max_waiting)
        self._landing = Landing()

    async def run(
        self,
        function: Callable[Concatenate[LedgerConnection, Args], Result],
        *args: Args.args,
        **kwargs: Args.kwargs,
    ) -> Result:
        """`function(connection, *args)`.

        FluoroError with a reason of LEDGER_OUTAGES, and whatever the function raises.
        """
        return await self.run_for("", function, *args, **kwargs)

    async def run_for(
        self,
        owner: str,
        function: Callable[Concatenate[LedgerConnection, Args], Result],
        *args: Args.args,
        **kwargs: Args.kwargs,
    ) -> Result:
        """The same when the owner's turn comes.

        FluoroError GATEWAY_BUSY, at once, if too many of the owner's calls wait already.

        A call whose caller goes while it waits is not run.
        """

        def on_connection() -> Result:
            with self._ledger.connection() as connection:
                return function(connection, *args, **kwargs)

        call: Future[Result] = Future()
        self._waiting.put(owner, call, on_connection)
        # One run for each call that waits, whosever turn it is then.
        self._threads.submit(self._run_next)
        try:
            return await self._landing.of(call)
        except asyncio.CancelledError:
            # Otherwise it runs already, and is carried out.
            if call.cancel():
                self._waiting.drop(owner, call)
            raise

    async def check(self) -> None:
        """FluoroError with a reason of LEDGER_OUTAGES, or TimeoutError, without an answer."""
        async with asyncio.timeout(CHECK_SECONDS):
            await asyncio.get_running_loop().run_in_executor(self._threads, self._ledger.check)

    def close(self) -> None:
        """Waits for what runs."""
        self._threads.shutdown()

    def _run_next(self) -> None:
        """Runs the call whose turn it is; there is one at most for each time this is called."""
        found = self._waiting.take()
        if found is None:
            return
        call, function = found
        try:
            call.set_result(function())
        # The caller gets whatever the call raised; the thread must go on.
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            call.set_exception(error)


class _Turns:
    """Calls that wait, by owner; owners take turns. Thread-safe."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._owners: OrderedDict[str, OrderedDict[Future[Any], Callable[[], Any]]] = OrderedDict()

    def put(self, owner: str, call: Future[Any], function: Callable[[], Any]) -> None:
        with self._lock:
            calls = self._owners.setdefault(owner, OrderedDict())
            if len(calls) >= self._max_waiting:
                raise FluoroError(
                    Reason.GATEWAY_BUSY,
                    f"{len(calls)} calls of this owner wait for the ledger already. Try again.",
                )
            calls[call] = function

    def drop(self, owner: str, call: Future[Any]) -> None:
        with self._lock:
            calls = self._owners.get(owner)
            # Owners without calls leave the line, or each would cost a turn.
            if calls and calls.pop(call, None) and not calls:
                del self._owners[owner]

    def take(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        """The first call of the owner whose turn it is, from now on running. None if none waits."""
        with self._lock:
            while self._owners:
                owner, calls = self._owners.popitem(last=False)
                call, function = calls.popitem(last=False)
                if calls:
                    self._owners[owner] = calls  # behind the others
                # False for a call that was cancelled while it waited.
                if call.set_running_or_notify_cancel():
                    return call, function
        return None


class Landing:
    """Awaits futures that another thread completes in batches; a batch wakes the event loop once.

    asyncio.wrap_future wakes the loop once per future: at 64 submits in flight that is 64 writes to
    the loop's pipe per commit. One timer serves all, where asyncio.timeout makes one for each.
    """

    def __init__(self, seconds: float | None = None) -> None:
        """seconds: how long a future may take; None for as long as it likes."""
        self._seconds = seconds
        self._due: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._landed: deque[tuple[Future[Any], asyncio.Future[Any]]] = deque()
        self._waking = False

    async def of(self, future: Future[Result]) -> Result:
        """The future's result. TimeoutError if it takes too long.

        Cancelling the await leaves the future alone, and so does that: what was handed over is
        carried out.
        """
        waiter: asyncio.Future[Result] = self._loop.create_future()
        # Called in the thread that completes it; the loop hears through the queue.
        future.add_done_callback(lambda done: self._land(done, waiter))
        if self._seconds is not None:
            self._due.append((self._loop.time() + self._seconds, waiter))
            self._end_late()
        return await waiter

    def _end_late(self) -> None:
        """Ends what is due, and comes back for what is due next. They are due in their order."""
        now = self._loop.time()
        while self._due and (self._due[0][1].done() or self._due[0][0] <= now):
            _, waiter = self._due.popleft()
            if not waiter.done():
                waiter.set_exception(TimeoutError())
        if self._due and self._timer is None:
            self._timer = self._loop.call_at(self._due[0][0], self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._end_late()

    def _land(self, done: Future[Any], waiter: asyncio.Future[Any]) -> None:
        self._landed.append((done, waiter))
        if not self._waking:
            self._waking = True
            self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        # Before the queue is emptied: what lands from here on wakes the loop again.
        self._waking = False
        while self._landed:
            done, waiter = self._landed.popleft()
            # Cancelled or late: what it waited for has been carried out all the same.
            if waiter.done():
                continue
            if error := done.exception():
                waiter.set_exception(error)
            else:
                waiter.set_result(done.result())
