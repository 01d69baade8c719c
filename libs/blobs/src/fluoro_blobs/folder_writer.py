"""Writing a blob into a folder: hashes, writes and flushes a part while the next one comes in."""

import asyncio
import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from fluoro_blobs.errors import BlobStoreError, translated
from fluoro_blobs.folder import make_durable
from fluoro_blobs.writer import FOLDER_PART_BYTES, TIDY_SECONDS, StoredBlob

FLUSHED_BYTES: Final = 8 * 1024 * 1024
"""Bytes after which the system is asked to start writing to the disk: the end has little to do."""


class FolderWriter:
    """One blob in the making, as BlobWriter; that one is for the other kinds of store.

    A part is hashed and written in a thread while the next one is gathered: it holds two.
    """

    def __init__(
        self, name: str, path: Path, top: Path, threads: ThreadPoolExecutor, seconds: float
    ) -> None:
        self._name = name
        self._file = _File(path, top)
        self._threads = threads
        self._seconds = seconds
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
        return self._file.digest.digest()

    @property
    def stored(self) -> StoredBlob:
        """Size and digest, after `flush` or the end."""
        return StoredBlob(self._size_bytes, self.sha256)

    async def write(self, chunk: bytes | memoryview) -> None:
        """Appends a chunk of any size.

        Waits while the part before the last is still on its way: memory stays bounded.
        """
        if self._gathered and self._gathered_bytes + len(chunk) > FOLDER_PART_BYTES:
            await self._hand_over()
        self._gathered.append(chunk)
        self._gathered_bytes += len(chunk)
        self._size_bytes += len(chunk)
        if self._gathered_bytes >= FOLDER_PART_BYTES:
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
            self._under_way = self._in_thread(self._file.append, self._gathered)
            self._gathered, self._gathered_bytes = [], 0

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


class _File:
    """The blob's file, under a name that shows that it is unfinished. Its methods block."""

    def __init__(self, path: Path, top: Path) -> None:
        self.digest = hashlib.sha256()
        self._path, self._top = path, top
        self._unfinished = path.with_name(f"{path.name}#1")
        self._descriptor: int | None = None
        self._size = self._flushed = 0
        self._over = False
        self._lock = threading.Lock()

    def append(self, parts: Sequence[bytes | memoryview]) -> None:
        """OSError as the system gives it."""
        with self._lock:
            if self._over:
                return
            descriptor = self._opened()
            for part in parts:
                self.digest.update(part)
                view = memoryview(part)
                while view:
                    view = view[os.write(descriptor, view) :]
                self._size += len(part)
            if self._size - self._flushed >= FLUSHED_BYTES:
                # Nothing of this is on the disk yet, so nothing is dropped from memory: whoever
                # reads the blob next finds it there.
                os.posix_fadvise(
                    descriptor, self._flushed, self._size - self._flushed, os.POSIX_FADV_DONTNEED
                )
                self._flushed = self._size

    def finish(self) -> None:
        """Gives it its name and makes it durable. OSError as the system gives it."""
        with self._lock:
            if self._over:
                return
            os.fsync(self._opened())
            self._close()
            self._unfinished.rename(self._path)
            make_durable(self._path, self._top)

    def drop(self) -> None:
        """Removes what there is of it, under either name, and takes no more."""
        with self._lock:
            self._over = True
            self._close()
            for path in (self._unfinished, self._path):
                with suppress(OSError):  # there may be none, and a broken disk has said so before
                    path.unlink()

    def _opened(self) -> int:
        if self._descriptor is None:
            for folder in (self._path.parents[1], self._path.parent):
                folder.mkdir(exist_ok=True)  # not their parents: a folder that is gone is an error
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            self._descriptor = os.open(self._unfinished, flags, 0o644)
        return self._descriptor

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
