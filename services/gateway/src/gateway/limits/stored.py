"""How many bytes an owner may store. The ledger counts what there is, a gateway what is coming."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger import usage
from fluoro_telemetry import metrics

from gateway.ledger_calls import LedgerCalls

Grown: TypeAlias = Callable[[int], Awaitable[None]]
"""Takes the size in bytes that an upload has come to. FluoroError BYTE_QUOTA_EXCEEDED."""


@dataclass
class _Room:
    """What of an owner the ledger does not count, or a reading of it may have missed."""

    uploads: int = 0
    coming: int = 0
    """Bytes of uploads under way."""
    landed: int = 0
    """Bytes of uploads that ended well, ever."""


class StoredBytes:
    """The bytes of each owner with a quota. For one event loop."""

    def __init__(self, calls: LedgerCalls) -> None:
        """calls: closing it is the caller's."""
        self._calls = calls
        self._rooms: dict[str, _Room] = {}

    @asynccontextmanager
    async def coming(
        self, owner: str, size_bytes: int, sha256: bytes, upload_id: UUID | None, most: int
    ) -> AsyncIterator[Grown]:
        """As Limits.stores."""
        room = self._rooms.setdefault(owner, _Room())
        upload = _Upload(self._calls, owner, most, room)
        # Without its size, the first byte would be one too many of an owner with a full quota.
        least = size_bytes or 1
        room.uploads += 1
        try:
            if await upload.fits(least):
                await upload.grown(size_bytes)
                yield upload.grown
                room.landed += upload.size_bytes
            elif await self._calls.run_for(owner, usage.is_there, owner, sha256, upload_id):
                yield free
            else:
                raise upload.exceeded(least)
        finally:
            room.coming -= upload.size_bytes
            room.uploads -= 1
            if not room.uploads:
                del self._rooms[owner]  # or the names of all owners there ever were would stay


class _Upload:
    """One upload, as large as it is known to be."""

    def __init__(self, calls: LedgerCalls, owner: str, most: int, room: _Room) -> None:
        self._calls, self._owner, self._most, self._room = calls, owner, most, room
        self._used = most  # until the ledger is read
        self.size_bytes = 0

    @property
    def _taken(self) -> int:
        return self._used + self._room.landed + self._room.coming

    async def fits(self, more: int) -> bool:
        """Whether the owner has room for more bytes. A yes holds until the next await."""
        for _ in range(2):
            if self._taken + more <= self._most:
                return True
            # What lands while the ledger is read may be in the answer or not, so it is counted on
            # top: at worst twice, for which the second reading is.
            landed = self._room.landed
            used = await self._calls.run_for(self._owner, usage.used_bytes, self._owner)
            self._used = used - landed
        return self._taken + more <= self._most

    async def grown(self, size_bytes: int) -> None:
        """As Grown."""
        if (more := size_bytes - self.size_bytes) > 0:
            if not await self.fits(more):
                raise self.exceeded(more)
            self._room.coming += more
            self.size_bytes = size_bytes

    def exceeded(self, more: int) -> FluoroError:
        """More bytes are too many."""
        metrics.CALLS_REFUSED.labels(limit="max_stored_bytes").inc()
        return FluoroError(
            Reason.BYTE_QUOTA_EXCEEDED,
            f"This owner has stored or announced {self._taken} bytes and may have {self._most}; "
            f"{more} more are too many. Delete jobs whose results nobody needs, or have the quota "
            "raised.",
            metadata={"limit": "max_stored_bytes", "value": str(self._most)},
        )


async def free(_size_bytes: int) -> None:
    """Of an owner without a quota, or of bytes that it has already."""
