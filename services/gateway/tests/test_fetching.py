"""Fetching an issuer's keys: whatever answers, or does not, it ends soon."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import chain, repeat

import pytest
from gateway.identity.fetching import FetchError, keys_of


@contextmanager
def trickling(first: bytes, byte: bytes) -> Iterator[int]:
    """A server that sends the one at once, and the other again and again. Its port."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)

        def serve() -> None:
            while not stop.is_set():
                with suppress(OSError), closing(server.accept()[0]) as connection:
                    for data in chain([first], repeat(byte)):
                        connection.sendall(data)
                        if stop.wait(0.05):
                            return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize(
    ("scheme", "first"),
    [
        ("http", b"HTTP/1.1 200 OK\r\nx: "),
        ("http", b"HTTP/1.1 200 OK\r\n\r\n"),
        ("http", b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n"),
        ("https", b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc"),
    ],
    ids=["head", "body", "announced", "handshake"],
)
def test_an_issuer_that_trickles_is_away(
    monkeypatch: pytest.MonkeyPatch, scheme: str, first: bytes
) -> None:
    monkeypatch.setattr("gateway.identity.fetching.SECONDS", 0.5)
    with trickling(first, b"0") as port:
        fetch = keys_of("", f"{scheme}://127.0.0.1:{port}/keys", "", "")
        began = time.monotonic()
        with pytest.raises(FetchError):
            fetch()
        assert time.monotonic() - began < 10
