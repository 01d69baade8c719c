"""Removes from a compressed frame what is not needed to decode it.

Cameras, scanners and secondary capture leave EXIF, XMP and comments inside JPEG, where no reader of
DICOM looks. Image data is copied as it is, so pixels stay equal to the last bit.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Final

from fluoro_jobs.errors import FluoroError, Reason

from dicom_worker.deidentify.unused import Unused
from dicom_worker.pixels.codestream import SOF, STANDALONE, j2k_start

SCAN_END: Final = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")
"""The next marker after coded data: neither a stuffed byte nor RSTn.

JPEG stuffs 00; JPEG-LS a byte below 80 (ISO/IEC 14495-1 A.1).
"""
SOI, EOI, SOS, COM = 0xD8, 0xD9, 0xDA, 0xFE
APP0, APP8, APP14, APP15 = 0xE0, 0xE8, 0xEE, 0xEF
DHT, DAC, DQT, DNL, DRI, LSE = 0xC4, 0xCC, 0xDB, 0xDC, 0xDD, 0xF8
CODES: Final = 17
"""Bytes of a Huffman table before its values: its place, and how many codes have each length."""
ADOBE_BYTES: Final = 12
JFIF_BYTES: Final = 14
J2K_SOC, J2K_SOT, J2K_SOD, J2K_COM, J2K_EOC = 0xFF4F, 0xFF90, 0xFF93, 0xFF64, 0xFFD9
J2K_TLM: Final = b"\xff\x55"
J2K_NEEDED: Final = frozenset(
    0xFF00 | low for low in (0x50, 0x51, 0x52, 0x53, 0x55, 0x59, 0x5C, 0x5D, 0x5E, 0x5F, 0x60, 0x61)
)
"""CAP, SIZ, COD, COC, TLM, CPF, QCD, QCC, RGN, POC, PPM and PPT (ISO/IEC 15444-1 and -15, A.2).

