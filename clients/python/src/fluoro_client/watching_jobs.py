"""One unbroken stream of all jobs of an owner out of as many broken ones as it takes."""

from collections.abc import AsyncGenerator, Callable
from typing import Final

import grpc
from fluoro.v1 import event_pb2, job_service_pb2

from fluoro_client.errors import FluoroApiError, UnreachableError
from fluoro_client.retrying import Patience
from fluoro_client.watching import events_missing, read_message

Response = job_service_pb2.WatchJobsResponse
Stream = grpc.aio.UnaryStreamCall[job_service_pb2.WatchJobsRequest, Response]

_ENDED: Final = "The stream of all jobs ended, which it never should."


async def resume_watch_jobs(
    connect: Callable[[job_service_pb2.WatchJobsRequest], Stream],
    endpoint: str,
    patience: Patience,
    labels: dict[str, str],
    start_cursor: str,
) -> AsyncGenerator[Response, None]:
    """Yields what WatchJobs tells, resuming from the last cursor, without end.

    Each event comes exactly once, those of a job in order; progress and bookmarks as they come.
    FluoroApiError when the server refuses or stays away.
    """
    cursor, order = start_cursor, _Order()
    while True:
        stream = connect(job_service_pb2.WatchJobsRequest(labels=labels, start_cursor=cursor))
        try:
            while (message := await read_message(stream, endpoint)) is not None:
                patience.progress()
                # Before the message is looked at: it belongs to the cursor that it brings.
                if message.cursor not in ("", cursor):
                    cursor = message.cursor
                    order.turn()
                if order.is_new(message):
                    yield message
            raise UnreachableError(grpc.StatusCode.UNAVAILABLE, _ENDED)
        except FluoroApiError as error:
            await patience.pause(error)
        finally:
            # Also when the caller stops iterating: the server would keep the stream open.
            stream.cancel()


class _Order:
    """Drops the events that came before, and checks that none is missing in between.

    Holds the newest sequence of a job as long as its events can come again: until the cursor has
    changed twice after the last of them.
    """

    def __init__(self) -> None:
        self._now: dict[str, int] = {}
        self._before: dict[str, int] = {}

    def turn(self) -> None:
        """The cursor has changed."""
        self._now, self._before = {}, self._now

    def is_new(self, message: Response) -> bool:
        """False for an event that came before. DataLossError if one is missing."""
        update = message.WhichOneof("update")
        if update == "job":
            self._now[message.job.name] = message.job.last_sequence
        return update != "event" or self._is_new(message.event)

    def _is_new(self, event: event_pb2.Event) -> bool:
        last = self._now.get(event.job, self._before.get(event.job))
        if last is not None and event.sequence <= last:
            return False
        if last is not None and event.sequence > last + 1:
            raise events_missing(event, last)
        self._now[event.job] = event.sequence
        return True
