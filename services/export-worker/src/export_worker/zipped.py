"""A ZIP file made while it is read: it is never on disk, and in memory one chunk at a time."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Final, cast
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

DEFLATED: Final = frozenset(
    ("text/csv", "text/plain", "application/json", "application/dicom+json", "image/svg+xml")
)
"""Media types that deflate makes smaller. Pictures, documents and pixels are stored as they are."""

SMALL_BYTES: Final = 2**20
"""Chunks below this are joined: headers, small files, what deflate gives."""

UNIX: Final = 3
"""Host system (APPNOTE 4.4.2): the attributes are permissions."""
READABLE: Final = 0o100644 << 16
"""A plain file that all may read."""

Chunk = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive. size_bytes: of what `chunks` give."""

    path: str
    media_type: str
    size_bytes: int
    chunks: Iterable[Chunk]


class _Sink:
    """What `ZipFile` writes to: a file that cannot seek, read back in chunks.

    Chunks are kept as they come, not copied: whoever gives them does not change them.
    """

    def __init__(self) -> None:
        self._held: list[Chunk] = []
        self._held_bytes = 0

    def write(self, data: Chunk) -> int:
        self._held.append(data)
        self._held_bytes += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is behind it."""

    def take(self, least_bytes: int) -> Iterator[Chunk]:
        """What was written, if it is so much: large chunks as they are, small ones joined."""
        if self._held_bytes < least_bytes:
            return
        small: list[Chunk] = []
        for chunk in self._held:
            # Each chunk costs the store a call, and an archive of small files has a header for each
            # of them.
            if len(chunk) < SMALL_BYTES:
                small.append(chunk)
                continue
            if small:
                yield b"".join(small)
                small.clear()
            yield chunk
        if small:
            yield b"".join(small)
        self._held.clear()
        self._held_bytes = 0


def zipped(members: Iterable[Member], moment: datetime) -> Iterator[Chunk]:
    """The bytes of an archive, ZIP64 where it must be (APPNOTE 4.3.9.2, 4.5.3).

    Members are read when their turn comes. moment: time of all of them; the same members give the
    same bytes.
    """
    sink = _Sink()
    # zipfile notices that the sink cannot seek, and writes sizes and checksums behind each file
    # (APPNOTE 4.3.9).
    with ZipFile(cast("IO[bytes]", sink), "w", allowZip64=True) as archive:
        for member in members:
            info = ZipInfo(member.path, moment.timetuple()[:6])
            info.compress_type = ZIP_DEFLATED if member.media_type in DEFLATED else ZIP_STORED
            # By default these depend on the system that the worker runs on, and then so would the
            # bytes.
            info.create_system, info.external_attr = UNIX, READABLE
            # Told before: zipfile decides on ZIP64 when a file begins, and cannot go back.
            info.file_size = member.size_bytes
            with archive.open(info, "w") as file:
                for chunk in member.chunks:
                    file.write(chunk)
                    yield from sink.take(SMALL_BYTES)
    yield from sink.take(0)