Decoders skip what they do not know, and need neither the lengths of packets nor CRG.
"""
J2K_MANY: Final = J2K_NEEDED | frozenset(range(0xFF70, 0xFF7A))
"""With those of transforms between many components (ISO/IEC 15444-2 A.3)."""
TLM_START: Final = 6
"""Where the table of a TLM segment begins."""

RLE: Final = "1.2.840.10008.1.2.5"
RLE_HEADER_BYTES: Final = 64

Removed = Counter[str]
"""What was removed, by the name of its segment."""
TilePart = tuple[int, int]
"""The number of its tile, and its length in bytes."""


def strip_jpeg(frame: bytes) -> tuple[bytes, Removed]:
    """JPEG and JPEG-LS without application segments, comments and what follows the image.

    Kept are JFIF without its thumbnail, Adobe's and HP's words on the colours: decoders go by them.
    """
    removed: Removed = Counter()
    if frame[:2] != b"\xff\xd8":
        raise refused()
    kept = [frame[:2]]
    marker, start = jpeg_marker(frame, 2)
    while marker != EOI:
        if marker in STANDALONE:
            kept.append(frame[start - 2 : start])
            position = start
        else:
            position = keep_segment(frame, marker, start, kept, removed)
        marker, start = jpeg_marker(frame, position)
    kept.append(b"\xff\xd9")
    if frame[start:].strip(b"\0\xff"):
        removed["after the image"] += 1
    # What follows the end is dropped: decoders never look at it, and it may be a whole second file.
    return even(b"".join(kept)), removed


def keep_segment(frame: bytes, marker: int, start: int, kept: list[bytes], removed: Removed) -> int:
    """Keeps what is needed of a segment, and the coded data after it; the position after both."""
    end = start + int.from_bytes(frame[start : start + 2], "big")
    if end < start + 2 or end > len(frame):
        raise refused()
    body = frame[start + 2 : end]
    needed = needed_segment(marker, body)
    if needed is not None:
        length = len(needed) + 2
        kept.append(bytes((0xFF, marker)) + length.to_bytes(2, "big") + needed)
    if needed != body:
        removed[segment_name(marker, body)] += 1
    if marker != SOS:
        return end
    found = SCAN_END.search(frame, end)
    if not found:
        raise refused()
    kept.append(frame[end : found.start()])
    return found.start()


def jpeg_marker(frame: bytes, position: int) -> tuple[int, int]:
    """The marker at `position`, fill bytes skipped, and where its length is."""
    if frame[position : position + 1] != b"\xff":
        raise refused()
    while frame[position : position + 1] == b"\xff":
        position += 1
    if position >= len(frame):
        raise refused()
    return frame[position], position + 1


def needed_segment(marker: int, body: bytes) -> bytes | None:
    """What of a segment decoders go by; None if nothing."""
    if marker == APP0 and body[:5] == b"JFIF\0" and len(body) >= JFIF_BYTES:
        # Width and height of the thumbnail become 0: it is a picture of the frame without any mask.
        return body[:12] + b"\0\0"
    if marker == APP14 and body[:5] == b"Adobe" and len(body) >= ADOBE_BYTES:
        return body[:ADOBE_BYTES]
    if marker == APP8 and body[:4] == b"mrfx" and len(body) <= 5:  # noqa: PLR2004 - and a digit
        return body
    is_whole = WHOLE.get(marker)
    # Decoders skip some of the others (DNL), and stop at the rest: none is of use to any.
    if is_whole is None:
        return None
    # A segment with room for more than its tables has something else in it.
    if not is_whole(body):
        raise refused()
    return body


def whole_tables(body: bytes, size: Callable[[bytes], int]) -> bool:
    """Whether a segment is tables from end to end. size: of the one that bytes begin with."""
    while body:
        if len(body) < (length := size(body)):
            return False
        body = body[length:]
    return True


WHOLE: Final[dict[int, Callable[[bytes], bool]]] = {
    **dict.fromkeys(SOF, lambda body: len(body) == 6 + 3 * body[5] if len(body) > 5 else False),  # noqa: PLR2004 - B.2.2
    SOS: lambda body: len(body) == 4 + 2 * body[0] if body else False,
    DHT: lambda body: whole_tables(body, lambda table: CODES + sum(table[1:CODES])),
    DQT: lambda body: whole_tables(body, lambda table: 129 if table[0] >> 4 else 65),
    DAC: lambda body: len(body) % 2 == 0 and not any(each & 0xEC for each in body[::2]),
    DNL: lambda body: len(body) == 2,  # noqa: PLR2004 - a number of rows
    DRI: lambda body: len(body) in (2, 3, 4),
    LSE: lambda body: body[:1] in (b"\1", b"\2", b"\3", b"\4"),
}
"""Segments that decoders go by, and whether one has its length (ISO/IEC 10918-1 B.2, 14495-1 C.2).

