"""The watch hub: one reader of events per process, whatever the number of streams.

Redis says which jobs have news; the ledger says what the news is. Jobs that were woken while a read
was under way share the next read, so the load on the ledger does not grow with the streams. Without
Redis the same read happens every second for all watched jobs.

However much happens at once, the hub holds one page of events and gives the event loop back every
few milliseconds. A watcher that has no room for its events lags: it reads them from the ledger page
by page, as fast as its caller takes them, and then is fed by the hub again.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Final
from uuid import UUID

import structlog
from fluoro.v1 import event_pb2, job_service_pb2
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger import read
from fluoro_jobs.wakeups import shard_of
from fluoro_telemetry import metrics

from gateway import cursor
from gateway.errors import shutting_down
from gateway.ledger_calls import LedgerCalls
from gateway.owner_watcher import TERMINAL
from gateway.owners import Owners
from gateway.recall import Recall
from gateway.settings import Settings
from gateway.tail import Tail
from gateway.watcher import Mailbox, Pending, Watcher

log = structlog.get_logger(__name__)

TICK_SECONDS: Final = 0.25
"""How often the hub looks for idle streams, as long as that is shorter than the bookmark interval."""


PAGE_EVENTS: Final = 1024
"""Events that the hub reads at once, of all jobs together."""

PAGE_EVENTS_OF_A_JOB: Final = 256
"""Of these, and of what a lagging watcher reads at once, events of one job."""

SLICE_SECONDS: Final = 0.005
"""How long the hub hands out events before it lets others have the event loop."""


def is_end(event: event_pb2.Event) -> bool:
    """Whether the event made its job terminal."""
    return event.job_changed.state in TERMINAL


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
        self._all_woken_at = 0.0
        self._closing = False
        self._turn = asyncio.Lock()
        self.owners = Owners(calls, callers, settings, self)
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
                ("sweep", self.owners.run()),
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
        with self.listening(owner, job), _member(self._watchers, job, watcher):
            yield watcher

    @contextmanager
    def waiting(self, job: UUID, owner: str) -> Iterator[asyncio.Future[None]]:
        """Completes when the job is seen terminal.

        Open it before reading its state. FluoroError SHUTTING_DOWN, now or by the future.
        """
        self.refuse_if_closing()
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self.listening(owner, job), _member(self._waiting, job, ended):
            try:
                yield ended
            finally:
                ended.cancel()

    @contextmanager
    def listening(self, owner: str, *jobs: UUID) -> Iterator[None]:
        """Has wake-ups of the owner's jobs brought here.

        What these jobs miss before that begins is read then (see `joined`).
        """
        self._shards.update(dict.fromkeys(jobs, shard_of(owner)))
        self._tail.watch(owner)
        try:
            yield
        finally:
            self._tail.unwatch(owner)
            for job in jobs:
                if job not in self._watchers and job not in self._waiting:
                    self._shards.pop(job, None)

    def refuse_if_closing(self) -> None:
        """FluoroError SHUTTING_DOWN if no watcher may begin any more."""
        if self._closing:
            raise shutting_down()

    def follow(self, watcher: Watcher, sequence: int) -> None:
        """The watcher gets the events after `sequence`, from now on."""
        watcher.sequence = sequence
        if watcher.woken:
            self._call_for(watcher.job)

    async def stream(
        self, watcher: Watcher, owner: str, sequence: int, last: int
    ) -> AsyncIterator[job_service_pb2.WatchJobResponse]:
        """Events after `sequence`, latest progress and bookmarks until the job is terminal.

        owner: of the job. last: newest event when the call began; an end before it was not the last
        word. FluoroError CURSOR_EXPIRED, WATCH_TOO_SLOW or SHUTTING_DOWN, or of the ledger; its
        metadata has the cursor to resume from.
        """
        watcher.lagging = sequence < last
        self.follow(watcher, sequence)
        position = cursor.encode(watcher.job, sequence)
        metrics.WATCH_STREAMS.inc()
        try:
            while True:
                pending = await (
                    self._page(watcher, owner, last) if watcher.behind else watcher.take()
                )
                for event in pending.events:
                    position = cursor.encode(watcher.job, event.sequence)
                    watcher.sending()
                    yield job_service_pb2.WatchJobResponse(cursor=position, event=event)
                    watcher.sent()
                    sequence = event.sequence
                    metrics.EVENTS_DELIVERED.inc()
                    if is_end(event) and sequence >= last:
                        return
                for other in _others(pending, position, sequence):
                    watcher.sending()
                    yield other
                    watcher.sent()
        except FluoroError as error:
            error.metadata["cursor"] = position
            raise
        finally:
            metrics.WATCH_STREAMS.dec()

    async def _page(self, watcher: Watcher, owner: str, last: int) -> Pending:
        """The next events of a watcher that lags. It does no more when these were the newest."""
        watcher.raise_if_ended()
        sequence = watcher.sequence or 0
        events = await self._callers.run_for(
            owner, read.events_after, {watcher.job: sequence}, limit=PAGE_EVENTS_OF_A_JOB
        )
        watcher.raise_if_ended()
        oldest = events[0].sequence if events else last + 1
        if oldest > sequence + 1:
            raise cursor.expired(watcher.job, oldest)
        watcher.sequence = events[-1].sequence if events else sequence
        if len(events) < PAGE_EVENTS_OF_A_JOB:
            watcher.lagging = False
            self._call_for(watcher.job)  # what came since the read
        return Pending(events, [], bookmark=watcher.take_bookmark())

    def recall_progress(self, watcher: Watcher) -> None:
        """Gives the watcher, soon, what was the latest progress when it came."""
        if self._tail.up:
            self._recall.ask(watcher)

    # --- what the tail tells ---

    def woken(self, job: UUID, owner: str) -> None:
        """The job has events that its watchers have not seen."""
        watched = job in self._watchers or job in self._waiting or self.owners.watched(owner)
        metrics.WAKEUPS_HEARD.labels(watched=str(watched).lower()).inc()
        if watched:
            self._wake(job)

    def _wake(self, job: UUID) -> None:
        self._call_for(job)
        for watcher in self._watchers.get(job, ()):
            watcher.woken = True

    def progressed(self, job: UUID, owner: str, progress: bytes) -> None:
        """Hands progress to those who watch the job. For others it is not even parsed."""
        watchers = [
            *self._watchers.get(job, ()),
            *(self.owners.followers(job) if self.owners.watched(owner) else ()),
        ]
        metrics.WAKEUPS_HEARD.labels(watched=str(bool(watchers)).lower()).inc()
        if watchers:
            message = event_pb2.Progress.FromString(progress)
            for watcher in watchers:
                watcher.put_progress(message)

    def joined(self, shard: int) -> None:
        """Wake-ups of the shard's owners begin here: what was missed of them is read."""
        for job, its in self._shards.items():
            if its == shard:
                self._wake(job)

    def subscribed(self, now: bool) -> None:
        """Wake-ups begin or end here: whatever was missed is read."""
        log.info("redis_subscription", subscribed=now)
        self._wake_all()

    # --- the tasks ---

    def _call_for(self, job: UUID) -> None:
        """The next read looks at the job."""
        self._woken[job] = None
        self._news.set()

    async def _read(self) -> None:
        """Reads a page of the woken jobs' events in one query, again and again; of all jobs when no wake-up came for a while."""
        while True:
            await self._wait_for_news()
            self._news.clear()
            woken, self._woken = self._woken, {}
            try:
                async with self._turn:
                    await self.owners.locate(woken)
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
                await asyncio.sleep(self._settings.watch_poll_interval_seconds)
            if unread:
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
        """Also for the time to look at all jobs, in case a wake-up got lost; news of some do not put it off."""
        seconds = (
            self._settings.watch_safety_interval_seconds
            if self._tail.up
            else self._settings.watch_poll_interval_seconds
        )
        due = self._all_woken_at + seconds
        try:
            async with asyncio.timeout_at(due):
                await self._news.wait()
        except TimeoutError:
            pass  # then it is due
        if asyncio.get_running_loop().time() >= due:
            self._wake_all()

    async def _tick(self) -> None:
        """Sends bookmarks to idle streams and ends those that nobody reads: one timer for all of them."""
        interval, stall = (
            self._settings.watch_bookmark_interval_seconds,
            self._settings.watch_stall_seconds,
        )
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(TICK_SECONDS, interval, stall))
            now = loop.time()
            for watcher in self._all():
                if watcher.last_sent <= now - interval:
                    watcher.put_bookmark()
                if (
                    watcher.lagging
                    and watcher.sending_since is not None
                    and watcher.sending_since <= now - stall
                ):
                    log.info("watch_too_slow", seconds=round(now - watcher.sending_since, 1))
                    watcher.end(_too_slow(), keep=False)

    def _positions(self, jobs: Iterable[UUID]) -> dict[UUID, int]:
        """Per job the sequence that its hindmost watcher has, of those that the hub feeds."""
        positions: dict[UUID, int] = {}
        for job in jobs:
            known = [
                w.sequence
                for w in self._watchers.get(job, ())
                if w.sequence is not None and not w.lagging
            ]
            known += [watcher.sequences[job] for watcher in self.owners.followers(job)]
            if known:
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
            for watcher in [*self._watchers.get(job, ()), *self.owners.followers(job)]:
                watcher.put_events(some)
                if loop.time() - began > SLICE_SECONDS:
                    await asyncio.sleep(0)
                    began = loop.time()
        return counts

    def _wake_all(self) -> None:
        self._all_woken_at = asyncio.get_running_loop().time()
        for job in [*self._watchers, *self._waiting]:
            self._wake(job)

    def _all(self) -> list[Mailbox]:
        return [
            *(watcher for watchers in self._watchers.values() for watcher in watchers),
            *self.owners.watchers,
        ]


def _too_slow() -> FluoroError:
    return FluoroError(
        Reason.WATCH_TOO_SLOW,
        "Nothing was read from the stream for long. Resume with the last cursor.",
    )


def _others(
    pending: Pending, position: str, sequence: int
) -> Iterator[job_service_pb2.WatchJobResponse]:
    """Progress; a bookmark if there is nothing else to send."""
    for progress in pending.progress:
        yield job_service_pb2.WatchJobResponse(cursor=position, progress=progress)
    if pending.bookmark and not (pending.events or pending.progress):
        yield job_service_pb2.WatchJobResponse(
            cursor=position, bookmark=job_service_pb2.Bookmark(last_sequence=sequence)
        )


@contextmanager
def _member(sets: dict[UUID, set[Any]], job: UUID, one: object) -> Iterator[None]:
    """Keeps `one` in the job's set during the block, and no set that is empty."""
    sets.setdefault(job, set()).add(one)
    try:
        yield
    finally:
        sets[job].discard(one)
        if not sets[job]:
            del sets[job]
