"""The watch hub: one reader of events per process, whatever the number of streams.

Redis says which jobs have news; the ledger says what the news is. Jobs that were woken while a read
was under way share the next read, so the load on the ledger does not grow with the streams. Without
Redis the same read happens every second for all watched jobs.

However much happens at once, the hub holds one page of events and gives the event loop back every
few milliseconds. A watcher that has no room for its events lags: it reads them from the ledger page
by page, as fast as its caller takes them, and then is fed by the hub again.
"""

import asyncio
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Final
from uuid import UUID

import structlog
from fluoro.v1 import event_pb2
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger import read
from fluoro_jobs.wakeups import shard_of
from fluoro_telemetry import metrics

from gateway import cursor
from gateway.errors import shutting_down
from gateway.job_stream import JobStream
from gateway.jobs_watch import JobsWatches
from gateway.ledger_calls import LedgerCalls
from gateway.recall import Recall
from gateway.settings import Settings
from gateway.tail import Tail
from gateway.watcher import Mailbox, Pending, Watcher

log = structlog.get_logger(__name__)

TICK_SECONDS: Final = 1
"""How often the hub looks for idle streams; sooner if bookmarks or stalls are due sooner."""

SLICES: Final = 16
"""Parts in which the hub looks for lost wake-ups: all jobs at once would hold up the rest."""

_WATCHED: Final = metrics.WAKEUPS_HEARD.labels(watched="true")
_UNWATCHED: Final = metrics.WAKEUPS_HEARD.labels(watched="false")

PAGE_EVENTS: Final = 1024
"""Events that the hub reads at once, of all jobs together."""

PAGE_EVENTS_OF_A_JOB: Final = 256
"""Most events of one job among these, and in one read of a watcher that lags."""

SLICE_SECONDS: Final = 0.005
"""How long the hub hands out events before it lets others have the event loop."""


