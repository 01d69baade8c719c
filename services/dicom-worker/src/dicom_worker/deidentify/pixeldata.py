"""Copies pixel data into the clean file, frame by frame, without what is not pixels."""

import struct
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from typing import BinaryIO, Final

from fluoro_jobs.errors import FluoroError, Reason

from dicom_worker.deidentify.codestreams import (
    RLE,
    STRIPS,
    Removed,
    Strip,
    refused,
    strip_jpeg,
    strip_rle,
)
from dicom_worker.deidentify.elements import Element, Span, Writer
from dicom_worker.deidentify.header import BITS, COLUMNS, PHOTOMETRIC, ROWS, SAMPLES, STORED, Header
from dicom_worker.deidentify.unused import Unused
from dicom_worker.pixels.codestream import parse_j2k, parse_jpeg
from dicom_worker.pixels.frames import group_frames, read_frame
from dicom_worker.structure import ITEM, SEQUENCE_END, UNDEFINED, Fragment

OFFSET_TABLES: Final = frozenset((0x7FE00001, 0x7FE00002))
"""Extended Offset Table and its lengths: they would be wrong afterwards."""
CHUNK_BYTES: Final = 1024 * 1024
MAX_OFFSET: Final = 2**32 - 1


def image_bytes(header: Header, element: Element) -> int | None:
    """Bytes of native pixel data that are the image; None if unknown.

    DEIDENTIFICATION_REFUSED where nobody can tell.
    """
    size = header.pixel_bytes(element.tag)
    # Two pixels share their chroma (PS3.3 C.7.6.3.1.2).
    halved = header.text(PHOTOMETRIC) == "YBR_FULL_422" and header.number(SAMPLES) == 3  # noqa: PLR2004 - colour
    if size is None or not halved:
        return size
    if length_of(element) >= size:
        raise FluoroError(
            Reason.DEIDENTIFICATION_REFUSED,
            "The pixel data is YBR_FULL_422, but as long as if chroma were not subsampled, so "
            "nobody knows where the image ends. Correct Photometric Interpretation.",
        )
    return size // 3 * 2


def length_of(element: Element) -> int:
    """Bytes of a value that is not encapsulated."""
    return element.value.length if isinstance(element.value, Span) else len(element.value)


def copy_native(
    source: BinaryIO,
    target: BinaryIO,
    element: Element,
    writer: Writer,
    size: int | None,
    cells: Unused | None,
    check: Callable[[], None],
) -> Removed:
    """Pixel data that is not encapsulated. size: bytes that the image needs; None if unknown.

    What stands behind the image is left out, and what stands in the bits that no pixel uses.
    """
    removed: Removed = Counter()
    span = element.value
    length = length_of(element)
    # The padding to an even length is no hiding place; more than that may be.
    if size is not None and size + size % 2 < length:
        length = size + size % 2
        removed["after the image"] += 1
    # The length comes first, so all that is dropped has to be known by now.
    target.write(writer.header(element.tag, element.vr, length))
    stream = source
    if isinstance(span, Span):
        source.seek(span.offset)
    else:
        stream = BytesIO(span)
    while length:
        check()
        chunk = stream.read(min(length, CHUNK_BYTES))
        clean = cells.clear(chunk) if cells else chunk
        removed["unused bits"] |= clean is not chunk
        target.write(clean)
        length -= len(chunk)
    return +removed


def strip_for(syntax: str, header: Header, cells: Unused | None, *, drawn: bool) -> Strip:
    """What strips the frames of an encapsulated Transfer Syntax.

    cells: as for `copy_native`; RLE keeps all bits, too. drawn: whether an overlay is kept in bits
    of pixel cells. DEIDENTIFICATION_REFUSED if there is none.
    """
    if syntax == RLE:
        plane = header.number(ROWS) * header.number(COLUMNS)
        segments = header.number(SAMPLES, 1) * (header.number(BITS) // 8)
        return partial(strip_rle, plane=plane, segments=segments, cells=cells)
    strip = STRIPS.get(syntax)
    if strip is None:
        raise FluoroError(
            Reason.DEIDENTIFICATION_REFUSED,
            "Nobody here knows where frames in this Transfer Syntax keep their metadata. "
            "Send them in another one.",
        )
    return partial(strip_drawn, strip=strip, stored=header.number(STORED)) if drawn else strip


def strip_drawn(frame: bytes, strip: Strip, stored: int) -> tuple[bytes, Removed]:
    """`strip`, unless the samples of the frame have bits for an overlay.

    Clearing them would need another encoding of the frame. stored: bits of a pixel value.
    """
    try:
        precision = (parse_jpeg if strip is strip_jpeg else parse_j2k)(frame).precision
    except (ValueError, IndexError, struct.error):
        raise refused() from None
    if precision > stored:
        raise FluoroError(
            Reason.DEIDENTIFICATION_REFUSED,
            f"An overlay is kept in bits of compressed pixels, which have {precision} bits where "
            f"Bits Stored says {stored}. Send the file uncompressed: then those bits are cleared.",
        )
    return strip(frame)


def copy_frames(
    source: BinaryIO,
    target: BinaryIO,
    fragments: Sequence[Span],
    strip: Strip,
    frames: int,
    check: Callable[[], None],
) -> Removed:
    """Encapsulated pixel data (PS3.5 A.4): one fragment per frame, and the offset table anew."""
    groups = group_frames(
        source, [Fragment(each.offset, each.length) for each in fragments], frames
    )
    total = sum(each.length + 8 for each in fragments)
    # Offsets have 32 bits. Without them the table is empty, which PS3.5 A.4 allows.
    offsets: list[int] | None = [] if len(groups) > 1 and total <= MAX_OFFSET else None
    target.write(b"\xe0\x7f\x10\x00OB\0\0" + UNDEFINED.to_bytes(4, "little"))
    table = target.tell()
    target.write(item(ITEM, 0 if offsets is None else 4 * len(groups)))
    # Zeros for now: frames shrink as they are stripped.
    target.write(bytes(0 if offsets is None else 4 * len(groups)))
    start = target.tell()
    removed: Removed = Counter()
    for group in groups:
        check()
        frame, gone = strip(read_frame(source, group))
        removed += gone
        if offsets is not None:
            offsets.append(target.tell() - start)
        target.write(item(ITEM, len(frame)))
        target.write(frame)
    target.write(item(SEQUENCE_END, 0))
    if offsets is not None:
        end = target.tell()
        target.seek(table + 8)
        target.write(b"".join(each.to_bytes(4, "little") for each in offsets))
        target.seek(end)
    return removed


def item(tag: int, length: int) -> bytes:
    """The head of an item or delimiter. Encapsulated data is always little endian."""
    return (
        (tag >> 16).to_bytes(2, "little")
        + (tag & 0xFFFF).to_bytes(2, "little")
        + length.to_bytes(4, "little")
    )
