"""Writes what comes in chunks part by part: one on its way in a thread while the next gathers."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, Protocol, Self

from fluoro_blobs.errors import BlobStoreError, translated
from fluoro_blobs.writer import TIDY_SECONDS, WIDENED, StoredBlob

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
        self,
        name: str,
        file: Parts,
        threads: ThreadPoolExecutor,
        seconds: float,
        part_bytes: int,
        *,
        can_widen: bool = False,
    ) -> None:
        """name: for errors. can_widen: whether larger parts are cheaper to write."""
        self._name = name
        self._file = file
        self._threads = threads
        self._seconds = seconds
        self._part_bytes = part_bytes
        self.can_widen = can_widen
        self._size_bytes = self._gathered_bytes = 0
        self._gathered: list[bytes | memoryview] = []
        self._handed_over: list[bytes | memoryview] = []
        self._under_way: list[Future[None]] = []

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

    def widen(self) -> None:
        """WIDENED times as large parts from here on, once, for as many times the memory."""
        if self.can_widen:
            self._part_bytes *= WIDENED
            self.can_widen = False

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
            self._under_way = [self._threads.submit(self._file.finish)]
            await self._written()
        except BaseException:
            # It cannot be called back under way; what comes of it is taken away.
            await self._dropped()
            raise

    async def _hand_over(self) -> None:
        # One part under way at most, so memory is bounded by two.
        await self._written()
        if self._gathered:
            submit, parts = self._threads.submit, self._gathered
            self._handed_over = parts
            # For a small part, a second thread costs more than hashing takes.
            if self._gathered_bytes < APART_BYTES:
                self._under_way = [submit(self._put, parts)]
            else:
                self._under_way = [
                    submit(self._file.hash, parts),
                    submit(self._file.append, parts),
                ]
            self._gathered, self._gathered_bytes = [], 0

    def _put(self, parts: Sequence[bytes | memoryview]) -> None:
        self._file.hash(parts)
        self._file.append(parts)

    async def _written(self) -> None:
        """Waits for what is under way."""
        with translated(self._name, missing=BlobStoreError):
            if not await _over(self._under_way, self._seconds):
                raise TimeoutError
            for each in self._under_way:
                each.result()
        self._under_way = []

    async def _dropped(self) -> None:
        """Waits a while for what clears up, which matters more than how it ends."""
        self._gathered = []
        for each in self._under_way:
            each.cancel()  # what waits for a thread
        try:
            await _over([*self._under_way, self._threads.submit(self._file.drop)], TIDY_SECONDS)
        finally:
            # A disk that hangs keeps threads, and all that waits for one, for as long as it likes.
            # Their memory is the next upload's.
            self._handed_over.clear()


async def _over(under_way: Sequence[Future[None]], seconds: float) -> bool:
    """Waits so long for all, and cancels none. Whether all are over."""
    # A store that keeps up has none left here. To be woken for each costs more than to write it.
    left = [asyncio.wrap_future(each) for each in under_way if not each.done()]
    if not left:
        return True
    for future in left:
        future.add_done_callback(_looked_at)
    _, waiting = await asyncio.wait(left, timeout=seconds)
    return not waiting


def _looked_at(future: asyncio.Future[None]) -> None:
    """So that asyncio does not call an exception forgotten: whoever cares asks the thread's."""
    if not future.cancelled():
        future.exception()
