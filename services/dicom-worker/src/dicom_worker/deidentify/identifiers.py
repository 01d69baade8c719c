"""What identified the patient in the original, and whether a text or bytes still hold it.

Short and common words would be found everywhere, so how far each identifier is searched for depends
on it; docs/deidentification.md has the rule as a table. Nothing here leaves memory.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from dicom_worker.deidentify.pseudonyms import day_of
from dicom_worker.deidentify.text import WORD, vocabulary

ID: Final = re.compile(
    r"(IDs?|Numbers?|Identifier|Identification|Locator|OrderNumberImagingServiceRequest"
    r"|BarcodeValue)$"
)
PLACE: Final = re.compile(
    r"Address|Tele(phone|com)|Institution|Department|Residence|StationName|Location|CenterName"
    r"|SiteName|Organization|SponsorName|CommitteeName|OwnerName|Author"
)
"""Names of attributes of the profile's table whose texts are identifiers as a whole."""

MIN_WORD_BYTES: Final = 3
"""Shorter parts of names are not searched for. All lengths are those in UTF-8."""
MIN_HEADER_BYTES: Final = 4
"""From here on also in the bytes of the header, between other characters than letters."""
MIN_ANYWHERE_BYTES: Final = 6
"""From here on also inside longer words and in pixel data."""
MIN_DIGITS: Final = 4
"""Shorter numbers are not searched for."""
MIN_NUMBER_BYTES: Final = 7
"""Shorter numbers are searched for in texts alone: values of measurement look like them."""
MIN_UID_BYTES: Final = 8
"""Shorter ones are no UIDs: `0`, `1.2.3`."""
DATE_LIKE: Final = re.compile(
    r"(?<!\d)(\d{4})[-./: ]?(\d\d)[-./: ]?(\d\d)"
    r"|(?<!\d)(\d{1,2})[-./ ](\d{1,2})[-./ ](\d{4})(?!\d)"
    r"|(?<!\d)(\d{1,2})[-. ]*([A-Za-z]{3})[a-z]*[-., ]*(\d{4})(?!\d)"
)
MONTHS: Final = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
PHONE_LIKE: Final = re.compile(r"\d[\d\s().+/-]{5,}\d")


@dataclass(slots=True)
class Identifiers:
    """Collected from the original while it is changed.

    words: parts of names. phrases: addresses, institutions and the like, as a whole. ids: IDs and
    numbers. All in lower case. dates: as YYYYMMDD. uids: that were replaced. short: those that are
    not searched for. written: what took the place of originals; whatever is in it is none.
    """

    words: set[str] = field(default_factory=set)
    phrases: set[str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    dates: set[str] = field(default_factory=set)
    uids: set[str] = field(default_factory=set)
    short: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)

    def add_name(self, name: str) -> None:
        """A person name, in all its groups and components (PS3.5 6.2.1)."""
        for word in WORD.findall(name.casefold()):
            self._add(self.words, word, MIN_DIGITS if word.isdigit() else MIN_WORD_BYTES)

    def add_text(self, row: str, text: str) -> None:
        """The text of an attribute of the table, if it is an identifier as a whole."""
        if ID.search(row):
            kind = self.ids
        elif PLACE.search(row):
            kind = self.phrases
        else:
            return
        for value in text.split("\\"):
            if plain := " ".join(value.split()).casefold():
                digits = plain.isdigit()
                self._add(kind, plain, MIN_DIGITS if digits else MIN_HEADER_BYTES)

    def add_date(self, value: str) -> None:
        """A DA or DT value."""
        digits = value.strip().replace(".", "", 2)[:8]
        if day_of(digits):
            self.dates.add(digits)

    def add_uid(self, value: str) -> None:
        """A UID that gets another one."""
        (self.uids if len(value) >= MIN_UID_BYTES else self.short).add(value)

    def _add(self, kind: set[str], text: str, least: int) -> None:
        (kind if len(text.encode()) >= least else self.short).add(text)

    def __len__(self) -> int:
        """How many are searched for."""
        return sum(map(len, (self.words, self.phrases, self.ids, self.dates, self.uids)))

    def search(self) -> "Search":
        """Ready to search, without what was written in their place."""
        dates = self.dates - self.written
        words = self.words - self.written
        texts = (self.phrases | self.ids) - self.written
        common = {each for each in words | texts if is_common(each)}
        numbers = {each for each in words | texts if each.isdigit()}
        weak = common | {each for each in numbers if len(each) < MIN_NUMBER_BYTES}
        strong = (words | texts) - weak
        inside = {each for each in strong if len(each.encode()) >= MIN_ANYWHERE_BYTES}
        return Search(
            words=frozenset(words | {each for each in self.ids if each.isalnum()}),
            exact=frozenset(strong - inside),
            weak=frozenset(texts & weak),
            inside=tuple(sorted(inside - numbers)),
            uids=frozenset(self.uids - self.written),
            numbers=tuple(sorted(inside & numbers)),
            dates=frozenset(dates),
            phones=frozenset(filter(None, map(phone, self.phrases | self.ids))),
            common=frozenset(common),
        )


