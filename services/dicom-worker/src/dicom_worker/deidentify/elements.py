"""A data set as a tree of raw elements, read and written without decoding values (PS3.5 chapter 7).

De-identification replaces whole values, so most of them are never decoded. What is written is
canonical: explicit lengths, no group lengths, no padding, and VRs that every reader agrees on.
"""

import mmap
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import Final, Literal

from fluoro_jobs.errors import FluoroError, Reason
from pydicom.datadict import dictionary_VR

from dicom_worker import limits
from dicom_worker.structure import (
    ITEM,
    ITEM_END,
    LONG_VRS,
    PIXEL_DATA,
    SEQUENCE_END,
    UNDEFINED,
    invalid,
    is_vr,
    truncated,
)

IN_MEMORY_BYTES: Final = 64 * 1024
"""Longer values at the top level stay in the file until they are copied."""
KNOWN_VRS: Final = {
    vr.encode(): vr
    for vr in (
        *("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "OB", "OD"),
        *("OF", "OL", "OV", "OW", "PN", "SH", "SL", "SQ", "SS", "ST", "SV", "TM", "UC", "UI"),
        *("UL", "UN", "UR", "US", "UT", "UV"),
    )
}
"""PS3.5 table 6.2-1, as bytes and as text."""
SHORT_VRS: Final = {vr: text for vr, text in KNOWN_VRS.items() if vr not in LONG_VRS}
"""Those whose length has 16 bits: plain values that are read into memory."""
HEADER_BYTES: Final = 8
"""Of the shortest header: tag, VR and a length of 2 bytes; or tag and a length of 4."""
LITTLE: Final = struct.Struct("<HH2sH")
BIG: Final = struct.Struct(">HH2sH")
ITEM_GROUP: Final = ITEM >> 16
TEXT_VRS: Final = frozenset(("LO", "LT", "PN", "SH", "ST", "UC", "UT"))
"""Those that Specific Character Set (0008,0005) applies to (PS3.5 6.1.2.3)."""
STRING_VRS: Final = TEXT_VRS | {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR"}


@dataclass(slots=True)
class Span:
    """Bytes of the source file."""

    offset: int
    length: int


@dataclass(slots=True)
class Element:
    """One data element.

    vr: as the file has it, or the dictionary's; `UN` if neither knows.
    value: of everything but sequences and fragments. items: of a sequence. fragments: of
    encapsulated pixel data, the Basic Offset Table first.
    """

    tag: int
    vr: str
    value: bytes | Span = b""
    items: "list[list[Element]] | None" = None
    fragments: list[Span] | None = None


TAG: Final = attrgetter("tag")


@dataclass(slots=True)
class Reader:
    """Reads the data set in bytes `start` to `end` of a file.

    data: the file, mapped. explicit: whether the Transfer Syntax writes VRs out. Errors as
    `dicom_worker.structure.Walk`.
    """

    data: mmap.mmap | bytes
    explicit: bool = True
    little_endian: bool = True
    seen: int = field(default=0, init=False)
    held: int = field(default=0, init=False)

    def read(self, start: int, end: int) -> list[Element]:
        """The top-level elements."""
        return self._elements(start, end, self.explicit, depth=0)[0]

    def _elements(
        self, position: int, end: int, explicit: bool, depth: int, *, delimited: bool = False
    ) -> tuple[list[Element], int]:
        """The elements up to `end`, or up to the delimiter of their item; the position after."""
        data = self.data
        if end - position >= 6:  # noqa: PLR2004 - bytes of a tag and a VR
            # The guess of `structure.Walk` and of pydicom: all three must see the same elements.
            explicit = is_vr(data[position + 4 : position + 6])
        unpack = (LITTLE if self.little_endian else BIG).unpack_from
        found: list[Element] = []
        while position < end:
            # Some writers pad files to a block.
            if end - position < HEADER_BYTES and depth == 0 and not any(data[position:end]):
                break
            if end - position < HEADER_BYTES:
                raise truncated()
            group, number, letters, length = unpack(data, position)
            tag = group << 16 | number
            if group == ITEM_GROUP:
                return self._end(found, tag, position, delimited=delimited)
            after = position + HEADER_BYTES + length
            # The way of most elements. Without calls to other methods it takes a fraction of the
            # time.
            if explicit and letters in SHORT_VRS and after <= end:
                self._count()
                self._hold(length)
                value = data[position + HEADER_BYTES : after]
                found.append(Element(tag, SHORT_VRS[letters], value))
                position = after
                continue
            if explicit and (letters in KNOWN_VRS or is_vr(letters)):
                vr = KNOWN_VRS.get(letters, "UN")
            else:
                # No VR, but a length of 4 bytes.
                vr, length, letters = vr_of(tag), self._number(position + 4, end), b""
            if letters in LONG_VRS:
                position += 4
                length = self._number(position + 4, end)
            position += HEADER_BYTES
            self._count()
            element, position = self._value(tag, vr, position, length, end, explicit, depth)
            found.append(element)
        if delimited:
            raise truncated()
        return unambiguous(found), position

    def _end(
        self, found: list[Element], tag: int, position: int, *, delimited: bool
    ) -> tuple[list[Element], int]:
        """The elements of an item that ends with a delimiter at `position`."""
        if tag != ITEM_END or not delimited:
            raise invalid()
        return unambiguous(found), position + HEADER_BYTES

    def _value(
        self, tag: int, vr: str, position: int, length: int, end: int, explicit: bool, depth: int
    ) -> tuple[Element, int]:
        """The element whose value begins at `position`, and the position after it."""
        if length == UNDEFINED:
            if tag == PIXEL_DATA or vr in ("OB", "OW"):
                fragments, position = self._fragments(position, end)
                return Element(tag, vr, fragments=fragments), position
            # UN of undefined length is a sequence in implicit VR (PS3.5 6.2.2 note 4).
            inner = explicit and vr != "UN"
            items, position = self._items(position, end, inner, depth, delimited=True)
            return Element(tag, "SQ", items=items), position
        after = position + length
        if after > end:
            raise truncated()
        # A writer that did not know the attribute; we do.
        # As UN it would be a binary value, which no sweep looks at.
        if vr == "UN" and vr_of(tag) in STRING_VRS:
            vr = vr_of(tag)
        if vr == "SQ" or (vr == "UN" and explicit and vr_of(tag) == "SQ"):
            items, _ = self._items(position, after, explicit and vr != "UN", depth)
            return Element(tag, "SQ", items=items), after
        # Only at the top, because a sequence is written from memory as a whole.
        if depth == 0 and length > IN_MEMORY_BYTES:
            return Element(tag, vr, Span(position, length)), after
        self._hold(length)
        return Element(tag, vr, self.data[position:after]), after

    def _items(
        self, position: int, end: int, explicit: bool, depth: int, *, delimited: bool = False
    ) -> tuple[list[list[Element]], int]:
        """The items of a sequence, and the position after it."""
        if depth >= limits.DEPTH_LIMIT:
            raise FluoroError(
                Reason.DICOM_INVALID, f"Sequences are more than {limits.DEPTH_LIMIT} deep."
            )
        items: list[list[Element]] = []
        while position < end:
            tag, length, position = self._item(position, end)
            if tag == SEQUENCE_END and delimited:
                return items, position
            if tag != ITEM:
                raise invalid()
            if length == UNDEFINED:
                item, position = self._elements(position, end, explicit, depth + 1, delimited=True)
            else:
                if position + length > end:
                    raise truncated()
                item, position = self._elements(position, position + length, explicit, depth + 1)
            items.append(item)
        if delimited:
            raise truncated()
        return items, position

    def _fragments(self, position: int, end: int) -> tuple[list[Span], int]:
        """The items of encapsulated pixel data, and the position after them (PS3.5 A.4)."""
        fragments: list[Span] = []
        while True:
            tag, length, position = self._item(position, end)
            if tag == SEQUENCE_END:
                return fragments, position
            if tag != ITEM or length == UNDEFINED:
                raise invalid()
            if position + length > end:
                raise truncated()
            fragments.append(Span(position, length))
            position += length

    def _item(self, position: int, end: int) -> tuple[int, int, int]:
        """Tag and length of an item or delimiter, and the position after them."""
        if end - position < 8:  # noqa: PLR2004 - a tag and a length
            raise truncated()
        self._count()
        group, number, length = struct.unpack_from(
            "<HHL" if self.little_endian else ">HHL", self.data, position
        )
        return group << 16 | number, length, position + 8

    def _count(self) -> None:
        self.seen += 1
        if self.seen > limits.ELEMENT_LIMIT:
            raise FluoroError(
                Reason.IMAGE_TOO_LARGE,
                f"The data set has more than {limits.ELEMENT_LIMIT} elements.",
            )

    def _hold(self, length: int) -> None:
        self.held += length
        if self.held > limits.HEADER_LIMIT_BYTES:
            raise FluoroError(
                Reason.IMAGE_TOO_LARGE,
                f"The header has more than {limits.HEADER_LIMIT_BYTES} bytes.",
            )

    def _number(self, position: int, end: int) -> int:
        """The length, of 4 bytes, at `position`."""
        if end - position < 4:  # noqa: PLR2004 - its bytes
            raise truncated()
        order: Literal["little", "big"] = "little" if self.little_endian else "big"
        return int.from_bytes(self.data[position : position + 4], order)


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes elements in the encoding of a Transfer Syntax.

    fetch: reads a span of the source.
    """

    explicit: bool
    little_endian: bool
    fetch: Callable[[Span], bytes]

    def encoded(self, elements: Sequence[Element]) -> bytes:
        """The elements, without fragments among them, in the order of their tags."""
        out: list[bytes] = []
        # Readers count on ascending tags (PS3.5 7.1), and replaced elements come last.
        for element in sorted(elements, key=TAG):
            value = self.value(element)
            out += (self.header(element.tag, element.vr, len(value)), value)
        return b"".join(out)

    def value(self, element: Element) -> bytes:
        """The bytes of the value."""
        if element.items is not None:
            return b"".join(self._items(element.items))
        if isinstance(element.value, Span):
            return self.fetch(element.value)
        return element.value

    def header(self, tag: int, vr: str, length: int) -> bytes:
        """What stands before the value."""
        group, number, letters = tag >> 16, tag & 0xFFFF, vr.encode()
        if self.explicit and letters not in LONG_VRS and length <= 0xFFFF:  # noqa: PLR2004 - the longest short length
            return (LITTLE if self.little_endian else BIG).pack(group, number, letters, length)
        mark = "<" if self.little_endian else ">"
        if not self.explicit:
            return struct.pack(mark + "HHL", group, number, length)
        # PS3.5 6.2.2: what is too long for its VR goes as UN.
        letters = letters if letters in LONG_VRS else b"UN"
        return struct.pack(mark + "HH2sHL", group, number, letters, 0, length)

    def _items(self, items: Sequence[Sequence[Element]]) -> Iterator[bytes]:
        mark = "<" if self.little_endian else ">"
        for item in items:
            content = self.encoded(item)
            yield struct.pack(mark + "HHL", ITEM >> 16, ITEM & 0xFFFF, len(content))
            yield content


def unambiguous(elements: list[Element]) -> list[Element]:
    """The elements, each once. DICOM_INVALID if two differ: so do readers on which one counts."""
    by_tag: dict[int, Element] = {}
    for element in elements:
        known = by_tag.setdefault(element.tag, element)
        if known is not element and known != element:
            raise FluoroError(
                Reason.DICOM_INVALID, "The data set has two values of the same attribute."
            )
    return list(by_tag.values())


@lru_cache(8192)
def vr_of(tag: int) -> str:
    """The VR that PS3.6 has for a tag; the first of several, `UN` if it has none."""
    try:
        return dictionary_VR(tag).split(" or ")[0]
    except KeyError:
        return "UN"
