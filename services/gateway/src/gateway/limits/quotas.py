"""How many jobs of an owner are open, looked up once a second and counted on from there."""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger import search
from fluoro_telemetry import metrics

from gateway.ledger_calls import LedgerCalls

KNOWN_SECONDS: Final = 1
"""How long what the ledger said is good."""
MAX_OWNERS: Final = 10_000
"""Owners of whom the number is kept; the one looked up longest ago goes first."""
ROOM_SECONDS: Final = 2
"""When to come back: some of the jobs may have ended."""


@dataclass(slots=True)
class _Known:
    """jobs: as of the ledger, and those let through since. until: of time.monotonic."""

    jobs: int
    until: float


class OpenJobs:
    """The open jobs of each owner with a quota. For one event loop."""

    def __init__(self, calls: LedgerCalls) -> None:
        """calls: closing it is the caller's."""
        self._calls = calls
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._looking: dict[str, asyncio.Task[_Known]] = {}

    async def add(self, owner: str, jobs: int, most: int) -> None:
        """So many jobs are about to be stored. FluoroError JOB_QUOTA_EXCEEDED.

        Also a reason of LEDGER_OUTAGES, if the ledger has to be asked and cannot be.
        """
        known = self._known.get(owner)
        # A second old is good enough: jobs end, and other gateways take some, all the time.
        if known is None or known.until < time.monotonic():
            known = await self._look(owner, most)
        if known.jobs + jobs > most:
            metrics.CALLS_REFUSED.labels(limit="max_open_jobs").inc()
            raise FluoroError(
                Reason.JOB_QUOTA_EXCEEDED,
                f"{known.jobs} jobs of this owner are open, and {most} may be. "
                "Wait until some have ended.",
                metadata={"limit": "max_open_jobs", "value": str(most)},
                retry_seconds=ROOM_SECONDS,
            )
        # Counted at once: the next submit within this second must see it.
        known.jobs += jobs

    async def _look(self, owner: str, most: int) -> _Known:
        """Asks once for all who wait; a caller who goes ends none."""
        looking = self._looking.get(owner)
        if looking is None:
            looking = self._looking[owner] = asyncio.create_task(self._ask(owner, most))
            looking.add_done_callback(lambda _: self._looking.pop(owner, None))
        return await asyncio.shield(looking)

    async def _ask(self, owner: str, most: int) -> _Known:
        jobs = await self._calls.run_for(owner, search.open_jobs, owner, most)
        known = self._known[owner] = _Known(jobs, time.monotonic() + KNOWN_SECONDS)
        self._known.move_to_end(owner)
        if len(self._known) > MAX_OWNERS:
            self._known.popitem(last=False)
        return known
