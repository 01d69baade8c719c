"""Reads what a compressed frame says about itself, before a decoder believes it.

Decoders allocate what the code stream claims, not what DICOM's header says, and some return a cut
frame as if it were whole.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from dicom_worker import limits

SOS, EOI, RST0, JPEG_LS, DATA = 0xDA, 0xD9, 0xD0, 0xF7, 0
"""Second bytes of markers: Start Of Scan, End Of Image, the first restart, SOF of JPEG-LS.

DATA is none: it stands for the entropy-coded data of a scan.
"""
MARKER: Final = re.compile(rb"\xff[^\x00\xff]")
"""In a scan; FF00 is a byte of data there, FFFF a fill byte."""
SOF: Final = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
"""Second bytes of Start Of Frame markers (ISO/IEC 10918-1 table B.1).

0xF7 is that of JPEG-LS (ISO/IEC 14495-1).
"""
LOSSLESS: Final = frozenset((0xC3, 0xC7, 0xCB, 0xCF, 0xF7))
"""Those of processes without a DCT."""
STANDALONE: Final = frozenset((0x01, *range(0xD0, 0xD8)))
"""Second bytes of markers without a length: TEM and RSTn."""
END_WINDOW_BYTES: Final = 256
"""How far from the end of a frame its end marker may be: encoders pad."""


@dataclass(frozen=True, slots=True)
class CodeStream:
    """Size in pixels, components, bits per sample, and whether samples are signed.

    signed: None where the format cannot say. dct: lossy JPEG. colour: `RGB` or `YBR_FULL` where
    the code stream says so, else "".
    """

    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool | None = None
    dct: bool = False
    colour: str = ""


Parser = Callable[[bytes], CodeStream]


def parse_jpeg(frame: bytes) -> CodeStream:
    """The frame header of a JPEG or JPEG-LS code stream.

    ValueError, IndexError or struct.error if it is none, has no end, or lacks parts of its scans.
    """
    if frame[:2] != b"\xff\xd8" or not has_end(frame):
        raise ValueError("start or end of image is missing")
    colour, found = "", None
    components: set[int] = set()
    for marker, start, end in jpeg_segments(frame):
        if marker in SOF and found is None:
            precision, rows, columns, samples = struct.unpack_from(">BHHB", frame, start)
            # Some writers call the components R, G and B, and leave out the marker that says so.
            names = frame[start + 6 : start + 6 + 3 * samples : 3]
            found = CodeStream(
                rows,
                columns,
                samples,
                precision,
                dct=marker not in LOSSLESS,
                colour=colour or ("RGB" if names.upper() == b"RGB" else ""),
            )
            # CharLS sees for itself that a scan is broken, and scans of JPEG-LS stuff bits.
            if marker == JPEG_LS:
                return found
            components = set(names)
        elif marker == SOS:
            # A stream that was cut between two scans is well formed, and a colour is missing.
            components -= set(frame[start + 1 : start + 1 + 2 * frame[start] : 2])
        else:
            colour = application_colour(frame[start - 4 : end]) or colour
    if found is None or components:
        raise ValueError("a component has no scan")
    return found


def jpeg_segments(frame: bytes) -> Iterator[tuple[int, int, int]]:
    """Second byte of the marker, start and end of what follows its length, of each segment.

    The data of a scan comes behind its SOS segment, with the marker `DATA`. ValueError or
    IndexError unless the code stream ends where the frame does: libjpeg decodes one that ends
    before as if it were whole.
    """
    position = 2
    while True:
        marker = frame[position + 1]
        if frame[position] != 0xFF:  # noqa: PLR2004 - every marker starts with it
            raise ValueError("a marker is missing")
        if marker == EOI:
            break
        if marker == 0xFF:  # noqa: PLR2004 - a fill byte
            position += 1
        elif marker in STANDALONE:
            position += 2
        else:
            start = position + 4
            position += 2 + int.from_bytes(frame[position + 2 : start], "big")
            yield marker, start, position
            if marker == SOS:
                start, position = position, scan_end(frame, position)
                yield DATA, start, position
    if position < len(frame) - END_WINDOW_BYTES:
        raise ValueError("the code stream ends before the frame")


def scan_end(frame: bytes, start: int) -> int:
    """Where the marker after a scan is. ValueError if there is none, or a restart interval is lost.

    RSTn count from 0 to 7 and again (ISO/IEC 10918-1 F.1.1.5.2); libjpeg fills in what it misses.
    """
    for restarts, found in enumerate(MARKER.finditer(frame, start)):
        marker = frame[found.start() + 1]
        if marker not in STANDALONE:
            return found.start()
        if marker != RST0 + restarts % 8:
            raise ValueError("restart markers are out of order")
    raise ValueError("a scan has no end")


def application_colour(segment: bytes) -> str:
    """The colour space that an application segment states, "" if it states none.

    JFIF is always YCbCr (ISO/IEC 10918-5). Adobe's segment has a field for it, the last of 12
    bytes; writers cut it off.
    """
    if segment[1] == 0xE0 and segment[4:9] == b"JFIF\0":  # noqa: PLR2004 - APP0
        return "YBR_FULL"
    if segment[1] == 0xEE and segment[4:9] == b"Adobe" and len(segment) >= 16:  # noqa: PLR2004 - APP14
        return "YBR_FULL" if segment[15] else "RGB"
    return ""


def parse_j2k(frame: bytes) -> CodeStream:
    """The SIZ segment of a JPEG 2000 or HTJ2K code stream (ISO/IEC 15444-1 A.5.1).

    ValueError or struct.error as above.
    """
    start = j2k_start(frame)
    if frame[start : start + 4] != b"\xff\x4f\xff\x51" or not has_end(frame):
        raise ValueError("start or end of code stream is missing")
    x1, y1, x0, y0, tile_width, tile_height, _, _, samples = struct.unpack_from(
        ">8LH", frame, start + 8
    )
    components = set(struct.iter_unpack(">BBB", frame[start + 42 : start + 42 + 3 * samples]))
    tiles = -(-x1 // max(tile_width, 1)) * -(-y1 // max(tile_height, 1))
    # The decoder allocates a record for each tile that the header claims.
    if tiles > limits.J2K_TILE_LIMIT:
        raise ValueError("too many tiles")
    # DICOM has one Bits Allocated and one Pixel Representation for all samples.
    if len(components) != 1:
        raise ValueError("components differ")
    # The highest bit of Ssiz is the sign, the others are the depth less 1 (ISO/IEC 15444-1 A.5.1).
    depth, x_step, y_step = components.pop()
    # Rows and Columns hold for all samples alike.
    if (x_step, y_step) != (1, 1):
        raise ValueError("components are subsampled")
    check_tile_parts(frame, start + 2)
    return CodeStream(y1 - y0, x1 - x0, samples, (depth & 0x7F) + 1, signed=bool(depth & 0x80))


def check_tile_parts(frame: bytes, position: int) -> None:
    """ValueError unless tile-parts, of the lengths that they state, fill the code stream.

    That shows what is cut off, because decoders fill it in without a word. position: of the first
    segment after SOC (ISO/IEC 15444-1 A.4.2, Psot).
    """
    while frame[position : position + 2] != b"\xff\x90":
        position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
        if position + 12 > len(frame):
            raise ValueError("there is no tile-part")
    while frame[position : position + 2] == b"\xff\x90":
        length = int.from_bytes(frame[position + 6 : position + 10], "big")
        if length == 0:  # the last tile-part: it reaches to the end
            return
        if length < 14:  # noqa: PLR2004 - bytes of SOT and SOD
            raise ValueError("a tile-part leads nowhere")
        position += length
    if frame[position : position + 2] != b"\xff\xd9":
        raise ValueError("a tile-part is cut off or followed by none")


def j2k_start(frame: bytes) -> int:
    """Where the code stream starts: at 0, or in the `jp2c` box of a JP2 file.

    DICOM does not allow JP2 files, but some writers store them.
    """
    position = 0
    if frame[4:8] != b"jP  ":
        return position
    while frame[position + 4 : position + 8] != b"jp2c":
        length = int.from_bytes(frame[position : position + 4], "big")
        if length < 8 or position + length > len(frame):  # noqa: PLR2004 - bytes of a box's header
            raise ValueError("a box leads nowhere")
        position += length
    return position + 8


def has_end(frame: bytes) -> bool:
    """Whether the end marker, FFD9 in all these formats, is where the frame ends."""
    return b"\xff\xd9" in frame[-END_WINDOW_BYTES:]


def parse_rle(frame: bytes, *, rows: int, columns: int, samples: int, bits: int) -> None:
    """Checks the header of an RLE frame (PS3.5 annex G).

    ValueError unless it has a segment for each byte of a pixel, in order.
    """
    # Always 16 numbers, used or not, so the first segment starts at byte 64 (PS3.5 G.5).
    count, *offsets = struct.unpack_from("<16L", frame)
    used = offsets[:count]
    expected = samples * bits // 8
    ends = [*used[1:], len(frame)]
    # A run of 128 equal bytes takes 2: a segment shorter than that cannot fill the image.
    shortest = rows * columns // 64
    if (
        count != expected
        or used[:1] != [64]
        or any(end - start < shortest for start, end in zip(used, ends, strict=True))
    ):
        raise ValueError("segments are missing, out of order or too short")
