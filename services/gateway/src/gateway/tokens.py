"""TokenService: operators give out and revoke service tokens."""

import re
from datetime import UTC, datetime
from typing import Final

import structlog
from fluoro.v1 import token_service_pb2
from fluoro.v1.token_service_pb2 import (
    CreateTokenRequest,
    CreateTokenResponse,
    ListTokensRequest,
    ListTokensResponse,
    RevokeTokenRequest,
    RevokeTokenResponse,
)
from fluoro_jobs import wellknown
from fluoro_jobs.ids import OWNER
from fluoro_jobs.ledger import paging, tokens

from gateway import names
from gateway.identity.principal import Role
from gateway.ledger_calls import LedgerCalls
from gateway.rpc import Call

log = structlog.get_logger(__name__)

LONGEST_DISPLAY_NAME: Final = 100

_OWNER: Final = re.compile(OWNER)
_ROLES: Final = {token_service_pb2.Role.Value(f"ROLE_{role.name}"): role.value for role in Role}
_NUMBERS: Final = {name: number for number, name in _ROLES.items()}


class Tokens:
    """The methods of fluoro.v1.TokenService."""

    def __init__(self, calls: LedgerCalls) -> None:
        self._calls = calls

    async def create_token(self, request: CreateTokenRequest, call: Call) -> CreateTokenResponse:
        """Makes a token and shows it, this once."""
        wanted = request.token
        roles = _checked(wanted)
        creator = call.principal.name or call.principal.owner
        made, secret = await self._calls.run_for(
            call.owner,
            call.record.with_change(tokens.create, lambda made: _name(made[0])),
            wanted.owner,
            roles,
            creator=creator,
            display_name=wanted.display_name,
            expire_time=_expire_time(wanted),
        )
        log.info(
            "token_created", token=str(made.id), owner=made.owner, roles=roles, operator=creator
        )
        return CreateTokenResponse(token=_message(made), secret=secret)

    async def list_tokens(self, request: ListTokensRequest, call: Call) -> ListTokensResponse:
        """A page of tokens, of all owners or of one."""
        if request.owner and not _OWNER.fullmatch(request.owner):
            raise names.invalid("owner", _WANTED_OWNER)
        size = paging.page_size(request)
        key = paging.read_token(request, str)
        before = paging.uuid_of(key[0]) if key else None
        # One more than asked for shows whether there is another page.
        found = await self._calls.run_for(call.owner, tokens.page, request.owner, size + 1, before)
        response = ListTokensResponse(tokens=[_message(token) for token in found[:size]])
        if len(found) > size:
            response.next_page_token = paging.write_token(request, [str(found[size - 1].id)])
        return response

    async def revoke_token(self, request: RevokeTokenRequest, call: Call) -> RevokeTokenResponse:
        """Revokes a token of any owner."""
        token_id = names.token_id(request.name)
        revoke = call.record.with_change(tokens.revoke)
        revoked = await self._calls.run_for(call.owner, revoke, token_id)
        log.info(
            "token_revoked",
            token=str(token_id),
            owner=revoked.owner,
            operator=call.principal.name or call.principal.owner,
        )
        return RevokeTokenResponse(token=_message(revoked))


_WANTED_OWNER: Final = "Must be 1 to 63 of the characters a-z 0-9 - _ . @"


def _checked(token: token_service_pb2.Token) -> list[str]:
    """The names of its roles. FluoroError INVALID_ARGUMENT if a field is no good."""
    if not _OWNER.fullmatch(token.owner):
        raise names.invalid("token.owner", _WANTED_OWNER)
    if not token.roles or not set(token.roles) <= set(_ROLES):
        raise names.invalid("token.roles", f"Must be of {', '.join(_NUMBERS)}, at least one.")
    if len(token.display_name) > LONGEST_DISPLAY_NAME or not token.display_name.isprintable():
        raise names.invalid(
            "token.display_name", f"Must be at most {LONGEST_DISPLAY_NAME} printable characters."
        )
    return sorted({_ROLES[role] for role in token.roles})


def _expire_time(token: token_service_pb2.Token) -> datetime | None:
    if not token.HasField("expire_time"):
        return None
    if not wellknown.is_time(token.expire_time):
        raise names.invalid("token.expire_time", "Must be a time in the years 1 to 9999.")
    return token.expire_time.ToDatetime(UTC)


def _name(token: tokens.Token) -> str:
    return f"tokens/{token.id}"


def _message(token: tokens.Token) -> token_service_pb2.Token:
    message = token_service_pb2.Token(
        name=_name(token),
        owner=token.owner,
        roles=[_NUMBERS[role] for role in token.roles if role in _NUMBERS],
        display_name=token.display_name,
        creator=token.creator,
    )
    message.create_time.FromDatetime(token.create_time)
    message.expire_time.FromDatetime(token.expire_time)
    if token.revoke_time:
        message.revoke_time.FromDatetime(token.revoke_time)
    return message
