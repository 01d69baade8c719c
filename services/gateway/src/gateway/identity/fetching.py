"""Fetches an issuer's documents: a file, or a URL with deadlines and a limit."""

import http.client
import json
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

SECONDS: Final = 5
"""For one document, from the connection to its last byte."""

MAX_BYTES: Final = 2**20
DISCOVERY: Final = "/.well-known/openid-configuration"
"""Where an issuer says where its keys are (OpenID Connect Discovery 1.0, section 4)."""


class FetchError(Exception):
    """The document cannot be had; says why, without quoting it."""


def keys_of(issuer: str, where: str, ca_file: str, token_file: str) -> Callable[[], bytes]:
    """A function that fetches the issuer's JWKS.

    where: a URL or a file of keys; "" asks the issuer. ca_file: of authorities for the connection;
    "" for the system's. token_file: whose token the issuer wants to see, as Kubernetes does.
    """

    def fetch() -> bytes:
        if where and "://" not in where:
            return _read(where)
        return _get(where or _discovered(issuer, ca_file, token_file), ca_file, token_file)

    return fetch


def _discovered(issuer: str, ca_file: str, token_file: str) -> str:
    try:
        document = json.loads(_get(issuer.rstrip("/") + DISCOVERY, ca_file, token_file))
        found, url = document["issuer"], str(document["jwks_uri"])
    except (ValueError, KeyError, TypeError) as error:
        raise FetchError("the issuer's configuration names no jwks_uri") from error
    if found != issuer:
        raise FetchError("the issuer's configuration is of another issuer")
    return url


def _get(url: str, ca_file: str, token_file: str) -> bytes:
    parts = urlsplit(url)
    until = time.monotonic() + SECONDS
    headers = {"accept": "application/json"}
    try:
        if token_file:
            headers["authorization"] = f"Bearer {_read(token_file).decode().strip()}"
        connection = _connection(parts.scheme, parts.hostname or "", parts.port, ca_file)
        try:
            path = parts.path or "/"
            connection.request(
                "GET", f"{path}?{parts.query}" if parts.query else path, None, headers
            )
            response = connection.getresponse()
            if response.status != http.client.OK:
                raise FetchError(f"HTTP {response.status} from {parts.hostname}")
            return _body(response, until)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise FetchError(f"{type(error).__name__} from {parts.hostname}") from error


def _connection(
    scheme: str, host: str, port: int | None, ca_file: str
) -> http.client.HTTPConnection:
    if scheme == "https":
        context = ssl.create_default_context(cafile=ca_file or None)
        return http.client.HTTPSConnection(host, port, timeout=SECONDS, context=context)
    if scheme == "http" and host in {"127.0.0.1", "localhost", "::1"}:
        return http.client.HTTPConnection(host, port, timeout=SECONDS)
    raise FetchError("keys come over https, or http from loopback")


def _body(response: http.client.HTTPResponse, until: float) -> bytes:
    """All of it, in time: an issuer that sends a byte now and then is away."""
    body = bytearray()
    while chunk := response.read1(64 * 2**10):
        body += chunk
        if len(body) > MAX_BYTES or time.monotonic() > until:
            raise FetchError("the document is too long or too slow")
    return bytes(body)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FetchError(f"{type(error).__name__}: {path}") from error
