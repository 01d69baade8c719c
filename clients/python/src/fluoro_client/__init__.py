"""Async and sync client and the fluoro command.

The clients are imported on first use, so that `fluoro --help` does not wait for gRPC.
"""

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fluoro_client.aio import BASIC, FULL, AsyncClient
    from fluoro_client.blocking import Client
    from fluoro_client.credentials import Tls
    from fluoro_client.errors import FluoroApiError

__all__ = ["BASIC", "FULL", "AsyncClient", "Client", "FluoroApiError", "Tls"]

_HOMES: Final = {
    "AsyncClient": "aio",
    "BASIC": "aio",
    "Client": "blocking",
    "FULL": "aio",
    "FluoroApiError": "errors",
    "Tls": "credentials",
}


def __getattr__(name: str) -> object:
    """What goes by that name (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
