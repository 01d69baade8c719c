"""The sources that the settings name, in their order, and what they keep up to date."""

import asyncio
from collections.abc import Callable
from typing import Final

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger.connection import Ledger

from gateway.identity import fetching
from gateway.identity.bearer import JwtBearer
from gateway.identity.bindings import Bindings
from gateway.identity.certificate import Certificate
from gateway.identity.door import Door
from gateway.identity.key_set import KeySet
from gateway.identity.metadata import KEY, Believed
from gateway.identity.principal import Authenticator, Role
from gateway.identity.service_tokens import ServiceTokens
from gateway.ledger_calls import LedgerCalls
from gateway.settings import Settings

_BELIEVING: Final = {"trusted-metadata", "none"}


class Sources:
    """The door of a gateway, and the tasks behind it."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        """Made in the event loop that calls come to. ledger: closing it is the caller's."""
        self._settings = settings
        # Of its own: a flood of bad tokens delays nobody who brings none.
        self._calls = LedgerCalls(ledger, threads=1)
        self._bindings = Bindings(settings.role_bindings)
        self._keys: KeySet | None = None
        self.tasks: list[asyncio.Task[None]] = []
        """What must run for as long as the gateway does."""
        names = settings.identity.split(",")
        make: dict[str, Callable[[], Authenticator]] = {
            "mtls": lambda: Certificate(self._bindings, settings.mtls_trust_domain),
            "tokens": lambda: ServiceTokens(self._calls, settings.token_cache_seconds),
            "jwt": self._jwt,
            "trusted-metadata": lambda: Believed(
                "trusted-metadata", frozenset({Role.VIEWER, Role.SUBMITTER}), settings.single_owner
            ),
            "none": lambda: Believed("none", frozenset(Role), settings.single_owner),
        }
        self.door = Door([make[name]() for name in names], _missing(names))

    async def start(self) -> None:
        """Fetches what calls will need; an issuer that is away delays it by seconds at most."""
        if self._keys is not None:
            await self._keys.refresh()
            self.tasks.append(asyncio.create_task(self._keys.run(), name="issuer-keys"))

    async def close(self) -> None:
        """Ends the tasks, and waits for a look into the ledger that is under way."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.to_thread(self._calls.close)

    def _jwt(self) -> Authenticator:
        settings = self._settings
        fetch = fetching.keys_of(
            settings.jwt_issuer,
            settings.jwt_keys,
            settings.jwt_ca_file,
            settings.jwt_fetch_token_file,
        )
        self._keys = KeySet(fetch, settings.jwt_refresh_seconds)
        return JwtBearer(
            self._keys,
            self._bindings,
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
            owner_claim=settings.jwt_owner_claim,
            roles_claim=settings.jwt_roles_claim,
        )


def _missing(names: list[str]) -> FluoroError:
    # Believing sources need no proof, so what is missing is the owner's name.
    if _BELIEVING.isdisjoint(names):
        return FluoroError(
            Reason.CREDENTIALS_MISSING,
            f"The call does not prove who makes it. This gateway takes: {', '.join(names)}.",
        )
    return FluoroError(
        Reason.OWNER_MISSING,
        f"The call does not say whose it is. Send the metadata {KEY}; `fluoro` takes --owner.",
    )
