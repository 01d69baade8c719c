"""Writing a file in a folder: a part is written and flushed while the next one comes in."""

import fcntl
import hashlib
import mmap
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from errno import EINVAL
from pathlib import Path
from typing import Final

from fluoro_blobs.errors import BlobStoreError, translated
from fluoro_blobs.folder import make_findable
from fluoro_blobs.parts_writer import PartsWriter
from fluoro_blobs.writer import FOLDER_PART_BYTES

FLUSHED_BYTES: Final = 8 * 1024 * 1024
"""Bytes after which the system is asked to start writing to the disk: the end has little to do."""
DIRECT_AFTER_BYTES: Final = 32 * 1024 * 1024
"""Bytes of a file after which the rest goes past the system's cache (O_DIRECT).

Small files are read soon, and are cheaper to read from there. To cache a large one costs more than
to write it, and takes the memory of others.
"""
BLOCK_BYTES: Final = 4096
"""What goes past the cache begins and ends at a multiple of this, in the file and in memory."""
_BUFFERS: Final = threading.local()


class FolderWriter(PartsWriter):
    """One blob in the making, as BlobWriter; that one is for the other kinds of store."""

    def __init__(
        self, name: str, path: Path, top: Path, threads: ThreadPoolExecutor, seconds: float
    ) -> None:
        file = _BlobFile(path, top)
        # Only in a folder are larger parts cheaper to write.
        super().__init__(name, file, threads, seconds, FOLDER_PART_BYTES, can_widen=True)


def put_file(
    name: str, path: Path, top: Path, chunks: Iterable[bytes | bytearray | memoryview]
) -> None:
    """Writes a blob of chunks as they come; the disk takes those before meanwhile.

    All of it stays in the system's cache: the next step reads it. Errors as of `BlobStore.put`.
    """
    file = _BlobFile(path, top, past_cache=False)
    try:
        for chunk in chunks:
            with translated(name, missing=BlobStoreError):
                file.append([memoryview(chunk)])
        with translated(name, missing=BlobStoreError):
            file.finish()
    # Also for a cancel: what stays behind would be found hours later.
    except BaseException:
        file.drop()
        raise


class GrowingFile:
    """A new file that stays as it is when its writer fails. Its methods block."""

    def __init__(self, path: Path, *, past_cache: bool = True) -> None:
        """path: of the file; its folder, and the one above that, are made if need be.

        past_cache: whether the rest of a large file goes past the system's cache.
        """
        self._growing = path
        self._digest = hashlib.sha256()
        self._descriptor: int | None = None
        self._size = self._flushed = 0
        self._direct, self._takes_direct = False, past_cache
        self._over = False
        self._lock = threading.Lock()

    def hash(self, parts: Sequence[bytes | memoryview]) -> None:
        """The bytes that follow."""
        for part in parts:
            self._digest.update(part)

    def append(self, parts: Sequence[bytes | memoryview]) -> None:
        """OSError as the system gives it."""
        with self._lock:
            # After `drop` nothing may be written: the file may be gone.
            if self._over:
                return
            descriptor, size = self._opened(), sum(map(len, parts))
            # Size and position together: one odd chunk shifts all that follow it.
            whole_blocks = not (self._size | size) % BLOCK_BYTES
            if self._size >= DIRECT_AFTER_BYTES and whole_blocks and self._takes_direct:
                self._write_direct(descriptor, parts)
                self._size += size
                return
            self._write(descriptor, parts)
            self._size += size
            if self._size - self._flushed >= FLUSHED_BYTES:
                # Nothing of this is on the disk yet, so nothing is dropped from memory: whoever
                # reads the blob next finds it there.
                os.posix_fadvise(
                    descriptor, self._flushed, self._size - self._flushed, os.POSIX_FADV_DONTNEED
                )
                self._flushed = self._size

    def _write(self, descriptor: int, parts: Iterable[bytes | memoryview]) -> None:
        """Through the system's cache."""
        self._set_direct(descriptor, direct=False)
        for part in parts:
            view = memoryview(part)
            # A write may take less than it was given.
            while view:
                view = view[os.write(descriptor, view) :]

    def _write_direct(self, descriptor: int, parts: Iterable[bytes | memoryview]) -> None:
        """Past the cache, where the file system can do that."""
        for blocks in _aligned(parts):
            try:
                self._set_direct(descriptor, direct=True)
                written = os.write(descriptor, blocks)
            except OSError as error:
                # EINVAL: the file system has no O_DIRECT (tmpfs, some network mounts).
                if error.errno != EINVAL:
                    raise
                self._takes_direct, written = False, 0
            if written < len(blocks):
                # A disk that is about to be full takes less. The error comes with the rest.
                self._write(descriptor, [blocks[written:]])

    def _set_direct(self, descriptor: int, *, direct: bool) -> None:
        if direct != self._direct:
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | (os.O_DIRECT if direct else 0))
            self._direct = direct

    def finish(self) -> None:
        """Closes it."""
        self.drop()

    def drop(self) -> None:
        """Takes no more, and leaves what there is."""
        with self._lock:
            self._over = True
            self._close()

    def sha256(self) -> bytes:
        """The digest of what was hashed, 32 bytes."""
        return self._digest.digest()

    def _opened(self) -> int:
        if self._descriptor is None:
            folder = self._growing.parent
            for each in (folder.parent, folder):
                each.mkdir(exist_ok=True)  # not their parents: a folder that is gone is an error
            # O_EXCL: two writers of one name must not mix their bytes.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            self._descriptor = os.open(self._growing, flags, 0o644)
        return self._descriptor

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _aligned(parts: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    """The same bytes in one piece after the other, each at the beginning of a page of memory."""
    if not hasattr(_BUFFERS, "pages"):
        # An anonymous mapping begins at a page, which O_DIRECT wants. One for each thread, kept: it
        # takes a megabyte.
        _BUFFERS.pages = memoryview(mmap.mmap(-1, FOLDER_PART_BYTES))
    pages, filled = _BUFFERS.pages, 0
    for part in parts:
        rest = memoryview(part)
        while rest:
            taken = min(len(rest), len(pages) - filled)
            pages[filled : filled + taken] = rest[:taken]
            filled, rest = filled + taken, rest[taken:]
            if filled == len(pages):
                yield pages
                # The next piece overwrites it: the caller has written it by then.
                filled = 0
    if filled:
        yield pages[:filled]


class _BlobFile(GrowingFile):
    """The blob's file, until its end under a name that shows that it is unfinished."""

    def __init__(self, path: Path, top: Path, *, past_cache: bool = True) -> None:
        super().__init__(path.with_name(f"{path.name}#1"), past_cache=past_cache)
        self._path, self._top = path, top

    def finish(self) -> None:
        """Gives it its name and makes it durable. OSError as the system gives it."""
        with self._lock:
            if self._over:
                return
            # Before the rename: a name must never lead to bytes that are not there after a power
            # failure.
            os.fsync(self._opened())
            self._close()
            self._growing.rename(self._path)
            make_findable(self._path, self._top)

    def drop(self) -> None:
        """Removes what there is of it, under either name, and takes no more."""
        with self._lock:
            self._over = True
            self._close()
            # Under either name: the failure may have come after the rename.
            for path in (self._growing, self._path):
                with suppress(OSError):  # there may be none, and a broken disk has said so before
                    path.unlink()
