"""Writes what comes in chunks part by part: one on its way in a thread while the next gathers."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Protocol, Self

from fluoro_blobs.errors import BlobStoreError, translated
from fluoro_blobs.writer import TIDY_SECONDS, StoredBlob

APART_BYTES: Final = 512 * 1024
"""From this size on a part is hashed by one thread while another waits for the store."""


class Parts(Protocol):
    """Where the parts go. The methods block, and raise what the system or obstore does."""

    def hash(self, parts: Sequence[bytes | memoryview]) -> None:
        """Hashes what `append` gets, maybe meanwhile."""

    def append(self, parts: Sequence[bytes | memoryview]) -> None:
        """Writes some chunks; nothing after `drop`."""

    def finish(self) -> None:
        """All has come."""

    def drop(self) -> None:
        """The writer failed: no more comes. May be called while `append` runs."""

    def sha256(self) -> bytes:
        """The digest of what was hashed, 32 bytes."""


class PartsWriter:
    """One blob or a piece of one in the making, as BlobWriter.

    It holds two parts. Every method ends within `seconds`, plus some for clearing up, and raises
    BlobStoreError or its kinds.
    """

    def __init__(
        self, name: str, file: Parts, threads: ThreadPoolExecutor, seconds: float, part_bytes: int
    ) -> None:
        """name: for errors."""
        self._name = name
        self._file = file
        self._threads = threads
        self._seconds = seconds
        self._part_bytes = part_bytes
        self._size_bytes = self._gathered_bytes = 0
        self._gathered: list[bytes | memoryview] = []
        self._under_way: asyncio.Future[Any] | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes written so far."""
        return self._size_bytes

    @property
    def sha256(self) -> bytes:
        """The digest of what was written up to the last `flush`, 32 bytes."""
        return self._file.sha256()

    @property
    def stored(self) -> StoredBlob:
        """Size and digest, after `flush` or the end."""
        return StoredBlob(self._size_bytes, self.sha256)

    async def write(self, chunk: bytes | memoryview) -> None:
        """Appends a chunk of any size.

        Waits while the part before the last is still on its way: memory stays bounded.
        """
        if self._gathered and self._gathered_bytes + len(chunk) > self._part_bytes:
            await self._hand_over()
        self._gathered.append(chunk)
        self._gathered_bytes += len(chunk)
        self._size_bytes += len(chunk)
        if self._gathered_bytes >= self._part_bytes:
            await self._hand_over()

    async def flush(self) -> None:
        """Returns when all that came is hashed and written."""
        await self._hand_over()
        await self._written()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            await self._dropped()
            return
        try:
            await self._hand_over()
            await self._written()
            self._under_way = self._in_thread(self._file.finish)
            await self._written()
        except BaseException:
            # It cannot be called back under way; what comes of it is taken away.
            await self._dropped()
            raise

    async def _hand_over(self) -> None:
        await self._written()
        if self._gathered:
            if self._gathered_bytes < APART_BYTES:
                self._under_way = self._in_thread(self._put, self._gathered)
            else:
                self._under_way = asyncio.gather(
                    self._in_thread(self._file.hash, self._gathered),
                    self._in_thread(self._file.append, self._gathered),
                )
            self._gathered, self._gathered_bytes = [], 0

    def _put(self, parts: Sequence[bytes | memoryview]) -> None:
        self._file.hash(parts)
        self._file.append(parts)

    async def _written(self) -> None:
        """Waits for what is under way."""
        if self._under_way is not None:
            with translated(self._name, missing=BlobStoreError):
                async with asyncio.timeout(self._seconds):
                    await asyncio.shield(self._under_way)
            self._under_way = None

    async def _dropped(self) -> None:
        """Waits a while for what clears up, which matters more than how it ends."""
        self._gathered = []
        ending = [self._in_thread(self._file.drop)]
        ending += [self._under_way] if self._under_way is not None else []
        done, _ = await asyncio.wait(ending, timeout=TIDY_SECONDS)
        for each in done:
            each.exception()  # looked at, so that asyncio does not call it forgotten

    def _in_thread(self, function: Any, *args: Any) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
