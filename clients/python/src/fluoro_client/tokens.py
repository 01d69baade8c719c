"""Service tokens, for operators. Functions on an AsyncClient; `fluoro tokens` is made of them."""

# ruff: noqa: SLF001 - the client's own package
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime, timedelta

from fluoro.v1 import token_service_pb2

from fluoro_client.aio import AsyncClient


async def create_token(
    client: AsyncClient,
    owner: str,
    roles: Sequence["token_service_pb2.Role.ValueType"],
    *,
    display_name: str = "",
    days: float | None = None,
) -> token_service_pb2.CreateTokenResponse:
    """A new token of an owner. Its `secret` is shown this once.

    days: until it expires, at most 366; None for 90. It is sent once: a call that is repeated after
    a lost answer makes another token.
    """
    token = token_service_pb2.Token(owner=owner, roles=roles, display_name=display_name)
    if days is not None:
        token.expire_time.FromDatetime(datetime.now(UTC) + timedelta(days=days))
    return await client._once(
        client._connection.tokens.CreateToken,
        token_service_pb2.CreateTokenRequest(token=token),
        client.deadline_seconds,
    )


async def list_tokens(
    client: AsyncClient, owner: str = ""
) -> AsyncGenerator[token_service_pb2.Token, None]:
    """Tokens, newest first, page by page. owner: only this one's."""
    request = token_service_pb2.ListTokensRequest(owner=owner)
    async for page in client._pages(client._connection.tokens.ListTokens, request):
        for token in page.tokens:
            yield token


async def revoke_token(client: AsyncClient, name: str) -> token_service_pb2.Token:
    """Revokes the token of this name, `tokens/{uuid}`. May be repeated."""
    request = token_service_pb2.RevokeTokenRequest(name=name)
    return (await client._unary(client._connection.tokens.RevokeToken, request)).token
