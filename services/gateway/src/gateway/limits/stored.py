"""How many bytes an owner may store. The ledger counts what there is, a gateway what is coming."""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias
from uuid import UUID

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger import usage
from fluoro_telemetry import metrics

from gateway.ledger_calls import LedgerCalls

Grown: TypeAlias = Callable[[int], None]
"""Takes the size in bytes that an upload has come to. FluoroError BYTE_QUOTA_EXCEEDED."""


class StoredBytes:
    """The bytes of each owner with a quota. For one event loop."""

    def __init__(self, calls: LedgerCalls) -> None:
        """calls: closing it is the caller's."""
        self._calls = calls
        self._coming: Counter[str] = Counter()

    @asynccontextmanager
    async def coming(
        self, owner: str, size_bytes: int, sha256: bytes, upload_id: UUID | None, most: int
    ) -> AsyncIterator[Grown]:
        """As Limits.stores."""
        used = await self._calls.run_for(owner, usage.used_bytes, owner)
        counted = 0

        def grown(size_bytes: int) -> None:
            nonlocal counted
            if size_bytes > counted:
                taken = used + self._coming[owner]
                if taken + size_bytes - counted > most:
                    raise _exceeded(taken, size_bytes - counted, most)
                self._coming[owner] += size_bytes - counted
                counted = size_bytes

        # Without its size, the first byte would be one too many of an owner with a full quota.
        least = size_bytes or 1
        try:
            if used + self._coming[owner] + least <= most:
                grown(size_bytes)
                yield grown
            elif await self._calls.run_for(owner, usage.is_there, owner, sha256, upload_id):
                yield free
            else:
                raise _exceeded(used + self._coming[owner], least, most)
        finally:
            self._coming[owner] -= counted
            if not self._coming[owner]:
                del self._coming[owner]  # or the names of all owners there ever were would stay


def free(_size_bytes: int) -> None:
    """Of an owner without a quota, or of bytes that it has already."""


def _exceeded(used: int, more: int, most: int) -> FluoroError:
    metrics.CALLS_REFUSED.labels(limit="max_stored_bytes").inc()
    return FluoroError(
        Reason.BYTE_QUOTA_EXCEEDED,
        f"This owner has stored or announced {used} bytes and may have {most}; {more} more are "
        "too many. Delete jobs whose results nobody needs, or have the quota raised.",
        metadata={"limit": "max_stored_bytes", "value": str(most)},
    )
