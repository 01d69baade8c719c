"""Watching all jobs of an owner: the part of the hub that finds out which jobs there are.

Whatever has news is read by the hub, job by job. Which jobs these are is told by wake-ups, at once, and by a sweep: once a second one
query for all watched owners, of the jobs with events at or above the horizon. The sweep finds what wake-ups did not tell and moves the
horizon on; while some transaction holds the horizon, wake-ups go on bringing events.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Final, Protocol
from uuid import UUID

import structlog
from fluoro.v1 import event_pb2, job_pb2
from fluoro.v1.job_service_pb2 import Bookmark, ListJobsRequest, WatchJobsResponse
from fluoro_jobs.errors import FluoroError
from fluoro_jobs.ledger import horizon, read
from fluoro_telemetry import metrics

from gateway import cursor
from gateway.ledger_calls import LedgerCalls
from gateway.owner_watcher import OwnerWatcher, ResumePoint
from gateway.settings import Settings

log = structlog.get_logger(__name__)

OPEN: Final = (job_pb2.Job.STATE_PENDING, job_pb2.Job.STATE_RUNNING)
"""States of the jobs that a watch begins with."""

CATCH_UP_JOBS: Final = 100
"""Of how many jobs the missed events are read at once."""


class Reader(Protocol):
    """What the hub does for those who watch owners."""

    @property
    def turn(self) -> asyncio.Lock:
        """Held by whoever reads events and hands them out."""

    def hand_out(self, events: list[event_pb2.Event]) -> None:
        """Gives events to those who follow their jobs."""

    def refuse_if_closing(self) -> None:
        """FluoroError SHUTTING_DOWN if no watcher may begin any more."""


class Owners:
    """The watchers of all jobs of an owner, and who follows which job."""

    def __init__(self, calls: LedgerCalls, callers: LedgerCalls, settings: Settings, reader: Reader) -> None:
        """The two kinds of calls are as for the hub."""
        self._calls = calls
        self._callers = callers
        self._settings = settings
        self._reader = reader
        self._due = asyncio.Event()
        self._followers: dict[UUID, set[OwnerWatcher]] = {}
        self.watchers: set[OwnerWatcher] = set()

    def __bool__(self) -> bool:
        return bool(self.watchers)

    def followers(self, job: UUID) -> Collection[OwnerWatcher]:
        """Who has begun to follow the job, and has not been ended."""
        return [watcher for watcher in self._followers.get(job, ()) if job in watcher.sequences]

    async def watch(self, owner: str, labels: dict[str, str], start_cursor: str) -> AsyncIterator[WatchJobsResponse]:
        """Snapshots or missed events, then live. FluoroError WATCH_TOO_SLOW or SHUTTING_DOWN, with the cursor to resume from."""
        start = cursor.decode_horizon(start_cursor, owner, labels) if start_cursor else None
        with self._watching(owner, labels) as watcher:
            span, news = await self._callers.run_for(owner, horizon.sweep, [(owner, start)])
            if start is not None and start > span.xmax:
                raise cursor.ahead()
            watcher.point = ResumePoint(span.xmin if start is None else start, sent=start is not None)
            if start is None:
                for known in filter(watcher.wants, news):
                    watcher.know(known.job, known.last, ended=known.ended)
                async for response in self._snapshots(watcher):
                    yield response
            try:
                async for response in self._missed(watcher):
                    yield response
                async for response in self._live(watcher):
                    yield response
            except FluoroError as error:
                error.metadata.setdefault("cursor", _position(watcher))
                raise

    async def locate(self, woken: Collection[UUID]) -> None:
        """Finds out who is to follow those of the woken jobs that nobody followed yet."""
        places = {watcher.place for watcher in self.watchers if watcher.place is not None}
        unknown = [job for job in woken if any(job not in watcher.sequences for watcher in self.watchers if watcher.place)]
        if places and unknown:
            _, news = await self._calls.run(horizon.sweep, places, unknown)
            self._follow(news)

    async def run(self) -> None:
        """Sweeps until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._settings.watch_poll_interval_seconds):
                    await self._due.wait()
            except TimeoutError:
                pass  # nobody asked for it sooner
            self._due.clear()
            try:
                async with self._reader.turn:
                    await self._sweep()
            except Exception as error:  # noqa: BLE001 - whatever went wrong, the streams live on and the next sweep does it again
                log.warning("owners_not_swept", error=error.reason if isinstance(error, FluoroError) else type(error).__qualname__)

    async def _sweep(self) -> None:
        swept = [(watcher, watcher.place, watcher.point.sent) for watcher in self.watchers if watcher.place is not None]
        if not swept:
            return
        span, news = await self._calls.run(horizon.sweep, {place for _, place, _ in swept})
        self._follow(news)
        recent = {found.job for found in news}
        positions: dict[UUID, int] = {}
        for found in news:
            behind = [watcher.sequences[found.job] for watcher in self.followers(found.job)]
            if behind and min(behind) < found.last:
                positions[found.job] = min(behind)
        if positions:
            self._reader.hand_out(await self._calls.run(read.events_after, positions))
        for watcher, place, sent_before in swept:
            if watcher.place is place:  # otherwise it was ended meanwhile
                for job in watcher.advance(span, sent_before=sent_before, recent=recent):
                    self._unfollow(watcher, job)

    def _follow(self, news: Collection[horizon.News]) -> None:
        for found in news:
            for watcher in self.watchers:
                if watcher.place == found.place and found.job not in watcher.sequences and watcher.wants(found):
                    watcher.know(found.job, found.first - 1, ended=False)
                    self._followers.setdefault(found.job, set()).add(watcher)

    def _unfollow(self, watcher: OwnerWatcher, job: UUID) -> None:
        others = self._followers.get(job, set())
        others.discard(watcher)
        if not others:
            self._followers.pop(job, None)

    @contextmanager
    def _watching(self, owner: str, labels: dict[str, str]) -> Iterator[OwnerWatcher]:
        self._reader.refuse_if_closing()
        watcher = OwnerWatcher(owner, labels, self._settings.watch_ring_events, asyncio.get_running_loop().time())
        self.watchers.add(watcher)
        metrics.WATCH_STREAMS.inc()
        try:
            yield watcher
        finally:
            metrics.WATCH_STREAMS.dec()
            self.watchers.discard(watcher)
            for job in [job for job, watchers in self._followers.items() if watcher in watchers]:
                self._unfollow(watcher, job)

    async def _snapshots(self, watcher: OwnerWatcher) -> AsyncIterator[WatchJobsResponse]:
        """The open jobs, read a page at a time and therefore at different moments; each one's events go on from its own. Then a bookmark.

        Only that has a cursor: a watch that breaks off before it must start anew to hear of all jobs.
        """
        request = ListJobsRequest(page_size=read.MAX_PAGE, states=OPEN, labels=watcher.labels)
        while True:
            page = await self._callers.run_for(watcher.owner, read.list_jobs, watcher.owner, request)
            watcher.raise_if_ended()
            for job in page.jobs:
                watcher.know(UUID(job.name.removeprefix("jobs/")), job.last_sequence, ended=False)
                yield WatchJobsResponse(job=job)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        watcher.point.sent = True
        yield WatchJobsResponse(cursor=_position(watcher), bookmark=Bookmark())

    async def _missed(self, watcher: OwnerWatcher) -> AsyncIterator[WatchJobsResponse]:
        """Events since the cursor, at the caller's pace: an old cursor must not overflow the ring of one who is not slow."""
        place = (watcher.owner, watcher.point.horizon)
        while True:
            sent_before = watcher.point.sent
            span, news = await self._callers.run_for(watcher.owner, horizon.sweep, [place])
            found = {n.job: (watcher.sequences.get(n.job, n.first - 1), n.last) for n in news if watcher.wants(n)}
            missed = {job: after for job, (after, last) in found.items() if after < last}
            if sum(last - after for after, last in found.values() if after < last) <= self._settings.watch_ring_events // 2:
                break
            async for response in self._told(watcher, missed):
                yield response
            watcher.point.observe(span, sent_before=sent_before)
            place = (watcher.owner, span.xmin)
        watcher.raise_if_ended()
        for job in watcher.sequences:
            self._followers.setdefault(job, set()).add(watcher)
        watcher.place = place
        self._due.set()

    async def _told(self, watcher: OwnerWatcher, missed: dict[UUID, int]) -> AsyncIterator[WatchJobsResponse]:
        jobs = iter(missed.items())
        while some := dict(islice(jobs, CATCH_UP_JOBS)):
            watcher.raise_if_ended()
            for event in await self._callers.run_for(watcher.owner, read.events_after, some):
                watcher.saw(UUID(event.job.removeprefix("jobs/")), event)
                watcher.point.sent = True
                yield WatchJobsResponse(cursor=_position(watcher), event=event)
                metrics.EVENTS_DELIVERED.inc()

    async def _live(self, watcher: OwnerWatcher) -> AsyncIterator[WatchJobsResponse]:
        position = _position(watcher)
        while True:
            try:
                pending = await watcher.take()
            except FluoroError as error:
                error.metadata["cursor"] = position  # not the point: it may be after events that were dropped
                raise
            # The point may have moved on while these waited: it is good only after the last of them.
            after, watcher.point.sent = _position(watcher), True
            for number, event in enumerate(pending.events, 1):
                yield WatchJobsResponse(cursor=after if number == len(pending.events) else position, event=event)
            position = after
            for progress in pending.progress:
                yield WatchJobsResponse(cursor=position, progress=progress)
            if pending.bookmark and not (pending.events or pending.progress):
                yield WatchJobsResponse(cursor=position, bookmark=Bookmark())
            metrics.EVENTS_DELIVERED.inc(len(pending.events))
            watcher.last_taken = asyncio.get_running_loop().time()


def _position(watcher: OwnerWatcher) -> str:
    return cursor.encode_horizon(watcher.owner, watcher.labels, watcher.point.horizon)
