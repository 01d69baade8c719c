"""What one watching call holds: the little that waits to be sent, and a way to sleep till then."""

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from fluoro.v1 import event_pb2
from fluoro_jobs.errors import FluoroError


class Pending(NamedTuple):
    """What a watcher has to send: events in order, the latest progress per task, or a bookmark."""

    events: list[event_pb2.Event]
    progress: list[event_pb2.Progress]
    bookmark: bool


class Mailbox:
    """What waits for one call. Everything happens on the event loop: no locks.

    Events are never dropped. Those for which there is no room stay in the ledger, and the mailbox
    lags: it takes no more events until the call has read those by itself, at its own pace. Progress
    is kept per task, only the latest.

    lagging: whether the call reads the ledger itself.
    """

    __slots__ = (
        "_bookmark",
        "_error",
        "_events",
        "_limit",
        "_progress",
        "_sleeper",
        "_steps",
        "_steps_seen",
        "_still_since",
        "lagging",
    )

    def __init__(self, limit: int, now: float) -> None:
        self.lagging = False
        self._steps = self._steps_seen = 0
        self._still_since = now
        self._limit: Final = limit
        self._events: list[event_pb2.Event] = []
        self._progress: dict[tuple[str, str, int], event_pb2.Progress] = {}
        self._bookmark = False
        self._error: FluoroError | None = None
        self._sleeper: asyncio.Future[None] | None = None

    @property
    def behind(self) -> bool:
        """Whether the next events are in the ledger and not here."""
        return self.lagging and not self._events

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

    def take_bookmark(self) -> bool:
        """Whether a sign of life was asked for."""
        due, self._bookmark = self._bookmark, False
        return due

    def end(self, error: FluoroError, *, keep: bool) -> None:
        """Ends the watcher with an error.

        keep: after what it holds; otherwise at once, and its memory is free.
        """
        self._error = error
        self.lagging = False
        if not keep:
            self._events, self._progress, self._bookmark = [], {}, False
        self._wake()

    async def take(self) -> Pending:
        """Waits for something to send and takes all of it.

        Raises the error the watcher was ended with once it is empty.
        """
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

    def sending(self) -> None:
        """A message is on its way to the caller."""
        # Odd while a message waits for its caller. See `still_seconds`.
        self._steps |= 1

    def sent(self) -> None:
        """The caller took it, if there was one."""
        self._steps += self._steps & 1

    def still_seconds(self, now: float) -> tuple[float, bool]:
        """For how long, between looks, nothing was sent or taken; and whether something waits.

        Seconds count from the first look that sees a state: a clock is read once for all watchers
        and not for every message.
        """
        if self._steps != self._steps_seen:
            self._steps_seen, self._still_since = self._steps, now
        return now - self._still_since, self._steps % 2 == 1

    def _put(self, events: Sequence[event_pb2.Event]) -> Sequence[event_pb2.Event]:
        """Takes the events that there is room for, and returns them. Lags if these are not all."""
        taken = events[: self._limit - len(self._events)]
        self.lagging = len(taken) < len(events)
        self._events.extend(taken)
        self._wake()
        return taken

    def _wake(self) -> None:
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)


class Watcher(Mailbox):
    """One call that follows a job.

    job: id of the job.
    sequence: newest event that was put in, or read by the call; None until the call knows where it
    starts, and after its end.
    """

    __slots__ = ("job", "sequence", "woken")

    def __init__(self, job: UUID, limit: int, now: float) -> None:
        super().__init__(limit, now)
        self.job = job
        self.sequence: int | None = None
        self.woken = False

    def put_events(self, events: Sequence[event_pb2.Event]) -> None:
        """Takes the next events from consecutive ones of its job, as many as there is room for."""
        if self.sequence is not None and not self.lagging:
            following = after(events, self.sequence)
            self.sequence += len(self._put(following)) if following else 0

    def end(self, error: FluoroError, *, keep: bool) -> None:
        """Ends the watcher with an error.

        keep: after what it holds; otherwise at once, and its memory is free.
        """
        self.sequence = None
        super().end(error, keep=keep)


def after(events: Sequence[event_pb2.Event], sequence: int) -> Sequence[event_pb2.Event]:
    """Those of consecutive events that come after `sequence`; none if there is a gap in between."""
    start = sequence + 1 - events[0].sequence
    return events[start:] if start >= 0 else ()
