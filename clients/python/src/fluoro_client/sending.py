"""Client streaming that tells how the server really ended a call.

grpc.aio makes every write that meets an ended call an `INTERNAL: Internal error from Core`, before
or over the server's own status (grpc/grpc#36066, open in 1.85). The first status is caught when it
is set, the other order is awaited.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, Final, TypeVar

import grpc

Request = TypeVar("Request")
Response = TypeVar("Response")
Value = TypeVar("Value")

_CORE_DETAILS: Final = "Internal error from Core"
"""Details of the status that grpc.aio invents."""

STATUS_SECONDS: Final = 10
"""How long to wait for the server's status after a failed write. It usually takes milliseconds."""


async def send(
    call: grpc.aio.StreamUnaryCall[Request, Response], requests: AsyncGenerator[Request, None]
) -> Response:
    """Writes the requests and returns the response.

    An exception of `requests` cancels the call and goes on to the caller.

    Raises grpc.aio.AioRpcError with the server's status.
    """
    statuses: list[grpc.aio.AioRpcError] = []
    call.add_done_callback(lambda _: statuses.append(_status(call)))
    try:
        if await _write(call, requests):
            return await call
        async with asyncio.timeout(STATUS_SECONDS):
            return await call
    except (grpc.aio.AioRpcError, TimeoutError):
        told = [status for status in statuses if not _is_invented(status)]
        raise (told or [_status(call)])[0] from None
    finally:
        call.cancel()


async def _write(
    call: grpc.aio.StreamUnaryCall[Request, Response], requests: AsyncGenerator[Request, None]
) -> bool:
    """Writes everything. False if the call ended before; awaiting it tells how."""
    async with aclosing(requests):
        async for request in requests:
            try:
                await call.write(request)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return False
    await call.done_writing()
    return True


def _is_invented(status: grpc.aio.AioRpcError) -> bool:
    return status.code() is grpc.StatusCode.INTERNAL and status.details() == _CORE_DETAILS


def _status(call: grpc.aio.StreamUnaryCall[Request, Response]) -> grpc.aio.AioRpcError:
    """The status of a call that has ended."""
    return grpc.aio.AioRpcError(
        _now(call.code()),
        _now(call.initial_metadata()),
        _now(call.trailing_metadata()),
        _now(call.details()),
    )


def _now(coroutine: Coroutine[Any, Any, Value]) -> Value:
    """The result of a coroutine that has nothing left to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: Value = done.value
        return result
    coroutine.close()
    raise RuntimeError("the call has not ended")
