"""A closed loop of callers: each calls again as soon as it is answered; and the end of a round."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from rig.figures import latencies

Call = Callable[[], Awaitable[None]]

POLL_SECONDS: Final = 0.02
"""Pause between two looks at a round that has not ended."""


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


def until(probe: Callable[[], bool], seconds: float, *, twice: bool = False) -> None:
    """Returns when it is so. SystemExit after the seconds.

    twice: two looks in a row, because a message between queue and unacknowledged is in neither.
    """
    deadline, seen = time.monotonic() + seconds, 0
    while seen <= twice:
        seen = seen + 1 if probe() else 0
        if time.monotonic() > deadline:
            raise SystemExit("a round did not end")
        time.sleep(POLL_SECONDS)
