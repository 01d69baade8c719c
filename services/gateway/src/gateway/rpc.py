"""Ties servicers to gRPC: parsing, identity, errors and metrics, once for every method.

It is cheap enough for each call.

A servicer's methods are `async def get_job(request, call) -> response`, async generators where the
response is a stream, and take an async iterator of requests where the request is one. They raise
FluoroError; what else they raise is a bug. A generator may yield, in place of a message, its bytes,
or an iterator of messages as bytes: that one is sent to its end before the generator goes on. A
request of a stream that holds only a field of bytes comes as that field's value, in place of a
message: parsing would copy it twice.
"""

import asyncio
import re
import time
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
import structlog
from fluoro.v1.job_service_pb2 import (
    BatchCancelJobsRequest,
    BatchRetryJobsRequest,
    CountJobsRequest,
    ListJobsRequest,
)
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger import filters
from fluoro_telemetry import metrics
from google.protobuf.descriptor import (
    Descriptor,
    FieldDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from prometheus_client import Counter

from gateway import wire
from gateway.audit import Audit, Record
from gateway.audit_kinds import OPEN, Kind, kind_of
from gateway.errors import UNFORESEEN, refusal, shutting_down
from gateway.heavy import Heavy
from gateway.identity.door import Door
from gateway.identity.principal import Caller, Principal, Role
from gateway.identity.roles import needed
from gateway.job_stream import JobStream
from gateway.limits.arrivals import FirstSight
from gateway.limits.gate import WAITING, Limits

log = structlog.get_logger(__name__)

QUIET_SECONDS: Final = 0.05
"""Time without a new call after which `Adapter.close` takes it that gRPC holds none back."""

MAX_FIELDS_IN_STREAM: Final = 1_024
"""Most fields of a message in a stream of requests.

Counted on the event loop: such a message is a chunk of bytes and has few fields.
"""

Context = grpc.aio.ServicerContext[bytes, bytes]


@dataclass(slots=True)
class Call:
    """What a servicer knows of a call besides its request.

    principal: the caller; its owner is the one whose jobs and blobs the call is about. record: what
    the audit says of it. limits: those of owners. request_bytes: size of the request, where it is
    one message. heavy: where work on a large request goes. write_seconds: how long a message of a
    download may wait for its caller.
    """

    principal: Principal
    context: Context
    heavy: Heavy
    record: Record
    limits: Limits
    request_bytes: int = 0
    write_seconds: float | None = None

    @property
    def owner(self) -> str:
        """Whose jobs and blobs the call is about."""
        return self.principal.owner

    @property
    def is_large(self) -> bool:
        """Whether work on the request would hold the event loop up."""
        return self.request_bytes > wire.SMALL_BYTES

    async def parsed(self, parse: Callable[[bytes], Message], request: Any) -> Message:
        """The request. FluoroError if it is none, too large, or too many wait."""
        # grpcio would leave a call without a message unanswered.
        if request is grpc.aio.EOF:
            raise FluoroError(Reason.INVALID_ARGUMENT, "The call has no message. Send one.")
        self.request_bytes = len(request)
        message = (
            await self.heavy.run(len(request), parse, request) if self.is_large else parse(request)
        )
        self.record.asked(message)
        return message

    async def serialized(self, response: Message) -> bytes:
        """The response as bytes."""
        return (
            await self.heavy.run(0, wire.serialized_in_pieces, response)
            if wire.is_large(response)
            else response.SerializeToString()
        )

    async def write(self, data: bytes, responses: AsyncGenerator[object, None]) -> None:
        """Sends a message of a stream.

        After `write_seconds` the stream is closed, and its caller hears of that once it reads on.
        """
        if self.write_seconds is None:
            await self.context.write(data)
            return
        ending: list[asyncio.Future[None]] = []
        timer = asyncio.get_running_loop().call_later(
            self.write_seconds, lambda: ending.append(asyncio.ensure_future(responses.aclose()))
        )
        try:
            await self.context.write(data)  # whatever its time: gRPC cannot take a write back
        finally:
            timer.cancel()
        if ending:
            await ending[0]
            raise FluoroError(
                Reason.DOWNLOAD_TOO_SLOW,
                "Nothing was read for long. Go on with the number of bytes received as offset.",
            )

    @property
    def seconds_left(self) -> float | None:
        """Until the caller's deadline; None if it set none."""
        left = self.context.time_remaining()
        return None if left is None else float(left)


FILTERED: Final = {
    f"fluoro.v1.JobService.{request.__name__.removesuffix('Request')}": request
    for request in (
        ListJobsRequest,
        CountJobsRequest,
        BatchCancelJobsRequest,
        BatchRetryJobsRequest,
    )
}
"""Requests with a filter of jobs, by method."""
TRANSFERS: Final = frozenset(
    f"fluoro.v1.BlobService.{name}" for name in ("ImportBlob", "CommitUpload")
)
"""Methods that answer once, and may move bytes for as long as a stream."""
NOBODY: Final = Principal(owner="", roles=frozenset(), how="none")
"""Who calls what is open to everybody."""

Behaviour = Callable[[Any, Context], Awaitable[bytes | None]]
"""A method as gRPC calls it."""

Body = Callable[[Any, Call], Awaitable[bytes | None]]
"""A method without its cross-cutting half: from the raw request to the raw response.

None if it wrote a stream.
"""


class Adapter:
    """Makes gRPC handlers of servicers, counts the calls in flight, and can turn new ones away."""

    def __init__(self, max_message_bytes: int, door: Door, audit: Audit, limits: Limits) -> None:
        """door: says who calls, and turns away who may not. audit: told of every call.

        limits: turns away who calls too much.
        """
        self._door, self._audit, self._limits = door, audit, limits
        self._max_message_bytes = max_message_bytes
        self.first_sight = FirstSight()
        self._heavy = Heavy()
        self._in_flight = 0
        self._turned_away: int | None = None
        self._idle: asyncio.Future[None] | None = None

    def handlers(
        self, service: ServiceDescriptor, servicer: object, *, of_owners: bool = True
    ) -> "dict[str, grpc.RpcMethodHandler[bytes, bytes]]":
        """Handlers for every method of a service.

        of_owners: whether its calls belong to somebody. The others are open to everybody, are never
        turned away, and nothing waits for their end.
        At start, AttributeError if the servicer lacks one, LookupError if the table of roles or
        that of the audit does.
        """
        return {
            method.name: self._handler(method, getattr(servicer, _snake(method.name)), of_owners)
            for method in service.methods
        }

    async def close(self, at_most_seconds: float) -> None:
        """From now on new calls are SHUTTING_DOWN.

        Returns when none came for a moment, or after `at_most_seconds`.

        The calls that gRPC holds but has not handed out yet would be CANCELLED by the server's
        stop, which nobody may retry unasked.
        """
        loop = asyncio.get_running_loop()
        until, before, self._turned_away = loop.time() + at_most_seconds, -1, 0
        while before != self._turned_away and loop.time() < until:
            before = self._turned_away
            await asyncio.sleep(QUIET_SECONDS)

    async def idle(self) -> None:
        """Returns when no call is in flight."""
        if self._in_flight:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle

    def _handler(
        self, method: MethodDescriptor, function: Any, of_owners: bool
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        body = {
            (False, False): self._unary,
            (False, True): self._streaming_response,
            (True, False): self._streaming_request,
            (True, True): self._streaming_both,
        }[method.client_streaming, method.server_streaming]
        streams = method.client_streaming or method.server_streaming
        behaviour = self._guarded(
            method.full_name,
            body(self._parser(method), function),
            _observer(method),
            roles=needed(method.full_name) if of_owners else None,
            kind=kind_of(method.full_name) if of_owners else OPEN,
            streams=streams,
        )
        if not streams:
            return grpc.unary_unary_rpc_method_handler(behaviour)
        # To gRPC these stream their requests: it hides a call without any message otherwise.
        wrap = (
            grpc.stream_stream_rpc_method_handler
            if method.server_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return wrap(behaviour if method.client_streaming else _with_one_message(behaviour))

    def _guarded(
        self,
        method: str,
        body: Body,
        observe: Callable[[str, float], None],
        *,
        roles: frozenset[Role] | None,
        kind: Kind,
        streams: bool,
    ) -> Behaviour:
        """roles: any one of which is enough; None for a method that is open to everybody."""
        counts, waiting = roles is not None, method in WAITING
        timed = not streams and not waiting

        async def behaviour(request: Any, context: Context) -> bytes | None:
            started, code = time.monotonic(), "OK"
            self._in_flight += counts
            metadata: Any = context.invocation_metadata()  # pairs, whatever its type says
            # Not later: the ledger's threads outlast calls, and gRPC reads freed memory for a peer.
            peer = context.peer()
            caller = Caller(metadata or (), context.auth_context, peer)
            record = Record(self._audit, method, kind, caller)
            try:
                if roles is None:
                    call = Call(NOBODY, context, self._heavy, record, self._limits)
                    return await body(request, call)
                self._admit()
                principal = await self._door.admit(
                    method, roles, caller, lambda: asked_of(method, request)
                )
                name = principal.name or principal.owner
                self.first_sight.learn(caller.metadata, peer, name)
                call = Call(principal, context, self._heavy, record, self._limits)
                with self._limits.admitted(principal, waiting=waiting):
                    answer = body(request, call)
                    if timed:
                        answer = self._in_time(context, answer)
                    if not timed or method in TRANSFERS:
                        answer = self._door.kept(method, roles, principal, caller, answer)
                    return await answer
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            except Exception as error:  # noqa: BLE001 - the last stop: whatever it is becomes a status
                if not isinstance(error, FluoroError):
                    error = _unforeseen(error, method)
                if counts:
                    record.refused(error)
                ended = refusal(error)
                code = ended.code.name
                await context.abort(ended.code, ended.message, ended.trailers)
            finally:
                self._in_flight -= counts
                observe(code, time.monotonic() - started)
                if not self._in_flight and self._idle is not None and not self._idle.done():
                    self._idle.set_result(None)

        return behaviour

    async def _in_time(self, context: Context, answer: Awaitable[bytes | None]) -> bytes | None:
        """The answer. FluoroError CALL_TIMEOUT for a call that brings no deadline."""
        if context.time_remaining() is not None:
            return await answer
        seconds = self._limits.call_seconds
        try:
            async with asyncio.timeout(seconds) as limit:
                return await answer
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise FluoroError(
                Reason.CALL_TIMEOUT,
                f"No answer within the {seconds:g} s of a call without a deadline. "
                "What it asked for may still happen.",
            ) from error

    def _admit(self) -> None:
        if self._turned_away is not None:
            self._turned_away += 1
            raise shutting_down()

    def _parser(self, method: MethodDescriptor) -> Callable[[bytes], Any]:
        parse = GetMessageClass(method.input_type).FromString
        limit = self._max_message_bytes
        max_fields = MAX_FIELDS_IN_STREAM if method.client_streaming else wire.MAX_FIELDS
        chunk = _field_of_bytes(method.input_type) if method.client_streaming else None

        def parsed(data: bytes) -> Message | memoryview:
            if len(data) > limit:
                raise FluoroError(
                    Reason.MESSAGE_TOO_LARGE,
                    f"A message of {len(data)} bytes is over the limit of {limit}.",
                )
            if chunk is not None and (value := wire.lone_bytes(data, chunk)) is not None:
                return value
            if len(data) > wire.SMALL_BYTES and wire.has_too_many_fields(
                data, method.input_type, max_fields
            ):
                text = (
                    f"A message of more than {max_fields} fields is over the limit. "
                    "Leave out what is output only."
                )
                raise FluoroError(Reason.MESSAGE_TOO_LARGE, text)
            try:
                return parse(data)
            except DecodeError as error:
                raise FluoroError(
                    Reason.INVALID_ARGUMENT, f"The message is not a {method.input_type.full_name}."
                ) from error

        return parsed

    @staticmethod
    def _unary(parse: Callable[[bytes], Message], function: Any) -> Body:
        async def body(request: bytes, call: Call) -> bytes:
            response = await function(await call.parsed(parse, request), call)
            await call.record.served()
            return await call.serialized(response)

        return body

    @staticmethod
    def _streaming_response(parse: Callable[[bytes], Message], function: Any) -> Body:
        async def body(request: bytes, call: Call) -> None:
            try:
                async with aclosing(function(await call.parsed(parse, request), call)) as responses:
                    async for response in responses:
                        await call.record.served()
                        if isinstance(response, JobStream):
                            # A task of its own: else each message resumes all that is awaited
                            # between gRPC's task and here.
                            await asyncio.create_task(response.send(call.context.write))
                            continue
                        data = (
                            response
                            if isinstance(response, bytes)
                            else await call.serialized(response)
                        )
                        # The next one may be hours away, and this one a job of many MB.
                        del response
                        await call.write(data, responses)
                        del data
                await call.record.served()  # also of a stream that has no message
            # The caller has gone; that the call is cancelled is news still to come.
            except grpc.aio.InternalError as error:
                raise asyncio.CancelledError from error

        return body

    @staticmethod
    def _streaming_request(parse: Callable[[bytes], Any], function: Any) -> Body:
        async def body(requests: AsyncIterator[bytes], call: Call) -> bytes:
            response: Message = await function(_parsed(parse, requests), call)
            await call.record.served()
            return response.SerializeToString()

        return body

    @staticmethod
    def _streaming_both(parse: Callable[[bytes], Message], function: Any) -> Body:
        async def body(requests: AsyncIterator[bytes], call: Call) -> None:
            async with aclosing(function(_parsed(parse, requests), call)) as responses:
                async for response in responses:
                    await call.context.write(await call.serialized(response))

        return body


# Not a generator expression: it would touch gRPC's iterator at once, which complains if it is not
# read after that.
async def _parsed(
    parse: Callable[[bytes], Any], requests: AsyncIterator[bytes]
) -> AsyncIterator[Message | memoryview]:
    async for request in requests:
        message = parse(request)
        del request  # or it would be held for as long as the next message takes
        yield message
        del message


def _with_one_message(behaviour: Behaviour) -> Behaviour:
    """Reads the only message of a call, or EOF, before the call counts as in flight."""

    async def read(_requests: Any, context: Context) -> bytes | None:
        return await behaviour(await context.read(), context)

    return read


def _field_of_bytes(message: Descriptor) -> FieldDescriptor | None:
    """The field of bytes, if the message has exactly one."""
    fields = [field for field in message.fields if field.type == FieldDescriptor.TYPE_BYTES]
    return fields[0] if len(fields) == 1 else None


def _observer(method: MethodDescriptor) -> Callable[[str, float], None]:
    """Records code and seconds of one call.

    Keeps the labelled metrics: looking them up would cost more than the rest.
    """
    requests: dict[str, Counter] = {}
    streams = method.client_streaming or method.server_streaming
    seconds_metric = None if streams else metrics.RPC_SECONDS.labels(method=method.full_name)

    def observe(code: str, seconds: float) -> None:
        counter = requests.get(code)
        if counter is None:
            counter = requests[code] = metrics.RPC_REQUESTS.labels(
                method=method.full_name, code=code
            )
        counter.inc()
        if seconds_metric is not None:
            seconds_metric.observe(seconds)

    return observe


_WORD: Final = re.compile(r"(?<!^)(?=[A-Z])")


def _snake(name: str) -> str:
    return _WORD.sub("_", name).lower()


def asked_of(method: str, request: object) -> str | None:
    """The owner that a filter of jobs names, if the request, as it came, has one."""
    kind = FILTERED.get(method)
    if kind is None or not isinstance(request, bytes) or b"owner" not in request:
        return None
    if len(request) > wire.SMALL_BYTES:
        return None  # nothing that long is read here, and no filter is as long
    try:
        return filters.owner_of(kind.FromString(request).filter)
    except DecodeError:
        return None  # whoever parses all of it says so


def _unforeseen(error: Exception, method: str) -> FluoroError:
    """Logs where a bug showed. Not the exception's text: it may quote the request."""
    log.error(
        "rpc_failed_unexpectedly",
        method=method,
        exception=type(error).__qualname__,
        where="".join(traceback.format_tb(error.__traceback__)),
    )
    return UNFORESEEN
