"""Service tokens: random, hashed in the ledger, looked up there once in a while."""

import asyncio
import time
from collections import OrderedDict
from typing import Final, NamedTuple

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger import tokens

from gateway.identity.bearer import bearer, expired, invalid
from gateway.identity.principal import Caller, Principal, Role
from gateway.ledger_calls import LedgerCalls

REMEMBERED: Final = 10_000
"""Good tokens, and as many bad ones, of which the ledger need not be asked again for a while."""
LANES: Final = 8
"""Turns for tokens that are not known yet: more would leave known ones too few."""


class _Answer(NamedTuple):
    """What the ledger said. principal: None for a token that is no good. until: time.monotonic."""

    principal: Principal | None
    revoked: bool
    until: float


class ServiceTokens:
    """Takes the tokens that the ledger knows."""

    def __init__(self, calls: LedgerCalls, cache_seconds: float) -> None:
        """calls: of its own: a flood of bad tokens delays nobody who brings another kind of proof.

        cache_seconds: how long an answer of the ledger is good; a revoked token is too.
        """
        self._calls, self._cache_seconds = calls, cache_seconds
        self._good: OrderedDict[bytes, _Answer] = OrderedDict()
        self._bad: OrderedDict[bytes, _Answer] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[_Answer]] = {}

    async def authenticate(self, caller: Caller) -> Principal | None:
        """Whom the token is of.

        FluoroError TOKEN_INVALID, TOKEN_REVOKED or TOKEN_EXPIRED; a reason of LEDGER_OUTAGES if the
        ledger has to be asked and cannot be.
        """
        token = bearer(caller)
        if token is None or not token.startswith(tokens.PREFIX):
            return None
        digest = tokens.digest(token)
        # Bad tokens have a cache of their own, so that a flood of them cannot push out good ones.
        answer = self._good.get(digest) or self._bad.get(digest)
        if answer is None or answer.until < time.monotonic():
            answer = await self._ask(digest, caller)
        principal = answer.principal
        if principal is None:
            raise invalid("it is not one of this Fluoro's")
        if answer.revoked:
            raise FluoroError(Reason.TOKEN_REVOKED, "The token was revoked. Get a new one.")
        if principal.expires is not None and time.time() > principal.expires:
            raise expired()
        return principal

    async def _ask(self, digest: bytes, caller: Caller) -> _Answer:
        """Asks once for all calls that wait for the same answer; a cancelled one ends none."""
        asking = self._asking.get(digest)
        if asking is None:
            looking = self._look(digest, lane(caller.peer))
            asking = self._asking[digest] = asyncio.create_task(looking)
            # Kept until it is done, so that the loop's weak reference is not the only one.
            asking.add_done_callback(lambda _: self._asking.pop(digest, None))
        return await asyncio.shield(asking)

    async def _look(self, digest: bytes, new: str) -> _Answer:
        # They take turns, or those who were let in before would wait behind a flood of bad tokens.
        turn = "known" if digest in self._good else new
        found = await self._calls.run_for(turn, tokens.find, digest)
        until = time.monotonic() + self._cache_seconds
        if found is None:
            answer = _Answer(None, revoked=False, until=until)
        else:
            principal = Principal(
                found.owner,
                frozenset(role for role in Role if role.value in found.roles),
                "token",
                expires=time.time() + found.seconds,
                revocable=True,
            )
            answer = _Answer(principal, found.revoked, until)
        # A revoked token was a good one before, so it must leave the other cache.
        _remember(self._bad if found is None or found.revoked else self._good, digest, answer)
        (self._good if found is None or found.revoked else self._bad).pop(digest, None)
        return answer


def lane(peer: str) -> str:
    """Whose turn a new token is: that of some addresses, so that a flood from one is not all's."""
    return f"new {hash(peer.rpartition(':')[0]) % LANES}"


def _remember(answers: OrderedDict[bytes, _Answer], digest: bytes, answer: _Answer) -> None:
    answers[digest] = answer
    answers.move_to_end(digest)
    if len(answers) > REMEMBERED:
        answers.popitem(last=False)
