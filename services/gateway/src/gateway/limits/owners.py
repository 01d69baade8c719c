"""What each owner may have: from the settings, and from a file that may change at any time."""

import asyncio
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import structlog
from fluoro_jobs.ids import OWNER
from pydantic import BaseModel, ConfigDict, Field, ValidationError

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 2
"""How often the file is looked at."""
MOST_BYTES: Final = 2**20
"""Largest file that is read: some 20,000 owners. The parser takes 5 s for what is slowest."""

_STRING_OR_COMMENT: Final = re.compile(r'"(?:\\.|[^"\\\n])*"?|\'[^\'\n]*\'?|#.*')
_LONG_KEY: Final = re.compile(r"\.[\w-]+\.")

MOST_OPEN_JOBS: Final = 100_000
"""Highest quota: a look counts no further."""

Stamp = tuple[int, ...]
Rate = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Number = Annotated[int, Field(ge=0, le=2**62)]


class OwnerLimits(BaseModel):
    """What one owner may have; 0 is no limit.

    `max_calls` and `max_streams` hold for each gateway, the others over all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    calls_per_second: Rate = 0
    jobs_per_second: Rate = 0
    max_calls: Number = 0
    max_streams: Number = 0
    max_stored_bytes: Number = 0
    max_open_jobs: Annotated[int, Field(ge=0, le=MOST_OPEN_JOBS)] = 0


class LimitsFileError(ValueError):
    """The file cannot be used; says why."""


class Owners:
    """The limits of every owner."""

    def __init__(self, usual: OwnerLimits, path: str) -> None:
        """usual: of owners whom the file does not name. path: "" for no file.

        LimitsFileError if it cannot be used.
        """
        self._usual, self._path = usual, path
        self._stamp: Stamp = ()
        self._named: Mapping[str, OwnerLimits] = {}
        if path:
            self._stamp, self._named = _read(path, usual)

    def of(self, owner: str) -> OwnerLimits:
        """What the owner may have now."""
        return self._named.get(owner, self._usual)

    async def run(self) -> None:
        """Reads the file again whenever it has changed. A bad one changes nothing, and is logged.

        Never ends.
        """
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._path:
                # In a thread: the file may lie on a disk that hangs.
                await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Reads the file again if it has changed."""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        # Also of a file that cannot be used: one that is half written gets another stamp.
        self._stamp = stamp
        try:
            self._stamp, self._named = _read(self._path, self._usual)
        except LimitsFileError as error:
            log.error("limits_file_unusable", why=str(error), meaning="the earlier limits stay")
        else:
            log.info("limits_file_read", owners=len(self._named))


def _stamp(path: str) -> Stamp:
    try:
        found = Path(path).stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ino, found.st_size


def _read(path: str, usual: OwnerLimits) -> tuple[Stamp, dict[str, OwnerLimits]]:
    # Before the file is read: a change during the read gets another stamp, and is read again.
    stamp = _stamp(path)
    try:
        with Path(path).open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise LimitsFileError(f"{path} cannot be read: {error.strerror}.") from None
    if len(data) > MOST_BYTES:
        raise LimitsFileError(f"{path} is larger than {MOST_BYTES} bytes.")
    try:
        text = data.decode()
        _refuse_long_keys(path, text)
        tables = tomllib.loads(text)
    except LimitsFileError:
        raise
    except (ValueError, RecursionError) as error:  # of text, TOML, endless numbers, depth
        raise LimitsFileError(f"{path} is not TOML: {error}.") from None
    return stamp, {owner: _limits(path, owner, table, usual) for owner, table in tables.items()}


def _refuse_long_keys(path: str, text: str) -> None:
    """No key here has more than two parts, and the time of the parser grows with their square."""
    bare = _STRING_OR_COMMENT.sub("_", text).replace(" ", "").replace("\t", "")
    if _LONG_KEY.search(bare):
        raise LimitsFileError(
            f"{path} has a key of more than two parts. Quote the name of an owner that has a dot."
        )


def _limits(path: str, owner: str, table: object, usual: OwnerLimits) -> OwnerLimits:
    if not re.fullmatch(OWNER, owner) or not isinstance(table, dict):
        raise LimitsFileError(
            f'{path}: "{owner}" is no table of an owner. Write ["NAME"], and its limits below.'
        )
    try:
        # Merged over the usual limits, so that a table lists only what differs.
        return OwnerLimits.model_validate(usual.model_dump() | table)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise LimitsFileError(f'{path}: ["{owner}"] {where}: {first["msg"]}.') from None
