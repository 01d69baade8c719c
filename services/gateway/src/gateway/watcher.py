"""What one watching call holds: the little that waits to be sent, and a way to sleep till then."""

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from fluoro.v1 import event_pb2
from fluoro_jobs.errors import FluoroError


class Pending(NamedTuple):
    """What a watcher has to send: events in order, the latest progress per task, or a bookmark.

    progress: of each task a serialized fluoro.v1.Progress.
    """

    events: list[event_pb2.Event]
    progress: list[bytes]
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
        "_lone_progress",
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
        self._lone_progress = b""
        self._progress: dict[tuple[str, str, int], bytes] = {}
        self._bookmark = False
        self._error: FluoroError | None = None
        self._sleeper: asyncio.Future[None] | None = None

    @property
    def behind(self) -> bool:
        """Whether the next events are in the ledger and not here."""
        return self.lagging and not self._events

    def put_progress(self, progress: bytes, *, replace: bool = True) -> None:
        """Keeps the latest of each task. replace=False: unless there is a newer one already.

        progress: a serialized fluoro.v1.Progress. Whose it is matters only beside others.
        """
        if self._error is not None:
            return
        # Progress of a single task needs no key, which spares parsing it.
        if self._lone_progress:
            self._progress[_task_of(self._lone_progress)] = self._lone_progress
            self._lone_progress = b""
        if not self._progress:
            self._lone_progress = progress
        elif replace or _task_of(progress) not in self._progress:
            self._progress[_task_of(progress)] = progress
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
            self.take_all()
        self._wake()

    async def take(self) -> Pending:
        """Waits for something to send and takes all of it.

        Raises the error the watcher was ended with once it is empty.
        """
        while self.is_empty:
            await self.something()
        return self.take_all()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return not (self._lone_progress or self._progress or self._events or self._bookmark)

    def something(self) -> asyncio.Future[None]:
        """Completes when there may be something to send.

        Raises the error the watcher was ended with.
        """
        self.raise_if_ended()
        self._sleeper = asyncio.get_running_loop().create_future()
        return self._sleeper

    def take_all(self) -> Pending:
        """All there is to send."""
        progress = [self._lone_progress] if self._lone_progress else list(self._progress.values())
        pending = Pending(self._events, progress, self._bookmark)
        self._events, self._bookmark = [], False
        self._lone_progress, self._progress = b"", {}
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
            # None where there is a gap: an event was missed, and the next read brings all from
            # there on.
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


def _task_of(progress: bytes) -> tuple[str, str, int]:
    told = event_pb2.Progress.FromString(progress)
    return told.job, told.step, told.shard
