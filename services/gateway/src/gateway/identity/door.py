"""Every call passes here: who calls, whether they may, and whose jobs and blobs it is about."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import structlog
from fluoro_jobs.errors import REASONS, FluoroError, Reason

from gateway.identity.bearer import expired, invalid
from gateway.identity.metadata import KEY, named_owner, owner_named
from gateway.identity.principal import Authenticator, Caller, Principal, Role
from gateway.identity.roles import OPERATE

log = structlog.get_logger(__name__)

Result = TypeVar("Result")

LOOK_AGAIN_SECONDS: Final = 5
"""How often the proof of a stream's caller is looked at again, if it can be revoked."""
SHORTEST_SLEEP_SECONDS: Final = 0.2
LONGEST_SLEEP_SECONDS: Final = 60
"""The same if it can only expire: a clock may be set."""


class Door:
    """Asks the sources in turn, then the table of roles."""

    def __init__(self, sources: Sequence[Authenticator], missing: FluoroError) -> None:
        """missing: for a call that shows nothing that a source takes."""
        self._sources, self._missing = sources, missing

    async def admit(
        self,
        method: str,
        needed: Collection[Role],
        caller: Caller,
        asked: Callable[[], str | None] = lambda: None,
    ) -> Principal:
        """The caller, with the owner whose call it is.

        method: its full name. asked: the owner that the request's filter names. FluoroError of code
        UNAUTHENTICATED, ROLE_MISSING, or INVALID_ARGUMENT for an operator who names two owners.
        Whom it found stands in `caller.known` then, too.
        """
        principal = caller.known = await self.identify(caller)
        # Checked before the owner, so that callers without the role learn nothing about other
        # owners.
        if principal.roles.isdisjoint(needed):
            raise _lacks(principal, method, sorted(needed))
        filtered = owner_named(asked())
        owner = named_owner(caller) or filtered or principal.owner
        if filtered not in {None, owner}:
            if Role.OPERATOR in principal.roles:
                raise _two_owners()
            # One of the two is not the caller.
            owner = filtered if owner == principal.owner else owner
        name = principal.name or principal.owner
        if owner != principal.owner:
            # Set before the refusal, so that the audit records who asked for whom.
            caller.known = replace(principal, owner=owner, name=name)
            if Role.OPERATOR not in principal.roles:
                what = f"Another owner in metadata {KEY} or a filter"
                raise _lacks(principal, what, [Role.OPERATOR])
        # Only what operators alone may do, or do for others, is in the log.
        elif needed != OPERATE:
            return principal
        log.info(
            "operator_acts",
            principal=name,
            how=principal.how,
            owner=owner,
            method=method,
            peer=caller.peer,
        )
        caller.known = replace(principal, owner=owner, name=name)
        return caller.known

    async def kept(
        self,
        method: str,
        needed: Collection[Role],
        principal: Principal,
        caller: Caller,
        stream: Awaitable[Result],
    ) -> Result:
        """Awaits a stream or a long call, for as long as its caller proves who it is.

        method, needed: as in `admit`, which found the principal. FluoroError of code
        UNAUTHENTICATED once the proof has expired, was revoked or is another's, ROLE_MISSING once
        the caller lacks a role.
        """
        # A proof that can neither end nor be revoked needs no watch.
        if principal.expires is None and not principal.revocable:
            return await stream
        loop, ended = asyncio.get_running_loop(), list[FluoroError]()
        try:
            async with asyncio.timeout(None) as limit:
                # The stream's own task must not look: it may wait for a slow reader.
                async def watch() -> None:
                    ended.append(await self._end_of(method, needed, principal, caller))
                    limit.reschedule(loop.time())

                watching = asyncio.create_task(watch())
                try:
                    return await stream
                finally:
                    watching.cancel()
        except TimeoutError:
            # A timeout of the stream's own passes as it is.
            if ended:
                raise ended[0] from None
            raise

    async def identify(self, caller: Caller) -> Principal:
        """The caller, whatever it may do. FluoroError of code UNAUTHENTICATED if it is nobody."""
        for source in self._sources:
            if (principal := await source.authenticate(caller)) is not None:
                return principal
        raise self._missing

    async def _end_of(
        self, method: str, needed: Collection[Role], principal: Principal, caller: Caller
    ) -> FluoroError:
        """Looks at the proof again and again, until it is no good any more; why."""
        expires, told = principal.expires, False
        while True:
            seconds: float = LOOK_AGAIN_SECONDS if principal.revocable else LONGEST_SLEEP_SECONDS
            if expires is not None:
                seconds = min(seconds, _left(expires))
            await asyncio.sleep(seconds)
            try:
                # A ledger that hangs prolongs no proof.
                async with asyncio.timeout(None if expires is None else _left(expires)):
                    found = await self.identify(caller)
            except Exception as error:  # noqa: BLE001 - a fault of ours is no reason never to look again
                # A ledger or an issuer that is away says nothing about the caller. The time does.
                if isinstance(error, FluoroError):
                    if REASONS[error.reason].code == "UNAUTHENTICATED":
                        return error
                elif not told and not isinstance(error, TimeoutError):
                    log.error("proof_not_looked_at", exception=type(error).__qualname__)
                    told = True
                # The clock needs no store, so an outage prolongs nothing.
                if expires is not None and time.time() > expires:
                    return expired()
                continue
            if (missing := _lost(method, needed, principal, found)) is not None:
                return missing
            expires = found.expires


def _left(expires: float) -> float:
    """Seconds until then; a moment if it is over."""
    return max(SHORTEST_SLEEP_SECONDS, expires - time.time())


def _lost(
    method: str, needed: Collection[Role], principal: Principal, found: Principal
) -> FluoroError | None:
    """Why a caller that is now `found` may not go on as the principal that it was."""
    name = principal.name or principal.owner
    if (found.name or found.owner) != name:
        return invalid("it is another owner's now")
    if found.roles.isdisjoint(needed):
        return _lacks(found, method, sorted(needed))
    if principal.owner != name and Role.OPERATOR not in found.roles:
        return _lacks(found, f"Another owner in metadata {KEY} or a filter", [Role.OPERATOR])
    return None


def _two_owners() -> FluoroError:
    return FluoroError(
        Reason.INVALID_ARGUMENT,
        f"Metadata {KEY} and the filter name different owners. Leave one of them out.",
    )


def _lacks(principal: Principal, what: str, needed: Sequence[Role]) -> FluoroError:
    has = ", ".join(sorted(principal.roles)) or "none"
    return FluoroError(
        Reason.ROLE_MISSING,
        f"{what} needs the role {' or '.join(needed)}. This caller's roles: {has}.",
        metadata={"needed": ",".join(needed)},
    )
