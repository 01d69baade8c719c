"""The blob store: immutable bytes under `blobs/{uuid}`, in a folder, in memory or in an S3 bucket.

Blobs are written once and never changed, so there is no locking. The ledger knows which blobs there
are; only the collector, which looks for those it does not know, lists them. A transfer holds a few
parts in memory, however large the blob is.
"""

import asyncio
import math
import os
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from uuid import UUID, uuid4

import obstore
from obstore import Bytes
from obstore.exceptions import AlreadyExistsError
from obstore.store import ObjectStore, S3Store

from fluoro_blobs.backends import open_store
from fluoro_blobs.errors import BlobNotFoundError, BlobStoreError, translated
from fluoro_blobs.folder import make_durable, probe, remove_unfinished
from fluoro_blobs.folder_writer import FolderWriter, put_file
from fluoro_blobs.resumable import Home, ResumableUpload
from fluoro_blobs.writer import (
    FOLDER_PART_BYTES,
    PART_BYTES,
    PARTS_HELD,
    PARTS_IN_FLIGHT,
    WRITER_PART_BYTES,
    BlobWriter,
    StoredBlob,
    Tally,
)

Result = TypeVar("Result")
Chunks = Iterator[bytes | bytearray | memoryview]

CHUNK_BYTES: Final = 1024 * 1024
"""Bytes of one chunk of a local file, and by default of `stream()`."""

JOINED_BYTES: Final = 64 * 1024
"""Bytes below which chunks on their way into the store are joined."""

RANGE_BYTES: Final = 4 * 1024 * 1024
"""Bytes that a reader asks for at once.

It holds three of these: the one in use, the one on its way, and obstore's copy.
"""

SENT_BYTES: Final = 64 * 1024 * 1024
"""Bytes that the kernel copies in one call, of a blob in a folder."""

STREAM_RANGE_BYTES: Final = 1024 * 1024
"""The same for `stream()`. Smaller, because a process has many streams at once."""

REQUEST_SECONDS: Final = 30
"""Time limit of one request to S3, which carries 8 MiB at most."""

CALL_REQUESTS: Final = 2.5
"""Time limit of an awaited method, in multiples of REQUEST_SECONDS.

It covers a request, its retries, and some room.
"""

THREADS: Final = 16
"""Threads of one store for calls awaited in an event loop."""

WRITE_PROBE_SECONDS: Final = 10
"""How long a bucket that took a write counts as writable.

One write every 10 s costs each process about 1.30 $ a month at S3's prices.
"""

_PROCESS: Final = os.getpid()
"""The process that imported this module. A forked child has its parent's."""

_NAME: Final = re.compile(r"blobs/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{10}([0-9a-f]{2}))")


FOLDERS: Final = tuple(f"{number:02x}" for number in range(256))
"""Where blobs lie, by the last two digits of their names."""

PAGE_BLOBS: Final = 1000
"""Blobs in one page: as many as one listing of S3 gives."""


@dataclass(frozen=True, slots=True)
class FoundBlob:
    """What a listing tells. modified: by the store's clock."""

    name: str
    size_bytes: int
    modified: datetime


