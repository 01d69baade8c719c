"""Writes a clean file, and reads it back (PS3.10 chapter 7)."""

import mmap
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from dicom_worker.deidentify.codestreams import Removed
from dicom_worker.deidentify.elements import Element, Span, Writer
from dicom_worker.deidentify.header import FRAMES, SOP_CLASS, SOP_INSTANCE, Header
from dicom_worker.deidentify.identifiers import Search
from dicom_worker.deidentify.pixeldata import (
    OFFSET_TABLES,
    copy_frames,
    copy_native,
    image_bytes,
    strip_for,
)
from dicom_worker.deidentify.proof import residual
from dicom_worker.deidentify.unused import unused
from dicom_worker.inflate import inflate
from dicom_worker.reading import DEFLATED, PIXEL_TAGS, PREFIX, PREFIX_OFFSET
from dicom_worker.structure import PIXEL_DATA

IMPLEMENTATION_CLASS: Final = "2.25.243904297062417963150836424816386457212"
"""Names Fluoro in File Meta Information (PS3.7 D.3.3.2). Made once, from a random UUID."""
IMPLEMENTATION_VERSION: Final = "FLUORO"
META_LENGTH_BYTES: Final = 12
CHUNK_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a data set is written (PS3.5 annex A). syntax: Transfer Syntax UID."""

    syntax: str
    explicit: bool
    little_endian: bool


def write(
    source: BinaryIO,
    target: Path,
    elements: Sequence[Element],
    encoding: Encoding,
    fetch: Callable[[Span], bytes],
    check: Callable[[], None],
    drawn: bool,
) -> Removed:
    """Writes the elements as a Part 10 file with a preamble of zeros.

    source: the original, for pixel data. drawn: whether that keeps an overlay in bits of pixels.
    Returns what was removed from pixel data.
    """
    header = Header(elements, little_endian=encoding.little_endian)
    meta = file_meta(header, encoding.syntax)
    deflated = encoding.syntax == DEFLATED
    plain = target.with_suffix(".plain") if deflated else target
    writer = Writer(encoding.explicit, encoding.little_endian, fetch)
    with plain.open("w+b") as stream:
        if not deflated:
            stream.write(meta)
        removed = write_data_set(
            source, stream, elements, encoding, writer, header, check, drawn=drawn
        )
    if deflated:
        deflate(plain, target, meta)
        plain.unlink()
    return removed


def write_data_set(
    source: BinaryIO,
    target: BinaryIO,
    elements: Sequence[Element],
    encoding: Encoding,
    writer: Writer,
    header: Header,
    check: Callable[[], None],
    *,
    drawn: bool,
) -> Removed:
    """Small values at once, large ones piece by piece."""
    removed: Removed = Counter()
    small: list[Element] = []
    for element in sorted(elements, key=lambda each: each.tag):
        # Stripped frames are shorter, so the old offsets point into their middle.
        if element.tag in OFFSET_TABLES:
            continue
        pixels = element.tag in PIXEL_TAGS
        if element.fragments is None and not isinstance(element.value, Span) and not pixels:
            small.append(element)
            continue
        # Small elements so far come first: tags ascend (PS3.5 7.1).
        target.write(writer.encoded(small))
        small.clear()
        cells = None
        if element.tag == PIXEL_DATA:
            cells = unused(header, little_endian=encoding.little_endian)
        if element.fragments is None:
            size = image_bytes(header, element) if pixels else None
            removed += copy_native(source, target, element, writer, size, cells, check)
        else:
            removed += copy_frames(
                source,
                target,
                element.fragments,
                strip_for(encoding.syntax, header, cells, drawn=drawn),
                header.number(FRAMES, 1),
                check,
            )
    target.write(writer.encoded(small))
    return removed


def file_meta(header: Header, syntax: str) -> bytes:
    """Preamble, prefix and File Meta Information: nothing of the original but what it is."""
    writer = Writer(explicit=True, little_endian=True, fetch=nothing)
    group = writer.encoded(
        [
            Element(0x00020001, "OB", b"\0\1"),
            Element(0x00020002, "UI", uid_value(header.text(SOP_CLASS))),
            Element(0x00020003, "UI", uid_value(header.text(SOP_INSTANCE))),
            Element(0x00020010, "UI", uid_value(syntax)),
            Element(0x00020012, "UI", uid_value(IMPLEMENTATION_CLASS)),
            Element(0x00020013, "SH", IMPLEMENTATION_VERSION.encode()),
        ]
    )
    length = Element(0x00020000, "UL", len(group).to_bytes(4, "little"))
    # Zeros, because the preamble of the original may hold anything, even another file.
    return bytes(PREFIX_OFFSET) + PREFIX + writer.encoded([length]) + group


def nothing(_span: Span) -> bytes:
    """For elements that are all in memory."""
    return b""


def uid_value(uid: str) -> bytes:
    """A UID of even length (PS3.5 9.1)."""
    return uid.encode() + b"\0" * (len(uid) % 2)


def deflate(plain: Path, target: Path, meta: bytes) -> None:
    """Deflated Explicit VR Little Endian (PS3.5 A.5): the data set, not the meta information."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    with plain.open("rb") as source, target.open("wb") as stream:
        stream.write(meta)
        size = 0
        while chunk := source.read(CHUNK_BYTES):
            size += stream.write(packer.compress(chunk))
        size += stream.write(packer.flush())
        # A deflated data set is padded to an even length (PS3.5 A.5).
        stream.write(b"\0" * (size % 2))


def read_back(
    target: Path, encoding: Encoding, search: Search, check: Callable[[], None]
) -> list[int]:
    """Searches the file as it was written; see `proof.residual`."""
    start = PREFIX_OFFSET + len(PREFIX) + META_LENGTH_BYTES
    with target.open("rb") as stream:
        head = stream.read(start)
        # The last four bytes are the group length, which `file_meta` always writes.
        start += int.from_bytes(head[-4:], "little")
    searched = target
    if encoding.syntax == DEFLATED:
        searched = target.with_suffix(".again")
        inflate(target, start, searched)
        start = 0
    with (
        searched.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        return residual(
            data,
            start,
            search,
            check,
            explicit=encoding.explicit,
            little_endian=encoding.little_endian,
        )
