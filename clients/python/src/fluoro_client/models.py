"""Models: which the live workers have."""

from collections.abc import AsyncGenerator
from typing import Final, Protocol

from fluoro.v1 import model_pb2, model_service_pb2

from fluoro_client.channel import Connection
from fluoro_client.sharing import Calling

PAGE: Final = 1000
"""What a list asks for at once."""


def model_name(model: str) -> str:
    """The resource name of `ct-tissue`, or of `ct-tissue@1.0.0`; a resource name stays as it is."""
    if not model or model.startswith("models/"):
        return model
    name, _, version = model.partition("@")
    return f"models/{name}/versions/{version}" if version else f"models/{name}"


class _Calls(Calling, Protocol):
    """What these methods need of a client."""

    _connection: Connection


class ModelCalls:
    """Methods of a client about models."""

    async def models(self: _Calls) -> AsyncGenerator[model_pb2.Model, None]:
        """Every version of every model with its state, without cards; the newest of each first."""
        request = model_service_pb2.ListModelsRequest(page_size=PAGE)
        async for page in self._pages(self._connection.models.ListModels, request):
            for model in page.models:
                yield model

    async def model(self: _Calls, name: str) -> model_pb2.Model:
        """A model with its card: `ct-tissue` for the newest that is READY, or `ct-tissue@1.0.0`."""
        request = model_service_pb2.GetModelRequest(name=model_name(name))
        return (await self._unary(self._connection.models.GetModel, request)).model
