"""Walks the directories of a TIFF (TIFF 6.0, BigTIFF)."""

from contextlib import suppress
from typing import Final

from dicom_worker import limits
from dicom_worker.photographs.found import Format, Found, Kind
from dicom_worker.photographs.ifd import (
    EXIF_IFD,
    GPS_IFD,
    ORIENTATION,
    SUB_IFDS,
    Tag,
    Tags,
    count_exif_tags,
)
from dicom_worker.photographs.refusals import Refusal, RefusedError

SUBFILE, COLUMNS, ROWS, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
SAMPLES, TILE_COLUMNS, TILE_ROWS, EXTRA_SAMPLES, SAMPLE_FORMAT = 277, 322, 323, 338, 339
PROFILE, DNG_VERSION = 34675, 50706
STRAIGHT: Final = 2
"""ExtraSamples of an alpha channel that has not been multiplied into the colours."""
REDUCED, MASK = 1, 4
"""Bits of NewSubfileType: a smaller version of another picture, a mask."""
CHANNELS: Final = {0: (1, 2), 1: (1, 2), 2: (3, 4), 3: (1,), 5: (4,), 6: (3,)}
"""Photometric Interpretation → samples per pixel: grey, RGB, palette, CMYK, YCbCr."""
PALETTE: Final = 3
DEPTHS: Final = frozenset((1, 2, 4, 8, 16))
WIDE: Final = 16
OLD_JPEG: Final = 6
"""JPEG as TIFF 6.0 has it, which Technical Note 2 withdrew: readers differ."""
TEXTS: Final = frozenset((269, 270, 271, 272, 285, 305, 306, 315, 316, 33432))
"""DocumentName, ImageDescription, Make, Model, PageName, Software, DateTime, Artist, HostComputer,
Copyright."""
KINDS: Final = {
    EXIF_IFD: Kind.EXIF,
    700: Kind.XMP,
    33723: Kind.IPTC,
    34377: Kind.OTHER,  # Photoshop
    37724: Kind.OTHER,  # Photoshop's layers
    PROFILE: Kind.COLOR_PROFILE,
}
PRIVATE: Final = 32768
"""Tags from here on are of those who registered them."""


def walk(data: bytes) -> Found:
    """What the file says of its pictures. Smaller versions and masks are counted and left out.

    RefusedError if it is cut off, broken or a raw file, or if its pictures differ.
    """
    tags = Tags(data)
    # Canon's raw files (CR2) are TIFFs whose first picture is a preview.
    if data[8:10] == b"CR":
        raise RefusedError(Refusal.RAW)
    found = Found(Format.TIFF)
    kinds = set()
    for number, page in enumerate(tags.chain(2 * limits.PHOTOGRAPH_FRAME_LIMIT)):
        count(tags, page, found)
        subfile = tags.number(page.get(SUBFILE), 0)
        if subfile & (REDUCED | MASK):
            found.removed[Kind.THUMBNAIL if subfile & REDUCED else Kind.EMBEDDED_IMAGE] += 1
            continue
        # One array holds all pictures, so they must be of one size and kind.
        kinds.add(shape(tags, page, found))
        found.pages.append(number)
    if not found.pages:
        raise RefusedError(Refusal.RAW)
    if len(kinds) > 1:
        raise RefusedError(Refusal.PAGES)
    found.frames = len(found.pages)
    return found


def shape(tags: Tags, page: dict[int, Tag], found: Found) -> tuple[int, ...]:
    """Reads what a picture is like. RefusedError unless it is one that is read."""
    found.columns = tags.number(page.get(COLUMNS), 0)
    found.rows = tags.number(page.get(ROWS), 0)
    found.samples = tags.number(page.get(SAMPLES), 1)
    photometric = tags.number(page.get(PHOTOMETRIC), -1)
    bits = set(tags.numbers(page.get(BITS)) or [1])
    formats = set(tags.numbers(page.get(SAMPLE_FORMAT)) or [1])
    known = found.samples in CHANNELS.get(photometric, ()) and formats == {1}
    if not known or len(bits) > 1 or not bits <= DEPTHS:
        raise RefusedError(Refusal.KIND)
    (depth,) = bits
    if depth == WIDE and photometric not in (0, 1, 2):
        raise RefusedError(Refusal.KIND)
    extra = tags.number(page.get(EXTRA_SAMPLES), STRAIGHT)
    if depth == WIDE and found.samples in (2, 4) and extra != STRAIGHT:
        raise RefusedError(Refusal.KIND)
    if tags.number(page.get(COMPRESSION), 1) == OLD_JPEG:
        raise RefusedError(Refusal.KIND)
    # A tile is decoded as a whole, however small the picture is.
    tile = tags.number(page.get(TILE_COLUMNS), 0) * tags.number(page.get(TILE_ROWS), 0)
    if tile * found.samples * max(1, depth // 8) > limits.PHOTOGRAPH_LIMIT_BYTES:
        raise RefusedError(Refusal.PICTURE_BYTES)
    if photometric == PALETTE:
        found.samples = 3
    found.bits, found.inverted = max(8, depth), photometric == 0
    orientation = tags.number(page.get(ORIENTATION), 1)
    found.orientation = orientation if orientation in range(1, 9) else 1
    return found.columns, found.rows, found.samples, found.bits, photometric, found.orientation


def count(tags: Tags, page: dict[int, Tag], found: Found) -> None:
    """Counts what a directory tells beside its picture."""
    if DNG_VERSION in page:
        raise RefusedError(Refusal.RAW)
    if profile := page.get(PROFILE):
        found.has_profile = True
        found.profile = tags.data[profile.offset : profile.offset + profile.count]
    found.removed[Kind.EMBEDDED_IMAGE] += len(tags.numbers(page.get(SUB_IFDS)))
    # An Exif directory that cannot be read has nothing to count.
    with suppress(RefusedError):
        count_exif_tags(tags, page, found)
    for number in page:
        if number in KINDS:
            found.removed[KINDS[number]] += 1
        elif number in TEXTS:
            found.removed[Kind.TEXT] += 1
        elif number >= PRIVATE and number != GPS_IFD:
            found.removed[Kind.OTHER] += 1