@dataclass(frozen=True, slots=True)
class Search:
    """Identifiers by the way they are searched for; see `Identifiers.search`."""

    words: frozenset[str]
    exact: frozenset[str]
    weak: frozenset[str]
    inside: tuple[str, ...]
    uids: frozenset[str]
    numbers: tuple[str, ...]
    dates: frozenset[str]
    phones: frozenset[str]
    common: frozenset[str]

    def is_word(self, word: str) -> bool:
        """Whether a word, in lower case, is part of an identifier."""
        return word in self.words

    def in_text(self, text: str, *, free: bool = True) -> bool:
        """Whether a decoded value holds an identifier.

        free: whether people write it. Words of the standard count in such values alone.
        """
        low = " ".join(text.casefold().split())
        if any(each in low for each in self.inside):
            return True
        found = self.words.intersection(WORD.findall(low))
        if found and (free or not found <= self.common):
            return True
        if any(between(low, each) for each in (*self.exact, *(self.weak if free else ()))):
            return True
        if not any(character.isdigit() for character in low):
            return False
        return (
            any(between(low, each) for each in self.numbers)
            or any(each in low for each in self.uids)
            or not self.dates.isdisjoint(dates_in(low))
            or any(each in run for run in phones_in(low) for each in self.phones)
        )

    def in_header(self, encodings: Sequence[str]) -> Iterator[bytes]:
        """What the bytes of a header must not hold between characters other than letters."""
        for text in (*self.exact, *self.numbers, *self.dates):
            yield from forms(text, encodings)
        for day in self.dates:
            year, month, number = day[:4], day[4:6], day[6:]
            for mark in "-./:":
                yield from forms(f"{year}{mark}{month}{mark}{number}", ())
            for mark in "-./":
                yield from forms(f"{number}{mark}{month}{mark}{year}", ())
                yield from forms(f"{month}{mark}{number}{mark}{year}", ())

    def in_bytes(self, encodings: Sequence[str]) -> Iterator[bytes]:
        """What no bytes of the file may hold, inside words either."""
        for text in (*self.inside, *self.uids):
            yield from forms(text, encodings)


def forms(text: str, encodings: Sequence[str]) -> Iterator[bytes]:
    """A text in lower case as bytes: UTF-8, UTF-16, and the file's character sets."""
    if text.isascii():
        raw = text.encode()
        yield raw
        yield b"\0".join(raw[i : i + 1] for i in range(len(raw)))
        return
    for encoding in dict.fromkeys(("utf-8", "utf-16-le", "utf-16-be", *encodings)):
        for each in {text, text.upper(), text.title()}:
            try:
                yield each.encode(encoding)
            except UnicodeEncodeError:
                continue


def is_common(text: str) -> bool:
    """Whether the standard itself uses all of its words."""
    words = WORD.findall(text)
    return bool(words) and all(word in vocabulary() for word in words)


def between(text: str, sought: str) -> bool:
    """Whether `text` holds `sought`, with no letter or digit beside it."""
    start = text.find(sought)
    while start >= 0:
        end = start + len(sought)
        if not text[start - 1 : start].isalnum() and not text[end : end + 1].isalnum():
            return True
        start = text.find(sought, start + 1)
    return False


def dates_in(text: str) -> Iterator[str]:
    """Every day that a text may mean, as YYYYMMDD."""
    for found in DATE_LIKE.finditer(text):
        year, month, day, one, two, after, number, name, last = found.groups()
        if year:
            yield year + month + day
        elif after:
            yield f"{after}{int(one):02}{int(two):02}"
            yield f"{after}{int(two):02}{int(one):02}"
        elif name.casefold() in MONTHS:
            yield f"{last}{MONTHS.index(name.casefold()) + 1:02}{int(number):02}"


def phone(text: str) -> str:
    """The last seven digits of a telephone number; "" if it is none."""
    digits = re.sub(r"[\s().+/-]", "", text)
    return digits[-7:] if digits.isdigit() and len(digits) >= MIN_NUMBER_BYTES else ""


def phones_in(text: str) -> Iterator[str]:
    """Runs of digits as people write telephone numbers, without what stands between them."""
    return (re.sub(r"\D", "", found) for found in PHONE_LIKE.findall(text))
