"""Copies pixel data into the clean file, frame by frame, without what is not pixels."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from typing import BinaryIO, Final

from fluoro_jobs.errors import FluoroError, Reason

from dicom_worker.deidentify.codestreams import RLE, STRIPS, Removed, strip_rle
from dicom_worker.deidentify.elements import Element, Span, Writer
from dicom_worker.deidentify.unused import Unused
from dicom_worker.pixels.frames import group_frames, read_frame
from dicom_worker.structure import ITEM, SEQUENCE_END, UNDEFINED, Fragment

OFFSET_TABLES: Final = frozenset((0x7FE00001, 0x7FE00002))
"""Extended Offset Table and its lengths: they would be wrong afterwards."""
CHUNK_BYTES: Final = 1024 * 1024
MAX_OFFSET: Final = 2**32 - 1


def copy_native(
    source: BinaryIO,
    target: BinaryIO,
    element: Element,
    writer: Writer,
    size: int | None,
    cells: Unused | None = None,
) -> Removed:
    """Pixel data that is not encapsulated. size: bytes that the image needs; None if unknown.

    What stands behind the image is left out, and what stands in the bits that no pixel uses.
    """
    removed: Removed = Counter()
    span = element.value
    length = span.length if isinstance(span, Span) else len(span)
    if size is not None and size + size % 2 < length:
        length = size + size % 2
        removed["after the image"] += 1
    target.write(writer.header(element.tag, element.vr, length))
    stream = source
    if isinstance(span, Span):
        source.seek(span.offset)
    else:
        stream = BytesIO(span)
    while length:
        chunk = stream.read(min(length, CHUNK_BYTES))
        clean = cells.clear(chunk) if cells else chunk
        removed["unused bits"] |= clean is not chunk
        target.write(clean)
        length -= len(chunk)
    return +removed


def copy_frames(
    source: BinaryIO,
    target: BinaryIO,
    fragments: Sequence[Span],
    syntax: str,
    frames: int,
    plane: int,
    cells: Unused | None,
    check: Callable[[], None],
) -> Removed:
    """Encapsulated pixel data (PS3.5 A.4): one fragment per frame, and the offset table anew.

    plane: pixels of a frame, 0 if unknown. cells: as for `copy_native`; RLE keeps all bits, too.
    """
    strip = STRIPS.get(syntax)
    if syntax == RLE:
        strip = partial(strip_rle, plane=plane, cells=cells)
    if strip is None:
        raise FluoroError(
            Reason.DEIDENTIFICATION_REFUSED,
            "Nobody here knows where frames in this Transfer Syntax keep their metadata. "
            "Send them in another one.",
        )
    groups = group_frames(
        source, [Fragment(each.offset, each.length) for each in fragments], frames
    )
    total = sum(each.length + 8 for each in fragments)
    offsets: list[int] | None = [] if len(groups) > 1 and total <= MAX_OFFSET else None
    target.write(b"\xe0\x7f\x10\x00OB\0\0" + UNDEFINED.to_bytes(4, "little"))
    table = target.tell()
    target.write(item(ITEM, 0 if offsets is None else 4 * len(groups)))
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
