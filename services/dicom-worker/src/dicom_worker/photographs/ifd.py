"""Reads directories of tags as TIFF 6.0 and BigTIFF have them; Exif (CIPA DC-008) is one, too."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from dicom_worker.photographs.found import Found, Kind
from dicom_worker.photographs.refusals import Refusal, RefusedError

ORIENTATION, SUB_IFDS, EXIF_IFD, GPS_IFD = 0x0112, 0x014A, 0x8769, 0x8825
MAKER_NOTE, COLOUR_SPACE, INTEROPERABILITY = 0x927C, 0xA001, 0xA005
UNCALIBRATED: Final = 0xFFFF
ADOBE_RGB: Final = b"R03"
"""Interoperability index of files in Adobe RGB (DCF 2.0, 3.3.2)."""
TAG_LIMIT: Final = 4096
"""Tags of one directory. Those of cameras have some 60."""
VALUE_LIMIT: Final = 64
"""Numbers that are read of one value: enough for any that says what a picture is."""
WIDTHS: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
"""Type of a value → bytes (TIFF 6.0 section 2)."""
WIDTHS_64: Final = {13: 4, 16: 8, 17: 8, 18: 8}
"""The same of an IFD pointer, and of BigTIFF's numbers."""
INTEGERS: Final = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
"""Type of a number that counts or points → its code in `struct`."""


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag of a directory. count: of values. offset: where the first lies in the data."""

    number: int
    kind: int
    count: int
    offset: int


class Tags:
    """The directories in `data`. RefusedError UNKNOWN if it does not start as TIFF does."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
        if order is None or len(data) < 8:  # noqa: PLR2004 - bytes of the header
            raise RefusedError(Refusal.UNKNOWN)
        self.order = order
        magic = self._number("H", 2)
        if magic not in (42, 43):
            raise RefusedError(Refusal.UNKNOWN)
        self.big = magic == 43  # noqa: PLR2004 - BigTIFF's own number
        self.first = self._number("Q", 8) if self.big else self._number("I", 4)

    def _number(self, code: str, offset: int) -> int:
        try:
            (value,) = struct.unpack_from(self.order + code, self.data, offset)
        except struct.error:
            raise RefusedError(Refusal.TRUNCATED) from None
        return int(value)

    def directory(self, offset: int) -> tuple[dict[int, Tag], int]:
        """The tags of the directory there, and where the next one is; 0 if it is the last.

        RefusedError: TRUNCATED if it or a value is not in the data, PARTS past `TAG_LIMIT`.
        """
        head, width, pointer = (8, 20, 8) if self.big else (2, 12, 4)
        count = self._number("Q" if self.big else "H", offset)
        if count > TAG_LIMIT:
            raise RefusedError(Refusal.PARTS)
        tags = {}
        for place in range(offset + head, offset + head + width * count, width):
            number, kind = self._number("H", place), self._number("H", place + 2)
            length = self._number("Q" if self.big else "I", place + 4)
            size = length * (WIDTHS.get(kind) or WIDTHS_64.get(kind, 1))
            # A value that is no longer than a pointer stands in its place (TIFF 6.0 section 2).
            inline = place + width - pointer
            at = inline if size <= pointer else self._number("Q" if self.big else "I", inline)
            if at + size > len(self.data):
                raise RefusedError(Refusal.TRUNCATED)
            tags[number] = Tag(number, kind, length, at)
        after = self._number("Q" if self.big else "I", offset + head + width * count)
        return tags, after

    def numbers(self, tag: Tag | None) -> list[int]:
        """The numbers of a tag, `VALUE_LIMIT` at most; none if it has none, or of another type."""
        if tag is None or tag.kind not in INTEGERS:
            return []
        # The count is the file's word: without a limit it makes a list of that length.
        count = min(tag.count, VALUE_LIMIT)
        code = self.order + INTEGERS[tag.kind] * count
        return [int(each) for each in struct.unpack_from(code, self.data, tag.offset)]

    def number(self, tag: Tag | None, default: int) -> int:
        """The first number of a tag."""
        return next(iter(self.numbers(tag)), default)

    def chain(self, limit: int) -> Iterator[dict[int, Tag]]:
        """Every directory from the first on. RefusedError FRAMES past `limit`, BROKEN in a loop."""
        offset, seen = self.first, set[int]()
        while offset:
            # Each directory points at the next one, so a hostile file can go round for ever.
            if offset in seen:
                raise RefusedError(Refusal.BROKEN)
            if len(seen) >= limit:
                raise RefusedError(Refusal.FRAMES)
            seen.add(offset)
            tags, offset = self.directory(offset)
            yield tags


def count_exif(data: bytes, found: Found) -> None:
    """Counts an Exif block, and what is in it; takes its orientation.

    A block that cannot be read counts as one, and says nothing: no picture depends on it.
    """
    found.removed[Kind.EXIF] += 1
    try:
        tags = Tags(data)
        first, thumbnail = tags.directory(tags.first)
        orientation = tags.number(first.get(ORIENTATION), 1)
        found.removed[Kind.THUMBNAIL] += thumbnail != 0
        count_exif_tags(tags, first, found)
    except RefusedError:
        return
    # The first block that says something is the one that viewers follow.
    if found.orientation == 1 and orientation in range(1, 9):
        found.orientation = orientation


def count_exif_tags(tags: Tags, directory: dict[int, Tag], found: Found) -> None:
    """Counts places and maker notes that a directory leads to, and looks for Adobe RGB."""
    found.removed[Kind.GPS] += GPS_IFD in directory
    if pointer := tags.number(directory.get(EXIF_IFD), 0):
        inner, _ = tags.directory(pointer)
        found.removed[Kind.MAKER_NOTE] += MAKER_NOTE in inner
        interoperability = tags.number(inner.get(INTEROPERABILITY), 0)
        if tags.number(inner.get(COLOUR_SPACE), 1) == UNCALIBRATED and interoperability:
            index = tags.directory(interoperability)[0].get(1)
            if index and tags.data[index.offset : index.offset + 3] == ADOBE_RGB:
                found.is_adobe_rgb = True
