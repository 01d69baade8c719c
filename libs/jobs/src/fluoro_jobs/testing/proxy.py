"""A TCP proxy on loopback that can go silent: connections stay open, and nothing comes through any more."""

import socket
import threading
from contextlib import suppress
from typing import Final, Self

_BUFFER_BYTES: Final = 65536


class Proxy:
    """Forwards to one server. silent: swallows what arrives, on connections there are and on new ones, and closes none."""

    def __init__(self, family: int, address: str | tuple[str, int]) -> None:
        """family, address: the server's, as `socket.socket` and `connect` take them."""
        self._family, self._address = family, address
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.silent = False
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self._listener, *self._sockets):
            with suppress(OSError):  # reset by the other side
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(self._family)
                server.connect(self._address)
                self._sockets += (client, server)
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):  # closed by one of its ends
            while data := source.recv(_BUFFER_BYTES):
                if not self.silent:
                    target.sendall(data)
            if not self.silent:
                target.shutdown(socket.SHUT_WR)
