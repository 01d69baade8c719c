"""Uploads from sources in chunks, and downloads into files that appear whole or not at all."""

import asyncio
import hashlib
import mimetypes
import os
import secrets
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from fluoro.v1 import blob_service_pb2

CHUNK_BYTES: Final = 512 * 1024
"""Size of the chunks sent; the server takes up to 1 MiB."""

RESUMED_BYTES: Final = 4 * 1024 * 1024
"""Files and bytes of this size and more go on after a broken connection; others begin again."""

Source = str | os.PathLike[str] | bytes | AsyncIterable[bytes]
"""A file's path, the bytes themselves, or bytes as they come."""

PARALLEL_TRANSFERS: Final = 4
"""Files that go up or down at the same time."""

Value = TypeVar("Value")
Result = TypeVar("Result")


async def each(
    function: Callable[[Value], Awaitable[Result]], values: Sequence[Value]
) -> list[Result]:
    """What `function` returns for each value, a few at a time and in order.

    The first error ends the others.
    """
    slots = asyncio.Semaphore(PARALLEL_TRANSFERS)

    async def one(value: Value) -> Result:
        async with slots:
            return await function(value)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(value)) for value in values]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


@dataclass(slots=True)
class Resume:
    """An upload that goes on. committed_bytes: what the gateway has for sure."""

    upload_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    committed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Upload:
    """What to send.

    chunks(offset) starts from that byte each time, unless `once`: then it can be called only once,
    with 0.
    """

    header: blob_service_pb2.UploadBlobHeader
    chunks: Callable[[int], AsyncGenerator[bytes, None]]
    once: bool = False

    @property
    def resumes(self) -> bool:
        """Whether it is worth the calls that it takes to go on after a broken connection."""
        return not self.once and self.header.size_bytes >= RESUMED_BYTES

    async def requests(
        self, resume: Resume
    ) -> AsyncGenerator[blob_service_pb2.UploadBlobRequest, None]:
        """The header, then the chunks that are not committed."""
        offset = resume.committed_bytes
        header = blob_service_pb2.UploadBlobHeader(upload_id=resume.upload_id, offset=offset)
        header.MergeFrom(self.header)
        yield blob_service_pb2.UploadBlobRequest(header=header)
        async with aclosing(self.chunks(offset)) as chunks:
            async for chunk in chunks:
                yield blob_service_pb2.UploadBlobRequest(chunk=chunk)


async def prepare(source: Source, media_type: str) -> Upload:
    """Finds what the header must say: media type, and size and SHA-256 of a file or of bytes.

    OSError if a file cannot be read.
    """
    if isinstance(source, bytes):
        header = blob_service_pb2.UploadBlobHeader(
            media_type=media_type, size_bytes=len(source), sha256=hashlib.sha256(source).digest()
        )
        return Upload(header, lambda offset: _pieces(source, offset))
    if isinstance(source, AsyncIterable):
        return Upload(
            blob_service_pb2.UploadBlobHeader(media_type=media_type),
            lambda _: _split(source),
            once=True,
        )
    path = Path(source)
    header = await asyncio.to_thread(_examine, path, media_type)
    return Upload(header, lambda offset: _read(path, offset))


def _examine(path: Path, media_type: str) -> blob_service_pb2.UploadBlobHeader:
    with path.open("rb") as file:
        preamble = file.read(132)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").digest()
        return blob_service_pb2.UploadBlobHeader(
            media_type=media_type or _media_type(path, preamble),
            size_bytes=file.tell(),
            sha256=digest,
        )


def _media_type(path: Path, preamble: bytes) -> str:
    """DICOM by its prefix (PS3.10 section 7.1), because its files often have no suffix.

    Everything else by its suffix.
    """
    # Modalities name files by UID, whose last component looks like a suffix.
    if preamble.endswith(b"DICM"):
        return "application/dicom"
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"


async def _pieces(data: bytes, offset: int = 0) -> AsyncGenerator[bytes, None]:
    for start in range(offset, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


async def _split(source: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    async for data in source:
        async for piece in _pieces(data):
            yield piece


async def _read(path: Path, offset: int) -> AsyncGenerator[bytes, None]:
    file = await asyncio.to_thread(path.open, "rb")
    with file:
        file.seek(offset)
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk


class PartialFile:
    """A file being downloaded: bytes go to a temporary name beside `path`.

    It gets its real name once its bytes are known to be right. Use it as a context manager: what
    has not been kept by then is deleted.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Beside the target: a rename is atomic only within one file system.
        self._part = path.with_name(f".{secrets.token_hex(8)}.part")
        self._file = self._part.open("xb")
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        # Missing if it was kept: then it has its real name.
        self._part.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Appends."""
        self._file.write(chunk)
        self._digest.update(chunk)
        self.size_bytes += len(chunk)

    def keep(self, sha256: bytes) -> bool:
        """Gives the file its name if its SHA-256 is this one."""
        self._file.close()
        if self._digest.digest() != sha256:
            return False
        self._part.replace(self._path)
        return True
