"""Writing a blob chunk by chunk."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import obstore
from obstore.exceptions import BaseError

from fluoro_blobs.errors import BlobStoreError, translated

if TYPE_CHECKING:
    from types import TracebackType

    from obstore.store import ObjectStore

PART_BYTES: Final = 8 * 1024 * 1024
"""Bytes of one part of a multipart upload. S3 wants at least 5 MiB and takes 10 000 parts: 78 GiB a blob."""

PARTS_IN_FLIGHT: Final = 2
"""Parts sent at once. With the one being filled, an upload holds at most three parts."""


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

    def add(self, chunk: bytes) -> None:
        """Takes the next bytes into account."""
        self._digest.update(chunk)
        self._size_bytes += len(chunk)

    @property
    def stored(self) -> StoredBlob:
        """Size and digest so far."""
        return StoredBlob(self._size_bytes, self._digest.digest())


class BlobWriter:
    """One blob in the making: there when the `async with` ends well, and never if it ends in an exception or a cancellation.

    Every method raises BlobStoreError or BlobStoreFullError.
    """

    def __init__(self, store: ObjectStore, name: str, key: str, settle: Callable[[], None]) -> None:
        self._store, self._name, self._key = store, name, key
        self._file = obstore.open_writer_async(store, key, buffer_size=PART_BYTES, max_concurrency=PARTS_IN_FLIGHT)
        self._tally = Tally()
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

    async def write(self, chunk: bytes) -> None:
        """Appends a chunk of any size. Waits while earlier parts are still on their way: memory stays bounded."""
        with translated(self._name, missing=BlobStoreError):
            await self._file.write(chunk)
        self._tally.add(chunk)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with translated(self._name, missing=BlobStoreError):
            if kind is not None:
                # obstore aborts the upload when it is told of an exception, so that a bucket keeps no orphaned parts.
                await self._file.__aexit__(kind, error, traceback)
                return
            finishing = asyncio.ensure_future(self._finish())
            try:
                await asyncio.shield(finishing)
            except BaseException:
                await asyncio.wait([finishing])  # cannot be called back under way; what comes of it is taken away
                with suppress(BaseError, OSError):  # it may not have come to be, and the exception that brought us here matters more
                    await obstore.delete_async(self._store, self._key)
                raise

    async def _finish(self) -> None:
        await self._file.__aexit__(None, None, None)
        await asyncio.to_thread(self._settle)
