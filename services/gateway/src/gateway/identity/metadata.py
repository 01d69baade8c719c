"""Callers who are believed: the metadata key `fluoro-owner` names them."""

import re
from typing import Final

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ids import OWNER

from gateway.identity.principal import Caller, Principal, Role

KEY: Final = "fluoro-owner"

_OWNER: Final = re.compile(OWNER)


def named_owner(caller: Caller) -> str | None:
    """The owner that a call names. FluoroError INVALID_ARGUMENT if malformed or named twice."""
    owner = caller.one(KEY)
    if owner is None:
        return None
    if not isinstance(owner, str) or _OWNER.fullmatch(owner) is None:
        raise FluoroError(
            Reason.INVALID_ARGUMENT,
            f"Metadata {KEY} must be 1 to 63 of the characters a-z 0-9 - _ . @",
        )
    return owner


def owner_named(asked: str | None) -> str | None:
    """What a request names as an owner; None for what cannot be one, which nobody is."""
    return asked if asked is not None and _OWNER.fullmatch(asked) else None


class Believed:
    """Takes the owner that the call names, or else the only one there is."""

    def __init__(self, how: str, roles: frozenset[Role], single_owner: str = "") -> None:
        """roles: of every caller.

        single_owner: whose calls without the key are, on a gateway for one user; "" for nobody's,
        which a forgetful proxy needs.
        """
        self._how, self._roles = how, roles
        self._single = Principal(single_owner, roles, how) if single_owner else None

    async def authenticate(self, caller: Caller) -> Principal | None:
        """Whoever the call says it is. FluoroError if it is malformed."""
        owner = named_owner(caller)
        return self._single if owner is None else Principal(owner, self._roles, self._how)
