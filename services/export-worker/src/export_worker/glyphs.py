"""Characters that no font holds: found, and named in brackets instead of shown as boxes."""

import re
import unicodedata
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

MISSING: Final = re.compile(r'the text `"(.*?)"` could not be displayed', re.DOTALL)
"""What typst says of each, when it writes an archival PDF."""
ESCAPED: Final = re.compile(r"\\u\{([0-9a-f]+)\}")


def missing_characters(diagnostic: str) -> frozenset[str]:
    """Those that typst complains about; none if it complains about something else."""
    quoted = "".join(MISSING.findall(diagnostic))
    spelled = ESCAPED.sub(lambda found: chr(int(found[1], 16)), quoted)
    # Every font has ASCII, so it stands there only beside what is missing.
    return frozenset(character for character in spelled if ord(character) > 127)  # noqa: PLR2004 - ASCII


def script_of(character: str) -> str:
    """`Egyptian`, `Cjk`: the first word of its name in Unicode."""
    return unicodedata.name(character, "unknown").split()[0].split("-")[0].capitalize()


def named(text: str, missing: AbstractSet[str]) -> str:
    """The text, with `[Egyptian]` for a run of characters of a script that no font holds."""
    if missing.isdisjoint(text):
        return text
    parts: list[str] = []
    last = ""
    for character in text:
        if character in missing:
            name = f"[{script_of(character)}]"
            # A run of one script is named once: a sentence of it would fill the line with brackets.
            if name != last:
                parts.append(name)
            last = name
        else:
            parts.append(character)
            last = ""
    return "".join(parts)


def named_throughout(value: Any, missing: AbstractSet[str]) -> Any:
    """`named`, for every string in plain data; keys stay."""
    match value:
        case str():
            return named(value, missing)
        case Mapping():
            return {key: named_throughout(each, missing) for key, each in value.items()}
        case list() | tuple():
            return [named_throughout(each, missing) for each in value]
        case _:
            return value
