"""Pseudonyms, UIDs and shifts of dates, from the key of a project.

Everything is HMAC-SHA256 of what it replaces: the same on every worker and in every job, without a
table. Who lacks the key can neither go back nor tell which patients of two projects are one.
"""

import base64
import hmac
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Final

from fluoro_jobs.errors import FluoroError, Reason

MIN_KEY_BYTES: Final = 32
"""As long as the hash: a shorter key would be the weakest part."""
MAX_KEY_BYTES: Final = 64 * 1024
"""Of a file. A longer one is no key but something else, mounted by mistake."""
MIN_SHIFT_DAYS: Final = 365
MAX_SHIFT_DAYS: Final = 3650
UUID_BYTES: Final = 16
TIME_CHARACTERS: Final = "0123456789.+-"
VERSION_BITS: Final = 0xF << 76 | 0x3 << 62
VERSION_8: Final = 0x8 << 76 | 0x2 << 62
ID_BYTES: Final = 10
"""80 bits, 16 characters: among a million patients two agree once in 10¹² projects."""


@dataclass(frozen=True, slots=True)
class Key:
    """The secret of a project. Its text never shows the secret."""

    secret: bytes

    def __repr__(self) -> str:
        """Says only that it is one."""
        return "Key(…)"

    @property
    def id(self) -> str:
        """Names the key without telling it."""
        return self.digest("key", "").hex()[:12]

    def digest(self, purpose: str, text: str) -> bytes:
        """32 bytes that only this key makes of the text, others for every purpose."""
        return hmac.digest(self.secret, f"{purpose}\0{text}".encode(), "sha256")

    def uid(self, original: str) -> str:
        """A UID of the form 2.25.… (PS3.5 B.2) in place of this one."""
        number = int.from_bytes(self.digest("uid", original)[:UUID_BYTES], "big")
        # A UUID of version 8 (RFC 9562 5.8): made by a hash of one's own.
        return f"2.25.{number & ~VERSION_BITS | VERSION_8}"


@dataclass(frozen=True, slots=True)
class Patient:
    """What takes the place of one patient.

    pseudonym: their name and ID. shift: days, negative, to add to their dates.
    """

    pseudonym: str
    shift: timedelta


def patient(key: Key, identity: str) -> Patient:
    """identity: what tells this patient from others, in the words of the file."""
    digest = key.digest("patient", identity)
    days = int.from_bytes(key.digest("shift", identity)[:8], "big")
    return Patient(
        base64.b32encode(digest[:ID_BYTES]).decode(),
        -timedelta(MIN_SHIFT_DAYS + days % (MAX_SHIFT_DAYS - MIN_SHIFT_DAYS + 1)),
    )


def read_key(folder: Path | None, project: str) -> Key:
    """The key of a project, read anew each time: a rotation needs no restart.

    FluoroError DEIDENTIFICATION_KEY_MISSING.
    """
    if folder is None:
        raise missing(project, "FLUORO_DEIDENTIFY_KEYS_FOLDER is not set.")
    try:
        with (folder / project).open("rb") as stream:
            # One byte more than allowed tells a longer file, of any size.
            secret = stream.read(MAX_KEY_BYTES + 1)
    except FileNotFoundError:
        raise missing(project, "It has no file in FLUORO_DEIDENTIFY_KEYS_FOLDER.") from None
    except OSError:
        raise missing(project, "Its file cannot be read.") from None
    if len(secret) > MAX_KEY_BYTES:
        raise missing(project, f"Its file has more than {MAX_KEY_BYTES} bytes.")
    # Editors end a file with a line break. With it, the same key would make other pseudonyms.
    secret = secret.strip()
    if len(secret) < MIN_KEY_BYTES:
        raise missing(project, f"Its file has less than {MIN_KEY_BYTES} bytes.")
    return Key(secret)


def missing(project: str, why: str) -> FluoroError:
    """There is no key for the project."""
    return FluoroError(
        Reason.DEIDENTIFICATION_KEY_MISSING, f"There is no key for project {project}. {why}"
    )


def shifted(value: str, shift: timedelta) -> str | None:
    """A DA or DT value (PS3.5 6.2) with its date moved; None if it has no whole date."""
    digits = value.replace(".", "", 2)[:8] if value[4:5] == "." else value[:8]
    day = day_of(digits)
    if day is None or day.toordinal() + shift.days < 1:
        return None
    tail = value[10:] if value[4:5] == "." else value[8:]
    # What follows may be a time, and no text.
    if tail.strip(TIME_CHARACTERS):
        return None
    # On Linux, %Y does not pad years before 1000.
    return f"{day + shift:%Y%m%d}{tail}".rjust(8 + len(tail), "0")


@lru_cache(4096)
def day_of(digits: str) -> date | None:
    """The day that YYYYMMDD names; None if it names none."""
    if len(digits) != 8 or not digits.isascii() or not digits.isdigit():  # noqa: PLR2004 - YYYYMMDD
        return None
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return None
