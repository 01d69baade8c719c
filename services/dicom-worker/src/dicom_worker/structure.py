"""Walks the data elements of a DICOM data set without reading their values (PS3.5 chapter 7).

pydicom reads a truncated file as a shorter data set, often an empty one, without an error (pydicom
#1799). This walk notices: every length must fit into the file, and every undefined length must have
its delimiter. It also finds the pixel data's fragments, so that frames can be read one by one. It
guesses where pydicom guesses (sequences in the other VR encoding), so that both see the same.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from fluoro_jobs.errors import FluoroError, Reason

from dicom_worker import limits

UNDEFINED: Final = 0xFFFFFFFF
ITEM: Final = 0xFFFEE000
ITEM_END: Final = 0xFFFEE00D
SEQUENCE_END: Final = 0xFFFEE0DD
PIXEL_DATA: Final = 0x7FE00010
LONG_VRS: Final = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)
"""VRs whose length has 32 bits (PS3.5 7.1.2)."""
SEQUENCE_VRS: Final = frozenset(("SQ", "UN", None))
"""VRs of values that pydicom may take for a sequence. It knows some UN and implicit ones by tag."""
ITEM_HEADER_BYTES: Final = 8
ELEMENT_HEADER_BYTES: Final = 12
"""The longest one."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """One item of encapsulated pixel data: where its value starts in the file, and its bytes."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Element:
    """One top-level data element.

    vr: None in implicit VR.
    start, offset: where the element and where its value starts in the file, in bytes.
    length: bytes of the value; None if undefined.
    fragments: of encapsulated pixel data, the Basic Offset Table first.
    """

    tag: int
    vr: str | None
    start: int
    offset: int
    length: int | None
    fragments: tuple[Fragment, ...] = ()


