"""How numbers, names and dates are written in a report."""

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

NONE: Final = "\u2013"
"""Stands where there is no value: an en dash."""

MINUS: Final = "\u2212"
"""A true minus sign, as wide as a digit."""

TIMES: Final = " \u00d7 "
"""Multiplication sign, between the lengths of an array."""

TITLE_CHARACTERS: Final = 160
"""A title is cut here: it is repeated on every page."""


KEY_CHARACTERS: Final = 24
"""Most of a key in a table: one of 128 would fill a fifth of a page. `result.json` has it all."""


def printable(text: str, characters: int = 400) -> str:
    """One line without control and direction characters, of at most so many characters."""
    line = " ".join(
        # Marks of direction could show a text in another order than it is stored.
        "".join(character if character.isprintable() else " " for character in text).split()
    )
    return line if len(line) <= characters else line[: characters - 1].rstrip() + "…"


def key(text: str) -> str:
    """A key as it fits into a column: the middle of a long one is left out."""
    if len(text) <= KEY_CHARACTERS:
        return text
    half = KEY_CHARACTERS // 2
    # Keys of one series begin alike, and differ at the end.
    return f"{text[: half - 1]}…{text[-half:]}"


def count(value: int) -> str:
    """`16,384`."""
    return f"{value:,}"


def number(value: float, decimals: int) -> str:
    """`-1,024.5`, with a true minus sign; a dash where there is no finite value."""
    # A hyphen is shorter than a digit, and columns of numbers would not line up.
    return f"{value:,.{decimals}f}".replace("-", MINUS) if math.isfinite(value) else NONE


def percent(fraction: float) -> str:
    """`41.3 %`."""
    return f"{number(100 * fraction, 1)} %" if math.isfinite(fraction) else NONE


def short(value: float) -> str:
    """As few digits as needed, six at most: `40`, `0.661468`."""
    return f"{value:g}".replace("-", MINUS) if math.isfinite(value) else NONE


def size(lengths: Iterable[int]) -> str:
    """Lengths of an array, with multiplication signs between them."""
    return TIMES.join(str(length) for length in lengths)


def share(value: float) -> float:
    """A fraction made safe for drawing: 0 to 1."""
    return min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0


def unit(ucum: str) -> str:
    """A UCUM unit as people write it: `HU`; empty for the unity `1`."""
    return "" if ucum == "1" else printable(ucum, 16)


def short_job(job: str) -> str:
    """The last eight digits of a job's UUIDv7.

    The first ones are the time, which jobs of one minute share.
    """
    return job[-8:]


def job_time(job: str) -> datetime:
    """When the job was made, from its UUIDv7 (RFC 9562 section 5.7)."""
    return datetime.fromtimestamp((UUID(job.removeprefix("jobs/")).int >> 80) / 1000, UTC)
