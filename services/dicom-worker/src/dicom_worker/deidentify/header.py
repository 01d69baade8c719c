"""Top-level attributes of a tree of raw elements, as plain values."""

from collections.abc import Sequence
from typing import Final

from dicom_worker.deidentify.elements import Element
from dicom_worker.deidentify.text import decoded, encodings_of

CHARACTER_SET: Final = 0x00080005
SOP_CLASS, SOP_INSTANCE, STUDY, SERIES = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
PATIENT_NAME, PATIENT_ID, ISSUER, BIRTH_DATE = 0x00100010, 0x00100020, 0x00100021, 0x00100030
BURNED_IN: Final = 0x00280301
SAMPLES, FRAMES, ROWS, COLUMNS, BITS = 0x00280002, 0x00280008, 0x00280010, 0x00280011, 0x00280100
PHOTOMETRIC: Final = 0x00280004
STORED, HIGH_BIT, SIGNED = 0x00280101, 0x00280102, 0x00280103
FLOAT_BITS: Final = {0x7FE00008: 32, 0x7FE00009: 64}
"""Bits of a pixel by the tag of Float and Double Float Pixel Data."""
OVERLAYS: Final = 0x60
OVERLAY_BITS, OVERLAY_POSITION = 0x0100, 0x0102
"""Element numbers of Overlay Bits Allocated and Overlay Bit Position."""


class Header:
    """The attributes of a data set; the first one where a tag is there twice."""

    def __init__(self, elements: Sequence[Element], *, little_endian: bool) -> None:
        """elements: of the top level."""
        self._by_tag = {element.tag: element for element in reversed(elements)}
        self._little_endian = little_endian
        self._encodings = encodings_of(self._raw(CHARACTER_SET).decode("latin-1").strip(" \0"))

    def __contains__(self, tag: int) -> bool:
        """Whether the attribute is there."""
        return tag in self._by_tag

    def text(self, tag: int) -> str:
        """A string, without its padding; "" if absent."""
        raw = self._raw(tag)
        return decoded(raw, self._by_tag[tag].vr, self._encodings).strip(" \0") if raw else ""

    def number(self, tag: int, default: int = 0) -> int:
        """A US, or a whole number as text; the default if it is none."""
        raw = self._raw(tag)
        if raw and self._by_tag[tag].vr == "US":
            return int.from_bytes(raw[:2], "little" if self._little_endian else "big")
        found = self.text(tag)
        return int(found) if found.isascii() and found.isdigit() else default

    def draws_overlays(self) -> bool:
        """Whether an overlay is kept in bits of pixel cells (retired; PS3.3-2004 C.9.2.1.1)."""
        return any(
            (tag & 0xFFFF == OVERLAY_BITS and self.number(tag) != 1)
            or (tag & 0xFFFF == OVERLAY_POSITION and self.number(tag) > 0)
            for tag in self._by_tag
            if tag >> 24 == OVERLAYS
        )

    def pixel_bytes(self, tag: int) -> int | None:
        """Bytes of native pixel data that the header asks for; None if it does not say.

        tag: of Pixel Data, or of one of those with floating point.
        """
        bits = FLOAT_BITS.get(tag) or self.number(BITS)
        if not {ROWS, COLUMNS} <= self._by_tag.keys() or not bits:
            return None
        values = (
            self.number(ROWS)
            * self.number(COLUMNS)
            * self.number(SAMPLES, 1)
            * self.number(FRAMES, 1)
        )
        return -(-values * bits // 8) or None

    def _raw(self, tag: int) -> bytes:
        element = self._by_tag.get(tag)
        return element.value if element is not None and isinstance(element.value, bytes) else b""
