"""Photographs for tests: a known picture in every format, and what hostile files are made of."""

import io
import struct
import zlib
from base64 import b64decode
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ROWS, COLUMNS = 48, 80
NAME = "Doe^Jane"
"""A name that is planted wherever a file tells something."""
M = Image.Transpose
STORED = {
    2: M.FLIP_LEFT_RIGHT,
    3: M.ROTATE_180,
    4: M.FLIP_TOP_BOTTOM,
    5: M.TRANSPOSE,
    6: M.ROTATE_90,
    7: M.TRANSVERSE,
    8: M.ROTATE_270,
}
"""Exif's Orientation → how an upright picture is stored for it (CIPA DC-008 4.6.4)."""
LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}
HEIC = b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAUJtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAA"
    "AAAAAAAAAAAAAA5waXRtAAAAAAABAAAAImlsb2MAAAAAREAAAQABAAAAAAFmAAEAAAAAAAAA3gAAACNpaW5mAAAA"
    "AAABAAAAFWluZmUCAAAAAAEAAGh2YzEAAAAAwmlwcnAAAACkaXBjbwAAAHhodmNDAQNwAAAAAAAAAAAAHvAA/P34"
    "+AAADwMgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQCEAAQArQgEBA3AAAAMAkAAAAwAAAwAeoDCBBZbqSSmu"
    "bgQEDAgAAAMACAAAAwAIQCIAAQAHRAHBcrAiQAAAABRpc3BlAAAAAAAAAGAAAABAAAAAEHBpeGkAAAAAAwgICAAA"
    "ABZpcG1hAAAAAAAAAAEAAQOBAoMAAADmbWRhdAAAANooAa8E+O2e9J12/+/v///6TMdl/ZVRCd0uvvpLbf/stT//"
    "uN2MZr9YseWXriRNrfIz2yfYD2j1XlvZGArRY2oypvGpb9c/PBXTsZ7UNw6wXdAftTdmYF6xc8VTOjZjKVtFqMYX"
    "T/P3+jfswO3/76z5lGG5fM40hjRIs2NPKniz1mtv40xaedS6jA2oSlB421IpxeWrrsbYLx7j2GHkxOqGFF/PXUNo"
    "v/kv3/yE/Vb/Tllfgt9rpDc1jAlkLnChxoA4AtaooYm/ESlbDbasYrTEarRUHdJhX9MzEQ=="
)
"""64 rows of 96 pixels in four colours, made by libheif's heif-enc and x265."""
HEIC_10 = b64decode(
    "AAAAHGZ0eXBoZWl4AAAAAG1pZjFoZWl4bWlhZgAAAVZtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAA"
    "AAAAAAAAAAAAACJpbG9jAAAAAERAAAEAAQAAAAABegABAAAAAAAAAkgAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAA"
    "AAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA1mlwcnAAAAC3aXBjbwAAAHhodmNDAQQIAAAAnDgAAAAA//AA/P/6"
    "+gAADwNgAAEAF0ABDAH//wQIAAADAJw4AAADAAD/ugJAYQABACtCAQEECAAAAwCcOAAAAwAA/5AGECCbLdSSU1zc"
    "BDQYEAAAAwGQAAADABCAYgABAAhEAcFwMGCRIAAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABgAAAA"
    "QAAAABBwaXhpAAAAAAMKCgoAAAAXaXBtYQAAAAAAAAABAAEEgQIDBAAAAlBtZGF0AAACRCgBrwW4FHuiWf//0n/p"
    "H+ifzz8s/LPyz8s/Lfy38t/Lfy38t/Lfy0qH//yJ2v//9gba/XrltWxSuUrlK5SuUujLoy6MujLoy6MujLDT/9j3"
    "QA/++v/fP/ev+7f7d/t3+3f7d/t7+3v7e/t7+3v7e/t7+3rwJmK2JYhZQ5fpxTWJLD/bHdwgGfz4357n54XzjvMm"
    "8ybzJvMm8y1zLXMtcy1zLXMtcy1zJ1N/axX//9j57GZsDFawT4E+BPgT4FA1QNUDVA1QNUDVA1Pj3+a/f//9wyvu"
    "Eb7fM9tsdp4dp4dp4dp4dqHtqHtqHtqHtqHtqHtqHtp8gF0s8hABieAABs5lizHrLoJPX7H7G8G7H81dNPc/NXTT"
    "3R018YQABBMKSoSigpf9BQdQcqvAdRe03C8EXtNwvCTcxSdVFIwIW8Eyv//5PyybPInYziEMhDIQyEMhL0S9EvRL"
    "0S9EvRL0RANQVgBu+jNf0Y0dFVmhzSgESgESgESgESgLOgLOgLOgLOgLOgLOgLOgEUbKx///pe09LqbSuapLBIyp"
    "IypIypIypI0Ko0Ko0Ko0Ko0Ko0Ko0KozErZwCaLfslFCN2SDJ7//9ipsJS2bPTYNg2DYN4nieJ4nieJ4mHKzv//+"
    "R/yH8Z+E9T1PU9T1fV9X1fV9X1fVAPBQAf+9f95/3X+2/rv67+u/rv69+vfr369+vfr369+vHEAANjr+V19eV2sL"
    "SPpv+m/6b/pv+n2KfYp9in2KfYp9in2KdFm8cgOWRQzNXRtKo2g="
)
"""The same size in four other colours, of 10 bits, made by libheif and x265."""