A longer one would hold something else.
"""


def segment_name(marker: int, body: bytes) -> str:
    """A word for the report. Nothing in it is from the segment."""
    if marker == COM:
        return "COM"
    if body[:6] == b"Exif\0\0":
        return "EXIF"
    if body.startswith((b"http://ns.adobe.com/xap", b"http://ns.adobe.com/xmp")):
        return "XMP"
    return f"APP{marker - APP0}" if APP0 <= marker <= APP15 else "other segments"


def strip_j2k(frame: bytes, needed: frozenset[int] = J2K_NEEDED) -> tuple[bytes, Removed]:
    """JPEG 2000 and HTJ2K without the boxes of a JP2 file around it.

    needed: markers of the segments that stay.
    """
    removed: Removed = Counter()
    try:
        position = j2k_start(frame)
    except ValueError:
        raise refused() from None
    if position:
        removed["JP2 boxes"] += 1
    if word(frame, position) != J2K_SOC:
        raise refused()
    kept = [frame[position : position + 2]]
    position += 2
    lengths: list[TilePart] = []
    while (marker := word(frame, position)) != J2K_EOC:
        size = word(frame, position + 2)
        if marker == J2K_SOT:
            tile = word(frame, position + 4)
            position = keep_tile_part(frame, position, kept, removed, needed)
            lengths.append((tile, len(kept[-1])))
            continue
        segment = frame[position : position + 2 + size]
        if not J2K_SOC < marker < J2K_EOC or len(segment) < 4:  # noqa: PLR2004 - marker and length
            raise refused()
        if marker in needed:
            kept.append(segment)
        else:
            removed[j2k_name(marker)] += 1
        position += 2 + size
    removed["TLM"] += state_lengths(kept, lengths)
    kept.append(b"\xff\xd9")
    if frame[position + 2 :].strip(b"\0\xff"):
        removed["after the image"] += 1
    return even(b"".join(kept)), +removed


def state_lengths(kept: list[bytes], lengths: list[TilePart]) -> int:
    """Rewrites the TLM segments among `kept` (ISO/IEC 15444-1 A.7.1), which HTJ2K in RPCL needs.

    If they are not of these tile-parts they go, and their number is returned: a decoder would look
    for tiles in the wrong places, and they may hold anything.
    """
    tables = [at for at, part in enumerate(kept) if part[:2] == J2K_TLM]
    left = iter(lengths)
    try:
        written = [table_of(kept[at], left) for at in tables]
    except (ValueError, OverflowError):
        written = []
    if written and next(left, None) is not None:
        written = []
    for number, at in enumerate(tables):
        kept[at] = written[number] if written else b""
    # An empty part among `kept` leaves nothing in the code stream.
    return len(tables) - len(written)


def table_of(segment: bytes, left: Iterator[TilePart]) -> bytes:
    """A TLM segment with the tiles and lengths of as many tile-parts as it tells of.

    ValueError or OverflowError if it cannot be of them.
    """
    form = int.from_bytes(segment[TLM_START - 1 : TLM_START], "big")
    # Bits 4 and 5: the bytes of a tile's number. Bit 6: a length has four bytes, else two.
    tile_bytes, length_bytes = form >> 4 & 3, 4 if form & 0x40 else 2
    count, rest = divmod(len(segment) - TLM_START, tile_bytes + length_bytes)
    entries = list(islice(left, max(count, 0)))
    if rest or len(entries) != count:
        raise ValueError("the table is of other tile-parts")
    table = b""
    for tile, length in entries:
        table += tile.to_bytes(tile_bytes, "big") if tile_bytes else b""
        table += length.to_bytes(length_bytes, "big")
    return segment[:TLM_START] + table


def keep_tile_part(
    frame: bytes, start: int, kept: list[bytes], removed: Removed, needed: frozenset[int]
) -> int:
    """Keeps what is needed of a tile-part (ISO/IEC 15444-1 A.4.2); the position after it."""
    length = int.from_bytes(frame[start + 6 : start + 10], "big")
    end = start + length
    # 0 means up to the end of the code stream.
    if length == 0:
        end = frame.rfind(b"\xff\xd9")
    if end > len(frame) or end < start + 14:
        raise refused()
    header = [frame[start : start + 12]]
    position = start + 12
    while word(frame, position) != J2K_SOD:
        size = 2 + word(frame, position + 2)
        if size < 4 or position + size > end:  # noqa: PLR2004 - marker and length
            raise refused()
        if word(frame, position) in needed:
            header.append(frame[position : position + size])
        else:
            removed[j2k_name(word(frame, position))] += 1
        position += size
    part = b"".join(header) + frame[position:end]
    if length:
        # Psot counts the removed segments, and decoders find the next tile-part by it.
        part = part[:6] + len(part).to_bytes(4, "big") + part[10:]
    kept.append(part)
    return end


def j2k_name(marker: int) -> str:
    """A word for the report, as `segment_name`."""
    return "COM" if marker == J2K_COM else "other segments"


def strip_rle(
    frame: bytes, plane: int, segments: int, cells: Unused | None = None
) -> tuple[bytes, Removed]:
    """RLE (PS3.5 annex G) with segments that end where their plane does, one after the other.

    plane: bytes that a segment becomes. segments: how many the image has.
    """
    count = int.from_bytes(frame[:4], "little")
    # No decoder looks into segments that the image does not have.
    if plane < 1 or count != segments or count > 15 or len(frame) < RLE_HEADER_BYTES:  # noqa: PLR2004 - offsets in a header
        raise refused()
    offsets = [int.from_bytes(frame[4 * i : 4 * i + 4], "little") for i in range(1, count + 1)]
    ends = [*offsets[1:], len(frame)]
    if offsets[0] < RLE_HEADER_BYTES or sorted(ends) != ends or offsets[-1] > len(frame):
        raise refused()
    tables = cells.tables() if cells else [None]
    removed: Removed = Counter()
    kept = bytearray(frame[:4] + bytes(RLE_HEADER_BYTES - 4))
    for number, (start, end) in enumerate(zip(offsets, ends, strict=True)):
        segment = frame[start:end]
        clean, over = unpacked_to(segment, plane, tables[number % len(tables)])
        removed["unused bits"] |= not over and clean != segment[: len(clean)]
        removed["after the image"] |= over or any(segment[len(clean) :])
        # Segments shrink, so each offset is written anew.
        kept[4 * number + 4 : 4 * number + 8] = len(kept).to_bytes(4, "little")
        kept += even(clean)
    removed["RLE header"] |= any(frame[4 * count + 4 : RLE_HEADER_BYTES])
    return bytes(kept), +removed


def unpacked_to(segment: bytes, plane: int, table: bytes | None) -> tuple[bytes, bool]:
    """The part of a segment that becomes `plane` bytes, its values changed by a table of 256.

    And whether its last run went on, and was cut.
    """
    clean = bytearray(segment)
    position = done = 0
    over = False
    while done < plane and position < len(segment):
        head = segment[position]
        position += 1
        if head == 128:  # noqa: PLR2004 - means nothing
            continue
        length, stored = (head + 1, head + 1) if head < 128 else (257 - head, 1)  # noqa: PLR2004
        if over := length > plane - done:
            length = plane - done
            # PackBits has no run of one byte: what is cut down to one becomes a literal.
            literal = stored > 1 or length == 1
            stored = length if literal else 1
            clean[position - 1] = length - 1 if literal else 257 - length
        if table:
            clean[position : position + stored] = segment[position : position + stored].translate(
                table
            )
        position += stored
        done += length
    return bytes(clean[:position]), over


def word(frame: bytes, position: int) -> int:
    """Two bytes. DEIDENTIFICATION_REFUSED past the end."""
    if position + 2 > len(frame):
        raise refused()
    return int.from_bytes(frame[position : position + 2], "big")


def even(frame: bytes) -> bytes:
    """Fragments have even lengths (PS3.5 A.4)."""
    return frame + b"\0" * (len(frame) % 2)


def refused() -> FluoroError:
    """The frame cannot be taken apart, so nobody knows what is in it."""
    return FluoroError(
        Reason.DEIDENTIFICATION_REFUSED,
        "A compressed frame cannot be taken apart, so its metadata cannot be removed.",
    )


Strip = Callable[[bytes], tuple[bytes, Removed]]
STRIPS: Final[dict[str, Strip]] = {
    **dict.fromkeys(
        (f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81)), strip_jpeg
    ),
    **dict.fromkeys(
        (f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203)), strip_j2k
    ),
    **dict.fromkeys(
        (f"1.2.840.10008.1.2.4.{number}" for number in (92, 93)),
        partial(strip_j2k, needed=J2K_MANY),
    ),
}
"""How the frames of an encapsulated Transfer Syntax are stripped. Others are refused."""
