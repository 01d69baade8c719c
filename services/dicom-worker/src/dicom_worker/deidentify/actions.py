"""Does to each attribute what the profile says, and remembers what identified the patient."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

from fluoro_jobs.errors import FluoroError, Reason
from pydicom.datadict import keyword_for_tag

from dicom_worker.deidentify.elements import TEXT_VRS, Element
from dicom_worker.deidentify.identifiers import Search
from dicom_worker.deidentify.profile import Action, Policy, is_standard, safe_private
from dicom_worker.deidentify.text import cleaned, code_known, encoded, encodings_of
from dicom_worker.deidentify.values import DUMMIES, REMOVED, Encodings, Values, kind
from dicom_worker.reading import META_GROUP, PIXEL_TAGS
from dicom_worker.structure import PIXEL_DATA

CHARACTER_SET: Final = 0x00080005
PATIENT: Final = frozenset((0x00100010, 0x00100020))
"""Name and ID. The table lets them be empty; then nobody could tell two patients apart."""
OURS: Final = frozenset((0x00120062, 0x00120063, 0x00120064, 0x00280303))
"""What says how an instance was de-identified: written anew."""
TIMEZONE: Final = 0x00080201
"""Timezone Offset From UTC: a shift by whole days leaves it as it is."""
CODE_MEANING: Final = 0x00080104
CODES: Final = frozenset((0x00080100, 0x00080102, 0x00080119, 0x00080120, CODE_MEANING))
CURVES, OVERLAYS = 0x50, 0x60
FIRST_GROUP: Final = 0x0008
PRIVATE: Final = 0x00010000
"""Stands for all private attributes, in the report as in the table."""
CREATORS: Final = range(0x10, 0x100)
"""Elements of a private group that reserve a block (PS3.5 7.8.1)."""

MULTIPLE: Final = frozenset(("AE", "CS", "LO", "PN", "SH", "UC"))
"""VRs of texts whose values a backslash separates."""
SWEPT: Final = TEXT_VRS | {"AE", "CS", "UR"}
"""VRs that people can write a name into."""
SYNTAX: Final = {
    "DS": re.compile(rb"[0-9+\-.Ee \\\0]*|(?i:[ \\+-]|nan|inf)*"),
    "IS": re.compile(rb"[0-9+\- \\\0]*"),
    "TM": re.compile(rb"[0-9:.\- \\\0]*"),
    "DA": re.compile(rb"[0-9.\-\/ \\\0]*"),
    "DT": re.compile(rb"[0-9.+\- \\\0]*"),
    "AS": re.compile(rb"[0-9DWMY \\\0]*"),
    "UI": re.compile(rb"[0-9. \\\0]*"),
}
"""The characters of values that no sweep looks at (PS3.5 6.2)."""
IMAGE: Final = 0x0028
"""The group whose numbers say what pixels mean: an empty one would mean something else."""
REFERENCES: Final = frozenset(("DA", "DT", "TM", "UI"))
"""VRs that stay in a sequence of dummies if an option keeps them everywhere else."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a data set is. parent: tag of its sequence, 0 at the top.

    mode: `scrub` in a sequence that gets dummies, `clean` in one whose texts are cleaned.
    """

    encodings: Encodings = ()
    parent: int = 0
    mode: str = ""


TOP: Final = Place()
MODES: Final = {"D": "scrub", "C": "clean"}
"""What the action on a sequence means for what is in it."""

Done = tuple[int, int, str, str]
"""Tag, tag of the sequence it was in, what the table says (or ""), and what was done: one of its
actions, or `R` where an identifier was found in an attribute that would have stayed."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A text that stays. clean: only its harmless words do."""

    element: Element
    encodings: Encodings
    clean: bool = False


def encodings_in(elements: Sequence[Element], outer: Encodings) -> Encodings:
    """Of a data set: what it says itself, else what the one around it does."""
    for element in elements:
        if element.tag == CHARACTER_SET and isinstance(element.value, bytes):
            return encodings_of(element.value.decode("latin-1").strip(" \0"))
    return outer or encodings_of("")


def misplaced(element: Element, *, listed: bool) -> bool:
    """Whether no data set may have such an element.

    Commands, meta information and directories (groups below 0008) belong elsewhere: written first,
    they would be read as File Meta Information. Only Pixel Data has fragments.
    """
    group = element.tag >> 16
    return (
        group in (0, META_GROUP)
        or (group < FIRST_GROUP and not listed)
        or (element.fragments is not None and element.tag != PIXEL_DATA)
    )


@lru_cache(8192)
def names_a_kind(tag: int) -> bool:
    """Whether a UID names a kind of things, also one of a vendor, and nothing that was made."""
    return keyword_for_tag(tag).endswith(
        ("SOPClassUID", "CodingSchemeUID", "ContextUID", "MappingResourceUID", "TransferSyntaxUID")
    )


