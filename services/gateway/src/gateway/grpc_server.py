"""grpcio's server, mended where one hostile call hurts others. All that knows its insides.

grpcio decodes the path of a call in the loop that serves all calls. Bytes that are not UTF-8 end
that loop, and with it the server. gRPC's core finds methods that it knows by their bytes. So here
every method is one that core knows, and what core does not find is refused without a look at its
path.

grpcio also logs metadata that is not UTF-8, word for word, and callers who are gone before their
answer, both with a traceback.

Core refuses calls of a method when too many wait there, whoever they are of. So calls are taken out
of core's queue as they come, and wait where owners take turns (Arrivals).
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_telemetry import metrics
from grpc._cython import cygrpc
from grpc.aio import _server

from gateway.errors import Refusal, refusal
from gateway.grpc_wakeups import taken_together
from gateway.limits.arrivals import Arrival, Arrivals, Metadata, Refusals

UNKNOWN: Final = refusal(
    FluoroError(
        Reason.METHOD_UNKNOWN,
        "This gateway has no such method. Check the path; an older gateway may lack a new method.",
    )
)
"""The answer to a call of a method that there is not."""

PENDING: Final = "max_pending_requests"
"""The limit that a flood meets."""

FLOODED: Final = refusal(
    FluoroError(
        Reason.TOO_MANY_CALLS,
        "More calls come than this gateway can take, and most that wait are of this owner.",
        metadata={"limit": PENDING},
        retry_seconds=1,
    )
)
"""The answer to a call over its owner's share of the places."""

TAKEN_AT_ONCE: Final = 64
"""Calls of each method that are taken out of core at a time."""

END_SECONDS: Final = 2
"""How long calls that broke off with the server may take to hear of it."""

MANY_WAITING: Final = 2048
"""Calls that may wait to begin, of each method that mostly waits. Each costs little, and thousands
may well come at one moment, when clients reconnect.
"""

_UNDECODABLE: Final = "Invalid encoding on %s"
"""What grpcio logs of metadata; the argument is the metadata."""

Options = Sequence[tuple[str, int]]
Method = bytes | None
"""Path of a method that core knows; None stands for all other paths."""


OwnerOf = Callable[[Metadata, Callable[[], str]], tuple[str, str]]
"""The owner of a call at first sight and its line, by its metadata and its peer."""


class _Core(cygrpc.AioServer):  # type: ignore[misc]  # compiled, without types
    """Takes the calls of each method in a task of its own."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: Options,
        waiting: Collection[str],
        owner_of: OwnerOf,
        most_pending: int,
    ) -> None:
        super().__init__(loop, None, (), (), options, None)
        self._tasks_on = loop
        self._waiting, self._owner_of, self._most_pending = waiting, owner_of, most_pending
        self._refusals = Refusals()
        self._handlers: dict[str, Any] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._is_over = False
        self._flooded = metrics.CALLS_REFUSED.labels(limit=PENDING)

    def add_registered_method_handlers(self, handlers: dict[str, Any]) -> None:
        super().add_registered_method_handlers(handlers)
        self._handlers |= handlers

    def _make_request_call_future(self, method: Method) -> "asyncio.Task[None]":
        """For grpcio's own loop, which takes it for the next call and is never shown one."""
        return self._tasks_on.create_task(self._take_calls(method))

    async def _take_calls(self, method: Method) -> None:
        if method is None:
            takers = [self._take_unknown()]
        else:
            most = self._most_pending
            if method.decode() in self._waiting:
                most = max(most, MANY_WAITING)
            arrivals = Arrivals(most, self._refusals, self._tasks_on.call_soon)
            takers = [self._take(method, arrivals) for _ in range(TAKEN_AT_ONCE)]
        await asyncio.gather(*takers)
        raise cygrpc._RequestCallError  # what grpcio's loop takes for the end

    async def _take_unknown(self) -> None:
        """Calls of methods that there are not."""
        while self.is_running():
            with suppress(cygrpc._RequestCallError):  # that call broke off, or the server stops
                state = await self._request_call()
                self._begin(_refused(state, self._tasks_on, UNKNOWN), state, "")

    async def _take(self, method: bytes, arrivals: Arrivals) -> None:
        """All other calls."""
        name, loop = method.decode(), self._tasks_on
        while self.is_running():
            with suppress(cygrpc._RequestCallError):
                state = await self._request_registered_call(method)
                context = cygrpc._ServicerContext(state, None, None, loop)
                owner, line = self._owner_of(context.invocation_metadata(), context.peer)
                call = Arrival(partial(self._serve, state, name), partial(self._refuse, state))
                if not arrivals.takes(owner, call, line):
                    self._flooded.inc()
                # Core cancels a call that nobody has any more.
                del state, context, call

    async def shutdown(self, grace: float | None) -> None:
        """Ends the server, and the tasks of calls that broke off with it."""
        await super().shutdown(grace)
        self._is_over = True
        if self._calls:
            await asyncio.wait(self._calls, timeout=END_SECONDS)

    def _serve(self, state: Any, name: str) -> None:
        resolver = cygrpc._MethodResolver([], self._handlers)
        self._begin(
            cygrpc._handle_rpc(name, resolver, (), state, self._tasks_on, False), state, name
        )

    def _refuse(self, state: Any) -> None:
        # Without an ear for the caller's cancel: it is to cost little.
        if not self._is_over:
            self._keep(self._tasks_on.create_task(_refused_quietly(state, self._tasks_on)))

    def _begin(self, handled: Coroutine[Any, Any, None], state: Any, name: str) -> None:
        if self._is_over:  # core has no call any more
            handled.close()
            return
        # It listens for the caller's cancel, too.
        call = self._tasks_on.create_task(
            cygrpc._schedule_rpc_coro(handled, state, self._tasks_on, name)
        )
        self._keep(call)

    def _keep(self, call: asyncio.Task[None]) -> None:
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)


async def _refused(state: Any, loop: asyncio.AbstractEventLoop, how: Refusal) -> None:
    context = cygrpc._ServicerContext(state, None, None, loop)
    await context.abort(how.code, how.message, how.trailers)


async def _refused_quietly(state: Any, loop: asyncio.AbstractEventLoop) -> None:
    with suppress(cygrpc.AbortError, cygrpc.ExecuteBatchError):
        await _refused(state, loop, FLOODED)


class Server(_server.Server):
    """As grpc.aio.server makes it, for registered methods alone."""

    def __init__(  # not super's: it makes a server of grpcio's own
        self, options: Options, waiting: Collection[str], owner_of: OwnerOf, most_pending: int
    ) -> None:
        """options: channel arguments. waiting: paths of methods whose calls mostly wait.

        most_pending: calls that wait to begin, of each other method.
        """
        self._loop = cygrpc.get_working_loop()
        self._server = _Core(self._loop, options, waiting, owner_of, most_pending)
        taken_together(self._loop)


def quiet_logs() -> None:
    """Keeps out of the logs what grpcio says of calls that are their callers' own doing."""
    logging.getLogger(cygrpc.__name__).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    kind = record.exc_info[0] if record.exc_info else None
    # The caller was gone when its answer was sent.
    is_gone = kind is not None and issubclass(kind, cygrpc.ExecuteBatchError)
    return record.msg != _UNDECODABLE and not is_gone
