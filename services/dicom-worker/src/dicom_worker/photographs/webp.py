"""Walks the chunks of a WebP (RFC 9649)."""

from typing import Final

from dicom_worker.photographs.found import Format, Found, Kind
from dicom_worker.photographs.ifd import count_exif
from dicom_worker.photographs.refusals import Refusal, RefusedError

HEAD: Final = 12
"""Bytes before the first chunk."""
CHUNK_LIMIT: Final = 10_000
PICTURE: Final = frozenset((b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"))
SIZE_14: Final = 0x3FFF
"""Sizes of simple files have 14 bits."""
ALPHA: Final = 0x10


def walk(data: bytes) -> Found:
    """What the file says of its picture, or pictures. RefusedError if it is cut off or broken."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise RefusedError(Refusal.TRUNCATED)
    found, position, frames = Found(Format.WEBP, samples=3), HEAD, 0
    for _ in range(CHUNK_LIMIT):
        if position + 8 > end:
            break
        name, length = data[position : position + 4], data[position + 4 : position + 8]
        after = position + 8 + int.from_bytes(length, "little")
        if after > end:
            raise RefusedError(Refusal.TRUNCATED)
        body = data[position + 8 : after]
        frames += name == b"ANMF"
        count(name, body, found)
        # RIFF pads chunks to an even length, and does not count the padding.
        position = after + after % 2
    else:
        raise RefusedError(Refusal.PARTS)
    found.frames = max(1, frames)
    found.removed[Kind.TRAILING_DATA] += bool(data[end:].strip(b"\0"))
    return found


def count(name: bytes, body: bytes, found: Found) -> None:
    """Reads or counts a chunk."""
    removed = found.removed
    if name == b"VP8X" and len(body) >= 10:  # noqa: PLR2004 - bytes of VP8X
        found.columns = 1 + int.from_bytes(body[4:7], "little")
        found.rows = 1 + int.from_bytes(body[7:10], "little")
        found.samples = 4 if body[0] & ALPHA else 3
    elif name == b"VP8 " and len(body) >= 10:  # noqa: PLR2004 - bytes of a key frame's header
        found.scan_bytes, found.is_lossy = len(body), True
        columns, rows = (int.from_bytes(body[at : at + 2], "little") & SIZE_14 for at in (6, 8))
        # An extended file has said its size already.
        found.columns, found.rows = found.columns or columns, found.rows or rows
    elif name == b"VP8L" and len(body) >= 5:  # noqa: PLR2004 - bytes of its header
        bits = int.from_bytes(body[1:5], "little")
        found.samples = 4 if bits >> 28 & 1 else found.samples
        found.columns = found.columns or 1 + (bits & SIZE_14)
        found.rows = found.rows or 1 + (bits >> 14 & SIZE_14)
    elif name == b"ICCP":
        found.has_profile = True
        removed[Kind.COLOR_PROFILE] += 1
    elif name == b"EXIF":
        count_exif(body.removeprefix(b"Exif\0\0"), found)
    elif name == b"XMP ":
        removed[Kind.XMP] += 1
    elif name not in PICTURE:
        removed[Kind.OTHER] += 1
