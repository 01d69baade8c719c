"""What transfers may take of a gateway: how many at once, how much memory, how slow uploads."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from fluoro.v1.blob_service_pb2 import UploadBlobHeader, UploadBlobRequest
from fluoro_blobs import BlobWriter, PartsWriter
from fluoro_jobs.errors import FluoroError, Reason

from gateway.limits.stored import FREE, Upload

SMALL_BYTES: Final = 256 * 1024
"""An upload up to this size needs no share of the memory for parts."""

WIDE_AFTER_BYTES: Final = 32 * 1024 * 1024
"""An upload that got so far takes a second share, for larger parts, while most shares are free."""

LEAST_BYTES: Final = 4 * 1024
"""What goes to a writer at once, the end of an upload aside."""


class Places:
    """A number of places for transfers, of which one owner gets at most a share.

    For one event loop.
    """

    def __init__(
        self, what: str, number: int, owner_share: float, reason: Reason = Reason.UPLOADS_BUSY
    ) -> None:
        """what: for the message of a refusal: "uploads", say. reason: of a refusal."""
        self._reason = reason
        self._what, self._number, self._of_owner = what, number, max(1, int(number * owner_share))
        self._taken: Counter[str] = Counter()
        self._left = asyncio.Event()

    @asynccontextmanager
    async def taken(self, owner: str, wait_seconds: float = 0) -> AsyncIterator[None]:
        """Takes a place for the time of the body.

        FluoroError with the reason if none gets free for this owner in time.
        """
        until = asyncio.get_running_loop().time() + wait_seconds
        while refusal := self._refusal(owner):
            try:
                async with asyncio.timeout_at(until):
                    await self._left.wait()
            except TimeoutError:
                raise FluoroError(self._reason, refusal) from None
        self._taken[owner] += 1
        try:
            yield
        finally:
            self._taken[owner] -= 1
            if not self._taken[owner]:
                del self._taken[owner]  # or the names of all owners there ever were would stay
            # Wakes all who wait for a place. Those who get none wait for the next event.
            self._left.set()
            self._left = asyncio.Event()

    def plenty(self, owner: str) -> bool:
        """Whether three of four places are free, of all and of those of one owner."""
        taken = self._taken.get(owner, 0)
        # While most are free, a second share takes nothing from anybody.
        return taken * 4 < self._of_owner and self._taken.total() * 4 < self._number

    def _refusal(self, owner: str) -> str:
        if self._taken.get(owner, 0) >= self._of_owner:
            return (
                f"{self._of_owner} {self._what} of this owner are under way in this "
                "gateway, as many as may. Try again."
            )
        if self._taken.total() >= self._number:
            return (
                f"{self._number} {self._what} are under way in this gateway, as many as "
                "may. Try again."
            )
        return ""


class Gathered:
    """A writer for chunks of any size. Those that are small are written together.

    Writers keep chunks as they came until a part is whole, and an empty one takes some hundred
    bytes of memory.
    """

    def __init__(self, writer: BlobWriter | PartsWriter) -> None:
        self._writer = writer
        self._small = bytearray()

    @property
    def size_bytes(self) -> int:
        """Bytes that came."""
        return self._writer.size_bytes + len(self._small)

    async def write(self, chunk: bytes | memoryview) -> None:
        """Appends it, to the writer or to what will go there."""
        # Large chunks go as they are: to copy them costs more than it saves.
        if not self._small and len(chunk) >= LEAST_BYTES:
            await self._writer.write(chunk)
            return
        self._small += chunk
        if len(self._small) >= LEAST_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Leaves the writer with all that came."""
        if self._small:
            together, self._small = self._small, bytearray()
            await self._writer.write(bytes(together))


class Part(NamedTuple):
    """What a message of an upload holds: a header, or a chunk."""

    header: UploadBlobHeader | None
    chunk: bytes | memoryview | None


class Pace:
    """The messages of one upload, as long as they keep coming.

    Only the time counts in which the gateway waits for the caller, not that in which it waits for
    the store.
    """

    def __init__(
        self,
        requests: AsyncIterator[UploadBlobRequest | memoryview],
        idle_seconds: float,
        min_bytes_per_second: float,
    ) -> None:
        self._requests = requests
        self._idle_seconds, self._min_bytes_per_second = idle_seconds, min_bytes_per_second
        self._waited_seconds = 0.0
        self._bytes = 0
        self.upload: Upload = FREE
        """Is told what size it grows to, and raises if that is too large for its owner."""

    async def next(self) -> Part | None:
        """What the next message holds; None at the end.

        FluoroError UPLOAD_TOO_SLOW after idle_seconds without one, or once all waits together
        exceed idle_seconds and what the bytes so far take at the least rate.
        """
        left_seconds = (
            self._idle_seconds + self._bytes / self._min_bytes_per_second - self._waited_seconds
        )
        started = time.monotonic()
        try:
            # Idle at most, and no longer than the average allows: a caller who sends a byte now and
            # then is too slow as well.
            async with asyncio.timeout(min(left_seconds, self._idle_seconds)):
                request = await anext(self._requests, None)
        except TimeoutError as error:
            raise FluoroError(
                Reason.UPLOAD_TOO_SLOW,
                (
                    f"Nothing came for {self._idle_seconds:g} s, or less than "
                    f"{self._min_bytes_per_second:g} bytes a second. Upload again."
                ),
            ) from error
        self._waited_seconds += time.monotonic() - started
        if request is None:
            return None
        if isinstance(request, memoryview):
            chunk: bytes | memoryview = request
        elif request.WhichOneof("part") == "chunk":
            chunk = request.chunk
        else:
            return Part(request.header if request.HasField("header") else None, None)
        self._bytes += len(chunk)
        return Part(None, chunk)
