"""What one WatchJob call sends after its snapshot: events in order, progress, bookmarks."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Final, Protocol

from fluoro_jobs.errors import FluoroError
from fluoro_telemetry import metrics

from gateway import cursor, frames
from gateway.states import is_end
from gateway.watcher import Pending, Watcher


class Pages(Protocol):
    """Who reads the ledger for a watcher that lags."""

    async def page(self, watcher: Watcher, owner: str, last: int) -> Pending:
        """The next events. last: newest event when the call began."""


class JobStream:
    """The messages, one by one, up to the event that made the job terminal.

    Not an async generator: ten thousand streams hold one of these each, and what a message costs is
    mostly the memory that it touches on its way.
    """

    __slots__ = (
        "_last",
        "_over",
        "_owner",
        "_pages",
        "_position",
        "_sequence",
        "_watcher",
    )

    def __init__(
        self, pages: Pages, watcher: Watcher, owner: str, sequence: int, last: int
    ) -> None:
        """sequence: of the newest event that the caller has. owner: of the job.

        last: newest event when the call began; an end before it was not the last word.
        """
        self._pages: Final = pages
        self._watcher: Final = watcher
        self._owner: Final = owner
        self._last: Final = last
        self._sequence = sequence
        self._position = cursor.encode(watcher.job, sequence)
        self._over = False

    async def send(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Writes every WatchJobResponse, up to the end of the job.

        FluoroError CURSOR_EXPIRED, WATCH_TOO_SLOW or SHUTTING_DOWN, or of the ledger; its metadata
        has the cursor to resume from.
        """
        watcher = self._watcher
        try:
            while not self._over:
                if watcher.behind:
                    pending = await self._pages.page(watcher, self._owner, self._last)
                else:
                    while watcher.is_empty:
                        await watcher.something()
                    pending = watcher.take_all()
                for frame in self._made(pending):
                    watcher.sending()
                    await write(frame)
                    watcher.sent()
        except FluoroError as error:
            error.metadata["cursor"] = self._position
            raise

    def _made(self, pending: Pending) -> Iterator[bytes]:
        for event in pending.events:
            self._sequence = event.sequence
            self._position = cursor.encode(self._watcher.job, self._sequence)
            yield frames.event(self._position, event)
            metrics.EVENTS_DELIVERED.inc()
            # An earlier end, before a retry, is not the end of this stream.
            if is_end(event) and self._sequence >= self._last:
                self._over = True
                return
        for progress in pending.progress:
            yield frames.progress(self._position, progress)
        # Only without news: an event carries a cursor itself.
        if pending.bookmark and not (pending.events or pending.progress):
            yield frames.bookmark(self._position, self._sequence)
