"""A DICOMweb server that does what it is told, however wrong: for tests, on loopback."""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

ONE_PART: Final = "multipart/related;boundary=b"

Reply = Callable[["Handler"], None]
"""Answers one request."""


class Pacs(ThreadingHTTPServer):
    """replies: what answers a path that matches, the first that does. asked: how often which.

    hangs_up: after each answer, without saying so.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[tuple[str, Reply]] = []
        self.asked: Counter[str] = Counter()
        self.connections = 0
        self.hangs_up = False
        self.over = threading.Event()
        self.bodies: list[bytes] = []

    @property
    def variables(self) -> dict[str, str]:
        """What a worker has to be told."""
        url = f"http://127.0.0.1:{self.server_port}/rs"
        return {
            "FLUORO_DICOMWEB_SOURCES": f"pacs={url}",
            "FLUORO_DICOMWEB_DESTINATIONS": f"pacs={url}",
            "FLUORO_DICOMWEB_NETWORKS": "127.0.0.0/8",
        }

    def says(self, path: str, reply: Reply) -> None:
        """path: a regular expression, of the path after the base, with the query."""
        self.replies.append((path, reply))

    def lists(self, *uids: str, series: str = "1.2.3") -> None:
        """The instances that a study has, page by page."""
        matches = [match(uid, series) for uid in uids]

        def reply(handler: "Handler") -> None:
            limit, offset = (
                int(found[1]) if (found := re.search(rf"{name}=(\d+)", handler.path)) else 0
                for name in ("limit", "offset")
            )
            handler.json(matches[offset : offset + limit])

        self.says(r"/studies/[0-9.]+/instances\?", reply)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Pacs

    def setup(self) -> None:
        """Counts it."""
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        """Answers as the first reply does whose path matches."""
        path = self.path.removeprefix("/rs")
        self.server.asked[path.partition("?")[0]] += 1
        for pattern, reply in self.server.replies:
            if re.match(pattern, path):
                with suppress(OSError):  # whoever asked has gone
                    reply(self)
                self.close_connection |= self.server.hangs_up
                return
        self.send(b"", status=404)

    def do_POST(self) -> None:
        """The same, once all of it was heard."""
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.do_GET()

    def send(self, body: bytes, status: int = 200, **headers: str) -> None:
        """An answer that is in order."""
        self.send_response(status)
        for name, value in {"content_length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def json(self, data: Any, status: int = 200) -> None:
        """An answer in JSON."""
        self.send(json.dumps(data).encode(), status, content_type="application/dicom+json")

    def file(self, data: bytes, boundary: str = "b", said: str = "b") -> None:
        """An instance."""
        body = b"--%b\r\nContent-Type: application/dicom\r\n\r\n%b\r\n--%b--\r\n" % (
            boundary.encode(),
            data,
            boundary.encode(),
        )
        kind = f'multipart/related; type="application/dicom"; boundary="{said}"'
        self.send(body, content_type=kind)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def match(uid: str, series: str = "1.2.3") -> dict[str, Any]:
    """An instance as QIDO-RS lists it."""
    return {
        "00080018": {"vr": "UI", "Value": [uid]},
        "0020000E": {"vr": "UI", "Value": [series]},
    }


def cut_off(handler: Handler) -> None:
    """Says that there is more, and hangs up."""
    handler.send(b"--b\r\n\r\nDICM", content_length="9999", content_type=ONE_PART)
    handler.close_connection = True


def silent(handler: Handler) -> None:
    """Says nothing, and stays."""
    handler.server.over.wait(60)


def trickling(handler: Handler) -> None:
    """Sends a byte now and then, for ever."""
    handler.send(b"", content_length="999999", content_type=ONE_PART)
    while not handler.server.over.wait(0.02):
        handler.wfile.write(b"x")


def endless(handler: Handler) -> None:
    """Sends a file that has no end."""
    handler.send(b"", content_length=str(2**50), content_type=ONE_PART)
    handler.wfile.write(b"--b\r\n\r\n")
    while not handler.server.over.is_set():
        handler.wfile.write(bytes(2**18))


@contextmanager
def pacs() -> Iterator[Pacs]:
    """One that runs."""
    server = Pacs()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