class BlobStore:
    """Blobs by name. Safe to share between threads, but not across a fork.

    Every method raises ValueError for a name that is not `blobs/{uuid}`, RuntimeError in a forked
    child, and BlobNotFoundError, BlobStoreFullError or BlobStoreError for what the store says.
    """

    def __init__(
        self,
        store: ObjectStore,
        folder: Path | None = None,
        request_seconds: float = REQUEST_SECONDS,
    ) -> None:
        self._store = store
        self._folder = folder
        self._call_seconds = request_seconds * CALL_REQUESTS
        # Threads of its own, so that a disk that hangs takes none from anybody else.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="blobs")
        self._probe_key = f"check/{uuid4()}"
        self._written_at = -math.inf

    @classmethod
    def from_url(
        cls, url: str, *, request_seconds: float = REQUEST_SECONDS, **options: Any
    ) -> Self:
        """The store behind `file:///path` (created if missing), `memory://` or `s3://bucket/prefix`.

        request_seconds: for one request to S3. It is tried again for as long, so a call of one
        request ends after twice the time.

        options, for S3 alone: endpoint, access_key_id, secret_access_key, session_token, region,
        allow_http (True for an endpoint without TLS) and the others of obstore's S3Config. What is
        not given comes from the usual AWS_* variables or the machine's role. ValueError for another
        kind of URL or an unknown option.
        """
        return cls(*open_store(url, request_seconds, options), request_seconds)

    def put(self, name: str, data: bytes | Path | Chunks) -> StoredBlob:
        """Stores bytes, the content of a file, or chunks as they come.

        A file that cannot be opened raises its own OSError. What the iterator raises comes as it
        is, and nothing is stored. It must not use a store itself, unless in another thread.
        """
        key = self._key(name)
        tally = Tally()
        if isinstance(data, bytes):
            tally.add(data)
            self._put(name, key, data)
        elif isinstance(data, Path):
            with data.open("rb") as file:
                self._put_chunks(name, key, iter(partial(file.read, CHUNK_BYTES), b""), tally)
        else:
            self._put_chunks(name, key, data, tally)
        return tally.stored

    def read(self, name: str) -> bytes:
        """The whole content. For small blobs: memory is the size of the blob."""
        key = self._key(name)
        with translated(name):
            return obstore.get(self._store, key).bytes().to_bytes()

    def parts(self, name: str, part_bytes: int = RANGE_BYTES) -> Iterator[Bytes | bytes]:
        """The whole content, so many bytes at a time: memory is bounded by that."""
        if self._folder is None:
            # A bucket gives ranges of a fixed size; they are joined to what the caller asked for.
            return of_size(self._parts(name), part_bytes)
        return self._file_parts(name, self._folder / self._key(name), part_bytes)

    def piece(self, name: str, offset: int, length: int) -> bytes:
        """So many bytes from an offset on; fewer if there are no more."""
        return bytes(next(self._parts(name, offset, length), b""))

    def fetch(self, name: str, path: Path) -> None:
        """Copies the content into a new file. After an error there is no file.

        An OSError about the file itself comes as it is: FileExistsError, or no space in its folder.
        """
        if self._folder is not None:
            # Only what opens the blob is the store's error; the new file's errors are the caller's.
            with translated(name):
                source = (self._folder / self._key(name)).open("rb")
            # Within the kernel, which takes a quarter of the time.
            with source, path.open("xb") as file, _removed_on_error(path):
                while os.sendfile(file.fileno(), source.fileno(), None, SENT_BYTES):
                    pass
            return
        parts = self._parts(name)
        first = next(parts, b"")
        with path.open("xb") as file, _removed_on_error(path):
            for part in chain([first], parts):
                file.write(part)

    def delete(self, name: str) -> None:
        """Removes the blob. No error if there is none."""
        key = self._key(name)
        try:
            with translated(name):
                obstore.delete(self._store, key)
        except BlobNotFoundError:
            return

    def exists(self, name: str) -> bool:
        """Whether there is such a blob."""
        try:
            self.size(name)
        except BlobNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        """Bytes of the content."""
        key = self._key(name)
        with translated(name):
            return obstore.head(self._store, key)["size"]

    def check(self) -> None:
        """Asks the store whether it can be written to, and leaves nothing behind.

        Cheap enough for a probe each second.

        BlobStoreFullError if it has no space left or, in a folder, less than 32 MiB;
        BlobStoreReadOnlyError if it denies the write; BlobStoreError if it does not answer. A
        bucket gets an object every 10 s, and a listing in between.
        """
        _refuse_fork()
        with translated("", missing=BlobStoreError):
            if self._folder is not None:
                probe(self._folder)
            elif time.monotonic() < self._written_at + WRITE_PROBE_SECONDS:
                # A listing, because S3 says "not found" to a HEAD in a bucket that does not exist.
                next(obstore.list(self._store, prefix="check", chunk_size=1), None)
            else:
                obstore.put(self._store, self._probe_key, b"check")
                obstore.delete(self._store, self._probe_key)
                self._written_at = time.monotonic()

    def claim(self, ledger: str) -> bool:
        """Whether the store belongs to this ledger. The first ledger to ask gets it.

        Its name stays in the object `ledger`.
        """
        _refuse_fork()
        with translated("", missing=BlobStoreError):
            # The conditional write decides between two that ask at the same time.
            with suppress(AlreadyExistsError):
                obstore.put(
                    self._store, "ledger", ledger.encode(), mode="create", use_multipart=False
                )
            return obstore.get(self._store, "ledger").bytes().to_bytes().decode() == ledger

    def pages(self, folder: str) -> Iterator[list[FoundBlob]]:
        """The blobs in one of FOLDERS, up to 1000 at a time.

        For collecting what the ledger does not know; nothing else lists.
        """
        _refuse_fork()
        listing = iter(obstore.list(self._store, prefix=f"blobs/{folder}", chunk_size=PAGE_BLOBS))
        while True:
            with translated("", missing=BlobStoreError):
                page = next(listing, None)
            if page is None:
                return
            names = ((f"blobs/{each['path'].rpartition('/')[2]}", each) for each in page)
            yield [
                FoundBlob(name, each["size"], each["last_modified"])
                for name, each in names
                # What somebody else put there is left alone.
                if _NAME.fullmatch(name)
            ]

    def remove_unfinished(self, older_than_seconds: float, folders: Sequence[str] = FOLDERS) -> int:
        """Deletes what dead processes left of their uploads to these of FOLDERS; returns how many.

        Only what nobody wrote to for that long. 0 in a bucket, where a lifecycle rule does this
        (AbortIncompleteMultipartUpload).
        """
        if self._folder is None:
            return 0
        with translated("", missing=BlobStoreError):
            # Probes lie at the top.
            return remove_unfinished(
                [self._folder, *(self._folder / "blobs" / folder for folder in folders)],
                older_than_seconds,
            )

    def writer(self, name: str) -> BlobWriter | FolderWriter:
        """`async with store.writer(name) as w: await w.write(chunk)`."""
        key = self._key(name)
        if self._folder is not None:
            path = self._folder / key
            return FolderWriter(name, path, self._folder, self._threads, self._call_seconds)
        return BlobWriter(
            self._store,
            name,
            key,
            self.writer_bytes // PARTS_HELD,
            self._call_seconds,
            lambda: self._in_thread(self._settle, key),
        )

    def resumable(self, key: UUID) -> ResumableUpload:
        """A blob that comes in several streams. key: of this upload and no other, ever."""
        _refuse_fork()
        home = Home(
            self._store,
            self._folder,
            self._threads,
            self._call_seconds,
            self._in_thread,
            self.writer,
            self._key,
        )
        return ResumableUpload(home, key)

    @property
    def writer_bytes(self) -> int:
        """Memory that one writer takes at most."""
        return PARTS_HELD * (
            WRITER_PART_BYTES if isinstance(self._store, S3Store) else FOLDER_PART_BYTES
        )

    async def delete_soon(self, name: str) -> None:
        """`delete` for an event loop."""
        with translated(name):
            await self._in_thread(self.delete, name)

    async def stream(
        self, name: str, offset: int = 0, chunk_bytes: int = CHUNK_BYTES
    ) -> AsyncGenerator[bytes, None]:
        """The content from a byte offset on, in chunks of at most chunk_bytes.

        Nothing from an offset at or past the end.
        """
        parts = self._parts(name, offset, STREAM_RANGE_BYTES)
        while True:
            with translated(name):
                # In threads: an interpreter that ends right after an await of obstore's own aborts
                # about one time in ten.
                part = await self._in_thread(next, parts, None)
            if part is None:
                return
            for start in range(0, len(part), chunk_bytes):
                yield bytes(memoryview(part)[start : start + chunk_bytes])

    async def _in_thread(self, function: Callable[..., Result], *args: Any) -> Result:
        """Raises TimeoutError, an OSError, if it takes too long.

        The thread stays taken until the store lets it go.
        """
        async with asyncio.timeout(self._call_seconds):
            return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    def _parts(self, name: str, offset: int = 0, part_bytes: int = RANGE_BYTES) -> Iterator[Bytes]:
        """The content range by range.

        No connection stays open while a slow reader uses a range, so none runs into its time limit.
        """
        key = self._key(name)
        # The size first: a range past the end is an error in S3.
        for start in range(offset, self.size(name), part_bytes):
            with translated(name):
                part = obstore.get_range(self._store, key, start=start, length=part_bytes)
            yield part

    @staticmethod
    def _file_parts(name: str, path: Path, part_bytes: int) -> Iterator[bytes]:
        """The same of a file, which takes half the time."""
        with translated(name):
            file = path.open("rb")
        with file:
            while True:
                with translated(name):
                    part = file.read(part_bytes)
                if not part:
                    return
                yield part

    def _put(self, name: str, key: str, data: bytes | Chunks) -> None:
        with translated(name, missing=BlobStoreError):
            obstore.put(
                self._store, key, data, chunk_size=PART_BYTES, max_concurrency=PARTS_IN_FLIGHT
            )
            self._settle(key)

    def _put_chunks(self, name: str, key: str, chunks: Chunks, tally: Tally) -> None:
        chunks = joined(_tallied(chunks, tally))
        first: deque[bytes | bytearray | memoryview] = deque()
        size_bytes = 0
        while size_bytes < PART_BYTES and (chunk := next(chunks, None)) is not None:
            size_bytes += len(chunk)
            first.append(chunk)
        # A multipart upload takes three requests. One is enough here.
        if size_bytes < PART_BYTES:
            self._put(name, key, b"".join(first))
            return
        # No reference is left to the first chunks, which would hold them to the end.
        every = chain((first.popleft() for _ in range(len(first))), chunks)
        if self._folder is not None:
            put_file(name, self._folder / key, self._folder, every)
            return
        raised: list[Exception] = []
        try:
            self._put(name, key, _noted(every, raised))
        # obstore wraps what the iterator raised in an error of its own. The caller wants its own
        # back.
        except BlobStoreError as error:
            if raised:
                raise raised[0] from error
            raise

    def _settle(self, key: str) -> None:
        if self._folder is not None:
            make_durable(self._folder / key, self._folder)

    def _key(self, name: str) -> str:
        """Where a blob lies.

        Names are UUIDv7, whose front is time: the random end spreads them over 256 folders.
        """
        _refuse_fork()
        # Checked here, in one place: a name from a request must not become a path.
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError("a blob's name is blobs/{uuid}")
        return f"blobs/{match[2]}/{match[1]}"