class Hub:
    """Every watcher of this process, and the tasks that feed them."""

    def __init__(self, calls: LedgerCalls, callers: LedgerCalls, settings: Settings) -> None:
        """calls: for what the hub reads on its own behalf. callers: for what a caller waits for."""
        self._calls, self._callers = calls, callers
        self._settings = settings
        self._watchers: dict[UUID, set[Watcher]] = {}
        self._waiting: dict[UUID, set[asyncio.Future[None]]] = {}
        self._shards: dict[UUID, int] = {}
        self._woken: dict[UUID, None] = {}  # a set in the order in which the jobs' turn comes
        self._news = asyncio.Event()
        self._looked_at = 0.0
        self._slice = 0
        self._closing = False
        self._turn = asyncio.Lock()
        self.jobs_watches = JobsWatches(calls, callers, settings, self)
        self._tail = Tail(settings.redis_url, self)
        self._recall = Recall(settings.redis_url)
        self.tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts listening and reading."""
        self.tasks = [
            asyncio.create_task(work, name=name)
            for name, work in (
                ("tail", self._tail.run()),
                ("recall", self._recall.run()),
                ("read", self._read()),
                ("tick", self._tick()),
                ("sweep", self.jobs_watches.run()),
            )
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
        for ended in [
            ended for waiting in self._waiting.values() for ended in waiting if not ended.done()
        ]:
            ended.set_exception(shutting_down())

    async def close(self) -> None:
        """Stops listening and reading."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self._tail.close()
        await self._recall.close()

    @property
    def redis_up(self) -> bool:
        """Whether wake-ups come from Redis; otherwise the ledger is polled."""
        return self._tail.up

    @contextmanager
    def watching(self, job: UUID, owner: str) -> Iterator[Watcher]:
        """A watcher for the block.

        Open it before reading the owner's job: then no event falls in between. FluoroError
        SHUTTING_DOWN.
        """
        self.refuse_if_closing()
        watcher = Watcher(job, self._settings.watch_ring_events, asyncio.get_running_loop().time())
        with (
            self._told(self._watchers, job, owner, watcher),
            metrics.WATCH_STREAMS.track_inprogress(),
        ):
            yield watcher

    @contextmanager
    def waiting(self, job: UUID, owner: str) -> Iterator[asyncio.Future[None]]:
        """Completes when the job is seen terminal.

        Open it before reading its state. FluoroError SHUTTING_DOWN, now or by the future.
        """
        self.refuse_if_closing()
        # A future and not a watcher, because waiting for the end needs no events.
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._told(self._waiting, job, owner, ended):
            try:
                yield ended
            finally:
                ended.cancel()

    @contextmanager
    def _told(
        self, ones: dict[UUID, set[Any]], job: UUID, owner: str, one: object
    ) -> Iterator[None]:
        """Has wake-ups of the job brought here for `one`, which is in the job's set meanwhile.

        What happens before they begin to arrive is read as soon as they do (see `joined`).
        """
        ones.setdefault(job, set()).add(one)
        self._shards[job] = shard_of(owner)
        self._tail.watch(owner)
        try:
            yield
        finally:
            self._tail.unwatch(owner)
            ones[job].discard(one)
            if not ones[job]:
                del ones[job]
                if job not in self._watchers and job not in self._waiting:
                    del self._shards[job]

    @contextmanager
    def listening(self, owner: str) -> Iterator[None]:
        """Has wake-ups of the owner's jobs brought here."""
        self._tail.watch(owner)
        try:
            yield
        finally:
            self._tail.unwatch(owner)

    def refuse_if_closing(self) -> None:
        """FluoroError SHUTTING_DOWN if no watcher may begin any more."""
        if self._closing:
            raise shutting_down()

    def stream(self, watcher: Watcher, owner: str, sequence: int, last: int) -> JobStream:
        """What the watcher's call sends after `sequence`. owner, last: as JobStream has them."""
        watcher.sequence, watcher.lagging = sequence, sequence < last
        # The wake-up came before the watcher had a place in its job, so no read was for it.
        if watcher.woken:
            self._call_for(watcher.job)
        return JobStream(self, watcher, owner, sequence, last)

    async def page(self, watcher: Watcher, owner: str, last: int) -> Pending:
        """The next events of a watcher that lags. Once they are the newest, it lags no longer.

        last: newest event when the call began. FluoroError CURSOR_EXPIRED.
        """
        watcher.raise_if_ended()
        sequence = watcher.sequence or 0
        events = await self._callers.run_for(
            owner, read.events_after, {watcher.job: sequence}, limit=PAGE_EVENTS_OF_A_JOB
        )
        # It may have ended during the read, and then gets nothing more.
        watcher.raise_if_ended()
        oldest = events[0].sequence if events else last + 1
        if oldest > sequence + 1:
            # A job that was deleted meanwhile is not found.
            await self._callers.run_for(owner, read.job_head, owner, watcher.job)
            raise cursor.expired(watcher.job, oldest)
        watcher.sequence = events[-1].sequence if events else sequence
        # A short page means that these events are the newest. The hub takes over from here.
        if len(events) < PAGE_EVENTS_OF_A_JOB:
            watcher.lagging = False
            self._call_for(watcher.job)  # what came since the read
        return Pending(events, [], bookmark=watcher.take_bookmark())

    def recall_progress(self, watcher: Watcher) -> None:
        """Gives the watcher, soon, the latest progress from before it came."""
        # Without Redis there is no stored progress to recall.
        if self._tail.up:
            self._recall.ask(watcher)

    # --- what the tail tells ---

    def woken(self, job: UUID, owner: str) -> None:
        """The job has events that its watchers have not seen."""
        watched = job in self._watchers or job in self._waiting or self.jobs_watches.watched(owner)
        (_WATCHED if watched else _UNWATCHED).inc()
        if watched:
            self._wake(job)

    def _wake(self, job: UUID) -> None:
        self._call_for(job)
        for watcher in self._watchers.get(job, ()):
            watcher.woken = True

    def progressed(self, job: UUID, owner: str, progress: bytes) -> None:
        """Hands progress to those who watch the job. For others it is not even parsed."""
        watchers = self._watchers.get(job, ())
        followers = self.jobs_watches.followers(job) if self.jobs_watches.watched(owner) else ()
        if not watchers and not followers:
            _UNWATCHED.inc()
            return
        _WATCHED.inc()
        event_pb2.Progress.FromString(progress)  # a caller could not read what is none
        for watcher in watchers:
            watcher.put_progress(progress)
        for follower in followers:
            follower.put_progress(progress)

    def joined(self, shard: int) -> None:
        """Wake-ups of the shard's owners arrive from now on. What they missed is read."""
        for job, its in self._shards.items():
            if its == shard:
                self._wake(job)

    def subscribed(self, now: bool) -> None:
        """Wake-ups begin or cease to arrive. Whatever was missed is read."""
        log.info("redis_subscription", subscribed=now)
        self._wake_all()

    # --- the tasks ---

    def _call_for(self, job: UUID) -> None:
        """The next read looks at the job."""
        self._woken[job] = None
        self._news.set()

    async def _read(self) -> None:
        """Reads a page of the woken jobs' events in one query, again and again."""
        while True:
            await self._wait_for_news()
            self._news.clear()
            # Taken out: what is woken from here on is read in the next round.
            woken, self._woken = self._woken, {}
            try:
                async with self._turn:
                    # First: events of a job that nobody follows yet would be handed to nobody.
                    await self.jobs_watches.locate(woken)
                    unread = await self._read_page(woken)
                await self._end_waiting(woken)
            except Exception as error:  # noqa: BLE001 - whatever went wrong, the streams live on and the next round reads it again
                log.warning(
                    "watch_not_read",
                    jobs=len(woken),
                    error=error.reason
                    if isinstance(error, FluoroError)
                    else type(error).__qualname__,
                )
                unread = list(woken)
                # The same pause as without Redis: a ledger that is away must not be asked in a
                # loop.
                await asyncio.sleep(self._settings.watch_poll_interval_seconds)
            if unread:
                # They go first: they have waited for longer than what was woken meanwhile.
                self._woken = dict.fromkeys([*unread, *self._woken])
                self._news.set()

    async def _read_page(self, woken: Collection[UUID]) -> list[UUID]:
        """Hands out a page of events.

        Returns the jobs that may have more; those that got nothing come first.
        """
        positions = self._positions(woken)
        if not positions:
            return []
        events = await self._calls.run(
            read.events_after, positions, each=PAGE_EVENTS_OF_A_JOB, limit=PAGE_EVENTS
        )
        read_of = await self.hand_out(events)
        # A full page may have left jobs out. Those that got nothing come first, lest one busy job
        # starves them.
        if len(events) == PAGE_EVENTS:
            return [*(job for job in positions if job not in read_of), *read_of]
        return [job for job, count in read_of.items() if count == PAGE_EVENTS_OF_A_JOB]

    async def _end_waiting(self, woken: Collection[UUID]) -> None:
        """Tells those who wait for the end of a job that it has come."""
        waited_for = [job for job in woken if job in self._waiting]
        if waited_for:
            for job in await self._calls.run(read.ended, waited_for):
                for ended in [ended for ended in self._waiting.get(job, ()) if not ended.done()]:
                    ended.set_result(None)

    async def _wait_for_news(self) -> None:
        """Waits for news, or until it is time to look at some jobs: a wake-up may be lost.

        News of other jobs does not put that time off.
        """
        seconds = (
            # A slice at a time: each job is looked at once in the whole interval.
            self._settings.watch_safety_interval_seconds / SLICES
            if self._tail.up
            else self._settings.watch_poll_interval_seconds
        )
        due = self._looked_at + seconds
        try:
            async with asyncio.timeout_at(due):
                await self._news.wait()
        except TimeoutError:
            pass  # then it is due
        if asyncio.get_running_loop().time() >= due:
            self._look()

    async def _tick(self) -> None:
        """Sends bookmarks to idle streams and ends unread ones, with one timer for all of them."""
        interval, stall = (
            self._settings.watch_bookmark_interval_seconds,
            self._settings.watch_stall_seconds,
        )
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(TICK_SECONDS, interval / 4, stall / 4))
            now = loop.time()
            for watcher in self._all():
                seconds, waits = watcher.still_seconds(now)
                # Idle, and nobody is waited for: a sign of life keeps proxies from cutting the
                # stream.
                if not waits and seconds >= interval:
                    watcher.put_bookmark()
                # Only one that lags: as long as its ring has room, a slow caller harms nobody.
                elif waits and seconds >= stall and watcher.lagging:
                    log.info("watch_too_slow", seconds=round(seconds, 1))
                    watcher.end(_too_slow(), keep=False)

    def _positions(self, jobs: Iterable[UUID]) -> dict[UUID, int]:
        """Per job, the sequence of the hindmost of its watchers that the hub feeds."""
        positions: dict[UUID, int] = {}
        for job in jobs:
            known = [
                w.sequence
                for w in self._watchers.get(job, ())
                if w.sequence is not None and not w.lagging
            ]
            if self.jobs_watches:
                known += [watcher.sequences[job] for watcher in self.jobs_watches.followers(job)]
            if known:
                # Read from the hindmost watcher on; the others skip what they already have.
                positions[job] = min(known)
        return positions

    async def hand_out(self, events: Iterable[event_pb2.Event]) -> dict[UUID, int]:
        """Gives a job's consecutive events to those who follow it and have got to them.

        Returns how many there were of each job.
        """
        loop = asyncio.get_running_loop()
        counts: dict[UUID, int] = {}
        began = loop.time()
        for name, group in groupby(events, key=lambda event: event.job):
            job, some = UUID(name.removeprefix("jobs/")), list(group)
            counts[job] = len(some)
            # A copy: watchers come and go while others have the loop.
            for watcher in [*self._watchers.get(job, ()), *self.jobs_watches.followers(job)]:
                watcher.put_events(some)
                # Thousands may watch one job. Other calls get the loop in between.
                if loop.time() - began > SLICE_SECONDS:
                    await asyncio.sleep(0)
                    began = loop.time()
        return counts

    def _look(self) -> None:
        """Wakes a slice of the jobs, the next one each time; all of them without Redis."""
        self._looked_at = asyncio.get_running_loop().time()
        self._slice = (self._slice + 1) % SLICES
        for job in [*self._watchers, *self._waiting]:
            if not self._tail.up or job.int % SLICES == self._slice:
                self._wake(job)

    def _wake_all(self) -> None:
        for job in [*self._watchers, *self._waiting]:
            self._wake(job)

    def _all(self) -> list[Mailbox]:
        return [
            *(watcher for watchers in self._watchers.values() for watcher in watchers),
            *self.jobs_watches.watchers,
        ]


def _too_slow() -> FluoroError:
    return FluoroError(
        Reason.WATCH_TOO_SLOW,
        "Nothing was read from the stream for long. Resume with the last cursor.",
    )
