"""grpcio's server, mended where one hostile call hurts others. All that knows its insides.

grpcio decodes the path of a call in the loop that serves all calls. Bytes that are not UTF-8 end
that loop, and with it the server. gRPC's core finds methods that it knows by their bytes. So here
every method is one that core knows, and what core does not find is refused without a look at its
path.

grpcio also logs metadata that is not UTF-8, word for word, and callers who are gone before their
answer, both with a traceback.

Core refuses calls of a method when too many wait there, whoever they are of. So calls are taken out
of core's queue as they come, and wait where owners take turns (Arrivals).

grpcio serves a call with two tasks and asks core of each at once whether its caller has gone. Most
calls with one request and one answer are over before anybody could go. So they are served with one
task, and only those that last are given an ear for their callers.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import grpc.aio
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
"""How long calls that broke off with the server may take to end."""

MANY_WAITING: Final = 2048
"""Calls that may wait to begin, of each method that mostly waits. Each costs little, and thousands
may well come at one moment, when clients reconnect.
"""

EAR_SECONDS: Final = 0.1
"""How long a call with one answer lasts before it hears that its caller has gone."""

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
        self._deaf: dict[_Answer, float] = {}
        self._gives_ears = False
        self._is_over = False
        self._flooded = metrics.CALLS_REFUSED.labels(limit=PENDING)

    def add_registered_method_handlers(self, handlers: dict[str, Any]) -> None:
        super().add_registered_method_handlers(handlers)
        # Kept here too, because a call finds its handler by path once its turn comes.
        self._handlers |= handlers

    def _make_request_call_future(self, method: Method) -> "asyncio.Task[None]":
        """For grpcio's own loop, which takes it for the next call and is never shown one."""
        return self._tasks_on.create_task(self._take_calls(method))

    async def _take_calls(self, method: Method) -> None:
        if method is None:
            takers = [self._take_unknown()]
        else:
            most = self._most_pending
            # Clients that reconnect open thousands of streams at one moment; each of them only
            # waits.
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
            try:
                state = await self._request_registered_call(method)
            # That one call broke off. The loop goes on, or nobody would take this method's calls
            # any more.
            except cygrpc._RequestCallError:
                continue
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
        answer = self._handlers[name].unary_unary
        if answer is not None:
            if not self._is_over:
                self._answer(_Answer(state, answer, self._tasks_on))
            return
        resolver = cygrpc._MethodResolver([], self._handlers)
        self._begin(
            cygrpc._handle_rpc(name, resolver, (), state, self._tasks_on, False), state, name
        )

    def _answer(self, call: "_Answer") -> None:
        self._deaf[call] = self._tasks_on.time()
        if not self._gives_ears:
            self._give_ears()
        task = call.task = self._tasks_on.create_task(call.run())
        task.add_done_callback(lambda _: self._deaf.pop(call, None))
        self._keep(task)

    def _give_ears(self) -> None:
        """To the calls that have lasted; comes again while there are others."""
        until = self._tasks_on.time() - EAR_SECONDS
        # A copy: calls end while this goes on.
        for call in [call for call, began in self._deaf.items() if began <= until]:
            del self._deaf[call]
            self._keep(call.listening())
        self._gives_ears = bool(self._deaf)
        if self._deaf:
            self._tasks_on.call_later(EAR_SECONDS, self._give_ears)

    def _refuse(self, state: Any) -> None:
        # Without a task and an ear for the caller's cancel: it is to cost little.
        if self._is_over:
            return
        sending = cygrpc.execute_batch(state, _status(FLOODED), self._tasks_on)
        # Whoever has calls refused serves others, and is not to fail because of one.
        with suppress(cygrpc.ExecuteBatchError):
            sent = sending.send(None)
            # No task waits: the future is only to know that core is done with what `sending` holds.
            sent._asyncio_future_blocking = False
            sent.add_done_callback(partial(_end, sending))

    def _begin(self, handled: Coroutine[Any, Any, None], state: Any, name: str) -> None:
        if self._is_over:  # core has no call any more
            handled.close()
            return
        self._keep(self._tasks_on.create_task(self._run(handled, state, name)))

    async def _run(self, handled: Coroutine[Any, Any, None], state: Any, name: str) -> None:
        aborts: list[BaseException] = []
        try:
            # It listens for the caller's cancel, too.
            await cygrpc._schedule_rpc_coro(
                _noting_aborts(handled, aborts), state, self._tasks_on, name
            )
        finally:
            for error in aborts:
                _open_circle(error)

    def _keep(self, call: asyncio.Task[None]) -> None:
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)


