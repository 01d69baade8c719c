"""What takes the place of values, and what is remembered of the originals."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from pydicom.datadict import keyword_for_tag
from pydicom.uid import UID_dictionary

from dicom_worker.deidentify.elements import STRING_VRS, TEXT_VRS, Element, Span, vr_of
from dicom_worker.deidentify.identifiers import Identifiers
from dicom_worker.deidentify.pseudonyms import Key, Patient, shifted
from dicom_worker.deidentify.text import decoded, encoded

REMOVED: Final = "REMOVED"
DUMMIES: Final = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"), REMOVED),
    "AS": "000Y",
    "DA": "19000101",
    "DT": "19000101000000",
    "TM": "000000",
    "DS": "1",
    "IS": "1",
    "UR": "urn:removed",
}
"""Values that say nothing, by VR (PS3.15 E.1.1, action D)."""
DUMMY_BYTES: Final = 8
"""Zeros in place of a binary value: enough for one number of each kind."""

Encodings = tuple[str, ...]
"""Python's names for the character sets of a data set."""


@dataclass(slots=True)
class Values:
    """The values of one instance.

    fetch: reads a span of the file. identifiers: what they told so far.
    """

    key: Key
    patient: Patient
    fetch: Callable[[Span], bytes]
    identifiers: Identifiers = field(default_factory=Identifiers)

    def raw(self, element: Element) -> bytes:
        """The bytes of a value."""
        return element.value if isinstance(element.value, bytes) else self.fetch(element.value)

    def text(self, element: Element, encodings: Encodings) -> str:
        """A string value."""
        return decoded(self.raw(element), element.vr, encodings)

    def pseudonym(self, element: Element) -> Element:
        """The patient's, for their name and ID."""
        self.identifiers.written.add(self.patient.pseudonym.casefold())
        return Element(element.tag, element.vr, self.patient.pseudonym.encode())

    def dummy(self, element: Element) -> Element:
        """Action D: a value of the VR that says nothing."""
        if element.vr == "UI":
            return self.mapped(element)
        if element.vr in DUMMIES:
            dummy = DUMMIES[element.vr]
            self.identifiers.written.add(dummy[:8].casefold())
            return Element(element.tag, element.vr, encoded(dummy, ()))
        length = element.value.length if isinstance(element.value, Span) else len(element.value)
        return Element(element.tag, element.vr, bytes(min(length, DUMMY_BYTES)))

    def mapped(self, element: Element) -> Element:
        """Action U: each UID gets its own of this project. Those of the standard stay."""
        uids = [each.strip(" \0") for each in self.raw(element).decode("latin-1").split("\\")]
        value = "\\".join(
            self.key.uid(uid) if uid and uid not in UID_dictionary else uid for uid in uids
        ).encode()
        return Element(element.tag, element.vr, value + b"\0" * (len(value) % 2))

    def shifted(self, element: Element) -> Element | None:
        """A date moved by the patient's days; None if it cannot be."""
        moved = []
        for value in self.raw(element).decode("latin-1").split("\\"):
            plain = value.strip(" \0")
            new = shifted(plain, self.patient.shift) if plain else ""
            # One date that cannot be moved would tell how far its neighbours were.
            if new is None:
                return None
            self.identifiers.written.add(new[:8])
            moved.append(new)
        return Element(element.tag, element.vr, encoded("\\".join(moved), ()))

    def remember(self, element: Element, encodings: Encodings) -> None:
        """Keeps in mind what is about to go, as far as it identifies somebody."""
        vr = kind(element)
        if vr not in STRING_VRS or not element.value:
            return
        raw = self.raw(element)
        text = decoded(raw, vr, encodings).strip(" \0")
        if vr == "PN":
            self.identifiers.add_name(text)
            for other in other_readings(raw, text):
                self.identifiers.add_name(other)
        elif vr in ("DA", "DT"):
            for value in text.split("\\"):
                self.identifiers.add_date(value)
        elif vr == "UI":
            for value in text.split("\\"):
                if value and value not in UID_dictionary:
                    self.identifiers.add_uid(value)
        elif vr in TEXT_VRS:
            self.identifiers.add_text(keyword_for_tag(element.tag), text)

    def allow(self, element: Element, encodings: Encodings) -> None:
        """What an option keeps is no identifier elsewhere. Parts of names always are."""
        if element.vr in STRING_VRS and element.vr != "PN" and element.value:
            for value in self.text(element, encodings).strip(" \0").casefold().split("\\"):
                date = element.vr in ("DA", "DT")
                self.identifiers.allowed.add(value[:8] if date else " ".join(value.split()))


def kind(element: Element) -> str:
    """The VR that an element has in the standard, if that is a string; else its own.

    A name that a writer calls a long string is still a name.
    """
    known = vr_of(element.tag)
    return known if known in STRING_VRS else element.vr


def other_readings(raw: bytes, text: str) -> list[str]:
    """What a name is if its character set is another than the file says.

    Other attributes may have it in the right one.
    """
    if raw.isascii():
        return []
    try:
        return [raw.decode("utf-8")]
    except UnicodeDecodeError:
        return [raw.decode("latin-1")] if "\ufffd" in text else []
