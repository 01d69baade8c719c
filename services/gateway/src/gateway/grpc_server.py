"""grpcio's server, mended where one hostile call hurts others. All that knows its insides.

grpcio decodes the path of a call in the loop that serves all calls. Bytes that are not UTF-8 end
that loop, and with it the server. gRPC's core finds methods that it knows by their bytes. So here
every method is one that core knows, and what core does not find is refused without a look at its
path.

grpcio also logs metadata that is not UTF-8, word for word, and callers who are gone before their
answer, both with a traceback.

Core refuses calls of a method when too many wait there. Thousands of watches may well begin at one
moment, and each costs little then. So for methods that mostly wait, more calls are asked for than
one: those are taken out of core's queue at once, and begun one after the other all the same.
"""

import asyncio
import logging
from collections.abc import Collection, Sequence
from typing import Any, Final

from fluoro_jobs.errors import FluoroError, Reason
from grpc._cython import cygrpc
from grpc.aio import _server

from gateway.errors import refusal

UNKNOWN: Final = refusal(
    FluoroError(
        Reason.METHOD_UNKNOWN,
        "This gateway has no such method. Check the path; an older gateway may lack a new method.",
    )
)
"""The answer to a call of a method that there is not."""

WAITING_AT_ONCE: Final = 1536
"""Calls of each method that mostly waits that are taken besides those that core has waiting."""

_UNDECODABLE: Final = "Invalid encoding on %s"
"""What grpcio logs of metadata; the argument is the metadata."""

Options = Sequence[tuple[str, int]]
Method = bytes | None
"""Path of a method that core knows; None stands for all other paths."""


class _Core(cygrpc.AioServer):  # type: ignore[misc]  # compiled, without types
    """Takes the calls of each method in a task of its own."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, options: Options, waiting: Collection[str]
    ) -> None:
        super().__init__(loop, None, (), (), options, None)
        self._tasks_on = loop
        self._waiting = waiting
        self._handlers: dict[str, Any] = {}
        self._calls: set[asyncio.Task[None]] = set()

    def add_registered_method_handlers(self, handlers: dict[str, Any]) -> None:
        super().add_registered_method_handlers(handlers)
        self._handlers |= handlers

    def _make_request_call_future(self, method: Method) -> "asyncio.Task[None]":
        """For grpcio's own loop, which takes it for the next call and is never shown one."""
        return self._tasks_on.create_task(self._take_calls(method))

    async def _take_calls(self, method: Method) -> None:
        if method is not None and method.decode() in self._waiting:
            turn = asyncio.Lock()
            await asyncio.gather(*(self._take(method, turn) for _ in range(WAITING_AT_ONCE)))
        else:
            await self._take(method)
        raise cygrpc._RequestCallError  # what grpcio's loop takes for the end

    async def _take(self, method: Method, turn: asyncio.Lock | None = None) -> None:
        """One call after the other. turn: of those who share a method; who has it begins a call."""
        resolver = cygrpc._MethodResolver([], self._handlers)
        while self.is_running():
            try:
                state = await (
                    self._request_call()
                    if method is None
                    else self._request_registered_call(method)
                )
            except cygrpc._RequestCallError:
                continue  # that call broke off, or the server stops
            if turn:
                async with turn:
                    # Other methods have theirs, too, however many calls of this one there are.
                    await asyncio.sleep(0)
            if method is None:
                name, handled = "", _refused(state, self._tasks_on)
            else:
                name = method.decode()
                handled = cygrpc._handle_rpc(name, resolver, (), state, self._tasks_on, False)
            # It listens for the caller's cancel, too.
            call = self._tasks_on.create_task(
                cygrpc._schedule_rpc_coro(handled, state, self._tasks_on, name)
            )
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)


async def _refused(state: Any, loop: asyncio.AbstractEventLoop) -> None:
    context = cygrpc._ServicerContext(state, None, None, loop)
    await context.abort(UNKNOWN.code, UNKNOWN.message, UNKNOWN.trailers)


class Server(_server.Server):
    """As grpc.aio.server makes it, for registered methods alone."""

    def __init__(  # not super's: it makes a server of grpcio's own
        self, options: Options, waiting: Collection[str] = ()
    ) -> None:
        """options: channel arguments. waiting: paths of methods whose calls mostly wait."""
        self._loop = cygrpc.get_working_loop()
        self._server = _Core(self._loop, options, waiting)


def quiet_logs() -> None:
    """Keeps out of the logs what grpcio says of calls that are their callers' own doing."""
    logging.getLogger(cygrpc.__name__).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    kind = record.exc_info[0] if record.exc_info else None
    # The caller was gone when its answer was sent.
    is_gone = kind is not None and issubclass(kind, cygrpc.ExecuteBatchError)
    return record.msg != _UNDECODABLE and not is_gone
