"""Text values: character sets (PS3.5 6.1), the standard's words, and cleaning (PS3.15 E.3.5)."""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

from fluoro_jobs.errors import Reason
from pydicom.charset import convert_encodings, decode_bytes, default_encoding, encode_string
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

from dicom_worker.blame import blame_file
from dicom_worker.deidentify.elements import TEXT_VRS
from dicom_worker.deidentify.profile import STANDARD

WORD: Final = re.compile(r"[^\W_]+")
PIECE: Final = re.compile(r"[^\W\d_]+|\d+")
CHUNK_EDGES: Final = "()[]{}<>.,;:!?'\"*=~"
MAX_DIGITS: Final = 3
"""Of a number in a cleaned text: `5 mm`, but no year and no part of an ID."""
UNITS: Final = frozenset(
    ["mm", "cm", "ml", "mg", "s", "ms", "hz", "khz", "mhz", "kv", "ma", "mas", "t", "x", "d"]
)


@lru_cache(256)
def encodings_of(character_set: str) -> tuple[str, ...]:
    """Python's names for a value of Specific Character Set (0008,0005).

    Terms that nobody knows are read as Latin-1, so that no byte is lost.
    """
    if not character_set.strip():
        return (default_encoding,)
    with blame_file(Reason.DICOM_INVALID, "SpecificCharacterSet cannot be read."):
        return tuple(convert_encodings([each.strip() for each in character_set.split("\\")]))


def decoded(value: bytes, vr: str, encodings: Sequence[str]) -> str:
    """A string value as text, padding included. Bytes that do not fit become replacement marks."""
    # ISO 2022 writes other scripts in ASCII bytes, behind an escape.
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    # Specific Character Set does not apply to it (PS3.5 6.1.2.3), and Latin-1 loses no byte.
    if vr not in TEXT_VRS:
        return value.decode("latin-1")
    delimiters = PN_DELIMS if vr == "PN" else TEXT_VR_DELIMS
    with blame_file(Reason.DICOM_INVALID, "A text cannot be decoded."):
        return decode_bytes(value, encodings, delimiters)


def encoded(text: str, encodings: Sequence[str]) -> bytes:
    """A text in the file's own character set, of even length."""
    if text.isascii():
        raw = text.encode()
    else:
        with blame_file(Reason.DICOM_INVALID, "A text cannot be encoded."):
            raw = encode_string(text, encodings)
    return raw + b" " * (len(raw) % 2)


@lru_cache(1)
def vocabulary() -> frozenset[str]:
    """The standard's words, of two letters and more, in lower case.

    `standard/words.txt` has those in the code meanings of PS3.16 and the names of attributes and
    UIDs of PS3.6, as pydicom 3.0.2 has them.
    """
    return frozenset((STANDARD / "words.txt").read_text().split())


def cleaned(text: str, identifies: Callable[[str], bool]) -> str:
    """The text without what may identify: words outside `vocabulary()`, and long numbers.

    identifies: whether a word is part of what identifies this patient.
    """
    lines = ("\\".join(map(" ".join, parts(line, identifies))) for line in text.splitlines())
    return "\r\n".join(line for line in lines if line)


def parts(line: str, identifies: Callable[[str], bool]) -> list[list[str]]:
    """The harmless chunks of each value of a line."""
    return [
        [chunk for chunk in value.split() if harmless(chunk, identifies)]
        for value in line.split("\\")
    ]


def harmless(chunk: str, identifies: Callable[[str], bool]) -> bool:
    """Whether what stands between two spaces may stay."""
    pieces = PIECE.findall(chunk.strip(CHUNK_EDGES))
    numbers = [piece for piece in pieces if piece[0].isdigit()]
    if len(numbers) > 1 or any(len(number) > MAX_DIGITS for number in numbers):
        return False
    words = [piece.casefold() for piece in pieces if not piece[0].isdigit()]
    known = vocabulary() | UNITS
    # `T1` and `L5` are words, too.
    return bool(pieces) and all(
        (word in known or (len(word) == 1 and len(pieces) > 1)) and not identifies(word)
        for word in words
    )


def code_known(meaning: str) -> bool:
    """Whether all words of a code's meaning are the standard's."""
    return all(word in vocabulary() for word in re.findall(r"[^\W\d_]{2,}", meaning.casefold()))
