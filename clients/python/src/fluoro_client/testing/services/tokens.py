"""TokenService over the state in memory."""

import secrets
import uuid
from datetime import UTC, datetime, timedelta
from typing import Final

from fluoro.v1 import token_service_pb2, token_service_pb2_grpc

from fluoro_client.testing.calls import Context, Service
from fluoro_client.testing.faults import RefusalError, invalid
from fluoro_client.testing.views import LARGEST_PAGE, PAGE

DEFAULT_DAYS: Final = 90
LONGEST_DAYS: Final = 366


class Tokens(Service, token_service_pb2_grpc.TokenServiceServicer):
    """fluoro.v1.TokenService. Every caller is an operator, and no token opens anything."""

    def CreateToken(
        self, request: token_service_pb2.CreateTokenRequest, context: Context
    ) -> token_service_pb2.CreateTokenResponse:
        """Makes a token."""

        def create(owner: str) -> token_service_pb2.CreateTokenResponse:
            token = token_service_pb2.Token()
            token.CopyFrom(request.token)
            if not token.owner or not token.roles:
                missing = "roles" if token.owner else "owner"
                raise invalid(f"token.{missing}", "Must be given.")
            now = datetime.now(UTC)
            if not token.HasField("expire_time"):
                token.expire_time.FromDatetime(now + timedelta(days=DEFAULT_DAYS))
            until = token.expire_time.ToDatetime(UTC)
            if not now < until <= now + timedelta(days=LONGEST_DAYS):
                text = f"Must be from now on, and at most {LONGEST_DAYS} days away."
                raise invalid("token.expire_time", text)
            token.ClearField("revoke_time")
            token.name, token.creator = f"tokens/{uuid.uuid4()}", owner
            token.create_time.FromDatetime(now)
            self._state.tokens[token.name] = token
            secret = f"fluoro_{secrets.token_urlsafe(32)}"
            return token_service_pb2.CreateTokenResponse(token=token, secret=secret)

        return self._answer("CreateToken", request, context, create)

    def ListTokens(
        self, request: token_service_pb2.ListTokensRequest, context: Context
    ) -> token_service_pb2.ListTokensResponse:
        """A page of tokens, newest first. The page token is the name of the last one."""

        def page(_: str) -> token_service_pb2.ListTokensResponse:
            found = [
                token
                for token in reversed(self._state.tokens.values())
                if request.owner in {"", token.owner}
            ]
            names = [token.name for token in found]
            if request.page_token and request.page_token not in names:
                raise invalid("page_token", "Must be the token of a page before.")
            start = names.index(request.page_token) + 1 if request.page_token else 0
            end = start + min(request.page_size or PAGE, LARGEST_PAGE)
            return token_service_pb2.ListTokensResponse(
                tokens=found[start:end],
                next_page_token=names[end - 1] if end < len(names) else "",
            )

        return self._answer("ListTokens", request, context, page)

    def RevokeToken(
        self, request: token_service_pb2.RevokeTokenRequest, context: Context
    ) -> token_service_pb2.RevokeTokenResponse:
        """Revokes a token. May be repeated."""

        def revoke(_: str) -> token_service_pb2.RevokeTokenResponse:
            token = self._state.tokens.get(request.name)
            if token is None:
                raise RefusalError("TOKEN_NOT_FOUND", f"{request.name} does not exist.")
            if not token.HasField("revoke_time"):
                token.revoke_time.GetCurrentTime()
            return token_service_pb2.RevokeTokenResponse(token=token)

        return self._answer("RevokeToken", request, context, revoke)
