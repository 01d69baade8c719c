"""Compares this machine's clock with PostgreSQL's, which decides about leases and deadlines."""

import time
from typing import Final

import structlog
from fluoro_telemetry import metrics

from fluoro_jobs.ledger.connection import LedgerConnection

log = structlog.get_logger(__name__)

EVERY_SECONDS: Final = 30
"""Between two looks."""
WRONG_SECONDS: Final = 5
"""An offset worth a warning: logs of several machines no longer tell what came first."""


class Clock:
    """Tells, in a metric and the log, when this machine's clock is wrong. For one thread."""

    def __init__(self) -> None:
        self._looked = -float(EVERY_SECONDS)
        self._wrong = False

    def compare(self, connection: LedgerConnection) -> None:
        """Sets `fluoro_clock_offset_seconds`, if it is time to.

        Right to half of what the statement takes.
        """
        started = time.monotonic()
        # Every round of the caller asks; most need no statement.
        if started - self._looked < EVERY_SECONDS:
            return
        ((ledger,),) = connection.execute(
            "SELECT extract(epoch FROM clock_timestamp())::float8"
        ).fetchall()
        took = time.monotonic() - started
        # The answer may have waited anywhere on its way, so half of a long wait is no estimate of
        # the offset.
        if took > 1:
            return  # says nothing; the next look may
        self._looked = started
        offset = time.time() - took / 2 - ledger
        metrics.CLOCK_OFFSET_SECONDS.set(offset)
        wrong = abs(offset) > WRONG_SECONDS
        # Only a change is logged. A clock that stays wrong would fill the log with one line every
        # half minute.
        if wrong != self._wrong:
            (log.warning if wrong else log.info)(
                "clock_wrong" if wrong else "clock_right", ahead_seconds=round(offset, 3)
            )
            self._wrong = wrong
