"""Blobs from servers and buckets that the operator lists: inputs by reference."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, NamedTuple, Protocol, TypeVar

from fluoro_blobs import BlobNotFoundError, BlobStoreError
from fluoro_blobs.foreign import ForeignObject
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.outbound import LONGEST_URL, Outbound, not_allowed

from gateway.settings import Settings
from gateway.uploads import Places

AT_ONCE: Final = 8
"""Imports under way in a gateway."""

READ_BYTES: Final = 256 * 1024
"""Bytes asked of a source at once, for which it has FLUORO_UPLOAD_IDLE_SECONDS."""

S3: Final = "s3://"
DICOMWEB: Final = "dicomweb://"

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class Source(Protocol):
    """What bytes are read from, in a thread."""

    @property
    def size_bytes(self) -> int | None:
        """Of all content; None if the source does not say."""

    def read(self, most_bytes: int) -> bytes:
        """The next bytes; none at the end."""

    def abort(self) -> None:
        """Has a read that is under way in a thread end soon."""

    def close(self) -> None:
        """Ends it."""


class Least(NamedTuple):
    """What a source has to send on average, after the first seconds of waiting for it."""

    seconds: float
    bytes_per_second: float


class Importing:
    """The way from sources into the store. For one event loop."""

    def __init__(self, settings: Settings) -> None:
        listed = settings.import_source_list
        self._seconds = settings.upload_idle_seconds
        self._least = Least(self._seconds, settings.upload_min_bytes_per_second)
        self._request_seconds = settings.blob_request_seconds
        self._buckets = [each for each in listed if each.startswith(S3)]
        self._out = Outbound(
            [each for each in listed if not each.startswith(S3)], settings.import_network_list
        )
        self._places = Places("imports", AT_ONCE, settings.upload_owner_share)
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="import")
        self._ending: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def opened(self, owner: str, uri: str) -> AsyncIterator["Reader"]:
        """The content of a source. FluoroError SOURCE_… or UPLOADS_BUSY."""
        async with AsyncExitStack() as place:
            await place.enter_async_context(self._places.taken(owner, self._seconds))
            reader = Reader(self._in_thread(self._open, uri), self._in_thread, self._least)
            try:
                await reader.opened()
                yield reader
            finally:
                ending = asyncio.create_task(self._ended(reader, place.pop_all()))
                # The loop itself keeps only a weak reference to a task.
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)

    async def _ended(self, reader: "Reader", place: AsyncExitStack) -> None:
        """Keeps the place for as long as a thread is taken: it goes on when its caller has gone."""
        async with place:
            if (source := await reader.left()) is not None:
                await self._in_thread(_closed, source)

    def _open(self, uri: str) -> Source:
        if uri.startswith(DICOMWEB):
            text = "A study is many files, and no blob. Have a step fetch it: FetchDicomweb."
            raise FluoroError(Reason.SOURCE_REFUSED, text)
        if not uri.startswith(S3):
            return self._out.get(uri, self._seconds)
        bucket, _, key = uri.removeprefix(S3).partition("/")
        # The list is compared as text, so what could be read in two ways is refused first.
        if not _is_plain(uri) or not any(_holds(listed, uri) for listed in self._buckets):
            raise not_allowed()
        return ForeignObject(bucket, key, self._request_seconds)

    def _in_thread(
        self, function: Callable[[Argument], Result], argument: Argument
    ) -> asyncio.Future[Result]:
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._threads, _translated, function, argument)


class Reader:
    """The content of one source, for an event loop."""

    def __init__(
        self,
        opening: asyncio.Future[Source],
        in_thread: Callable[..., asyncio.Future[bytes]],
        least: Least,
    ) -> None:
        self._opening, self._in_thread, self._least = opening, in_thread, least
        self._reading: asyncio.Future[bytes] | None = None

    async def opened(self) -> None:
        """Returns once the source is there. FluoroError SOURCE_…."""
        # Shielded: a cancel would lose the source that the thread is about to open.
        await asyncio.shield(self._opening)

    @property
    def size_bytes(self) -> int | None:
        """As the source says, if it does."""
        return self._opening.result().size_bytes

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Until the end. FluoroError SOURCE_UNAVAILABLE if the source is too slow."""
        source, waited, size_bytes = self._opening.result(), 0.0, 0
        while True:
            began = time.monotonic()
            self._reading = self._in_thread(source.read, READ_BYTES)
            if not (chunk := await asyncio.shield(self._reading)):
                return
            waited, size_bytes = waited + time.monotonic() - began, size_bytes + len(chunk)
            # Only the time spent waiting for the source counts, not that for the store.
            if waited > self._least.seconds + size_bytes / self._least.bytes_per_second:
                text = f"The source sends less than {self._least.bytes_per_second} bytes a second."
                raise FluoroError(Reason.SOURCE_UNAVAILABLE, text)
            yield chunk

    async def left(self) -> Source | None:
        """The source, if it was opened, once no thread works at it any more."""
        await asyncio.wait([self._opening])
        if self._opening.exception() is not None:
            return None
        source = self._opening.result()
        # A thread that reads cannot be cancelled; its socket can be shut down.
        source.abort()
        if self._reading is not None:
            await asyncio.wait([self._reading])
            self._reading.exception()  # its caller got it, or has gone
        return source


def _closed(source: Source) -> None:
    source.close()


def _translated(function: Callable[[Argument], Result], argument: Argument) -> Result:
    try:
        return function(argument)
    except BlobNotFoundError as error:
        raise FluoroError(Reason.SOURCE_REFUSED, "The source has no such object.") from error
    except BlobStoreError as error:
        raise FluoroError(
            Reason.SOURCE_UNAVAILABLE,
            "The source does not answer, refuses, or has another object by now.",
        ) from error


def _is_plain(uri: str) -> bool:
    """Whether it names one object and could not be read in another way."""
    parts = uri.removeprefix(S3).split("/")
    return (
        len(uri) <= LONGEST_URL
        and uri.isprintable()
        and len(parts) > 1
        and not {"", ".", ".."}.intersection(parts)
    )


def _holds(listed: str, uri: str) -> bool:
    # With the slash: `s3://scans` does not hold `s3://scans-private/x`.
    return uri.startswith(listed.rstrip("/") + "/")
