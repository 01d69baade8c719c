"""Roles that the settings give to owners, beside those that a token itself carries."""

from collections.abc import Iterable
from typing import Final

from gateway.identity.principal import Role

EVERYBODY: Final = "*"


class Bindings:
    """Which owner has which roles."""

    def __init__(self, text: str) -> None:
        """text: `OWNER=ROLE+ROLE,OWNER=ROLE`; the owner `*` stands for all who prove who they are.

        ValueError if it is malformed.
        """
        self._roles: dict[str, frozenset[Role]] = {}
        for entry in filter(None, text.split(",")):
            owner, _, roles = entry.partition("=")
            # An owner may be listed twice; the roles add up.
            self._roles[owner] = self._roles.get(owner, frozenset()) | frozenset(
                Role(role) for role in roles.split("+")
            )

    def of(self, owner: str, own: Iterable[Role] = ()) -> frozenset[Role]:
        """All roles of an owner. own: those that it brings."""
        nothing: frozenset[Role] = frozenset()
        given = self._roles.get(owner, nothing) | self._roles.get(EVERYBODY, nothing)
        return given.union(own)
