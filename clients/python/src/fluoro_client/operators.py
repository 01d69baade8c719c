"""What the clients do for operators: service tokens, and a look at the deployment."""

from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

from fluoro.v1 import deployment_service_pb2, token_service_pb2

from fluoro_client.channel import Connection
from fluoro_client.sharing import Calling


class _Calls(Calling, Protocol):
    """What these methods need of a client."""

    _connection: Connection


class OperatorCalls:
    """Methods of a client that need the role operator."""

    async def create_token(
        self: _Calls,
        owner: str,
        roles: Sequence["token_service_pb2.Role.ValueType"],
        *,
        display_name: str = "",
        days: float | None = None,
    ) -> token_service_pb2.CreateTokenResponse:
        """A new token of an owner. Its `secret` is shown this once.

        days: until it expires, at most 366; None for 90. It is sent once: a call that is repeated
        after a lost answer makes another token.
        """
        token = token_service_pb2.Token(owner=owner, roles=roles, display_name=display_name)
        if days is not None:
            token.expire_time.FromDatetime(datetime.now(UTC) + timedelta(days=days))
        request = token_service_pb2.CreateTokenRequest(token=token)
        return await self._once(self._connection.tokens.CreateToken, request, self.deadline_seconds)

    async def list_tokens(
        self: _Calls, owner: str = ""
    ) -> AsyncGenerator[token_service_pb2.Token, None]:
        """Tokens, newest first, page by page. owner: only this one's."""
        request = token_service_pb2.ListTokensRequest(owner=owner)
        async for page in self._pages(self._connection.tokens.ListTokens, request):
            for token in page.tokens:
                yield token

    async def revoke_token(self: _Calls, name: str) -> token_service_pb2.Token:
        """Revokes the token of this name, `tokens/{uuid}`. May be repeated."""
        request = token_service_pb2.RevokeTokenRequest(name=name)
        return (await self._unary(self._connection.tokens.RevokeToken, request)).token

    async def diagnose(self: _Calls) -> deployment_service_pb2.DiagnoseDeploymentResponse:
        """What the gateway finds when it looks at itself and at everything behind it."""
        return await self._once(
            self._connection.deployment.DiagnoseDeployment,
            deployment_service_pb2.DiagnoseDeploymentRequest(),
            self.deadline_seconds,
        )