class _Answer:
    """A call with one request and one answer."""

    task: asyncio.Task[None]

    def __init__(
        self,
        state: Any,
        answer: Callable[[Any, Any], Awaitable[bytes]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._state, self._answer, self._loop = state, answer, loop
        self._is_sending = False
        self._ear: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serves it. Quiet about callers who have gone, and about a server that has stopped."""
        try:
            with suppress(cygrpc.ExecuteBatchError, cygrpc._ServerStoppedError):
                await self._run()
        except cygrpc.AbortError as error:
            _open_circle(error)

    async def _run(self) -> None:
        context = cygrpc._ServicerContext(self._state, None, None, self._loop)
        request = await context.read()
        if request is grpc.aio.EOF:  # it has none, or was cancelled before it came
            await asyncio.wait([self.listening()], timeout=EAR_SECONDS)
        response = await self._answer(request, context)
        self._is_sending = True
        await cygrpc.execute_batch(self._state, _response(response), self._loop)

    def listening(self) -> asyncio.Task[None]:
        """The task that breaks it off when its caller has gone."""
        if self._ear is None:
            self._ear = self._loop.create_task(self._listen())
        return self._ear

    async def _listen(self) -> None:
        closed = cygrpc.ReceiveCloseOnServerOperation(0)
        with suppress(cygrpc.ExecuteBatchError):
            await cygrpc.execute_batch(self._state, (closed,), self._loop)
            # Once the answer is on its way, a cancel would break off what costs nothing any more.
            if closed.cancelled() and not self._is_sending:
                self.task.cancel()


async def _noting_aborts(handled: Coroutine[Any, Any, None], aborts: list[BaseException]) -> None:
    """Runs what handles a call. grpcio must see its AbortError as it is."""
    try:
        await handled
    except cygrpc.AbortError as error:
        aborts.append(error)
        raise


def _open_circle(error: BaseException) -> None:
    """For an AbortError whose call is over.

    The call's state keeps it, and it keeps the frames that keep the state. Until Python looks for
    garbage, core counts the stream of such a circle, and the frames of an upload hold its chunks.
    """
    error.__traceback__ = error.__context__ = None


def _response(message: bytes) -> tuple[object, ...]:
    """What core is to do for an answer."""
    return (
        cygrpc.SendInitialMetadataOperation((), 0),
        cygrpc.SendMessageOperation(message, 0),
        cygrpc.SendStatusFromServerOperation((), cygrpc.StatusCode.ok, "", 0),
    )


def _status(how: Refusal) -> tuple[object, ...]:
    """What core is to do for a refusal."""
    return (
        cygrpc.SendInitialMetadataOperation((), 0),
        cygrpc.SendStatusFromServerOperation(how.trailers, how.code.value[0], how.message, 0),
    )


def _end(sending: Coroutine[object, None, None], _sent: object) -> None:
    with suppress(StopIteration, cygrpc.ExecuteBatchError):
        sending.send(None)


async def _refused(state: Any, loop: asyncio.AbstractEventLoop, how: Refusal) -> None:
    context = cygrpc._ServicerContext(state, None, None, loop)
    await context.abort(how.code, how.message, how.trailers)


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
