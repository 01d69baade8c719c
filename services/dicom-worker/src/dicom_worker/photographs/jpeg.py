"""Walks the segments of a JPEG (ITU-T T.81 annex B)."""

import re
from typing import Final

from dicom_worker.photographs.found import Format, Found, Kind
from dicom_worker.photographs.ifd import count_exif
from dicom_worker.photographs.refusals import Refusal, RefusedError

SCAN_LIMIT: Final = 100
"""Scans of one picture. Progressive ones have some 10; each costs the time of the whole."""
COEFFICIENTS: Final = 64
"""Of a block."""
MISSING: Final = 16
"""Bits that a coefficient lacks before any scan had it: more than there are."""
SEGMENT_LIMIT: Final = 10_000
SOI, EOI, SOS, DNL, COM = 0xD8, 0xD9, 0xDA, 0xDC, 0xFE
APP0, APP1, APP2, APP13, APP14, APP15 = 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xEF
FRAMES: Final = frozenset((0xC0, 0xC1, 0xC2, 0xC9, 0xCA))
"""SOF markers of DCT, sequential and progressive, Huffman and arithmetic."""
OTHER_FRAMES: Final = frozenset((0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF))
"""SOF markers of lossless and hierarchical JPEG."""
MARKER: Final = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]", re.DOTALL)
"""What ends a scan: a marker that is neither a stuffed byte nor a restart."""
IPTC: Final = b"8BIM\x04\x04"
PHOTOSHOP_THUMBNAILS: Final = (b"8BIM\x04\x0c", b"8BIM\x04\x09")
JFIF_THUMBNAIL: Final = 12
"""Where a JFIF segment says how large its thumbnail is."""


def walk(data: bytes) -> Found:
    """What the file says of its one picture. RefusedError if it is cut off or breaks the rules."""
    found, scans, position = Found(Format.JPEG, is_lossy=True), 0, 2
    depths: dict[int, list[int]] = {}
    for _ in range(SEGMENT_LIMIT):
        marker, position = next_marker(data, position)
        if marker == EOI:
            break
        end = position + int.from_bytes(data[position : position + 2])
        if end > len(data) or end < position + 2:
            raise RefusedError(Refusal.TRUNCATED if end > len(data) else Refusal.BROKEN)
        body = data[position + 2 : end]
        # DNL states the rows after the scan: memory would be taken before its size is known.
        if marker in OTHER_FRAMES or marker == DNL:
            raise RefusedError(Refusal.KIND)
        if marker in FRAMES:
            frame(body, found)
            depths = {each: [MISSING] * COEFFICIENTS for each in body[6::3][: found.samples]}
        elif marker == SOS:
            scans += 1
            scan(body, depths)
            after = MARKER.search(data, end)
            found.scan_bytes += (after.start() if after else len(data)) - end
            end = after.start() if after else len(data)
        else:
            count(marker, body, found)
        if scans > SCAN_LIMIT:
            raise RefusedError(Refusal.PARTS)
        position = end
    else:
        raise RefusedError(Refusal.PARTS)
    if not found.samples or len(depths) != found.samples:
        raise RefusedError(Refusal.BROKEN)
    # A progressive one that lacks its last scans decodes without a warning, as a blur.
    if any(any(coefficients) for coefficients in depths.values()):
        raise RefusedError(Refusal.TRUNCATED)
    # Cameras append whole pictures and films; a file of another kind may hide there as well.
    found.removed[Kind.TRAILING_DATA] += bool(data[position:].strip(b"\0"))
    return found


def next_marker(data: bytes, position: int) -> tuple[int, int]:
    """The marker at `position`, filled up with FF or not, and the byte after it."""
    if data[position : position + 1] not in (b"\xff", b""):
        raise RefusedError(Refusal.BROKEN)
    match = MARKER.match(data, position)
    if match is None:
        cut = not data[position:].strip(b"\xff")
        raise RefusedError(Refusal.TRUNCATED if cut else Refusal.BROKEN)
    return data[match.end() - 1], match.end()


def frame(body: bytes, found: Found) -> None:
    """Reads a frame header (B.2.2)."""
    if len(body) < 6 or found.samples:  # noqa: PLR2004 - bytes up to the number of components
        raise RefusedError(Refusal.BROKEN)
    found.rows, found.columns = int.from_bytes(body[1:3]), int.from_bytes(body[3:5])
    found.samples = body[5]
    # Without rows they follow after the first scan (DNL): too late for a budget.
    if body[0] != 8 or found.samples not in (1, 3, 4) or not found.rows:  # noqa: PLR2004 - bits
        raise RefusedError(Refusal.KIND)


def scan(body: bytes, depths: dict[int, list[int]]) -> None:
    """Notes what a scan header (B.2.3) says that the scan holds.

    depths: component → bits that each coefficient still lacks.
    """
    components = body[0] if body else 0
    if len(body) != 4 + 2 * components:
        raise RefusedError(Refusal.BROKEN)
    # Ss, Se and Al: the coefficients of this scan, and the bits that it leaves to later ones
    # (B.2.3).
    first, last, shift = body[-3], body[-2], body[-1] & 0x0F
    for component in body[1 : 1 + 2 * components : 2]:
        if component not in depths or not first <= last < COEFFICIENTS:
            raise RefusedError(Refusal.BROKEN)
        depths[component][first : last + 1] = [shift] * (last + 1 - first)


def count(marker: int, body: bytes, found: Found) -> None:
    """Counts what a segment holds beside the picture."""
    removed = found.removed
    if marker == COM:
        removed[Kind.COMMENT] += 1
    elif marker == APP0:
        thumbnail = body[JFIF_THUMBNAIL : JFIF_THUMBNAIL + 2]
        removed[Kind.THUMBNAIL] += body.startswith(b"JFXX") or bool(thumbnail.strip(b"\0"))
    elif marker == APP1 and body.startswith(b"Exif\0"):
        count_exif(body[6:], found)
    elif marker == APP1 and body.startswith(b"http://ns.adobe.com/x"):
        removed[Kind.XMP] += 1
    elif marker == APP2 and body.startswith(b"ICC_PROFILE\0"):
        found.has_profile = True
        removed[Kind.COLOR_PROFILE] = 1  # however many segments it takes
    elif marker == APP2 and body.startswith(b"MPF\0"):
        removed[Kind.EMBEDDED_IMAGE] += 1
    elif marker == APP13:
        removed[Kind.IPTC] += IPTC in body
        removed[Kind.THUMBNAIL] += any(each in body for each in PHOTOSHOP_THUMBNAILS)
        removed[Kind.OTHER] += IPTC not in body
    # APP14 says how colours are coded, so it is no metadata.
    elif APP1 <= marker <= APP15 and marker != APP14:
        removed[Kind.OTHER] += 1
