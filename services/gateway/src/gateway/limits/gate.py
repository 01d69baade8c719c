"""Where a call meets the limits of whoever makes it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final
from uuid import UUID

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_telemetry import metrics

from gateway.identity.principal import Principal
from gateway.limits.buckets import Buckets
from gateway.limits.owners import Owners
from gateway.limits.quotas import OpenJobs
from gateway.limits.stored import FREE, StoredBytes, Upload

WAITING: Final = frozenset(
    f"fluoro.v1.JobService.{name}" for name in ("RunJob", "WaitJob", "WatchJob", "WatchJobs")
)
"""Methods whose calls mostly wait: they are counted by themselves."""

PLACE_SECONDS: Final = 1
"""When to come back if too many calls are under way."""


class Limits:
    """Counts what owners have under way, and refuses what is over their limits.

    For one event loop. Nothing here waits but a look at what owners with quotas have.
    """

    def __init__(
        self,
        owners: Owners,
        buckets: Buckets,
        open_jobs: OpenJobs,
        stored: StoredBytes,
        call_seconds: float,
    ) -> None:
        """call_seconds: how long a call may take that brings no deadline."""
        self._owners, self._buckets = owners, buckets
        self._open_jobs, self._stored = open_jobs, stored
        self.call_seconds = call_seconds
        self._calls: Counter[str] = Counter()
        self._streams: Counter[str] = Counter()
        self.tasks: list[asyncio.Task[None]] = []
        """What must run for as long as the gateway does."""

    def start(self) -> None:
        """Starts to read the file of limits, and to settle rates with other gateways."""
        self.tasks = [asyncio.create_task(each.run()) for each in (self._owners, self._buckets)]

    async def close(self) -> None:
        """Ends the tasks."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self._buckets.close()

    @contextmanager
    def admitted(self, principal: Principal, *, waiting: bool) -> Iterator[None]:
        """A call, for the time of the body. waiting: whether it is one of WAITING.

        FluoroError RATE_LIMITED or TOO_MANY_CALLS.
        """
        # An operator who works for an owner is held by its own limits.
        owner = principal.name or principal.owner
        limits = self._owners.of(owner)
        taken, most, name = (
            (self._streams, limits.max_streams, "max_streams")
            if waiting
            else (self._calls, limits.max_calls, "max_calls")
        )
        under_way = taken[owner]
        if most and under_way >= most:
            metrics.CALLS_REFUSED.labels(limit=name).inc()
            kind = "watches and waits" if waiting else "calls"
            raise FluoroError(
                Reason.TOO_MANY_CALLS,
                f"{under_way} {kind} of this owner are under way in this gateway, as many as may.",
                metadata={"limit": name, "value": str(most)},
                retry_seconds=PLACE_SECONDS,
            )
        # Charged after the check of places, so that a call refused there costs no rate.
        if limits.calls_per_second:
            self._take("calls_per_second", owner, limits.calls_per_second, 1)
        taken[owner] = under_way + 1
        try:
            yield
        finally:
            taken[owner] -= 1
            if not taken[owner]:
                del taken[owner]  # or the names of all owners there ever were would stay

    async def submits(self, owner: str, jobs: int) -> None:
        """So many jobs of an owner are about to be stored.

        FluoroError RATE_LIMITED or JOB_QUOTA_EXCEEDED; with a quota, a reason of LEDGER_OUTAGES.
        """
        limits = self._owners.of(owner)
        # The quota comes first, so that jobs refused for it cost no rate.
        if limits.max_open_jobs:
            await self._open_jobs.add(owner, jobs, limits.max_open_jobs)
        if limits.jobs_per_second:
            self._take("jobs_per_second", owner, limits.jobs_per_second, jobs)

    @asynccontextmanager
    async def stores(
        self, owner: str, size_bytes: int, sha256: bytes, upload_id: UUID | None = None
    ) -> AsyncIterator[Upload]:
        """An upload, for the time of the body. Yields an object to report each new size to.

        size_bytes and sha256: as announced; 0 and empty if unknown. FluoroError
        BYTE_QUOTA_EXCEEDED, also for later sizes; with a quota, a reason of LEDGER_OUTAGES.
        """
        if most := self._owners.of(owner).max_stored_bytes:
            async with self._stored.coming(owner, size_bytes, sha256, upload_id, most) as upload:
                yield upload
        else:
            yield FREE

    def _take(self, limit: str, owner: str, rate: float, cost: float) -> None:
        if wait := self._buckets.take(limit, owner, rate, cost):
            metrics.CALLS_REFUSED.labels(limit=limit).inc()
            what = limit.partition("_")[0]
            raise FluoroError(
                Reason.RATE_LIMITED,
                f"This owner is over its limit of {rate:g} {what} a second. "
                f"Try again in {wait:.3g} s.",
                metadata={"limit": limit, "value": f"{rate:g}"},
                retry_seconds=wait,
            )
