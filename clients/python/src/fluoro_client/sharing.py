"""What groups of a client's methods, each in a file of its own, need of the client."""

from collections.abc import AsyncGenerator
from typing import Any, Protocol, TypeVar

import grpc

Request = TypeVar("Request")
Response = TypeVar("Response")


class _Page(Protocol):
    """An answer of a list."""

    @property
    def next_page_token(self) -> str:
        """Empty at the end."""


Page = TypeVar("Page", bound=_Page)


class Calling(Protocol):
    """A client that makes calls."""

    deadline_seconds: float

    def _pages(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[Any, Page]", request: Any
    ) -> AsyncGenerator[Page, None]: ...

    async def _unary(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request
    ) -> Response: ...

    async def _once(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        seconds: float,
    ) -> Response: ...
