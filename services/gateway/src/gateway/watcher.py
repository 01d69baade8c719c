"""What one watching call holds: the little that waits to be sent, and a way to sleep until there is some."""

import asyncio
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from fluoro.v1 import event_pb2
from fluoro_jobs.errors import FluoroError


@dataclass(slots=True, frozen=True)
class Pending:
    """What a watcher has to send: events in order, the latest progress per task, a bookmark if nothing else."""

    events: list[event_pb2.Event]
    progress: list[event_pb2.Progress]
    bookmark: bool


class Mailbox:
    """What waits for one call. Everything happens on the event loop: no locks.

    Events are never dropped: one too many ends the watcher. Progress is kept per task, only the latest.
    """

    __slots__ = ("_bookmark", "_error", "_events", "_limit", "_progress", "_sleeper", "last_taken")

    def __init__(self, limit: int, now: float) -> None:
        self.last_taken = now
        self._limit: Final = limit
        self._events: list[event_pb2.Event] = []
        self._progress: dict[tuple[str, str, int], event_pb2.Progress] = {}
        self._bookmark = False
        self._error: FluoroError | None = None
        self._sleeper: asyncio.Future[None] | None = None

    def put_progress(self, progress: event_pb2.Progress, *, replace: bool = True) -> None:
        """Keeps the latest of each task. replace=False: unless there is a newer one already."""
        key = (progress.job, progress.step, progress.shard)
        if self._error is None and (replace or key not in self._progress):
            self._progress[key] = progress
            self._wake()

    def put_bookmark(self) -> None:
        """Asks for a sign of life on the stream."""
        if self._error is None:
            self._bookmark = True
            self._wake()

    def end(self, error: FluoroError, *, keep: bool) -> None:
        """Ends the watcher with an error: after what it holds (keep), or at once, giving its memory back."""
        self._error = error
        if not keep:
            self._events, self._progress, self._bookmark = [], {}, False
        self._wake()

    async def take(self) -> Pending:
        """Waits for something to send and takes all of it. Raises the error the watcher was ended with once it is empty."""
        while not (self._events or self._progress or self._bookmark):
            self.raise_if_ended()
            self._sleeper = asyncio.get_running_loop().create_future()
            await self._sleeper
        pending = Pending(self._events, list(self._progress.values()), self._bookmark)
        self._events, self._progress, self._bookmark = [], {}, False
        return pending

    def raise_if_ended(self) -> None:
        """Raises the error the watcher was ended with, if it was."""
        if self._error is not None:
            raise self._error

    def _put(self, event: event_pb2.Event) -> bool:
        if len(self._events) >= self._limit:
            return False
        self._events.append(event)
        self._wake()
        return True

    def _wake(self) -> None:
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)


class Watcher(Mailbox):
    """One call that follows a job.

    job: id of the job.
    sequence: newest event put in; None until the call knows where it starts (see `Hub.follow`), and after its end.
    """

    __slots__ = ("job", "sequence", "woken")

    def __init__(self, job: UUID, limit: int, now: float) -> None:
        super().__init__(limit, now)
        self.job = job
        self.sequence: int | None = None
        self.woken = False

    def put_event(self, event: event_pb2.Event) -> bool:
        """Takes the event if it is the next one. False if there is no room for it: the watcher is to be ended."""
        if self.sequence is None or event.sequence != self.sequence + 1:
            return True
        if not self._put(event):
            return False
        self.sequence = event.sequence
        return True

    def end(self, error: FluoroError, *, keep: bool) -> None:
        """Ends the watcher with an error: after what it holds (keep), or at once, giving its memory back."""
        self.sequence = None
        super().end(error, keep=keep)
