"""A closed loop of callers: each calls again as soon as it is answered."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from rig.figures import latencies

Call = Callable[[], Awaitable[None]]


@dataclass
class Measured:
    """What some rounds against one server gave.

    rates: calls per second of each round. seconds: of each call.
    """

    rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """For printing: the median rate and the latencies."""
        return {"per_second": sorted(self.rates)[len(self.rates) // 2], **latencies(self.seconds)}


async def round_of(callers: Sequence[Call], seconds: float, into: Measured) -> None:
    """One round: every caller calls for so long."""
    loop_seconds: list[float] = []
    started = time.perf_counter()
    until = started + seconds

    async def keep_calling(call: Call) -> None:
        while (before := time.perf_counter()) < until:
            await call()
            loop_seconds.append(time.perf_counter() - before)

    await asyncio.gather(*map(keep_calling, callers))
    into.rates.append(len(loop_seconds) / (time.perf_counter() - started))
    into.seconds += loop_seconds
