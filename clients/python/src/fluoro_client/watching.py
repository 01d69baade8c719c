"""One unbroken stream of a job out of as many broken ones as it takes."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final, TypeVar, cast

import grpc
from fluoro.v1 import event_pb2, job_pb2, job_service_pb2

from fluoro_client.errors import DataLossError, FluoroApiError, UnreachableError, decode
from fluoro_client.retrying import Patience

IDLE_SECONDS: Final = 45.0
"""Silence after which a stream counts as dead: three bookmarks, one every 15 s, are missing."""

TERMINAL: Final = frozenset(
    (
        job_pb2.Job.STATE_SUCCEEDED,
        job_pb2.Job.STATE_PARTIALLY_SUCCEEDED,
        job_pb2.Job.STATE_FAILED,
        job_pb2.Job.STATE_CANCELLED,
    )
)
"""States a job never leaves."""

Message = TypeVar("Message")
Response = job_service_pb2.WatchJobResponse
Stream = grpc.aio.UnaryStreamCall[job_service_pb2.WatchJobRequest, Response]


async def resume_watch(
    connect: Callable[[job_service_pb2.WatchJobRequest], Stream],
    endpoint: str,
    patience: Patience,
    request: job_service_pb2.WatchJobRequest,
) -> AsyncGenerator[Response, None]:
    """Yields what WatchJob says about a job until it is terminal; resumes from the last cursor.

    Each event comes exactly once and in order; progress and bookmarks as they come. FluoroApiError
    when the server refuses or stays away.
    """
    order = _Order()
    while True:
        stream = connect(request)
        try:
            while (message := await read_message(stream, endpoint)) is not None:
                patience.progress()
                request.start_cursor = message.cursor or request.start_cursor
                if order.is_new(message):
                    yield message
                    if _is_last(message):
                        return
            return  # noqa: TRY300 - the server ends a stream with OK after the last event only
        except FluoroApiError as error:
            await patience.pause(error)
        finally:
            # Also when the caller stops iterating: the server would keep the stream open.
            stream.cancel()


async def read_message(
    stream: "grpc.aio.UnaryStreamCall[Any, Message]", endpoint: str
) -> Message | None:
    """The next message, or None after the last one.

    FluoroApiError for what ended the stream, also for silence.
    """
    try:
        async with asyncio.timeout(IDLE_SECONDS):
            message = await stream.read()
    except grpc.aio.AioRpcError as error:
        raise decode(error, endpoint) from error
    except TimeoutError as error:
        raise UnreachableError(
            grpc.StatusCode.UNAVAILABLE, f"{endpoint} has been silent for {IDLE_SECONDS:.0f} s."
        ) from error
    return None if message is grpc.aio.EOF else cast("Message", message)


def events_missing(event: event_pb2.Event, last: int) -> DataLossError:
    """What is told of a gap: `event` came, and before it `last`."""
    text = f"Events {last + 1} to {event.sequence - 1} of {event.job} did not arrive."
    return DataLossError(grpc.StatusCode.DATA_LOSS, text, reason="EVENTS_MISSING")


class _Order:
    """Checks that events come without gaps and drops those that came before."""

    def __init__(self) -> None:
        self._last: int | None = None

    def is_new(self, message: Response) -> bool:
        """False for an event that came before. DataLossError if one is missing."""
        update = message.WhichOneof("update")
        if update == "snapshot":
            self._last = message.snapshot.last_sequence
        if update != "event":
            return True
        sequence, last = message.event.sequence, self._last
        # A gateway that resumes from a bookmark may send events again that came before it.
        if last is not None and sequence <= last:
            return False
        if last is not None and sequence > last + 1:
            raise events_missing(message.event, last)
        self._last = sequence
        return True


def _is_last(message: Response) -> bool:
    """Whether the job is terminal with this message."""
    if message.WhichOneof("update") == "snapshot":
        return message.snapshot.state in TERMINAL
    return message.event.job_changed.state in TERMINAL
