"""Answers for many callers by one call of the ledger: who comes during one shares the next.

Alone, a caller waits no longer than for a call of its own. When thousands come at once, a round
trip, a transaction and a change of threads is shared by all in the call.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger.connection import LedgerConnection

from gateway.ledger_calls import LedgerCalls

Key = TypeVar("Key")
Answer = TypeVar("Answer")

MOST_TOGETHER: Final = 64
"""Callers that share a call at most: its rows are held together."""

AT_ONCE: Final = 2
"""Calls under way. With one alone, a connection that hangs holds up everybody.

More would only make each of them smaller.
"""


class Together(Generic[Key, Answer]):
    """One kind of call. Owners take turns in it. For one event loop."""

    def __init__(
        self,
        calls: LedgerCalls,
        function: Callable[
            [LedgerConnection, Sequence[tuple[str, Key]]], Sequence[Answer | FluoroError]
        ],
        max_waiting: int,
    ) -> None:
        """function: answers each pair of owner and key, in order.

        max_waiting: callers of one owner.
        """
        self._calls, self._function, self._max_waiting = calls, function, max_waiting
        self._owners: OrderedDict[str, deque[tuple[Key, asyncio.Future[Answer]]]] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio itself holds them only weakly
        self._under_way = 0

    async def of(self, owner: str, key: Key) -> Answer:
        """The answer for this key.

        FluoroError GATEWAY_BUSY, at once, if too many of the owner wait; or what the function said.
        """
        # Bounded for each owner, so that one cannot use up the places of all.
        waiting = self._owners.setdefault(owner, deque())
        if len(waiting) >= self._max_waiting:
            raise FluoroError(
                Reason.GATEWAY_BUSY,
                f"{len(waiting)} calls of this owner wait for the ledger already. Try again.",
            )
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        waiting.append((key, answer))
        if self._under_way < AT_ONCE:
            # Counted before the task begins, or all who ask until then would start one.
            self._under_way += 1
            task = asyncio.create_task(self._answer(), name="together")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await answer

    async def _answer(self) -> None:
        """Calls until nobody waits."""
        try:
            while taken := self._take():
                # Those who come during this call share the next one.
                answers = await self._called([(owner, key) for owner, key, _ in taken])
                for (_, _, waiter), answer in zip(taken, answers, strict=True):
                    if waiter.done():  # its caller has gone
                        continue
                    if isinstance(answer, Exception):
                        waiter.set_exception(answer)
                    else:
                        waiter.set_result(answer)
        finally:
            self._under_way -= 1

    async def _called(self, wanted: Sequence[tuple[str, Key]]) -> Sequence[Answer | Exception]:
        try:
            return await self._calls.run(self._function, wanted)
        except Exception as error:  # noqa: BLE001 - it is the callers'
            return [error] * len(wanted)

    def _take(self) -> list[tuple[str, Key, asyncio.Future[Answer]]]:
        """Those whose turn it is, one of each owner after the other."""
        taken: list[tuple[str, Key, asyncio.Future[Answer]]] = []
        while self._owners and len(taken) < MOST_TOGETHER:
            owner, waiting = self._owners.popitem(last=False)
            key, waiter = waiting.popleft()
            if waiting:
                self._owners[owner] = waiting  # behind the others
            if not waiter.done():
                taken.append((owner, key, waiter))
        return taken
