"""When and for how long calls, streams and transfers are tried again."""

import asyncio
import logging
import random
import time
from dataclasses import dataclass
from typing import Final

import grpc

from fluoro_client.errors import FluoroApiError

FIRST_WAIT_SECONDS: Final = 0.1
"""Wait after the first failure in a row, doubled for each further one."""

LONGEST_WAIT_SECONDS: Final = 5.0
"""Ceiling of the wait."""

ATTEMPTS_BEFORE_CONTACT: Final = 4
"""Attempts at a server that has never answered this client. A wrong endpoint fails in a second."""

TOKEN_EXPIRED: Final = "TOKEN_EXPIRED"  # noqa: S105 - the name of a reason
"""Reason of a call whose token was good once."""

log = logging.getLogger("fluoro_client")


@dataclass(slots=True)
class Contact:
    """Whether a server has ever answered this client."""

    made: bool = False


@dataclass(slots=True)
class Patience:
    """The state of one operation that survives lost connections.

    seconds: how long it goes on after a failure without any sign of life; with a server that never
    answered, it gives up sooner. what: for the log: the operation and the resource. renews: whether
    the next attempt may have another token.
    """

    seconds: float
    contact: Contact
    what: str
    renews: bool = False
    _failures: int = 0
    _since: float = 0.0

    def progress(self) -> None:
        """Something arrived: the next failure is the first one again."""
        self.contact.made = True
        self._failures = 0

    async def pause(self, error: FluoroApiError) -> None:
        """Waits before the next attempt.

        Raises `error` instead if it is not one to wait out, or patience is at its end.
        """
        if not self._failures:
            self._since = time.monotonic()
        self._failures += 1
        # Only Fluoro gives reasons, and only a gRPC server that is busy cancels: it has answered.
        self.contact.made |= bool(error.reason) or error.code is grpc.StatusCode.CANCELLED
        ceiling = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** min(self._failures - 1, 10))
        # The server says when to come back at the earliest; all its callers were told the same.
        spread = ceiling + error.retry_seconds / 2
        wait = error.retry_seconds + spread * random.uniform(0.5, 1)  # noqa: S311 - spreads clients out, guards nothing
        passed = time.monotonic() - self._since + wait
        hopeless = not self.contact.made and self._failures >= ATTEMPTS_BEFORE_CONTACT
        # Once in a row: a stream outlives its token, but what gives tokens may have no other.
        renewed = self.renews and self._failures == 1 and error.reason == TOKEN_EXPIRED
        if hopeless or passed > self.seconds or not (error.resumable or renewed):
            raise error
        if self.contact.made:
            log.warning(
                "%s broke off (%s); trying again in %.1f s",
                self.what,
                error.reason or error.code.name,
                wait,
            )
        await asyncio.sleep(wait)
