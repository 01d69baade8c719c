"""Walks the chunks of a PNG (W3C, third edition), and checks their checksums."""

import zlib
from typing import Final

from dicom_worker.photographs.found import Format, Found, Kind
from dicom_worker.photographs.ifd import count_exif
from dicom_worker.photographs.refusals import Refusal, RefusedError

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
CHUNK_LIMIT: Final = 100_000
CHANNELS: Final = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
"""Colour type → samples per pixel; a palette is of colours."""
PICTURE: Final = frozenset(
    (
        *(b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"acTL", b"fcTL", b"fdAT"),
        *(b"cHRM", b"gAMA", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"sBIT", b"bKGD", b"hIST", b"pHYs"),
    )
)
"""Chunks that say how the picture looks. Nothing else is in them."""
TEXTS: Final = frozenset((b"tEXt", b"zTXt", b"iTXt"))
SAME_AS_SRGB: Final = (frozenset((1, 2)), frozenset((1, 2, 6, 13)))
"""Colour primaries and transfer characteristics (ITU-T H.273) that sRGB is shown like."""


def walk(data: bytes) -> Found:
    """What the file says of its picture, or pictures. RefusedError if it is cut off or damaged."""
    found, position, seen = Found(Format.PNG), len(SIGNATURE), set[bytes]()
    for number in range(CHUNK_LIMIT):
        length, name = int.from_bytes(data[position : position + 4]), data[position + 4 :][:4]
        end = position + 12 + length
        if end > len(data):
            raise RefusedError(Refusal.TRUNCATED)
        # Decoders go on after a wrong checksum in chunks that they can do without.
        if zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise RefusedError(Refusal.CHECKSUM)
        # Decoders differ on what a second header means, and the budget was made by the first.
        if (number == 0) != (name == b"IHDR"):
            raise RefusedError(Refusal.BROKEN)
        body = data[position + 8 : end - 4]
        (look if name in PICTURE else count)(name, body, found)
        # The still picture of an animation is one more, unless it is the first of it.
        if name == b"IDAT" and b"IDAT" not in seen and b"acTL" in seen and b"fcTL" not in seen:
            found.frames += 1
        seen.add(name)
        position = end
        if name == b"IEND":
            break
    else:
        raise RefusedError(Refusal.PARTS)
    found.removed[Kind.TRAILING_DATA] += bool(data[position:].strip(b"\0"))
    return found


def look(name: bytes, body: bytes, found: Found) -> None:
    """Reads a chunk that says what the picture is like."""
    if name == b"IHDR":
        if len(body) != 13 or body[9] not in CHANNELS:  # noqa: PLR2004 - bytes of IHDR
            raise RefusedError(Refusal.BROKEN)
        found.columns, found.rows = int.from_bytes(body[:4]), int.from_bytes(body[4:8])
        found.bits, found.samples = max(8, body[8]), CHANNELS[body[9]]
    elif name == b"acTL":
        found.frames = int.from_bytes(body[:4])
    elif name == b"tRNS" and found.bits > 8:  # noqa: PLR2004 - bits of a byte
        # The decoder of 16 bits would show the transparent colour.
        raise RefusedError(Refusal.KIND)
    elif name == b"cICP":
        primaries, transfer = SAME_AS_SRGB
        if len(body) != 4 or body[0] not in primaries or body[1] not in transfer:  # noqa: PLR2004 - bytes of cICP
            raise RefusedError(Refusal.HDR)


def count(name: bytes, body: bytes, found: Found) -> None:
    """Counts a chunk that tells something beside the picture."""
    removed = found.removed
    if name == b"iCCP":
        found.has_profile = True
        removed[Kind.COLOR_PROFILE] += 1
    elif name == b"eXIf":
        count_exif(body, found)
    elif name in TEXTS:
        keyword = body.partition(b"\0")[0].lower()
        removed[kind_of_text(keyword)] += 1
    else:
        removed[Kind.OTHER] += 1


def kind_of_text(keyword: bytes) -> Kind:
    """What a text chunk with this keyword holds; other programs keep whole blocks in them."""
    if b"xmp" in keyword:
        return Kind.XMP
    if keyword.startswith(b"raw profile type "):
        kind = keyword.rpartition(b" ")[2]
        return {b"iptc": Kind.IPTC, b"8bim": Kind.IPTC}.get(kind, Kind.EXIF)
    return Kind.TEXT
