"""The Basic Application Level Confidentiality Profile as a table (PS3.15 table E.1-1), and choices.

`standard/profile.json` has the table, with its edition. A `Policy` is what the table says for one
kind of object and a set of options: one action per attribute.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from fluoro.v1.deidentify_pb2 import (
    ENCAPSULATED_DOCUMENTS_REPLACE,
    LONGITUDINAL_DATES_FULL,
    LONGITUDINAL_DATES_SHIFTED,
    DeidentifyDicom,
)
from pydicom.datadict import DicomDictionary, RepeatersDictionary, keyword_for_tag

STANDARD: Final = Path(__file__).parent / "standard"

BASIC_CODE: Final = ("113100", "Basic Application Confidentiality Profile")
OPTION_CODES: Final[Mapping[str, tuple[str, str]]] = {
    "clean_pixel_data": ("113101", "Clean Pixel Data Option"),
    "clean_graphics": ("113103", "Clean Graphics Option"),
    "clean_structured_content": ("113104", "Clean Structured Content Option"),
    "clean_descriptors": ("113105", "Clean Descriptors Option"),
    "full_dates": (
        "113106",
        "Retain Longitudinal Temporal Information Full Dates Option",
    ),
    "modified_dates": (
        "113107",
        "Retain Longitudinal Temporal Information Modified Dates Option",
    ),
    "retain_patient_characteristics": ("113108", "Retain Patient Characteristics Option"),
    "retain_device": ("113109", "Retain Device Identity Option"),
    "retain_uids": ("113110", "Retain UIDs Option"),
    "retain_safe_private": ("113111", "Retain Safe Private Option"),
    "retain_institution": ("113112", "Retain Institution Identity Option"),
}
"""Codes and meanings of PS3.16 CID 7050, by option. 113102, of faces, is not done."""
DATE_OPTIONS: Final = ("full_dates", "modified_dates")

REPEATING: Final = {0x50: "50xxxxxx", 0x60: "60xx"}
"""Groups 50xx and 60xx: curves and overlays."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a request asks for, hashable. chosen: names as in `OPTION_CODES`."""

    chosen: frozenset[str]
    replace_documents: bool = False

    @property
    def codes(self) -> list[tuple[str, str]]:
        """Codes and meanings of PS3.16 CID 7050 for what is done, the basic profile first."""
        return [BASIC_CODE, *(OPTION_CODES[each] for each in OPTION_CODES if each in self.chosen)]

    @property
    def clean_pixels(self) -> bool:
        """Whether text in the pixels is masked."""
        return "clean_pixel_data" in self.chosen

    @property
    def without_pixels(self) -> "Options":
        """The same for an instance that has no pixels to clean."""
        return replace(self, chosen=self.chosen - {"clean_pixel_data"})

    @property
    def dates(self) -> str:
        """Value of Longitudinal Temporal Information Modified (0028,0303)."""
        if "full_dates" in self.chosen:
            return "UNMODIFIED"
        return "MODIFIED" if "modified_dates" in self.chosen else "REMOVED"


