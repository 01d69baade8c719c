"""Blobs that come in several streams, each of which may break off at any byte.

Every stream writes segments of its own, `uploads/{key}/{stream}-{first byte}`: in a folder one file
that grows, elsewhere an object for each part. No two streams write to the same place, so nothing
has to be locked, and a late write of an older stream meets nobody's eye: a byte is that of the
newest stream that began at or before it. Who calls remembers where each stream began (`starts`),
and lets one stream at a time be the newest. The store itself keeps nothing else.

What is in a segment survives the process. It is flushed to the disk once the blob is whole.
"""

import errno
import hashlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import obstore
from obstore.store import ObjectStore, S3Store

from fluoro_blobs.errors import BlobStoreError, translated
from fluoro_blobs.folder import make_durable
from fluoro_blobs.folder_writer import FolderWriter, GrowingFile
from fluoro_blobs.parts_writer import Parts, PartsWriter
from fluoro_blobs.writer import FOLDER_PART_BYTES, WRITER_PART_BYTES, BlobWriter, StoredBlob

READ_BYTES: Final = 1024 * 1024
"""Bytes of a segment read at once."""


NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK})
"""Errnos of a file system that gives a file no second name."""


DIRECT: Final = "direct"
"""What the object is called that a signed URL is for, beside the segments."""


class Segment(NamedTuple):
    """Bytes of one stream. stream: its number, from 1. start: the first byte's place."""

    path: str
    stream: int
    start: int
    size_bytes: int


class Piece(NamedTuple):
    """What counts of a segment: so many bytes from its beginning."""

    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Home:
    """What the segments need of their BlobStore.

    run: runs what blocks, with a time limit. writer: of a whole blob. path_of: where one lies.
    """

    store: ObjectStore
    folder: Path | None
    threads: ThreadPoolExecutor
    seconds: float
    run: Callable[..., Awaitable[Any]]
    writer: Callable[[str], BlobWriter | FolderWriter]
    path_of: Callable[[str], str]


class ResumableUpload:
    """The segments of one upload. Errors are those of BlobStore."""

    def __init__(self, home: Home, key: UUID) -> None:
        """key: of this upload and no other, as long as the store exists."""
        self._home, self._store, self._folder = home, home.store, home.folder
        self._prefix = f"uploads/{key}"

    async def committed_bytes(self, starts: Sequence[int]) -> int:
        """Bytes from the beginning that are there, up to the last that the newest stream wrote."""
        if not starts:
            return 0
        end = starts[-1]
        for segment in await self._segments():
            # Without a gap alone: what lies behind a part that failed does not count.
            if segment.stream == len(starts) and segment.start == end:
                end += segment.size_bytes
        return end

    async def drop_covered(self, starts: Sequence[int]) -> int:
        """Deletes what the newest stream will write anew, in whole segments.

        Returns the bytes of older streams that are left.
        """
        with translated("", missing=BlobStoreError):
            left: int = await self._home.run(self._drop_covered, len(starts), starts[-1])
            return left

    def writer(self, starts: Sequence[int]) -> PartsWriter:
        """For the newest stream, which begins at the last of the starts.

        What it took before an error stays, except for the two parts that it held.
        """
        stream, start = len(starts), starts[-1]
        # A folder's file can grow; an object cannot, so each part is one.
        if self._folder is None:
            file: Parts = _Objects(self._store, self._prefix, stream, start)
            part_bytes = WRITER_PART_BYTES
        else:
            file = GrowingFile(self._folder / _path(self._prefix, stream, start))
            part_bytes = FOLDER_PART_BYTES
        return PartsWriter(
            "",
            file,
            self._home.threads,
            self._home.seconds,
            part_bytes,
            can_widen=self._folder is not None,
        )

    async def finish(
        self, name: str, starts: Sequence[int], wanted: StoredBlob, seen: StoredBlob | None
    ) -> bool:
        """Makes the blob of all segments, durable. False if its bytes are not those wanted.

        seen: what one stream wrote that began at the first byte. In a folder its file becomes the
        blob. In every other case the bytes are read, hashed and written once more.
        """
        if seen is not None and self._folder is not None:
            if seen == wanted:
                with translated(name, missing=BlobStoreError):
                    await self._home.run(self._adopt, name, len(starts))
            return seen == wanted
        pieces = _pieces(await self._segments(), starts)
        # Before anything is read: a gap makes the sum too small.
        if sum(piece.size_bytes for piece in pieces) != wanted.size_bytes:
            return False
        return await self._assemble(name, pieces, wanted)

    def signed_url(self, seconds: float) -> str | None:
        """Where a single PUT brings all bytes to, until so long from now.

        None if the store cannot sign. Whoever has the URL may use it: it belongs into no log.
        """
        # Only S3 signs URLs; a folder and memory have nobody to check one.
        if not isinstance(self._store, S3Store):
            return None
        path = f"{self._prefix}/{DIRECT}"
        return obstore.sign(self._store, "PUT", path, timedelta(seconds=seconds))

    async def finish_direct(self, name: str, wanted: StoredBlob) -> bool | None:
        """Makes the blob of what was put to the signed URL. False if its bytes are others.

        None if nothing was put there. The bytes are hashed as they are copied, so nobody can
        replace them in between.
        """
        with translated("", missing=BlobStoreError):
            put = [each for each in await self._home.run(self._entries) if each[0] == DIRECT]
        if not put:
            return None
        [(_, path, size_bytes)] = put
        if size_bytes != wanted.size_bytes:
            return False
        return await self._assemble(name, [Piece(path, size_bytes)], wanted)

    async def remove(self) -> None:
        """Deletes all but the blob."""
        with translated("", missing=BlobStoreError):
            await self._home.run(self.remove_now)

    def remove_now(self) -> None:
        """`remove` for a thread."""
        for _, path, _ in self._entries():
            self._delete(path)
        if self._folder is not None:
            with suppress(OSError):  # there was none, or another stream has just begun
                (self._folder / self._prefix).rmdir()

    async def _assemble(self, name: str, pieces: Sequence[Piece], wanted: StoredBlob) -> bool:
        with suppress(_OtherBytesError):
            async with self._home.writer(name) as writer:
                async for chunk in self._chunks(pieces):
                    await writer.write(chunk)
                await writer.flush()
                if writer.stored != wanted:
                    raise _OtherBytesError
            return True
        return False

    async def _segments(self) -> list[Segment]:
        with translated("", missing=BlobStoreError):
            found: list[Segment] = await self._home.run(self._listed)
            return found

    def _drop_covered(self, newest: int, start: int) -> int:
        left = 0
        for segment in self._listed():
            # Whole segments alone: one that began earlier still has bytes that count.
            if segment.stream < newest and segment.start >= start:
                self._delete(segment.path)
            elif segment.stream < newest:
                left += segment.size_bytes
        return left

    def _delete(self, path: str) -> None:
        with suppress(FileNotFoundError):  # somebody else deletes too
            obstore.delete(self._store, path)

    def _listed(self) -> list[Segment]:
        found = []
        for name, path, size_bytes in self._entries():
            stream, _, start = name.partition("-")
            if start:
                found.append(Segment(path, int(stream), int(start), size_bytes))
        return sorted(found, key=lambda segment: (segment.stream, segment.start))

    def _entries(self) -> list[tuple[str, str, int]]:
        """Name, path and size of all that the upload has in the store."""
        return [
            (each["path"].rpartition("/")[2], each["path"], each["size"])
            for page in obstore.list(self._store, prefix=self._prefix, chunk_size=1000)
            for each in page
        ]

    def _adopt(self, name: str, stream: int) -> None:
        """A second name for the file, so that a stream that has just begun still finds it."""
        assert self._folder is not None
        path, segment = self._folder / self._home.path_of(name), _path(self._prefix, stream, 0)
        # A link needs its folders; obstore makes them by itself.
        for folder in (path.parents[1], path.parent):
            folder.mkdir(exist_ok=True)
        try:
            os.link(self._folder / segment, path)
        # Some network file systems know no links. A rename does as well, if no other stream begins
        # just now.
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            (self._folder / segment).rename(path)
        make_durable(path, self._folder)

    async def _chunks(self, pieces: Sequence[Piece]) -> AsyncGenerator[bytes, None]:
        for piece in pieces:
            for start in range(0, piece.size_bytes, READ_BYTES):
                length = min(READ_BYTES, piece.size_bytes - start)
                with translated("", missing=BlobStoreError):
                    yield await self._home.run(self._read, piece.path, start, length)

    def _read(self, path: str, start: int, length: int) -> bytes:
        return obstore.get_range(self._store, path, start=start, length=length).to_bytes()