def gradient(rows: int = ROWS, columns: int = COLUMNS) -> NDArray[np.uint8]:
    """A picture that no turn and no mirror leaves as it is."""
    y, x = np.mgrid[0:rows, 0:columns]
    return np.stack([x * 3, y * 5, (x + y) * 2], axis=-1).astype(np.uint8)


def saved(picture: Image.Image | NDArray[Any], format_: str, **options: Any) -> bytes:
    """A picture as a file."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def exif(orientation: int = 1, *, told: bool = False) -> Image.Exif:
    """An Exif block; `told` puts names, a place and a maker note into it."""
    block = Image.Exif()
    block[0x0112] = orientation
    if told:
        block[0x010E] = NAME
        block.get_ifd(0x8769)[0x927C] = NAME.encode()
        block.get_ifd(0x8825).update({1: "N", 2: (52.0, 30.0, 0.0), 29: NAME})
    return block


def segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(rows: int, columns: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG that claims this size and has these chunks."""
    head = struct.pack(">IIBBBBB", columns, rows, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + chunk(b"IEND", b"")


def tiff(tags: dict[int, tuple[int, int, int]]) -> bytes:
    """A little endian TIFF of one directory: number → type, count, value or offset."""
    entries = b"".join(struct.pack("<HHII", each, *tags[each]) for each in sorted(tags))
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)


def inside(data: bytes, path: tuple[bytes, ...]) -> int:
    """Where the last of these boxes, each inside the one before, starts in a HEIC."""
    position, start = 0, 0
    for name in path:
        while data[position + 4 : position + 8] != name:
            position += int.from_bytes(data[position : position + 4])
        start, position = position, position + (12 if name == b"meta" else 8)
    return start


def with_property(box: bytes) -> bytes:
    """`HEIC` with a property more of its one picture: a turn (`irot`) or a mirror (`imir`)."""
    data = bytearray(HEIC)
    grown = len(box) + 1

    def grow(path: tuple[bytes, ...], by: int) -> None:
        at = inside(bytes(data), path)
        data[at : at + 4] = (int.from_bytes(data[at : at + 4]) + by).to_bytes(4)

    # iloc, version 0 with offsets of 4 bytes: the last 8 bytes are offset and length.
    location = inside(HEIC, (b"meta", b"iloc"))
    end = location + int.from_bytes(HEIC[location : location + 4])
    offset = int.from_bytes(HEIC[end - 8 : end - 4]) + grown
    data[end - 8 : end - 4] = offset.to_bytes(4)
    container = inside(HEIC, (b"meta", b"iprp", b"ipco"))
    container_end = container + int.from_bytes(HEIC[container : container + 4])
    associations = inside(HEIC, (b"meta", b"iprp", b"ipma"))
    known, position = 0, container + 8
    while position < container_end:
        known, position = known + 1, position + int.from_bytes(HEIC[position : position + 4])
    # ipma: size, name, version and flags, entries, item, then how many it has, a byte each.
    count = associations + 18
    after = count + 1 + data[count]
    data[count] += 1
    data[after:after] = bytes((0x80 | known + 1,))
    grow((b"meta", b"iprp", b"ipma"), 1)
    data[container_end:container_end] = box
    grow((b"meta", b"iprp", b"ipco"), len(box))
    grow((b"meta", b"iprp"), grown)
    grow((b"meta",), grown)
    return bytes(data)
