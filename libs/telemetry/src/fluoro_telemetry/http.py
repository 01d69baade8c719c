"""`/metrics`, `/healthz` and `/readyz` on a port of their own, from a daemon thread.

For the main process of a service. Children of a prefork pool do not serve, and it does not see
them.
"""

import errno
import json
import os
import socket
import socketserver
import sys
import threading
import weakref
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Final

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest

from fluoro_telemetry.health import CheckResult, Health

__all__ = ["CheckResult", "Health", "Server", "serve"]

log = structlog.get_logger(__name__)

REQUEST_TIMEOUT_SECONDS: Final = 10
"""How long a connection may take to send its request."""


class Server:
    """A running server. port: the one it listens on."""

    def __init__(self, listener: "_Listener") -> None:
        self.port: int = listener.server_address[1]
        self._listener = listener
        # A daemon: a scrape that hangs must not hold up the end of the process.
        self._thread = threading.Thread(
            target=listener.serve_forever,
            name="telemetry-http",
            daemon=True,
            kwargs={"poll_interval": 0.1},
        )
        self._thread.start()

    def close(self) -> None:
        """Stops listening and frees the port. Once is enough, twice does no harm."""
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()


def serve(host: str, port: int, health: Health, registry: CollectorRegistry = REGISTRY) -> Server:
    """Starts serving. port 0 takes a free one, see `Server.port`.

    OSError, with the address and the name of the setting, if the port is not free.
    """
    try:
        listener = _Listener(host, port, health, registry)
    except OSError as error:
        what = (
            "is taken by another process"
            if error.errno == errno.EADDRINUSE
            else f"cannot be listened on ({error.strerror})"
        )
        raise OSError(
            error.errno,
            f"port {port} of {host} for metrics and health {what}; "
            "choose another with FLUORO_HTTP_PORT",
        ) from error
    return Server(listener)


class _Handler(BaseHTTPRequestHandler):
    server: "_Listener"
    timeout: ClassVar[float] = REQUEST_TIMEOUT_SECONDS

    def do_GET(self) -> None:
        """Answers one probe or scrape."""
        match self.path.partition("?")[0]:
            case "/metrics":
                self._reply(
                    HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self.server.registry)
                )
            case "/healthz":
                self._report(self.server.health.liveness())
            case "/readyz":
                self._report(self.server.health.readiness())
            case _:
                self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: Any) -> None:
        # Probes come every second; at INFO they would be most of the log.
        log.debug("http_request", line=format % args)

    def _report(self, report: tuple[bool, dict[str, Any]]) -> None:
        ok, details = report
        status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
        self._reply(status, "application/json", json.dumps(details).encode() + b"\n")

    def _reply(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, health: Health, registry: CollectorRegistry) -> None:
        self.health = health
        self.registry = registry
        # socketserver takes IPv4 unless it is told otherwise.
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        _LISTENERS.add(self)

    def server_bind(self) -> None:
        """Binds without http.server's look-up of the host's full name, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base's
        # Not socketserver's traceback on stderr: a client that hangs up is no fault.
        log.warning("http_request_failed", exception=type(sys.exception()).__qualname__)


_LISTENERS: Final[weakref.WeakSet[_Listener]] = weakref.WeakSet()


def _let_go_in_child() -> None:
    # A forked child would hold the port open after its parent is gone.
    for listener in list(_LISTENERS):
        listener.socket.close()


os.register_at_fork(after_in_child=_let_go_in_child)