class _OtherBytesError(Exception):
    """Not what was wanted: the writer drops them."""


class _Objects:
    """Each part as an object. Its methods block."""

    def __init__(self, store: ObjectStore, prefix: str, stream: int, start: int) -> None:
        self._store, self._prefix, self._stream = store, prefix, stream
        self._next = start
        self._digest = hashlib.sha256()
        self._over = False

    def hash(self, parts: Sequence[bytes | memoryview]) -> None:
        """The bytes that follow."""
        for part in parts:
            self._digest.update(part)

    def append(self, parts: Sequence[bytes | memoryview]) -> None:
        """What obstore raises."""
        # A thread may come late, after `drop`.
        if self._over:
            return
        data = b"".join(parts)
        path = _path(self._prefix, self._stream, self._next)
        obstore.put(self._store, path, data, use_multipart=False)
        self._next += len(data)

    def finish(self) -> None:
        """All has been put."""

    def drop(self) -> None:
        """Puts no more."""
        self._over = True

    def sha256(self) -> bytes:
        """The digest of what was hashed, 32 bytes."""
        return self._digest.digest()


def _pieces(segments: Sequence[Segment], starts: Sequence[int]) -> list[Piece]:
    """The upload from its first byte on, as far as there is no gap.

    A byte is that of the newest stream that began at or before it.
    """
    return list(_in_order(segments, starts))


def _in_order(segments: Sequence[Segment], starts: Sequence[int]) -> Iterator[Piece]:
    end = 0
    for segment in segments:
        if segment.stream > len(starts):
            return  # of a stream that began after the caller's
        # A newer stream takes over at its own beginning, so what lies behind that does not count.
        later = starts[segment.stream :]
        size_bytes = min([segment.start + segment.size_bytes, *later]) - segment.start
        if size_bytes <= 0:
            continue
        # A gap: what comes after it cannot be part of the blob yet.
        if segment.start != end:
            return
        end += size_bytes
        yield Piece(segment.path, size_bytes)


def _path(prefix: str, stream: int, start: int) -> str:
    # Fixed widths, so that a listing by name is in order.
    return f"{prefix}/{stream:04d}-{start:015d}"
