"""Reads HEIC by libheif, with the boxes of its container (ISO/IEC 14496-12) looked at before."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dicom_worker.photographs.found import Format, Found, Kind
from dicom_worker.photographs.ifd import count_exif
from dicom_worker.photographs.refusals import Refusal, RefusedError

BRANDS: Final = frozenset(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
)
"""Major brands of files whose pictures are HEVC; with the last two it shows once they are read."""
BOX_LIMIT: Final = 10_000
BANDS: Final = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
"""Modes of libheif's pictures, without their depth, and samples per pixel."""
SAME_AS_SRGB: Final = (frozenset((1, 2, 5, 6, 7)), frozenset((1, 2, 6, 13)))
"""Colour primaries and transfer characteristics (ITU-T H.273) that sRGB is shown like."""


def is_heic(head: bytes) -> bool:
    """Whether a file that starts so says that it is HEIC."""
    return head[4:8] == b"ftyp" and head[8:12] in BRANDS


def walk(data: bytes) -> Found:
    """What the file says of its primary picture; the others are counted and left out.

    Exif's orientation does not count: the container has one of its own, which libheif follows.
    """
    check_boxes(data)
    heif = opened(data)
    info = heif.info
    found = Found(Format.HEIC, rows=heif.size[1], columns=heif.size[0], is_lossy=True)
    found.samples = BANDS.get(heif.mode.partition(";")[0], 0)
    if not found.samples:
        raise RefusedError(Refusal.KIND)
    # 10 and 12 bits are spread over 16, see `decoded`.
    found.bits = 8 if info["bit_depth"] == 8 else 16  # noqa: PLR2004 - bits of a byte
    found.has_profile = "icc_profile" in info
    removed = found.removed
    removed[Kind.COLOR_PROFILE] += found.has_profile
    removed[Kind.EMBEDDED_IMAGE] += len(heif) - 1 + len(info["depth_images"])
    removed[Kind.EMBEDDED_IMAGE] += sum(len(each) for each in info["aux"].values())
    removed[Kind.THUMBNAIL] += len(info["thumbnails"])
    removed[Kind.XMP] += "xmp" in info
    if info["exif"]:
        count_exif(info["exif"].removeprefix(b"Exif\0\0"), found)
    removed[Kind.OTHER] += max(0, len(info["metadata"]) - bool(info["exif"]) - ("xmp" in info))
    found.orientation = 1
    nclx = info.get("nclx_profile")
    # Where both are there, the profile decides.
    if nclx and not found.has_profile:
        primaries, transfer = SAME_AS_SRGB
        if (
            nclx["color_primaries"] not in primaries
            or nclx["transfer_characteristics"] not in transfer
        ):
            raise RefusedError(Refusal.HDR)
    return found


def check_boxes(data: bytes) -> None:
    """RefusedError TRUNCATED if a box of the file goes on past its end."""
    position = 0
    for _ in range(BOX_LIMIT):
        if position == len(data):
            return
        size, head = int.from_bytes(data[position : position + 4]), 8
        # 1 stands for a size of 64 bits behind the type (ISO/IEC 14496-12, 4.2).
        if size == 1:
            size, head = int.from_bytes(data[position + 8 : position + 16]), 16
        if size == 0:  # up to the end of the file
            return
        if position + size > len(data) or len(data) - position < head:
            raise RefusedError(Refusal.TRUNCATED)
        if size < head:
            raise RefusedError(Refusal.BROKEN)
        position += size
    raise RefusedError(Refusal.PARTS)


def opened(data: bytes) -> Any:
    """The file as libheif has it, not decoded. Its own limits stay on."""
    from pi_heif import open_heif  # noqa: PLC0415 - loads libheif, here alone

    return open_heif(data, convert_hdr_to_8bit=False)


def decoded(data: bytes, found: Found) -> tuple[NDArray[Any], bytes]:
    """The primary picture, (rows, columns) or (rows, columns, samples), and its ICC profile.

    Turned as its container says. Of 10 and 12 bits, 65535 is white.
    """
    heif = opened(data)
    array = np.asarray(heif)
    depth = heif.info["bit_depth"]
    if found.bits > 8:  # noqa: PLR2004 - bits of a byte
        # libheif's bits stand highest; repeated below, they fill the scale.
        array = array | array >> depth
    # Colours that were multiplied by a small alpha have lost the digits that a division would need.
    if heif.premultiplied_alpha:
        raise RefusedError(Refusal.KIND)
    return array, heif.info.get("icc_profile") or b""
