"""Photographs and archives with something wrong, each made anew from a seed and a number."""

import io
import random
import zipfile
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import numpy as np
from dicom_worker.photographs.testing import HEIC, HEIC_10, chunk, exif, gradient, saved, segment
from dicom_worker.testing import wheel_file
from PIL import Image, ImageCms

from fuzzing.files import NAME

LENGTHS: Final = (0, 1, 2, 7, 8, 255, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
HEAD_BYTES: Final = 400
"""Where most formats say what they are, and mutations hurt most."""


@cache
def pictures() -> Sequence[bytes]:
    """Good photographs of every format, with the patient's name beside the pixels."""
    told = exif(6)
    told[0x010E] = NAME
    beside: dict[str, Any] = {"exif": told, "icc_profile": profile()}
    rgb = Image.fromarray(gradient())
    grey = Image.fromarray(np.arange(48 * 80, dtype=np.uint16).reshape(48, 80) * 17)
    others = [rgb.rotate(angle) for angle in (90, 180)]
    jpeg = saved(rgb, "JPEG", **beside)
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + NAME.encode())
    png = saved(rgb, "PNG", **beside)
    return (
        jpeg[:2] + xmp + segment(0xFE, NAME.encode()) + jpeg[2:],
        saved(rgb, "JPEG", progressive=True),
        saved(rgb.convert("CMYK"), "JPEG"),
        png[:33] + chunk(b"tEXt", b"Author\0" + NAME.encode()) + png[33:],
        saved(grey, "PNG"),
        saved(rgb.convert("P"), "PNG", transparency=3),
        saved(rgb, "PNG", save_all=True, append_images=others),
        saved(rgb, "WEBP", **beside),
        saved(rgb, "WEBP", lossless=True),
        saved(rgb, "WEBP", save_all=True, append_images=others),
        saved(rgb, "TIFF", **beside),
        saved(grey, "TIFF", compression="tiff_deflate"),
        saved(rgb, "TIFF", compression="tiff_lzw", save_all=True, append_images=others),
        saved(rgb, "TIFF", compression="jpeg"),
        saved(rgb.convert("1"), "TIFF", compression="group4"),
        HEIC,
        HEIC_10,
        saved(rgb, "GIF"),
    )


@cache
def archives() -> Sequence[bytes]:
    """Archives of photographs and a DICOM file, some names hostile."""
    made = []
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", kind) as archive:
            archive.writestr(f"../../{NAME}.jpg", pictures()[0])
            archive.writestr("/etc/passwd", pictures()[8])
            archive.writestr("folder/", b"")
            archive.writestr("folder/CT", wheel_file("MR_small_RLE").read_bytes())
            archive.writestr("blank", bytes(100_000))
            archive.comment = NAME.encode()
        made.append(buffer.getvalue())
    return made


def profile() -> bytes:
    """An ICC profile."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def photograph(seed: int, number: int) -> bytes:
    """Photograph `number` of this seed."""
    return damaged(pictures(), random.Random(f"photograph {seed}/{number}"))


def archive(seed: int, number: int) -> bytes:
    """Archive `number` of this seed. Damage at the end is damage to its directory."""
    return damaged(archives(), random.Random(f"archive {seed}/{number}"))


def damaged(sources: Sequence[bytes], chance: random.Random) -> bytes:
    """One of these with one to three things wrong."""
    data = chance.choice(sources)
    for _ in range(chance.choice((1, 1, 2, 3))):
        data = once(data, chance.choice(sources), chance)
    return data


def once(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """One thing more is wrong with the data. other: that parts may be taken from."""
    end = len(data)
    place = chance.choice((chance.randrange(end + 1), chance.randrange(min(end, HEAD_BYTES) + 1)))
    if chance.random() < 0.2:
        place = max(0, end - chance.randrange(HEAD_BYTES))
    size = chance.choice((1, 2, 4, 8, 64, 512, 4096))
    length = chance.choice(LENGTHS).to_bytes(4, chance.choice(("big", "little")))
    wide = chance.choice((2, 4))
    return chance.choice(
        (
            data[:place] + bytes((chance.randrange(256),)) + data[place + 1 :],
            data[:place] + bytes((chance.choice((0, 0x7F, 0x80, 0xFF)),)) + data[place + 1 :],
            data[:place] + length[:wide] + data[place + wide :],
            data[:place] + length[-wide:] + data[place + wide :],
            data[:place],
            data[:place] + data[place + size :],
            data[: place + size] + data[place:],
            data[:place] + chance.randbytes(size) + data[place:],
            data[:place] + other[place:],
            data + other,
        )
    )
