"""Who is calling: the metadata key `fluoro-owner`, set by the caller or by the proxy that authenticated it."""

import re
from collections.abc import Iterable
from typing import Final

from fluoro_jobs.errors import FluoroError, Reason

KEY: Final = "fluoro-owner"
DEFAULT_OWNER: Final = "default"
"""Owner of calls that name none: one person on one machine needs no identities."""

_OWNER: Final = re.compile(r"[a-z0-9_.@-]{1,63}")


def owner_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The owner that a call's metadata names. FluoroError INVALID_ARGUMENT if it is malformed or given twice."""
    owner: str | bytes | None = None
    for key, value in metadata or ():
        if key == KEY:
            if owner is not None:
                raise FluoroError(Reason.INVALID_ARGUMENT, f"Metadata {KEY} is given more than once.")
            owner = value
    if owner is None:
        return DEFAULT_OWNER
    if not isinstance(owner, str) or _OWNER.fullmatch(owner) is None:
        raise FluoroError(Reason.INVALID_ARGUMENT, f"Metadata {KEY} must be 1 to 63 of the characters a-z 0-9 - _ . @")
    return owner
