"""Keys: the names of a step's inputs, and file names made of them.

A key is one or more parts between slashes. `3/0007` is the eighth file in an archive that is input
3 of the job. Operations number parts and never take them from the data: the name of a file in an
archive may be a patient's.
"""

import hashlib
import re
from typing import Final

MAX_KEY_CHARACTERS: Final = 128
"""Longest key."""
KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
"""No part begins with a dot or a hyphen: people make folders of them, and name them in commands."""

_NUMBER: Final = re.compile(r"0|[1-9][0-9]*")


def checked_key(key: str) -> str:
    """The key itself. ValueError, which does not quote it, if it is none."""
    if len(key) > MAX_KEY_CHARACTERS or KEY.fullmatch(key) is None:
        raise ValueError(
            "A key is letters, digits, dots, underscores and hyphens between slashes, "
            f"at most {MAX_KEY_CHARACTERS} of them."
        )
    return key


def file_name(stem: str, key: str, suffix: str) -> str:
    """A name for what belongs to a key.

    `preview-0003.png` for `3`, `preview-3~0007.png` for `3/0007`. No two keys share a name, also
    where file names do not tell `A` from `a`.
    """
    # Leading zeros make names sort like numbers.
    if _NUMBER.fullmatch(key):
        return f"{stem}-{int(key):04}{suffix}"
    name = key.replace("/", "~")  # not a character of keys
    # `0007` would be called as `7` is, and `A` as `a`.
    if key.isdecimal() or key != key.lower():
        name += f"~~{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return f"{stem}-{name}{suffix}"
