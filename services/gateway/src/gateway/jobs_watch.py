"""Watching all jobs of an owner: the part of the hub that finds out which jobs there are.

The hub reads events job by job. Two sources tell it which jobs have any. Wake-ups do so at once. A
sweep asks the ledger once a second, in one query for all watched owners, for the jobs with events
at or above the horizon. It finds what no wake-up told, and moves the horizon on. While some
transaction holds the horizon, wake-ups go on bringing events.

A call is not live while it catches up from a cursor, or has no room for more events. It then reads
the ledger by itself, at its own pace, in pages of so many events in the order of transactions.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final, Protocol
from uuid import UUID

import structlog
from fluoro.v1 import event_pb2, job_pb2
from fluoro.v1.job_service_pb2 import ListJobsRequest, WatchJobsResponse
from fluoro_jobs.errors import FluoroError
from fluoro_jobs.ledger import horizon, read, search
from fluoro_jobs.ledger.paging import MAX_PAGE
from fluoro_telemetry import metrics

from gateway import cursor, frames
from gateway.jobs_watcher import JobsWatcher, ResumePoint
from gateway.ledger_calls import LedgerCalls
from gateway.settings import Settings
from gateway.watcher import Pending

log = structlog.get_logger(__name__)

OPEN: Final = (job_pb2.Job.STATE_PENDING, job_pb2.Job.STATE_RUNNING)
"""States of the jobs that a watch begins with."""

PAGE_EVENTS: Final = 256
"""Events that a call looks for, and then reads, at once while it is not live."""

SWEEP_EVENTS: Final = 4096
"""Events of an owner that the sweep looks for at once.

It keeps what it learns about their jobs, not the events.
"""

HUB_PAGE_EVENTS: Final = 1024
"""Events that the sweep reads at once for all who are live."""


class Reader(Protocol):
    """What the hub does for those who watch owners."""

    @property
    def turn(self) -> asyncio.Lock:
        """Held by whoever reads events and hands them out."""

    async def hand_out(self, events: list[event_pb2.Event]) -> object:
        """Gives events to those who follow their jobs."""

    def refuse_if_closing(self) -> None:
        """FluoroError SHUTTING_DOWN if no watcher may begin any more."""

    def listening(self, owner: str) -> AbstractContextManager[None]:
        """Has wake-ups of the owner's jobs brought here during the block."""