def options_of(request: DeidentifyDicom) -> Options:
    """The options that a request asks for."""
    chosen = {name for name in OPTION_CODES if name not in DATE_OPTIONS and getattr(request, name)}
    if request.dates == LONGITUDINAL_DATES_FULL:
        chosen.add("full_dates")
    elif request.dates == LONGITUDINAL_DATES_SHIFTED:
        chosen.add("modified_dates")
    return Options(
        frozenset(chosen), request.encapsulated_documents == ENCAPSULATED_DOCUMENTS_REPLACE
    )


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. basic: the action; `X/Z/D` and the like depend on the IOD."""

    name: str
    basic: str
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Action:
    """What to do with an attribute.

    code: X, Z, D, U, K or C (PS3.15 table E.1-1a). row: what the table has for it. fallback: what
    a value that cannot be cleaned gets: X, Z or D.
    """

    code: str
    row: str
    fallback: str = "X"


@dataclass(slots=True)
class Policy:
    """The actions for objects of one SOP Class under some options."""

    sop_class: str
    options: Options
    _known: dict[tuple[int, int], Action | None]

    def action(self, tag: int, parent: int) -> Action | None:
        """What to do with a standard attribute; None if the table does not name it.

        parent: tag of the sequence that it is in, 0 at the top.
        """
        key = (tag, parent)
        if key not in self._known:
            self._known[key] = self._decide(tag, parent)
        return self._known[key]

    def _decide(self, tag: int, parent: int) -> Action | None:
        row = table().get(row_key(tag))
        if row is None:
            return None
        basic = row.basic
        if "/" in basic:
            basic = resolved(basic, needed(self.sop_class, row.name, parent))
        chosen = self.options.chosen
        said = {name: code for name, code in row.options.items() if name in chosen}
        # What happens to dates is one decision: with a device that is kept, too, they would tell
        # how far the others were shifted.
        for name in DATE_OPTIONS:
            if name in said:
                return Action(said[name], row.basic, basic)
        # Keeping wins over cleaning: both were asked for, and cleaning would undo what was to be
        # kept.
        for code in ("K", "C"):
            if code in said.values():
                return Action(code, row.basic, basic)
        return Action(basic, row.basic, basic)


@lru_cache(256)
def policy(sop_class: str, options: Options) -> Policy:
    """The policy, made once and filled as attributes turn up."""
    return Policy(sop_class, options, {})


def resolved(compound: str, kind: str) -> str:
    """One action of a compound one (PS3.15 table E.1-1a).

    kind: type of the attribute in the IOD: `1`, `2` or `3`; "" if it is not known: then what fits
    every type.
    """
    # References to other instances stay, with new UIDs: others of the same object may need them
    # (PS3.3 C.12.2), whatever their own type.
    if compound.endswith("U*"):
        return "U"
    codes = compound.split("/")
    if kind == "3":
        return codes[0]
    if kind == "2" and "Z" in codes:
        return "Z"
    return codes[-1]


@lru_cache(1)
def table() -> Mapping[str, Row]:
    """Table E.1-1 by tag: eight hexadecimal digits, `50xxxxxx`, `60xx3000`, or `private`."""
    return {
        tag: Row(row.pop("name"), row.pop("basic"), row)
        for tag, row in _standard("profile.json")["attributes"].items()
    }


@lru_cache(1)
def edition() -> str:
    """Of the table."""
    return str(_standard("profile.json")["edition"])


@lru_cache(1)
def _types() -> dict[str, Any]:
    return _standard("iod_types.json")


def needed(sop_class: str, name: str, parent: int) -> str:
    """The strictest type (PS3.5 7.4) an IOD gives an attribute: `1`, `2`, `3`.

    "" if the SOP Class is not known.
    """
    iod = _types()["sop_classes"].get(sop_class)
    if iod is None:
        return ""
    kinds = _types()["types"][name].get(keyword_for_tag(parent) if parent else "", {})
    return next((kind for kind in ("1", "2") if iod in kinds.get(kind, ())), "3")


def row_key(tag: int) -> str:
    """How the table names a tag."""
    group = tag >> 24
    if group == 0x50:  # noqa: PLR2004 - curves
        return "50xxxxxx"
    if group == 0x60:  # noqa: PLR2004 - overlays
        return f"60xx{tag & 0xFFFF:04X}"
    return f"{tag:08X}"


@lru_cache(8192)
def is_standard(tag: int) -> bool:
    """Whether PS3.6 has the attribute."""
    return tag in DicomDictionary or any(
        all(mask in ("x", digit) for mask, digit in zip(pattern, f"{tag:08x}", strict=True))
        for pattern in RepeatersDictionary
    )


@lru_cache(1)
def safe_private() -> frozenset[tuple[str, int, int]]:
    """Private attributes that table E.3.10-1 calls safe: creator, group, last byte."""
    return frozenset(
        (creator, int(group, 16), int(number, 16))
        for creator, groups in _standard("safe_private.json")["creators"].items()
        for group, numbers in groups.items()
        for number in numbers
    )


def _standard(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((STANDARD / name).read_text())
    return found
