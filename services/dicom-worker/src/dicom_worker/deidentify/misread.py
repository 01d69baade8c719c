"""Finds identifiers in what a recogniser of characters read, with one or two of them misread."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

MIN_CHARACTERS: Final = 5
"""Shorter identifiers are too much like what is read into anatomy."""
MIN_FOR_TWO: Final = 8
"""Characters from which on two may be wrong, else one."""
LOOKALIKES: Final = str.maketrans("0oqd1ilj|5s8b2z6g", "000011111558822gg")
"""Characters that recognisers take for each other, as one of them."""


@dataclass(frozen=True, slots=True)
class Misread:
    """Identifiers as a recogniser may read them: letters and digits alone, lookalikes as one."""

    sought: frozenset[str]

    def __call__(self, text: str) -> bool:
        """Whether a text, as it was read, holds one of the identifiers."""
        plain = plainly(text)
        return any(holds(plain, each) for each in self.sought)


def misread(identifiers: Iterable[str], dates: Iterable[str]) -> Misread:
    """identifiers: names, numbers and places. dates: as YYYYMMDD; people write them otherwise."""
    forms = set(identifiers)
    for day in dates:
        year, month, number = day[:4], day[4:6], day[6:]
        forms |= {day, number + month + year, month + number + year}
    plain = {plainly(each) for each in forms}
    return Misread(frozenset(each for each in plain if len(each) >= MIN_CHARACTERS))


def plainly(text: str) -> str:
    """Letters and digits in lower case, lookalikes as one of them."""
    return "".join(each for each in text.casefold() if each.isalnum()).translate(LOOKALIKES)


def holds(text: str, sought: str) -> bool:
    """Whether a part of the text is `sought` but for one or two characters."""
    wrong = 2 if len(sought) >= MIN_FOR_TWO else 1
    # Of one more part than characters may be wrong, one is right. That is fast to tell.
    size = -(-len(sought) // (wrong + 1))
    if not any(sought[at : at + size] in text for at in range(0, len(sought), size)):
        return False
    # Sellers (1980): least edits from the start of `sought` to any part that ends here.
    row = list(range(len(sought) + 1))
    for character in text:
        diagonal, row[0] = row[0], 0
        for at, wanted in enumerate(sought, 1):
            best = min(row[at] + 1, row[at - 1] + 1, diagonal + (character != wanted))
            diagonal, row[at] = row[at], best
        if row[-1] <= wrong:
            return True
    return False
