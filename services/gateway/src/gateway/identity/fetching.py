"""Fetches an issuer's documents: a file, or a URL with deadlines and a limit."""

import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from fluoro_jobs.outbound import ended

SECONDS: Final = 5
"""For a connection, and then for one document, however slowly it trickles."""

MAX_BYTES: Final = 2**20
DISCOVERY: Final = "/.well-known/openid-configuration"
"""Where an issuer says where its keys are (OpenID Connect Discovery 1.0, section 4)."""


class FetchError(Exception):
    """The document cannot be fetched; says why, without quoting it."""


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
    # OpenID Connect Discovery 4.3: the document must say the very issuer that was asked.
    if found != issuer:
        raise FetchError("the issuer's configuration is of another issuer")
    return url


def _get(url: str, ca_file: str, token_file: str) -> bytes:
    parts = urlsplit(url)
    path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    headers = {"accept": "application/json"}
    try:
        if token_file:
            headers["authorization"] = f"Bearer {_read(token_file).decode().strip()}"
        with closing(_connection(parts, ca_file)) as raw, ended(raw, SECONDS):
            until = time.monotonic() + SECONDS
            # Within the deadline: a server may drag out the handshake, too.
            if isinstance(raw, ssl.SSLSocket):
                raw.do_handshake()
            connection = http.client.HTTPConnection(parts.netloc)
            connection.sock = raw
            connection.request("GET", path, None, headers)
            with connection.getresponse() as response:
                if response.status != http.client.OK:
                    raise FetchError(f"HTTP {response.status} from {parts.hostname}")
                body = _body(response)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise FetchError(f"{type(error).__name__} from {parts.hostname}") from error
    # To http.client, what was cut off may look like an end.
    if time.monotonic() > until:
        raise FetchError(f"{parts.hostname} is too slow")
    return body


def _connection(parts: SplitResult, ca_file: str) -> socket.socket:
    """Not yet proven to be the issuer's: it might take its time for that."""
    host = parts.hostname or ""
    if parts.scheme == "https":
        # The context checks name and chain: without it, anybody on the way could hand out keys.
        context = ssl.create_default_context(cafile=ca_file or None)
        return context.wrap_socket(
            socket.create_connection((host, parts.port or http.client.HTTPS_PORT), SECONDS),
            server_hostname=host,
            do_handshake_on_connect=False,
        )
    # Plain HTTP would let anybody on the way replace the keys.
    if parts.scheme == "http" and host in {"127.0.0.1", "localhost", "::1"}:
        return socket.create_connection((host, parts.port or http.client.HTTP_PORT), SECONDS)
    raise FetchError("keys come over https, or http from loopback")


def _body(response: http.client.HTTPResponse) -> bytes:
    body = bytearray()
    while chunk := response.read1(64 * 2**10):
        body += chunk
        # Checked while it arrives, so that an oversized document never fills memory.
        if len(body) > MAX_BYTES:
            raise FetchError("the document is too long")
    # `read1` ends the same way at the end and at a break.
    if response.length:
        raise FetchError("the document broke off")
    return bytes(body)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FetchError(f"{type(error).__name__}: {path}") from error
