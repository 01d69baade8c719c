"""What identified the patient in the original, and whether a text or bytes still hold it.

Short and common words would be found everywhere, so how far each identifier is searched for depends
on it; docs/deidentification.md has the rule as a table. Nothing here leaves memory.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise, permutations
from typing import Final

from fluoro_jobs.errors import FluoroError, Reason

from dicom_worker.deidentify.misread import Misread, misread
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
LONG_NUMBER: Final = re.compile(rf"\d{{{MIN_NUMBER_BYTES},}}")
UNSEEN: Final = re.compile("[\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
"""Soft hyphens, joiners, and marks of direction."""
UID_LIKE: Final = re.compile(r"[0-9][0-9.]{7,127}")
UID_BYTES: Final = re.compile(rb"[0-9][0-9.]{7,127}")
UID_WIDE: Final = re.compile(rb"[0-9]\0(?:[0-9.]\0){6,126}[0-9.]")
FEW_UIDS: Final = 64
"""So many are looked for one by one, which is faster; for more, all that looks like one is."""
MAX_SEARCHED: Final = 2000
"""Words and texts. Each is looked for in all bytes; people have some ten."""
UMLAUTS: Final = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa", "æ": "ae"})
YEAR: Final = r"(?P<y>\d{4}|\d\d)(?!\d)"
MONTH: Final = r"(?P<m>[^\W\d_]{3})[^\W\d_]*"
DAY: Final = r"(?P<d>\d{1,2})(?:st|nd|rd|th)?"
DATES: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?<!\d)(?P<y>\d{4})[-./: ]?(?P<m>\d\d)[-./: ]?(?P<d>\d\d)",
        r"(?<!\d)(?P<y>\d{4})[-./年 ]+(?P<m>\d{1,2})[-./月 ]+(?P<d>\d{1,2})(?!\d)",
        r"(?<!\d)(?P<d>\d{1,2})[-./ ](?P<m>\d{1,2})[-./ ](?P<y>\d{4})(?!\d)",
        r"(?<!\d)(?P<m>\d{1,2})[-./ ](?P<d>\d{1,2})[-./ ](?P<y>\d{4})(?!\d)",
        # Version numbers seldom have three times two digits between dots.
        r"(?<![\d.])(?P<d>\d\d)\.(?P<m>\d\d)\.(?P<y>\d\d)(?![\d.])",
        r"(?<![\d/-])(?P<d>\d{1,2})([/-])(?P<m>\d{1,2})\2(?P<y>\d\d)(?![\d/-])",
        r"(?<![\d/-])(?P<m>\d{1,2})([/-])(?P<d>\d{1,2})\2(?P<y>\d\d)(?![\d/-])",
        r"(?<![\d/-])(?P<y>\d\d)([/-])(?P<m>\d{1,2})\2(?P<d>\d{1,2})(?![\d/-])",
        rf"(?<!\d){DAY}[-. ]*{MONTH}[-., ]*{YEAR}",
        rf"(?<![^\W\d_]){MONTH}[-. ]*{DAY}[-., ]+{YEAR}",
        rf"(?<!\d)(?P<y>\d{{4}})[-. ]*{MONTH}[-. ]*{DAY}(?!\d)",
    )
)
"""Ways to write a day, in lower case."""
MONTHS: Final = {
    name: number
    for number, names in enumerate(
        ("jan", "feb", "mar mär mrz", "apr", "may mai", "jun", "jul", "aug", "sep", "oct okt"), 1
    )
    for name in names.split()
} | {"nov": 11, "dec": 12, "dez": 12}
PHONE_LIKE: Final = re.compile(r"\d[\d\s().+/-]{5,}\d")


@dataclass(slots=True)
class Identifiers:
    """Collected from the original while it is changed.

    words: parts of names. pairs: of names that have short parts only, in each order. phrases:
    addresses, institutions and the like, as a whole. ids: IDs and numbers. All in lower case.
    dates: as YYYYMMDD. uids: that were replaced. short: those that are not searched for. written:
    what took the place of originals; whatever is in it is none. allowed: whole values that an
    option keeps; they are none either, unless they are part of a name.
    """

    words: set[str] = field(default_factory=set)
    pairs: set[tuple[str, str]] = field(default_factory=set)
    phrases: set[str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    dates: set[str] = field(default_factory=set)
    uids: set[str] = field(default_factory=set)
    short: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)
    allowed: set[str] = field(default_factory=set)

    def add_name(self, name: str) -> None:
        """A person name, in all its groups and components (PS3.5 6.2.1)."""
        low = normal(name)
        # Bytes are searched as they are, without `normal`, so both spellings count.
        for word in {*WORD.findall(low), *WORD.findall(name.casefold())}:
            self._add(self.words, word, MIN_DIGITS if word.isdigit() else MIN_WORD_BYTES)
            self.words.update(each for each in plainer(word) if len(each) >= MIN_WORD_BYTES)
        for group in re.split(r"[=\\]", low):
            parts = WORD.findall(group)
            if len(parts) > 1 and all(len(each.encode()) < MIN_WORD_BYTES for each in parts):
                self.pairs.update(permutations(parts, 2))
        for word in joined(low):
            if len(word.encode()) >= MIN_ANYWHERE_BYTES and not is_common(word):
                self.words.update((word, *plainer(word)))

    def add_text(self, row: str, text: str) -> None:
        """The text of an attribute of the table, if it is an identifier as a whole."""
        name = kind_of(row)
        if not name:
            return
        kind = self.ids if name == "id" else self.phrases
        for value in text.split("\\"):
            if plain := normal(" ".join(value.split())):
                digits = plain.isdigit()
                self._add(kind, plain, MIN_DIGITS if digits else MIN_HEADER_BYTES)
                if kind is self.ids and not digits:
                    # People write the number of an ID without its prefix.
                    self.ids.update(LONG_NUMBER.findall(plain))
                    if is_code(compact := squeezed(plain)):
                        self.ids.add(compact)

    def add_date(self, value: str) -> None:
        """A DA or DT value."""
        digits = value.strip().replace(".", "", 2)[:8]
        if day_of(digits):
            self.dates.add(digits)

    def add_uid(self, value: str) -> None:
        """A UID that gets another one."""
        if UID_LIKE.fullmatch(value):
            self.uids.add(value)
        else:
            self._add(self.ids, normal(value), MIN_UID_BYTES)

    def _add(self, kind: set[str], text: str, least: int) -> None:
        (kind if len(text.encode()) >= least else self.short).add(text)

    def __len__(self) -> int:
        """How many are searched for."""
        return sum(map(len, (self.words, self.phrases, self.ids, self.dates, self.uids)))

    def search(self) -> "Search":
        """Ready to search, without what was written in their place."""
        dates = self.dates - self.written - self.allowed
        words = self.words - self.written
        texts = (self.phrases | self.ids) - self.written - self.allowed
        # Each is searched for in all bytes, so a hostile header could ask for hours.
        if len(words | texts) > MAX_SEARCHED:
            raise FluoroError(
                Reason.IMAGE_TOO_LARGE,
                f"The header names people and places by more than {MAX_SEARCHED} words.",
            )
        # A patient may be called Head or Long: words of the standard would be found in every file.
        common = {each for each in words | texts if is_common(each)}
        numbers = {each for each in words | texts if each.isdigit()}
        weak = common | {each for each in numbers if len(each) < MIN_NUMBER_BYTES}
        strong = (words | texts) - weak
        inside = {each for each in strong if len(each.encode()) >= MIN_ANYWHERE_BYTES}
        return Search(
            pairs=frozenset(self.pairs),
            words=frozenset(words | {each for each in self.ids if each.isalnum()}),
            exact=frozenset(strong - inside),
            weak=frozenset(texts & weak),
            inside=tuple(sorted(inside - numbers)),
            codes=tuple(sorted(filter(is_code, inside & self.ids))),
            uids=frozenset(self.uids - self.written - self.allowed),
            numbers=frozenset(inside & numbers),
            dates=frozenset(dates),
            phones=frozenset(filter(None, map(phone, self.phrases | self.ids))),
            common=frozenset(common),
        )


@dataclass(frozen=True, slots=True)
class Search:
    """Identifiers by the way they are searched for; see `Identifiers.search`.

    answers: of `in_text`.
    """

    words: frozenset[str]
    pairs: frozenset[tuple[str, str]]
    exact: frozenset[str]
    weak: frozenset[str]
    inside: tuple[str, ...]
    codes: tuple[str, ...]
    uids: frozenset[str]
    numbers: frozenset[str]
    dates: frozenset[str]
    phones: frozenset[str]
    common: frozenset[str]
    answers: dict[tuple[str, bool], bool] = field(default_factory=dict, compare=False, repr=False)

    def is_word(self, word: str) -> bool:
        """Whether a word, in lower case, is part of an identifier."""
        return word in self.words

    def in_text(self, text: str, *, free: bool = True) -> bool:
        """Whether a decoded value holds an identifier.

        free: whether people write it. Words of the standard count in such values alone.
        """
        # Files repeat their texts, and the proof asks again for all that stayed.
        known = self.answers.get((text, free))
        if known is None:
            known = self.answers[text, free] = self._in_text(text, free=free)
        return known

    def _in_text(self, text: str, *, free: bool) -> bool:
        low = " ".join(normal(text).split())
        for each in self.inside:
            if each in low:
                return True
        told = WORD.findall(low)
        if self.pairs and not self.pairs.isdisjoint(pairwise(told)):
            return True
        found = self.words.intersection(told)
        if found and (free or not found <= self.common):
            return True
        if any(between(low, each) for each in (*self.exact, *(self.weak if free else ()))):
            return True
        # Everything from here on has digits, and most texts have none.
        if not any(character.isdigit() for character in low):
            return False
        compact = squeezed(low) if self.codes else ""
        return (
            any(each in compact for each in self.codes)
            or any(between(low, each) for each in self.numbers)
            or not self.uids.isdisjoint(uids_in(low))
            or (self._has_year(low) and not self.dates.isdisjoint(dates_in(low)))
            or any(each in run for run in phones_in(low) for each in self.phones)
        )

    def _has_year(self, low: str) -> bool:
        """Whether a text has the last two digits of a year that is sought: fast to tell."""
        return any(day[2:4] in low for day in self.dates)

    def misread(self) -> Misread:
        """The same for what a recogniser of characters read. Words of the standard are left out."""
        names = self.words | self.exact | {*self.inside, *self.numbers, *self.phones}
        return misread(names - self.common, self.dates)

    def in_header(self, encodings: Sequence[str], low: bytes) -> Iterator[bytes]:
        """What the bytes of a header must not hold between characters other than letters.

        low: those bytes in lower case. Days of years that are not in them are left out.
        """
        years = {day[:4] for day in self.dates}
        there = {each for each in years if any(form in low for form in forms(each, ()))}
        dates = [day for day in self.dates if day[:4] in there]
        for text in (*self.exact, *self.numbers, *dates):
            yield from forms(text, encodings)
        for day in dates:
            year, month, number = day[:4], day[4:6], day[6:]
            for mark in "-./:":
                yield from forms(f"{year}{mark}{month}{mark}{number}", ())
            for mark in "-./":
                yield from forms(f"{number}{mark}{month}{mark}{year}", ())
                yield from forms(f"{month}{mark}{number}{mark}{year}", ())

    def in_bytes(self, encodings: Sequence[str]) -> Iterator[bytes]:
        """What no bytes of the file may hold, inside words either."""
        for text in (*self.inside, *(self.uids if len(self.uids) <= FEW_UIDS else ())):
            yield from forms(text, encodings)

    def has_uid(self, part: bytes) -> bool:
        """Whether bytes hold one of more UIDs than are looked for one by one."""
        return len(self.uids) > FEW_UIDS and any(
            not self.uids.isdisjoint(uids_in(found.replace(b"\0", b"").decode()))
            for pattern in (UID_BYTES, UID_WIDE)
            for found in pattern.findall(part)
        )


@lru_cache(8192)
def kind_of(row: str) -> str:
    """Whether the text of an attribute is an `id` or a `place` as a whole; "" if neither."""
    return "id" if ID.search(row) else "place" if PLACE.search(row) else ""


def forms(text: str, encodings: Sequence[str]) -> Iterator[bytes]:
    """A text in lower case as bytes: UTF-8, UTF-16, and the file's character sets."""
    if text.isascii():
        raw = text.encode()
        yield raw
        # Without the last zero, the same bytes are found in UTF-16 of both byte orders.
        yield text.encode("utf-16-le")[:-1]
        return
    for encoding in dict.fromkeys(("utf-8", "utf-16-le", "utf-16-be", *encodings)):
        # bytes.lower() changes ASCII alone, so other letters are sought in each case.
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
    """Every day that a text in lower case may mean, as YYYYMMDD."""
    for pattern in DATES:
        for found in pattern.finditer(text):
            month = found["m"]
            number = int(month) if month.isdecimal() else MONTHS.get(month, 0)
            for century in ("",) if len(found["y"]) > 2 else ("19", "20"):  # noqa: PLR2004 - digits
                yield f"{century}{found['y']}{number:02}{int(found['d']):02}"