@dataclass(slots=True)
class Cleaner:
    """Cleans the data set of one instance. policy: for its SOP Class. done: how often what."""

    policy: Policy
    values: Values
    done: Counter[Done] = field(default_factory=Counter)
    _kept: list[Kept] = field(default_factory=list)

    def data_set(self, elements: Sequence[Element], place: Place = TOP) -> list[Element]:
        """The elements that stay, with what takes the place of their values."""
        encodings = encodings_in(elements, place.encodings)
        place = Place(encodings, place.parent, place.mode)
        kept, private = [], []
        for element in elements:
            if element.tag & PRIVATE:
                private.append(element)
            elif element.tag & 0xFFFF:  # a group length would be wrong
                changed = self._standard(element, place)
                if changed is not None:
                    kept.append(changed)
        return kept + self._private(private, place) if private else kept

    def _private(self, elements: Sequence[Element], place: Place) -> list[Element]:
        """The private elements that stay, with the creators of their blocks."""
        creators: dict[int, Element] = {}
        kept: dict[int, Element] = {}
        gone = 0
        for element in elements:
            number = element.tag & 0xFFFF
            if number in CREATORS:
                creators[element.tag] = element
                continue
            # The high byte of an element's number is the number of its block's creator (PS3.5
            # 7.8.1).
            creator = creators.get(element.tag & 0xFFFF0000 | number >> 8)
            if creator and self._is_safe(element, creator):
                # A creator stays only with what it reserves: its name is free text, too.
                kept[creator.tag] = creator
                kept[element.tag] = element
                self._note(PRIVATE, place, "X", "K")
                self._keep(element, place)
                continue
            gone += 1
            self._remember_names(element, place.encodings)
        if gone:
            self.done[PRIVATE, place.parent, "X", "X"] += gone
        return list(kept.values())

    def _is_safe(self, element: Element, creator: Element) -> bool:
        """Whether table E.3.10-1 has it, and the option to keep such is on."""
        if "retain_safe_private" not in self.policy.options.chosen:
            return False
        name = self.values.raw(creator).decode("latin-1").strip(" \0")
        plain = element.items is None and element.fragments is None
        return plain and (name, element.tag >> 16, element.tag & 0xFF) in safe_private()

    def _standard(self, element: Element, place: Place) -> Element | None:
        """What becomes of a standard attribute; None if it goes."""
        tag = element.tag
        if tag in OURS:
            return None
        action = self.policy.action(tag, place.parent)
        if misplaced(element, listed=action is not None):
            self.values.remember(element, place.encodings)
            self._note(tag, place, action.row if action else "", "X")
            return None
        # Curves and overlays go as a whole: their descriptions mean nothing without their data.
        if tag >> 24 in (CURVES, OVERLAYS):
            self._note(tag, place, action.row if action else "", "X")
            return None
        if action is not None:
            return self._listed(element, action, place)
        if not is_standard(tag):
            self._note(tag, place, "", "X")
            return None
        return self._unlisted(element, place)

    def _listed(self, element: Element, action: Action, place: Place) -> Element | None:
        """An attribute that the table names."""
        code = action.code
        if code == "K":
            self.values.allow(element, place.encodings)
        else:
            self._remember(element, code, place)
        # In a sequence of dummies nothing stays by an option: one value that does would give the
        # others away.
        scrub = place.mode == "scrub" and element.vr not in REFERENCES
        if scrub and code in ("K", "C"):
            code = action.fallback
        result = self._changed(element, code, place)
        # What cannot be cleaned gets what it would get without the option.
        if result is None and code == "C":
            code = action.fallback
            result = self._changed(element, code, place)
        self._note(element.tag, place, action.row, code)
        return result

    def _changed(self, element: Element, code: str, place: Place) -> Element | None:
        """The element after an action; None if it goes, or if the action does not fit its value."""
        if code == "X":
            return None
        if code in ("Z", "D") and element.tag in PATIENT:
            return self.values.pseudonym(element)
        if code == "Z":
            return Element(element.tag, element.vr, items=None if element.items is None else [])
        if element.items is not None:
            inner = Place(place.encodings, element.tag, MODES.get(code, place.mode))
            items = [self.data_set(item, inner) for item in element.items]
            return Element(element.tag, "SQ", items=items)
        return self._value(element, code, place)

    def _value(self, element: Element, code: str, place: Place) -> Element | None:
        """As `_changed`, for D, U, K and C on what is no sequence."""
        if code == "D":
            return self.values.dummy(element)
        if code == "U":
            return self.values.mapped(element)
        return self._keep(element, place) if code == "K" else self._cleaned(element, place)

    def _unlisted(self, element: Element, place: Place) -> Element | None:
        """An attribute that the table does not name: it stays, unless its kind identifies."""
        if element.items is not None:
            return self._changed(element, "K", place)
        if element.fragments is not None or element.tag in PIXEL_TAGS:
            # Pixels in a sequence are an icon, a small copy of the frame, and no mask reaches them.
            if place.parent:
                self._note(element.tag, place, "", "X")
                return None
            return element
        if place.mode and element.tag in CODES:
            code = self._code(element, place)
        else:
            code = self._by_kind(element, place.mode)
        if code == "K":
            return self._keep(element, place)
        self.values.remember(element, place.encodings)
        result = self._changed(element, code, place)
        if result is None:
            code, result = "D", self.values.dummy(element)
        if result.value != element.value:
            self._note(element.tag, place, "", code)
        return result

    def _by_kind(self, element: Element, mode: str) -> str:
        """The action for attributes of a VR."""
        options = self.policy.options
        vr = kind(element)
        if names_a_kind(element.tag):
            return "K"
        # The table is of one edition. A name that it does not list is a name all the same.
        if vr == "PN":
            return "D"
        if vr == "UI":
            return "K" if "retain_uids" in options.chosen else "U"
        if vr in ("DA", "DT"):
            return {"UNMODIFIED": "K", "MODIFIED": "C"}.get(options.dates, "D")
        if mode == "scrub" and vr in DUMMIES and vr not in ("CS", "AE"):
            return "D"
        return "C" if mode == "clean" and vr in TEXT_VRS else "K"

    def _code(self, element: Element, place: Place) -> str:
        """The action for a part of a code: those of the standard's vocabularies say nothing."""
        if element.tag != CODE_MEANING:
            return "K"
        return "K" if code_known(self.values.text(element, place.encodings)) else "D"

    def _cleaned(self, element: Element, place: Place) -> Element | None:
        """Action C on a value: dates are shifted, times stay, texts keep harmless words."""
        if element.vr in ("DA", "DT"):
            return self.values.shifted(element)
        if element.vr == "TM" or element.tag == TIMEZONE:
            return self._keep(element, place)
        if element.vr not in SWEPT:
            return None
        # The words that identify are known once the whole data set has been seen.
        clean = replace(element)
        self._kept.append(Kept(clean, place.encodings, clean=True))
        return clean

    def _keep(self, element: Element, place: Place) -> Element:
        """Stays, but the sweep looks at it. What breaks its VR may be a text, so it is emptied."""
        if element.vr in SWEPT and element.value:
            self._kept.append(Kept(element, place.encodings))
        syntax = SYNTAX.get(element.vr)
        if syntax is None or syntax.fullmatch(self.values.raw(element)):
            return element
        if element.tag >> 16 == IMAGE:
            raise FluoroError(
                Reason.DICOM_INVALID, f"{keyword_for_tag(element.tag)} is not what its VR allows."
            )
        self._note(element.tag, place, "", "R")
        return Element(element.tag, element.vr)

    def _remember(self, element: Element, code: str, place: Place) -> None:
        """What identified, at any depth of what is about to go.

        Sequences that stay are looked at element by element.
        """
        if element.items is None:
            self.values.remember(element, place.encodings)
            return
        if code not in ("X", "Z"):
            return
        for item in element.items:
            inside = replace(place, encodings=encodings_in(item, place.encodings))
            for inner in item:
                action = self.policy.action(inner.tag, element.tag)
                if inner.items is not None:
                    self._remember(inner, "X", inside)
                elif kind(inner) == "PN" or (action is not None and action.code != "K"):
                    self.values.remember(inner, inside.encodings)

    def _remember_names(self, element: Element, encodings: Encodings) -> None:
        """The person names in a private attribute, at any depth."""
        if element.vr == "PN":
            self.values.remember(element, encodings)
        for item in element.items or ():
            inside = encodings_in(item, encodings)
            for inner in item:
                self._remember_names(inner, inside)

    def sweep(self, search: Search) -> None:
        """Takes identifiers out of the texts that stay: people write them everywhere.

        search: for all that the data set has told.
        """
        for kept in self._kept:
            element, encodings = kept.element, kept.encodings
            text = self.values.text(element, encodings)
            if kept.clean and text.strip(" \0"):
                # Not empty: the attribute may be of type 1, which has to have a value.
                text = cleaned(text, search.is_word) or REMOVED
                element.value = encoded(text, encodings)
            values = text.split("\\") if element.vr in MULTIPLE else [text]
            found = [search.in_text(value, free=element.vr != "CS") for value in values]
            if any(found):
                dummy = DUMMIES[element.vr]
                swept = [dummy if bad else value for bad, value in zip(found, values, strict=True)]
                element.value = encoded("\\".join(swept), encodings)
                self.done[element.tag, 0, "", "R"] += 1

    def _note(self, tag: int, place: Place, rule: str, action: str) -> None:
        self.done[tag, place.parent, rule, action] += 1
