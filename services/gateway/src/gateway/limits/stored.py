"""How many bytes an owner may store. The ledger counts what there is, a gateway what is coming."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, Protocol
from uuid import UUID

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger import usage
from fluoro_telemetry import metrics

from gateway.ledger_calls import LedgerCalls

SETTLE_SECONDS: Final = 5
"""How long an upload without room waits for others of its owner whose records are on their way."""
FRESH_SECONDS: Final = 5
"""How long a reading of the ledger is good: jobs and other gateways store bytes, too."""


class Upload(Protocol):
    """An upload that is coming, towards the quota of its owner."""

    async def grown(self, size_bytes: int) -> None:
        """It has come to that size. FluoroError BYTE_QUOTA_EXCEEDED."""

    def keeping(self) -> None:
        """Its record is on its way: from now on the ledger may count it."""


@dataclass
class _Room:
    """What of an owner the ledger does not count, or a reading of it may have missed."""

    uploads: int = 0
    coming: int = 0
    """Bytes of uploads under way."""
    landed: int = 0
    """Bytes of uploads that ended with a record, or maybe with one, ever."""
    keeping: int = 0
    """Uploads that the ledger may count though they are among those under way."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Of the next upload to end."""


class StoredBytes:
    """The bytes of each owner with a quota. For one event loop."""

    def __init__(self, calls: LedgerCalls) -> None:
        """calls: closing it is the caller's."""
        self._calls = calls
        self._rooms: dict[str, _Room] = {}

    @asynccontextmanager
    async def coming(
        self, owner: str, size_bytes: int, sha256: bytes, upload_id: UUID | None, most: int
    ) -> AsyncIterator[Upload]:
        """As Limits.stores."""
        room = self._rooms.setdefault(owner, _Room())
        upload = _Coming(self._calls, owner, most, room)
        # Without its size, the first byte would be one too many of an owner with a full quota.
        least = size_bytes or 1
        room.uploads += 1
        try:
            if await upload.fits(least):
                await upload.grown(size_bytes)
                yield upload
            elif await self._calls.run_for(
                owner, usage.is_there, owner, size_bytes, sha256, upload_id
            ):
                yield FREE
            else:
                raise upload.exceeded(least)
        finally:
            room.coming -= upload.size_bytes
            if upload.is_keeping:
                # Also if its record failed: the ledger's answer alone may be what was lost.
                room.landed += upload.size_bytes
                room.keeping -= 1
            room.ended.set()
            room.ended = asyncio.Event()
            room.uploads -= 1
            if not room.uploads:
                del self._rooms[owner]  # or the names of all owners there ever were would stay


class _Coming:
    """One upload, as large as it is known to be."""

    def __init__(self, calls: LedgerCalls, owner: str, most: int, room: _Room) -> None:
        self._calls, self._owner, self._most, self._room = calls, owner, most, room
        self._used = most  # until the ledger is read
        self._stale_at = 0.0
        self.size_bytes = 0
        self.is_keeping = False

    @property
    def _taken(self) -> int:
        return self._used + self._room.landed + self._room.coming

    async def fits(self, more: int) -> bool:
        """Whether the owner has room for more bytes. A yes holds until the next await.

        What lands while the ledger is read, or is about to, may be counted twice. So a no is one
        only if nothing was; otherwise it is asked again, for SETTLE_SECONDS.
        """
        room, loop = self._room, asyncio.get_running_loop()
        until = loop.time() + SETTLE_SECONDS
        while (over := self._taken + more > self._most) or loop.time() >= self._stale_at:
            landed = room.landed
            try:
                used = await self._calls.run_for(self._owner, usage.used_bytes, self._owner)
                # Bytes that landed before the read began are part of the reading.
                self._used = used - landed
            except FluoroError:
                if over:
                    raise
                # A ledger that is away ends no upload that has room by what was read before.
            self._stale_at = loop.time() + FRESH_SECONDS
            if self._taken + more <= self._most:
                break
            if (room.landed == landed and not room.keeping) or loop.time() > until:
                return False
            # A record on its way may be counted twice. Once it is there, the ledger alone counts
            # it.
            if room.keeping:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(until):
                        await room.ended.wait()
        return True

    async def grown(self, size_bytes: int) -> None:
        """As Upload.grown."""
        if (more := size_bytes - self.size_bytes) > 0:
            if not await self.fits(more):
                raise self.exceeded(more)
            self._room.coming += more
            self.size_bytes = size_bytes

    def keeping(self) -> None:
        """As Upload.keeping."""
        self._room.keeping += not self.is_keeping
        self.is_keeping = True

    def exceeded(self, more: int) -> FluoroError:
        """More bytes are too many."""
        metrics.CALLS_REFUSED.labels(limit="max_stored_bytes").inc()
        return FluoroError(
            Reason.BYTE_QUOTA_EXCEEDED,
            f"This owner has stored or announced {self._taken} bytes and may have {self._most}; "
            f"{more} more are too many. Delete jobs whose results nobody needs, or have the quota "
            "raised: uploads stay.",
            metadata={"limit": "max_stored_bytes", "value": str(self._most)},
        )


class _Free:
    """Of an owner without a quota, or of bytes that it has already."""

    async def grown(self, size_bytes: int) -> None:
        """Costs nothing."""

    def keeping(self) -> None:
        """Nobody waits for it."""


FREE: Final[Upload] = _Free()
