"""Who is calling: the metadata key `fluoro-owner`, which the caller or a proxy in front sets."""

import re
from collections.abc import Iterable
from typing import Final

from fluoro_jobs.errors import FluoroError, Reason

KEY: Final = "fluoro-owner"
NAME: Final = r"[a-z0-9_.@-]{1,63}"
"""What an owner may be called."""

_OWNER: Final = re.compile(NAME)


def owner_of(metadata: Iterable[tuple[str, str | bytes]] | None, single_owner: str = "") -> str:
    """The owner that a call's metadata names, or else the only one there is.

    single_owner: whose calls without that key are, on a gateway for one user; "" for nobody's,
    which a forgetful proxy needs. FluoroError OWNER_MISSING if there is nobody whose call it is;
    INVALID_ARGUMENT if the name is malformed or given twice.
    """
    owner: str | bytes | None = None
    for key, value in metadata or ():
        if key == KEY:
            if owner is not None:
                raise FluoroError(
                    Reason.INVALID_ARGUMENT, f"Metadata {KEY} is given more than once."
                )
            owner = value
    if owner is None:
        if not single_owner:
            raise FluoroError(
                Reason.OWNER_MISSING,
                (
                    f"The call does not say whose it is. Send the metadata {KEY}; `fluoro` takes "
                    "--owner."
                ),
            )
        return single_owner
    if not isinstance(owner, str) or _OWNER.fullmatch(owner) is None:
        raise FluoroError(
            Reason.INVALID_ARGUMENT,
            f"Metadata {KEY} must be 1 to 63 of the characters a-z 0-9 - _ . @",
        )
    return owner
