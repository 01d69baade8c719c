"""Reads the written file back and looks for everything that identified the patient.

Twice: all decoded values, and the bytes as they are, in UTF-8, UTF-16 and the file's character
sets.
"""

import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from dicom_worker.deidentify.actions import CHARACTER_SET, SWEPT
from dicom_worker.deidentify.elements import Element, Reader, Span
from dicom_worker.deidentify.identifiers import MIN_ANYWHERE_BYTES, Search
from dicom_worker.deidentify.pseudonyms import day_of
from dicom_worker.deidentify.text import decoded, encodings_of

ESCAPE: Final = b"\x1b"
CHUNK_BYTES: Final = 1024 * 1024
"""Of pixel data, searched at a time."""
ZEROS, FEW_ZEROS = bytes(256), bytes(8)
"""No text has so many in it, not even in UTF-16. Searching them would take most of the time."""
OVERLAP_BYTES: Final = 64 * 1024
"""More than any identifier has: values of their attributes are shorter."""


def residual(
    data: mmap.mmap | bytes,
    start: int,
    search: Search,
    check: Callable[[], None],
    *,
    explicit: bool,
    little_endian: bool,
) -> list[int]:
    """The tags whose values hold an identifier; 0 for bytes that belong to none in particular.

    data: the file, inflated. start: where its data set starts. check: raises once nobody wants
    the answer any more.
    """
    elements = Reader(data, explicit, little_endian).read(start, len(data))
    found = [element.tag for element, text in texts(elements, data) if holds(element, text, search)]
    encodings = character_sets(elements)
    spans = bulk(elements)
    header = without(data, spans)
    if in_bytes(header, search, encodings, header=True) or any(
        in_bulk(data, span, search, encodings, check) for span in spans
    ):
        found.append(0)
    return found


def in_bulk(
    data: mmap.mmap | bytes,
    span: Span,
    search: Search,
    encodings: Sequence[str],
    check: Callable[[], None],
) -> bool:
    """Whether pixel data holds an identifier. check: as above, for each chunk."""
    for chunk in chunks(data, span):
        check()
        if in_bytes(chunk.replace(ZEROS, FEW_ZEROS), search, encodings, header=False):
            return True
    return False


def chunks(data: mmap.mmap | bytes, span: Span) -> Iterator[bytes]:
    """The bytes of a span, some at a time. Nothing that is sought falls between two of them."""
    end = span.offset + span.length
    for position in range(span.offset, end, CHUNK_BYTES):
        yield data[position : min(position + CHUNK_BYTES + OVERLAP_BYTES, end)]


def texts(
    elements: Sequence[Element], data: mmap.mmap | bytes, encodings: tuple[str, ...] = ()
) -> Iterator[tuple[Element, str]]:
    """Every string value at any depth."""
    for element in elements:
        if element.tag == CHARACTER_SET and isinstance(element.value, bytes):
            encodings = encodings_of(element.value.decode("latin-1").strip(" \0"))
    encodings = encodings or encodings_of("")
    for element in elements:
        for inner in element.items or ():
            yield from texts(inner, data, encodings)
        # Pixel data would not fit into memory.
        if element.vr not in SWEPT and element.vr not in ("DA", "DT", "UI"):
            continue
        value = element.value
        if isinstance(value, Span):
            value = data[value.offset : value.offset + value.length]
        if value:
            yield element, decoded(value, element.vr, encodings)


def holds(element: Element, text: str, search: Search) -> bool:
    """Whether a value holds an identifier."""
    if element.vr in ("DA", "DT"):
        return any(
            day_of(value.strip()[:8]) and value.strip()[:8] in search.dates
            for value in text.split("\\")
        )
    if element.vr == "UI":
        uids = [value.strip(" \0") for value in text.split("\\")]
        # Some systems make UIDs of their own numbers for patients and studies.
        return any(
            uid in search.uids or not search.numbers.isdisjoint(uid.split(".")) for uid in uids
        )
    # Code strings are the standard's words. A patient named Axial must not make every file fail.
    return search.in_text(text, free=element.vr != "CS")


def character_sets(elements: Sequence[Element]) -> tuple[str, ...]:
    """Every encoding that the data set names, at any depth."""
    found: dict[str, None] = {}
    for element in elements:
        if element.tag == CHARACTER_SET and isinstance(element.value, bytes):
            found |= dict.fromkeys(encodings_of(element.value.decode("latin-1").strip(" \0")))
        for inner in element.items or ():
            found |= dict.fromkeys(character_sets(inner))
    return tuple(found)


def bulk(elements: Sequence[Element]) -> list[Span]:
    """Where values are that are too long to be read with the header: pixel data above all."""
    spans = []
    for element in elements:
        if element.fragments is not None:
            spans += element.fragments
        elif isinstance(element.value, Span):
            spans.append(element.value)
    return [span for span in spans if span.length]


def without(data: mmap.mmap | bytes, spans: Sequence[Span]) -> bytes:
    """The bytes of a file outside these spans, which are in order."""
    parts, position = [], 0
    for span in sorted(spans, key=lambda each: each.offset):
        parts.append(data[position : span.offset])
        position = span.offset + span.length
    return b"".join((*parts, data[position:]))


def in_bytes(part: bytes, search: Search, encodings: Sequence[str], *, header: bool) -> bool:
    """Whether bytes hold an identifier. header: short ones count, too."""
    if search.has_uid(part):
        return True
    low = part.lower()
    for sought in search.in_bytes(encodings):
        if header or len(sought) >= MIN_ANYWHERE_BYTES:
            # Lower case would change the second bytes of some character sets.
            plain = sought.isascii() and ESCAPE not in sought
            if (low if plain else part).find(sought) >= 0:
                return True
    if not header:
        return False
    for sought in search.in_header(encodings, low):
        plain = sought.isascii() and ESCAPE not in sought
        if stands_alone(low if plain else part, sought):
            return True
    return False


def stands_alone(data: bytes, sought: bytes) -> bool:
    """Whether `data` holds `sought` with neither letter nor digit, nor a UID's dot, beside it.

    A time may follow a date.
    """
    start = data.find(sought)
    while start >= 0:
        end = start + len(sought)
        before = data[start - 1 : start] if start else b""
        after = data[end : end + 1]
        if not before.isalnum() and before != b"." and not after.isalpha():
            digits = sought[-1:].isdigit() and after.isdigit()
            if not digits or day_of(sought.decode("latin-1")):
                return True
        start = data.find(sought, start + 1)
    return False
