"""The watch hub: one reader of events per process, whatever the number of streams.

Redis says which jobs have news; the ledger says what the news is. Jobs that were woken while a read was under way share the
next read, so the load on the ledger does not grow with the streams. Without Redis the same read happens every second for all watched jobs.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

import structlog
from fluoro.v1 import event_pb2, job_service_pb2
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger import read
from fluoro_telemetry import metrics

from gateway import cursor
from gateway.errors import shutting_down
from gateway.ledger_calls import LedgerCalls
from gateway.owner_watcher import TERMINAL
from gateway.owners import Owners
from gateway.settings import Settings
from gateway.tail import Tail
from gateway.watcher import Mailbox, Watcher

log = structlog.get_logger(__name__)

TICK_SECONDS: Final = 0.25
"""How often the hub looks for idle streams, as long as that is shorter than the bookmark interval."""


def is_end(event: event_pb2.Event) -> bool:
    """Whether the event made its job terminal."""
    return event.job_changed.state in TERMINAL


class Hub:
    """Every watcher of this process, and the tasks that feed them."""

    def __init__(self, calls: LedgerCalls, callers: LedgerCalls, settings: Settings) -> None:
        """calls: for what the hub reads on its own behalf. callers: for what a caller waits for."""
        self._calls = calls
        self._settings = settings
        self._watchers: dict[UUID, set[Watcher]] = {}
        self._woken: set[UUID] = set()
        self._news = asyncio.Event()
        self._closing = False
        self._turn = asyncio.Lock()
        self.owners = Owners(calls, callers, settings, self)
        self._tail = Tail(settings.redis_url, self)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts listening and reading."""
        self._tasks = [
            asyncio.create_task(work, name=name)
            for name, work in (("tail", self._tail.run()), ("read", self._read()), ("tick", self._tick()), ("sweep", self.owners.run()))
        ]

    @property
    def turn(self) -> asyncio.Lock:
        """Held by whoever reads events and hands them out."""
        return self._turn

    def end_all(self) -> None:
        """Ends every watcher with SHUTTING_DOWN, after what it holds, and refuses new ones."""
        self._closing = True
        for watcher in self._all():
            watcher.end(shutting_down(), keep=True)

    async def close(self) -> None:
        """Stops listening and reading."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._tail.close()

    @property
    def redis_up(self) -> bool:
        """Whether wake-ups come from Redis; otherwise the ledger is polled."""
        return self._tail.up

    @contextmanager
    def watching(self, job: UUID) -> Iterator[Watcher]:
        """A watcher for the block. Open it before reading the job: then no event falls in between. FluoroError SHUTTING_DOWN."""
        self.refuse_if_closing()
        watcher = Watcher(job, self._settings.watch_ring_events, asyncio.get_running_loop().time())
        self._watchers.setdefault(job, set()).add(watcher)
        try:
            yield watcher
        finally:
            others = self._watchers[job]
            others.discard(watcher)
            if not others:
                del self._watchers[job]

    def refuse_if_closing(self) -> None:
        """FluoroError SHUTTING_DOWN if no watcher may begin any more."""
        if self._closing:
            raise shutting_down()

    def follow(self, watcher: Watcher, sequence: int) -> None:
        """The watcher gets the events after `sequence`, from now on."""
        watcher.sequence = sequence
        if watcher.woken:
            self.woken(watcher.job)

    async def stream(self, watcher: Watcher, sequence: int) -> AsyncIterator[job_service_pb2.WatchJobResponse]:
        """Events after `sequence`, latest progress and bookmarks until the job is terminal.

        FluoroError WATCH_TOO_SLOW or SHUTTING_DOWN; its metadata has the cursor to resume from.
        """
        self.follow(watcher, sequence)
        position = cursor.encode(watcher.job, sequence)
        metrics.WATCH_STREAMS.inc()
        try:
            while True:
                pending = await watcher.take()
                for event in pending.events:
                    position = cursor.encode(watcher.job, event.sequence)
                    yield job_service_pb2.WatchJobResponse(cursor=position, event=event)
                    sequence = event.sequence
                    if is_end(event):
                        return
                for progress in pending.progress:
                    yield job_service_pb2.WatchJobResponse(cursor=position, progress=progress)
                if pending.bookmark and not (pending.events or pending.progress):
                    yield job_service_pb2.WatchJobResponse(cursor=position, bookmark=job_service_pb2.Bookmark(last_sequence=sequence))
                metrics.EVENTS_DELIVERED.inc(len(pending.events))
                watcher.last_taken = asyncio.get_running_loop().time()
        except FluoroError as error:
            error.metadata["cursor"] = position
            raise
        finally:
            metrics.WATCH_STREAMS.dec()

    async def recall_progress(self, watcher: Watcher) -> None:
        """Gives the watcher what was the latest progress when it came."""
        for progress in await self._tail.progress_of(watcher.job):
            watcher.put_progress(progress, replace=False)

    # --- what the tail tells ---

    def woken(self, job: UUID) -> None:
        """The job has events that its watchers have not seen."""
        watchers = self._watchers.get(job)
        if watchers is None and not self.owners:
            return
        self._woken.add(job)
        self._news.set()
        for watcher in watchers or ():
            watcher.woken = True

    def progressed(self, progress: event_pb2.Progress) -> None:
        """Hands progress to those who watch the job."""
        job = UUID(progress.job.removeprefix("jobs/"))
        for watcher in (*self._watchers.get(job, ()), *self.owners.followers(job)):
            watcher.put_progress(progress)

    def subscribed(self, now: bool) -> None:
        """Wake-ups begin or end here: whatever was missed is read."""
        log.info("redis_subscription", subscribed=now)
        self._wake_all()

    # --- the tasks ---

    async def _read(self) -> None:
        """Reads the woken jobs' events in one query, again and again; all jobs' when no wake-up came for a while."""
        while True:
            await self._wait_for_news()
            self._news.clear()
            woken, self._woken = self._woken, set()
            positions: dict[UUID, int] = {}
            try:
                async with self._turn:
                    await self.owners.locate(woken)
                    positions = self._positions(woken)
                    if positions:
                        self.hand_out(await self._calls.run(read.events_after, positions))
            except Exception as error:  # noqa: BLE001 - whatever went wrong, the streams live on and the next round reads it again
                log.warning(
                    "watch_not_read",
                    jobs=len(positions),
                    error=error.reason if isinstance(error, FluoroError) else type(error).__qualname__,
                )
                self._woken |= woken
                await asyncio.sleep(self._settings.watch_poll_interval_seconds)

    async def _wait_for_news(self) -> None:
        seconds = self._settings.watch_safety_interval_seconds if self._tail.up else self._settings.watch_poll_interval_seconds
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            self._wake_all()

    async def _tick(self) -> None:
        """Sends bookmarks to idle streams: one timer for all of them."""
        interval = self._settings.watch_bookmark_interval_seconds
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(TICK_SECONDS, interval))
            due = loop.time() - interval
            for watcher in self._all():
                if watcher.last_taken <= due:
                    watcher.last_taken = loop.time()
                    watcher.put_bookmark()

    def _positions(self, jobs: Iterable[UUID]) -> dict[UUID, int]:
        """Per job the sequence that its hindmost watcher has."""
        positions: dict[UUID, int] = {}
        for job in jobs:
            known = [watcher.sequence for watcher in self._watchers.get(job, ()) if watcher.sequence is not None]
            known += [watcher.sequences[job] for watcher in self.owners.followers(job)]
            if known:
                positions[job] = min(known)
        return positions

    def hand_out(self, events: Iterable[event_pb2.Event]) -> None:
        """Gives every event to those who follow its job and have got to it. Those without room for it are ended."""
        for event in events:
            job = UUID(event.job.removeprefix("jobs/"))
            for watcher in (*self._watchers.get(job, ()), *self.owners.followers(job)):
                if not watcher.put_event(event):
                    watcher.end(_too_slow(), keep=False)

    def _wake_all(self) -> None:
        for job in self._watchers:
            self.woken(job)

    def _all(self) -> list[Mailbox]:
        return [*(watcher for watchers in self._watchers.values() for watcher in watchers), *self.owners.watchers]


def _too_slow() -> FluoroError:
    return FluoroError(Reason.WATCH_TOO_SLOW, "The stream was read too slowly. Resume with the last cursor.")
