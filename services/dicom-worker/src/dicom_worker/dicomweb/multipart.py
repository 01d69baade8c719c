"""Bodies of type multipart/related (RFC 2046, RFC 2387), read and written piece by piece."""

import re
from collections.abc import Callable, Iterator, Sequence
from email.message import Message
from pathlib import Path
from typing import Final
from uuid import uuid4

from fluoro_jobs.errors import FluoroError, Reason

PIECE_BYTES: Final = 256 * 1024
"""Bytes that are in memory at a time."""
MAX_HEAD_BYTES: Final = 64 * 1024
"""What may stand before a part, and the headers of a part."""
MAX_TAIL_BYTES: Final = 64 * 1024
"""What may stand after the last part."""
MAX_CONTENT_TYPE: Final = 1024
"""Characters."""
BOUNDARY: Final = re.compile(r"[!-~ ]{0,69}[!-~]")
"""RFC 2046 5.1.1, and some characters that servers use in spite of it."""

Read = Callable[[int], bytes]
"""The next bytes, at most so many; none at the end."""


def media_type(header: str) -> tuple[str, str]:
    """Type and boundary that a Content-Type says, the type in lower case.

    Empty for one that is longer than any of use.
    """
    if len(header) > MAX_CONTENT_TYPE:
        return "", ""
    message = Message()
    message["Content-Type"] = header
    boundary = message.get_param("boundary", "")
    return message.get_content_type(), boundary if isinstance(boundary, str) else ""


def only_part(read: Read, boundary: str) -> Iterator[bytes]:
    """The content of a body's one part, in pieces.

    FluoroError PACS_ANSWER_INVALID if there is another number of parts or the boundary does not
    fit, PACS_UNAVAILABLE if the body ends before its part does.
    """
    if not BOUNDARY.fullmatch(boundary):
        raise invalid("it has no boundary")
    reader = _Reader(read)
    # The first delimiter may stand at the very beginning, without the line break before it.
    reader.buffer += b"\r\n"
    delimiter = b"\r\n--" + boundary.encode()
    nowhere = invalid("its boundary is nowhere")
    reader.skip_through(delimiter, nowhere, nowhere)
    if reader.closes():
        raise invalid("it has no part")
    reader.skip_through(b"\r\n", invalid("its boundary does not end"), broken_off())
    # A part without headers begins with an empty line.
    reader.buffer[:0] = b"\r\n"
    no_end = invalid("the headers of its part do not end")
    reader.skip_through(b"\r\n\r\n", no_end, broken_off())
    yield from reader.until(delimiter)
    if not reader.closes():
        raise invalid("it has more parts than one")
    reader.drain()


class _Reader:
    """What was read and not used yet."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self.buffer = bytearray()

    def more(self) -> bool:
        """Reads on; False at the end."""
        piece = self._read(PIECE_BYTES)
        self.buffer += piece
        return bool(piece)

    def skip_through(self, mark: bytes, otherwise: FluoroError, ended: FluoroError) -> None:
        """Drops what stands before a mark, and the mark. Raises `otherwise` if it is far away."""
        while (at := self.buffer.find(mark)) < 0:
            # A hostile server may never send the mark, and everything before it lies in memory.
            if len(self.buffer) > MAX_HEAD_BYTES:
                raise otherwise
            if not self.more():
                raise ended
        del self.buffer[: at + len(mark)]

    def closes(self) -> bool:
        """Whether the delimiter before was the last one."""
        while len(self.buffer) < 2:  # noqa: PLR2004 - two hyphens
            if not self.more():
                raise broken_off()
        return self.buffer.startswith(b"--")

    def until(self, mark: bytes) -> Iterator[bytes]:
        """What stands before a mark, which is dropped. PACS_UNAVAILABLE if it does not come."""
        while (at := self.buffer.find(mark)) < 0:
            # The mark may have begun in the last bytes.
            if (sure := len(self.buffer) - len(mark) + 1) > 0:
                yield bytes(self.buffer[:sure])
                del self.buffer[:sure]
            if not self.more():
                raise broken_off()
        yield bytes(self.buffer[:at])
        del self.buffer[: at + len(mark)]

    def drain(self) -> None:
        """Reads what follows, so that the connection can be used again."""
        left = MAX_TAIL_BYTES
        while left > 0 and (piece := self._read(left)):
            left -= len(piece)


def body_of(files: Sequence[Path], boundary: str) -> tuple[int, Iterator[bytes]]:
    """A body of DICOM files (PS3.18 8.6.1.2.1): its size in bytes, and the body in pieces."""
    head = f"\r\n--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    tail = f"\r\n--{boundary}--\r\n".encode()
    size = sum(len(head) + file.stat().st_size for file in files) + len(tail)
    return size, _pieces(files, head, tail)


def _pieces(files: Sequence[Path], head: bytes, tail: bytes) -> Iterator[bytes]:
    for file in files:
        yield head
        with file.open("rb") as stream:
            while piece := stream.read(PIECE_BYTES):
                yield piece
    yield tail


def new_boundary() -> str:
    """One that no file holds: it has 122 random bits."""
    return uuid4().hex


def invalid(what: str) -> FluoroError:
    """The answer is none of DICOMweb. what: a clause."""
    return FluoroError(
        Reason.PACS_ANSWER_INVALID, f"The server's answer cannot be used: {what}. Look at it."
    )


def broken_off() -> FluoroError:
    """The answer ended too early."""
    return FluoroError(Reason.PACS_UNAVAILABLE, "The server broke off in the middle of its answer.")
