"""Writing a blob chunk by chunk."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import obstore

from fluoro_blobs.errors import BlobStoreError, translated

if TYPE_CHECKING:
    from types import TracebackType

    from obstore.store import ObjectStore

PART_BYTES: Final = 8 * 1024 * 1024
"""Bytes of one part of a multipart upload.

S3 wants at least 5 MiB and takes 10 000 parts: 78 GiB a blob.
"""

PARTS_IN_FLIGHT: Final = 2
"""Parts sent at once by `BlobStore.put`.

With the one being filled, it holds at most three parts.
"""

WRITER_PART_BYTES: Final = 5 * 1024 * 1024
"""Bytes of one part of a `BlobWriter`: the least that S3 takes, 48 GiB a blob.

Smaller than PART_BYTES, because a process has many writers at once.
"""

FOLDER_PART_BYTES: Final = 1024 * 1024
"""The same in a folder, where a part needs no request."""

WIDENED: Final = 2
"""By how much the parts of a widened writer are larger, and so the memory that it takes."""

PARTS_HELD: Final = 2
"""Parts that a `BlobWriter` holds: one filling, one on its way."""


TIDY_SECONDS: Final = 5
"""Time limit of each step of clearing up after a writer that failed."""


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """What was stored. sha256: the 32 bytes of the digest of the content."""

    size_bytes: int
    sha256: bytes


class Tally:
    """Counts and digests the bytes of one blob on their way into the store."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._size_bytes = 0

    def add(self, chunk: bytes | bytearray | memoryview) -> None:
        """Takes the next bytes into account."""
        self._digest.update(chunk)
        self._size_bytes += len(chunk)

    @property
    def stored(self) -> StoredBlob:
        """Size and digest so far."""
        return StoredBlob(self._size_bytes, self._digest.digest())


class BlobWriter:
    """One blob in the making: it exists once the `async with` ends well.

    After an exception or a cancellation it never does. Up to two parts are held in memory. Every
    method ends within `seconds`, plus 10 s for clearing up, and raises BlobStoreError or its kinds.
    What a store completes after that has no record in the ledger, and is collected.
    """

    can_widen: Final = False
    """Each part is a request already, so a larger one gains nothing."""

    def __init__(
        self,
        store: ObjectStore,
        name: str,
        key: str,
        part_bytes: int,
        seconds: float,
        settle: Callable[[], Awaitable[object]],
    ) -> None:
        self._store, self._name, self._key = store, name, key
        self._file = obstore.open_writer_async(
            store, key, buffer_size=part_bytes, max_concurrency=PARTS_HELD - 1
        )
        self._tally = Tally()
        self._seconds = seconds
        self._settle = settle

    @property
    def size_bytes(self) -> int:
        """Bytes written so far."""
        return self._tally.stored.size_bytes

    @property
    def sha256(self) -> bytes:
        """The digest of what was written so far, 32 bytes."""
        return self._tally.stored.sha256

    @property
    def stored(self) -> StoredBlob:
        """Size and digest of what was written so far."""
        return self._tally.stored

    async def write(self, chunk: bytes | memoryview) -> None:
        """Appends a chunk of any size.

        Waits while an earlier part is still on its way: memory stays bounded.
        """
        with translated(self._name, missing=BlobStoreError):
            # For each chunk: between two of them the caller may take its time.
            async with asyncio.timeout(self._seconds):
                await self._file.write(chunk)
        self._tally.add(chunk)

    def widen(self) -> None:
        """Nothing to do. See PartsWriter."""

    async def flush(self) -> None:
        """Nothing to wait for: what came is in the digest. See FolderWriter."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            # obstore aborts the upload when it is told of an exception, so that a bucket keeps no
            # orphaned parts.
            await self._tidied(self._file.__aexit__(kind, error, traceback))
            return
        finishing = asyncio.ensure_future(self._finish())
        with translated(self._name, missing=BlobStoreError):
            try:
                async with asyncio.timeout(self._seconds):
                    # Shielded: the deadline ends the wait, and what is under way is cleared up
                    # below.
                    await asyncio.shield(finishing)
            except BaseException:
                # A request under way cannot be called back. What it makes is deleted.
                await self._tidied(finishing)
                await self._tidied(obstore.delete_async(self._store, self._key))
                raise

    async def _finish(self) -> None:
        await self._file.__aexit__(None, None, None)
        await self._settle()

    async def _tidied(self, work: Awaitable[Any]) -> None:
        """Waits for the clearing up after an exception. That exception matters more than this."""
        done, _ = await asyncio.wait([asyncio.ensure_future(work)], timeout=TIDY_SECONDS)
        for each in done:
            each.exception()  # looked at, so that asyncio does not call it forgotten