class JobsWatches:
    """The watchers of all jobs of an owner, and who follows which job."""

    def __init__(
        self, calls: LedgerCalls, callers: LedgerCalls, settings: Settings, reader: Reader
    ) -> None:
        """The two kinds of calls are as for the hub."""
        self._calls = calls
        self._callers = callers
        self._settings = settings
        self._reader = reader
        self._due = asyncio.Event()
        self._followers: dict[UUID, set[JobsWatcher]] = {}
        self._by_owner: dict[str, set[JobsWatcher]] = {}
        self.watchers: set[JobsWatcher] = set()

    def __bool__(self) -> bool:
        return bool(self.watchers)

    def watched(self, owner: str) -> bool:
        """Whether somebody watches all jobs of the owner."""
        return owner in self._by_owner

    def followers(self, job: UUID) -> Collection[JobsWatcher]:
        """Who follows the job and is live."""
        return [watcher for watcher in self._followers.get(job, ()) if watcher.place is not None]

    async def watch(
        self, owner: str, labels: dict[str, str], start_cursor: str
    ) -> AsyncIterator[WatchJobsResponse | bytes]:
        """WatchJobsResponses: snapshots or missed events, then live.

        FluoroError WATCH_TOO_SLOW or SHUTTING_DOWN, or of the ledger, with the cursor to resume
        from.
        """
        start = cursor.decode_horizon(start_cursor, owner, labels) if start_cursor else None
        with self._watching(owner, labels) as watcher:
            if start is None:
                async for response in self._snapshots(watcher):
                    yield response
            else:
                watcher.horizon, watcher.point = start, ResumePoint(start, sent=True)
            try:
                # Reads the ledger until it has caught up, then follows the hub, and returns to the
                # ledger when too much comes at once.
                while True:  # live, until too much comes at once
                    async for response in self._missed(watcher, resumed=start is not None):
                        yield response
                    start = None
                    async for response in self._live(watcher):
                        yield response
            except FluoroError as error:
                # Unless `_live` has set one: events may have been dropped behind the point.
                error.metadata.setdefault("cursor", _position(watcher))
                raise

    async def locate(self, woken: Collection[UUID]) -> None:
        """Finds out who is to follow those woken jobs that nobody follows yet."""
        if not self.watchers:
            return
        # Most wake-ups are of jobs that everybody follows already; these need no look.
        unknown = [job for job in woken if not self._is_known(job)]
        if unknown:
            news = await self._calls.run(horizon.heads, unknown)
            await self._follow(
                (watcher, found, found.last + 1)
                for found in news
                for watcher in self._by_owner.get(found.owner, ())
                if watcher.place
            )

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
                await self._sweep()
            except Exception as error:  # noqa: BLE001 - whatever went wrong, the streams live on and the next sweep does it again
                log.warning(
                    "owners_not_swept",
                    error=error.reason
                    if isinstance(error, FluoroError)
                    else type(error).__qualname__,
                )

    async def _sweep(self) -> None:
        """Brings live watchers what they lack, page by page.

        Then moves them on to where the first page was read.
        """
        # Taken now, because a watcher that ends or falls behind during the sweep must not advance.
        swept = [
            (watcher, watcher.place, watcher.point.sent, watcher.all_ended())
            for watcher in self.watchers
            if watcher.place is not None
        ]
        places: set[horizon.Place] = {place for _, place, _, _ in swept}
        first: horizon.Span | None = None
        recent: set[UUID] = set()
        while places:
            async with self._reader.turn:
                span, pages = await self._calls.run(horizon.sweep, places, SWEEP_EVENTS)
                news = [found for page in pages.values() for found in page.news]
                await self._follow(
                    (watcher, found, found.first)
                    for (owner, start), page in pages.items()
                    for found in page.news
                    for watcher in self._by_owner.get(owner, ())
                    if watcher.place and start is not None and watcher.horizon <= start
                )
            await self._bring(news)
            # The bounds of the first page: later ones were read when more had happened.
            first = first or span
            # Their events were not all below the horizon, so nobody forgets them yet.
            recent.update(found.job for found in news)
            places = {
                (owner, page.following)
                for (owner, _), page in pages.items()
                if page.following is not None
            }
        for watcher, place, sent_before, ended in swept:
            # Otherwise it was ended meanwhile, or lags.
            if first is not None and watcher.place is place:
                watcher.advance(first, sent_before=sent_before)
                for job in [
                    job
                    for job, last in ended.items()
                    if job not in recent and watcher.sequences.get(job) == last
                ]:
                    self._forget(watcher, job)

    async def _bring(self, news: Collection[horizon.News]) -> None:
        """Hands out the events of these jobs to those who are live and behind."""
        before: dict[UUID, int] | None = None
        while True:
            async with self._reader.turn:
                positions: dict[UUID, int] = {}
                for found in news:
                    behind = [watcher.sequences[found.job] for watcher in self.followers(found.job)]
                    if behind and min(behind) < found.last:
                        # Read from the hindmost watcher on; the others skip what they have.
                        positions[found.job] = min(behind)
                # If these are the same again, what is missing there is not kept any more.
                if not positions or positions == before:
                    return
                events = await self._calls.run(read.events_after, positions, limit=HUB_PAGE_EVENTS)
                await self._reader.hand_out(events)
            before = positions

    async def _follow(self, news: Iterable[tuple[JobsWatcher, horizon.News, int]]) -> None:
        """Has live watchers follow the jobs that they do not know yet.

        The number beside each piece of news is a sequence at or above the watcher's horizon.
        """
        missing = [
            (watcher, watcher.place, found, before)
            for watcher, found, before in news
            if found.job not in watcher.sequences and watcher.wants(found)
        ]
        if not missing:
            return
        seen = await self._calls.run(
            horizon.seen,
            {(found.job, before, watcher.horizon) for watcher, _, found, before in missing},
        )
        for watcher, place, found, _ in missing:
            sequence = seen[found.job, watcher.horizon] if watcher.place is place else found.last
            if sequence < found.last and found.job not in watcher.sequences:
                watcher.know(found.job, sequence, ended=False)
                self._followers.setdefault(found.job, set()).add(watcher)

    def _is_known(self, job: UUID) -> bool:
        """Whether every live watcher of the job's owner knows the job.

        A job that nobody follows is unknown: only the ledger can say who its owner is.
        """
        someone = next(iter(self._followers.get(job, ())), None)
        return someone is not None and all(
            job in w.sequences or w.place is None for w in self._by_owner[someone.owner]
        )

    def _forget(self, watcher: JobsWatcher, job: UUID) -> None:
        watcher.forget(job)
        self._unfollow(watcher, job)

    def _unfollow(self, watcher: JobsWatcher, job: UUID) -> None:
        others = self._followers.get(job, set())
        others.discard(watcher)
        # Empty sets go, or there would be one for each job that was ever followed.
        if not others:
            self._followers.pop(job, None)

    @contextmanager
    def _watching(self, owner: str, labels: dict[str, str]) -> Iterator[JobsWatcher]:
        self._reader.refuse_if_closing()
        watcher = JobsWatcher(
            owner, labels, self._settings.watch_ring_events, asyncio.get_running_loop().time()
        )
        self.watchers.add(watcher)
        self._by_owner.setdefault(owner, set()).add(watcher)
        metrics.WATCH_STREAMS.inc()
        try:
            # Before anything is read, so that no wake-up falls in between.
            with self._reader.listening(owner):
                yield watcher
        finally:
            metrics.WATCH_STREAMS.dec()
            self.watchers.discard(watcher)
            others = self._by_owner[owner]
            others.discard(watcher)
            if not others:
                del self._by_owner[owner]
            for job in watcher.sequences:
                self._unfollow(watcher, job)

    async def _snapshots(self, watcher: JobsWatcher) -> AsyncIterator[WatchJobsResponse | bytes]:
        """The open jobs, page by page, then a bookmark.

        Pages are read at different moments. The events of each job go on from its own snapshot.
        Only the bookmark has a cursor: a watch that breaks off before it has to start anew, or it
        would miss some jobs.
        """
        await self._begin(watcher)
        request = ListJobsRequest(page_size=MAX_PAGE, states=OPEN, labels=watcher.labels)
        while True:
            page = await self._callers.run_for(
                watcher.owner, search.list_jobs, watcher.owner, request
            )
            # It may have been ended while the page was read.
            watcher.raise_if_ended()
            for job in page.jobs:
                # Known before it is sent: events from now on count from this snapshot.
                watcher.know(UUID(job.name.removeprefix("jobs/")), job.last_sequence, ended=False)
                watcher.sending()
                yield WatchJobsResponse(job=job)
                watcher.sent()
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        watcher.point.sent = True
        yield frames.bookmark(_position(watcher))

    async def _begin(self, watcher: JobsWatcher) -> None:
        """Makes all that is there the past of a watch that begins without a cursor.

        Events at or above its horizon count as known, and are not told.
        """
        first: horizon.Span | None = None
        place: horizon.Place | None = (watcher.owner, None)
        # An owner may have more jobs with recent events than a page holds.
        while place is not None:
            span, pages = await self._callers.run_for(
                watcher.owner, horizon.sweep, [place], SWEEP_EVENTS
            )
            watcher.raise_if_ended()
            first = first or span
            for found in filter(watcher.wants, pages[place].news):
                watcher.know(found.job, found.last, ended=found.ended)
            following = pages[place].following
            place = None if following is None else (watcher.owner, following)
        if first is not None:
            watcher.horizon, watcher.point = first.xmin, ResumePoint(first.xmin)

    async def _missed(self, watcher: JobsWatcher, *, resumed: bool) -> AsyncIterator[bytes]:
        """Events from the watcher's horizon on, page by page at the caller's pace.

        Then the watcher is live.

        resumed: this is what the stream begins with. Otherwise the cursor moves only beyond what
        may have been told before.
        """
        start: int | None = watcher.horizon
        told_below = 0
        while start is not None:
            place, sent_before = (watcher.owner, start), watcher.point.sent
            span, pages = await self._callers.run_for(
                watcher.owner, horizon.sweep, [place], PAGE_EVENTS
            )
            watcher.raise_if_ended()
            # The ledger was restored from a backup: it has not had such a transaction yet.
            if start > span.xmax:
                raise cursor.ahead()
            told_below = max(told_below, 0 if resumed else span.xmax)
            news, following = (
                [found for found in pages[place].news if watcher.wants(found)],
                pages[place].following,
            )
            told_below = max(told_below, 1 + await self._prepare(watcher, news))
            async for response in self._told(watcher, news):
                yield response
            # All below it was sent, so it moves on. Once some transaction still ran, it stays.
            if start == watcher.horizon:
                watcher.horizon = span.xmin if following is None else min(following, span.xmin)
                watcher.point.observe(
                    horizon.Span(watcher.horizon, told_below), sent_before=sent_before
                )
            for found in news if told_below <= watcher.horizon else ():
                if found.ended:
                    self._forget(watcher, found.job)
            if watcher.take_bookmark():
                watcher.point.sent = True
                watcher.sending()
                yield frames.bookmark(_position(watcher))
                watcher.sent()
            resumed, start = True, following
        for job in watcher.sequences:
            self._followers.setdefault(job, set()).add(watcher)
        # From here on the hub feeds it; the sweep that is asked for brings what came since the last
        # page.
        watcher.live()
        self._due.set()

    async def _prepare(self, watcher: JobsWatcher, news: Collection[horizon.News]) -> int:
        """Finds out where to begin in jobs that are new to the watcher.

        Returns the highest transaction among the events to send.
        """
        if not news:
            return 0
        unknown = [
            (found.job, found.first, watcher.horizon)
            for found in news
            if found.job not in watcher.sequences
        ]
        for (job, _), sequence in (
            await self._callers.run_for(watcher.owner, horizon.seen, unknown)
        ).items():
            watcher.know(job, sequence, ended=False)
        newest = await self._callers.run_for(
            watcher.owner,
            horizon.newest,
            [(found.job, watcher.sequences[found.job], found.last) for found in news],
        )
        return max(newest.values(), default=0)

    async def _told(
        self, watcher: JobsWatcher, news: Collection[horizon.News]
    ) -> AsyncIterator[bytes]:
        # Page by page, so that the gateway does not hold the rest for a slow reader.
        while missed := {
            found.job: watcher.sequences[found.job]
            for found in news
            if watcher.sequences[found.job] < found.last
        }:
            upto = {found.job: found.last for found in news}
            events = await self._callers.run_for(
                watcher.owner, read.events_after, missed, upto=upto, limit=PAGE_EVENTS
            )
            if not events:
                return  # they are not kept any more
            for event in events:
                watcher.raise_if_ended()
                watcher.saw(UUID(event.job.removeprefix("jobs/")), event)
                watcher.point.sent = True
                watcher.sending()
                yield frames.event(_position(watcher), event)
                watcher.sent()
                metrics.EVENTS_DELIVERED.inc()

    async def _live(self, watcher: JobsWatcher) -> AsyncIterator[bytes]:
        """What the hub brings, until the watcher lags."""
        position = _position(watcher)
        while True:
            try:
                if watcher.behind:
                    watcher.raise_if_ended()
                    return
                pending = await watcher.take()
            except FluoroError as error:
                # Not the point: it may be after events that were dropped.
                error.metadata["cursor"] = position
                raise
            # The point may have moved on while these waited: it is good only after the last of
            # them.
            after, watcher.point.sent = _position(watcher), True
            for response in _responses(pending, position, after):
                watcher.sending()
                yield response
                watcher.sent()
            metrics.EVENTS_DELIVERED.inc(len(pending.events))
            position = after


def _responses(pending: Pending, before: str, after: str) -> Iterator[bytes]:
    """Events, progress, or a bookmark if there is nothing else.

    Cursors: `after` from the last event on, `before` until then.
    """
    for number, event in enumerate(pending.events, 1):
        yield frames.event(after if number == len(pending.events) else before, event)
    for progress in pending.progress:
        yield frames.progress(after, progress)
    if pending.bookmark and not (pending.events or pending.progress):
        yield frames.bookmark(after)


def _position(watcher: JobsWatcher) -> str:
    return cursor.encode_horizon(watcher.owner, watcher.labels, watcher.point.horizon)