@dataclass(slots=True)
class Walk:
    """A walk over the data set in `stream` up to byte `end`.

    explicit: whether VRs are written out. little_endian: byte order. Both as the Transfer Syntax
    says.
    """

    stream: BinaryIO
    end: int
    explicit: bool = True
    little_endian: bool = True
    seen: int = field(default=0, init=False)

    def elements(self, start: int, group: int | None = None) -> Iterator[Element]:
        """The top-level elements from byte `start` on, in the order of the file.

        group: stop before the first element of another group.

        FluoroError: DICOM_TRUNCATED if the file ends before its data does, DICOM_INVALID if it is
        no data set, IMAGE_TOO_LARGE past `limits.ELEMENT_LIMIT`.
        """
        position = start
        explicit = self._sniff(position, self.explicit)
        while position < self.end:
            if self._only_padding(position) or (
                group is not None and self._group(position) != group
            ):
                return
            element = self._element(position, explicit)
            # Items and delimiters stand inside sequences only.
            if element.tag >> 16 == ITEM >> 16:
                raise invalid()
            fragments: tuple[Fragment, ...] = ()
            if element.length is not None:
                position = self._skip_value(element, explicit=explicit, depth=0)
            elif is_encapsulated(element):
                fragments, position = self._fragments(element.offset)
            else:
                position = self._skip_sequence(element, explicit=explicit, depth=0)
            yield Element(
                element.tag, element.vr, element.start, element.offset, element.length, fragments
            )

    def _need(self, position: int) -> None:
        if position > self.end:
            raise truncated()

    def _count(self) -> None:
        self.seen += 1
        if self.seen > limits.ELEMENT_LIMIT:
            raise FluoroError(
                Reason.IMAGE_TOO_LARGE,
                f"The data set has more than {limits.ELEMENT_LIMIT} elements.",
            )

    def _read(self, position: int, size: int) -> bytes:
        self._need(position + size)
        self.stream.seek(position)
        data = self.stream.read(size)
        # Without this check, struct would fail with an error that has no reason for the client.
        if len(data) < size:
            raise truncated()
        return data

    def _only_padding(self, position: int) -> bool:
        """Whether fewer bytes are left than a header has, and all are zero.

        Some writers pad files to a block.
        """
        left = self.end - position
        return left < 8 and not any(self._read(position, left))  # noqa: PLR2004 - shortest header

    def _tag(self, position: int) -> int:
        order = "<HH" if self.little_endian else ">HH"
        group, number = struct.unpack(order, self._read(position, 4))
        return int(group << 16 | number)

    def _group(self, position: int) -> int:
        return int.from_bytes(self._read(position, 2), "little" if self.little_endian else "big")

    def _sniff(self, position: int, expected: bool) -> bool:
        """Whether the data set at `position` writes out its VRs.

        Then two capital letters follow the first tag.
        """
        if self.end - position < 6:  # noqa: PLR2004 - bytes of a tag and a VR
            return expected
        return is_vr(self._read(position, 6)[4:])

    def _element(self, position: int, explicit: bool) -> Element:
        self._count()
        order = "<" if self.little_endian else ">"
        header = self._read(position, 8)
        group, number = struct.unpack(order + "HH", header[:4])
        tag, vr = group << 16 | number, header[4:6]
        # Some writers put implicit elements among explicit ones. pydicom takes whatever is not two
        # capital letters for the start of a length, and the walk must see the same elements.
        if not explicit or not is_vr(vr):
            length = struct.unpack(order + "L", header[4:])[0]
            return Element(tag, None, position, position + 8, defined(length))
        if vr in LONG_VRS:
            length = struct.unpack(order + "L", self._read(position + 8, 4))[0]
            return Element(tag, vr.decode(), position, position + 12, defined(length))
        return Element(
            tag, vr.decode(), position, position + 8, struct.unpack(order + "H", header[6:])[0]
        )

    def _fragments(self, position: int) -> tuple[tuple[Fragment, ...], int]:
        """The items of encapsulated pixel data and the position after them (PS3.5 A.4)."""
        fragments = []
        while (item := self._item(position)).tag != SEQUENCE_END:
            if item.tag != ITEM or item.length is None:
                raise invalid()
            position = item.offset + item.length
            self._need(position)
            fragments.append(Fragment(item.offset, item.length))
        return tuple(fragments), item.offset

    def _item(self, position: int) -> Element:
        """An item or delimiter: a tag and a length, never a VR (PS3.5 7.5)."""
        return self._element(position, explicit=False)

    def _skip_sequence(self, sequence: Element, explicit: bool, depth: int) -> int:
        """The position after a sequence of undefined length."""
        check_depth(depth)
        position = sequence.offset
        # UN of undefined length holds implicit VR little endian, whatever is around it (PS3.5
        # 6.2.2).
        inside = explicit and sequence.vr != "UN"
        while (item := self._item(position)).tag != SEQUENCE_END:
            if item.tag != ITEM:
                raise invalid()
            if item.length is None:
                position = self._skip_item(item.offset, explicit=inside, depth=depth)
            else:
                position = item.offset + item.length
                self._need(position)
                self._count_elements(item.offset, position, explicit=inside, depth=depth)
        return item.offset

    def _skip_item(self, position: int, explicit: bool, depth: int) -> int:
        """The position after an item of undefined length.

        An element of VR UN holds implicit VR (PS3.5 6.2.2).
        """
        explicit = self._sniff(position, explicit)
        while (element := self._element(position, explicit)).tag != ITEM_END:
            if element.length is not None:
                position = self._skip_value(element, explicit=explicit, depth=depth + 1)
            elif is_encapsulated(element):
                _, position = self._fragments(element.offset)
            else:
                position = self._skip_sequence(element, explicit=explicit, depth=depth + 1)
        return element.offset

    def _skip_value(self, element: Element, explicit: bool, depth: int) -> int:
        """The position after a value of defined length. What a sequence holds is counted."""
        end = element.offset + (element.length or 0)
        self._need(end)
        if element.vr in SEQUENCE_VRS:
            self._count_items(element.offset, end, explicit and element.vr != "UN", depth)
        return end

    def _count_items(self, position: int, end: int, explicit: bool, depth: int) -> int:
        """Counts the items up to byte `end` and their elements; the position after them.

        pydicom takes memory for each. Whatever is no item ends the count, as the length of the
        value has said already where the next element is: a UN value need not be a sequence.
        """
        while end - position >= ITEM_HEADER_BYTES:
            if self._tag(position) not in (ITEM, SEQUENCE_END):
                break
            check_depth(depth)
            item = self._item(position)
            if item.tag == SEQUENCE_END:
                return item.offset
            # A length that leads out of its sequence is cut there: the outer one has been checked.
            stop = end if item.length is None else min(item.offset + item.length, end)
            position = self._count_elements(item.offset, stop, explicit, depth)
            if item.length is not None:
                position = stop
        return end

    def _count_elements(self, position: int, end: int, explicit: bool, depth: int) -> int:
        """Counts the elements of an item; the position after its delimiter, or `end`."""
        explicit = self._sniff(position, explicit)
        # The last element is not counted if it is shorter than the longest header. It is one.
        while end - position >= ELEMENT_HEADER_BYTES:
            element = self._element(position, explicit)
            if element.tag == ITEM_END:
                return element.offset
            stop = end if element.length is None else min(element.offset + element.length, end)
            after = stop
            if element.length is None and is_encapsulated(element):
                _, after = self._fragments(element.offset)
            elif element.vr in SEQUENCE_VRS:
                inside = explicit and element.vr != "UN"
                after = self._count_items(element.offset, stop, inside, depth + 1)
            position = after if element.length is None else stop
        return end


def check_depth(depth: int) -> None:
    """FluoroError: DICOM_INVALID if a sequence is so deep in others."""
    # Each level is a call on the stack, here and in pydicom.
    if depth >= limits.DEPTH_LIMIT:
        raise FluoroError(
            Reason.DICOM_INVALID, f"Sequences are more than {limits.DEPTH_LIMIT} deep."
        )


def is_encapsulated(element: Element) -> bool:
    """Whether a value of undefined length is fragments rather than a sequence of data sets."""
    return element.tag == PIXEL_DATA or element.vr in ("OB", "OW")


def is_vr(letters: bytes) -> bool:
    """Whether these two bytes can be a VR."""
    return b"A" <= letters[:1] <= b"Z" and b"A" <= letters[1:] <= b"Z"


def defined(length: int) -> int | None:
    """A length as Element has it."""
    return None if length == UNDEFINED else length


def truncated() -> FluoroError:
    """The file ends before its data does."""
    return FluoroError(Reason.DICOM_TRUNCATED, "The file ends before its data does. Send it again.")


def invalid() -> FluoroError:
    """The bytes are no data set."""
    return FluoroError(
        Reason.DICOM_INVALID, "The data elements do not follow each other as PS3.5 chapter 7 says."
    )