def _refuse_fork() -> None:
    # Once a parent has used obstore, even a store opened in its forked child waits for ever.
    if os.getpid() != _PROCESS:
        raise RuntimeError(
            "obstore hangs in a forked child: "
            "start processes that use blobs by spawn instead of fork"
        )


def _noted(chunks: Chunks, raised: list[Exception]) -> Chunks:
    """The same chunks. raised: gets their error, which is not the store's."""
    try:
        yield from chunks
    except Exception as error:
        raised.append(error)
        raise


def of_size(parts: Iterator[Bytes], part_bytes: int) -> Iterator[Bytes | bytes]:
    """The same bytes, so many at a time."""
    filled = bytearray()
    for part in parts:
        if not filled and len(part) == part_bytes:
            yield part
            continue
        filled += part
        while len(filled) >= part_bytes:
            yield bytes(filled[:part_bytes])
            del filled[:part_bytes]
    if filled:
        yield bytes(filled)


def joined(chunks: Chunks) -> Chunks:
    """The same bytes in chunks of JOINED_BYTES or more, but the last: there may be millions."""
    small = bytearray()
    for chunk in chunks:
        if not small and len(chunk) >= JOINED_BYTES:
            yield chunk
            continue
        small += chunk
        if len(small) >= JOINED_BYTES:
            yield small
            small = bytearray()
    if small:
        yield small


def _tallied(chunks: Chunks, tally: Tally) -> Chunks:
    for chunk in chunks:
        tally.add(chunk)
        yield chunk


@contextmanager
def _removed_on_error(path: Path) -> Iterator[None]:
    try:
        yield
    # Also for a cancel: half a file would look like a whole one to the next attempt.
    except BaseException:
        path.unlink(missing_ok=True)
        raise