def uids_in(text: str) -> Iterator[str]:
    """Every UID that a text may hold: runs of digits and dots, and what they start with."""
    for found in UID_LIKE.findall(text):
        components = found.strip(".").split(".")
        # Writers make UIDs of others by adding numbers: the start still tells.
        for count in range(2, len(components) + 1):
            yield ".".join(components[:count])


def normal(text: str) -> str:
    """In lower case, with one way to write each character: accents, widths, ligatures.

    Without those that nobody sees.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    return plain if plain.isascii() else UNSEEN.sub("", plain)


def squeezed(text: str) -> str:
    """Its letters and digits alone."""
    return "".join(WORD.findall(text))


def is_code(text: str) -> bool:
    """Whether people may write the same with other characters between: `MRN-77 1234`."""
    return (
        len(text) >= MIN_NUMBER_BYTES and text.isalnum() and not (text.isdigit() or text.isalpha())
    )


def plainer(word: str) -> Iterator[str]:
    """A word as machines without accents write it: `muller` and `mueller`."""
    if word.isascii():
        return
    bare = "".join(each for each in unicodedata.normalize("NFD", word) if each.isascii())
    for each in (bare, word.translate(UMLAUTS)):
        # Of another script only a letter or two would be left, which are found everywhere.
        if each.isascii() and len(each) >= len(word):
            yield each


def joined(name: str) -> Iterator[str]:
    """Each component of a name as one word, and family and given name as one: `obrien`."""
    for group in re.split(r"[=\\]", name):
        components = ["".join(WORD.findall(each)) for each in group.split("^")]
        yield from components
        family, given, *_ = (*components, "")
        yield from (family + given, given + family)


def phone(text: str) -> str:
    """The last seven digits of a telephone number; "" if it is none."""
    digits = re.sub(r"[\s().+/-]", "", text)
    # Country and area codes are written in many ways, or left out.
    return digits[-7:] if digits.isdigit() and len(digits) >= MIN_NUMBER_BYTES else ""


def phones_in(text: str) -> Iterator[str]:
    """Runs of digits as people write telephone numbers, without what stands between them."""
    return (re.sub(r"\D", "", found) for found in PHONE_LIKE.findall(text))
