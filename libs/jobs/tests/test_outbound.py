"""The way out leads to listed hosts at checked addresses, and nowhere else."""

import ipaddress
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.outbound import Outbound

SECONDS = 5
LOOPBACK = ["127.0.0.0/8"]

INSIDE = [
    "127.0.0.1",
    "127.8.8.8",
    "10.0.0.1",
    "172.16.9.9",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "2001::1",
    "fe80::1%lo",
    "fd00:ec2::254",
    "fec0::1",
    "ff02::1",
]
"""Addresses that no name of a caller's may lead to."""


CHUNKED = {"Transfer-Encoding": "chunked"}

hung_up = threading.Event()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, headers, body = {
            "/good?x=1": (200, {"Content-Length": "4"}, b"good"),
            "/short": (200, {"Content-Length": "9"}, b"short"),
            "/endless": (200, {}, b"who knows"),
            "/moved": (302, {"Location": "http://127.0.0.1:1/"}, b""),
            "/missing": (404, {}, b""),
            "/trickle": (200, {"Content-Length": "999999"}, b""),
            "/broken": (503, {}, b""),
            "/chunks": (200, CHUNKED, b"3\r\ngoo\r\n1;x=y\r\nd\r\n0\r\n\r\n"),
            "/chunk-of-all": (200, CHUNKED, b"-1\r\n" + bytes(1000)),
            "/chunk-below-nothing": (200, CHUNKED, b"-5\r\n" + bytes(1000)),
        }[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        while self.path == "/trickle":
            try:
                self.wfile.write(b"x")
            except OSError:
                break
            hung_up.wait(0.05)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def leads(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Has every name lead to these addresses, one list for each look-up. What was looked up."""

    def lead(*answers: list[str]) -> list[str]:
        asked: list[str] = []

        def getaddrinfo(host: str, port: int, **_: object) -> list[object]:
            addresses = answers[min(len(asked), len(answers) - 1)]
            asked.append(host)
            return [(0, 0, 0, "", (address, port)) for address in addresses]

        real = socket.getaddrinfo

        def literal_or_led(host: str, port: int, *args: object, **kwargs: object) -> object:
            try:
                ipaddress.ip_address(host)
            except ValueError:
                return getaddrinfo(host, port)
            return real(host, port, *args, **kwargs)  # type: ignore[arg-type]  # as it was called

        monkeypatch.setattr(socket, "getaddrinfo", literal_or_led)
        return asked

    return lead


def reason(call: Callable[[], object]) -> Reason:
    with pytest.raises(FluoroError) as caught:
        call()
    assert "127" not in caught.value.message
    return caught.value.reason


def test_a_listed_host_on_a_listed_network_is_read(port: int) -> None:
    out = Outbound([f"http://127.0.0.1:{port}"], LOOPBACK)
    answer = out.get(f"http://127.0.0.1:{port}/good?x=1", SECONDS)
    assert answer.size_bytes == 4
    assert (answer.read(3), answer.read(9), answer.read(9)) == (b"goo", b"d", b"")
    answer.close()


@pytest.mark.parametrize("address", INSIDE)
def test_a_listed_name_that_leads_inside_is_refused(
    address: str, leads: Callable[..., list[str]]
) -> None:
    leads([address])
    out = Outbound(["https://images.example"], ["10.99.0.0/16"])
    assert reason(lambda: out.get("https://images.example/x", SECONDS)) == "SOURCE_NOT_ALLOWED"


def test_a_name_that_leads_elsewhere_from_one_look_up_to_the_next_is_looked_up_once(
    port: int, leads: Callable[..., list[str]]
) -> None:
    asked = leads(["169.254.169.254", "127.0.0.1"], ["169.254.169.254"])
    out = Outbound([f"http://images.example:{port}"], LOOPBACK)
    answer = out.get(f"http://images.example:{port}/good?x=1", SECONDS)
    assert answer.read(9) == b"good"
    answer.close()
    assert asked == ["images.example"]


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example/",
        "http://images.example/",
        "https://images.example:8443/",
        "https://images.example@other.example/",
        "https://user@images.example/",
        "https://other.example\\@images.example/",
        "https://images.example\t/",
        "https://images.example/\r\nHost: other",
        "https://images.éxample/",
        "https:///x",
        "https://images.example:99999/",
        "file:///etc/passwd",
        "ftp://images.example/",
        "//images.example/",
        "https://images.example/" + "x" * 5000,
        "",
    ],
)
def test_urls_of_other_hosts_and_ambiguous_ones_are_refused(
    url: str, leads: Callable[..., list[str]]
) -> None:
    asked = leads(["127.0.0.1"])
    out = Outbound(["https://images.example"], LOOPBACK)
    assert reason(lambda: out.get(url, SECONDS)) == "SOURCE_NOT_ALLOWED"
    assert asked == []


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("moved", "SOURCE_REFUSED"),
        ("missing", "SOURCE_REFUSED"),
        ("endless", "SOURCE_REFUSED"),
        ("broken", "SOURCE_UNAVAILABLE"),
    ],
)
def test_answers_that_are_no_content_are_refused_and_redirects_not_followed(
    port: int, path: str, expected: str
) -> None:
    out = Outbound([f"http://127.0.0.1:{port}"], LOOPBACK)
    assert reason(lambda: out.get(f"http://127.0.0.1:{port}/{path}", SECONDS)) == expected


def test_content_that_ends_early_and_servers_that_are_away_can_be_tried_again(port: int) -> None:
    out = Outbound([f"http://127.0.0.1:{port}", "http://127.0.0.1:1"], LOOPBACK)
    answer = out.get(f"http://127.0.0.1:{port}/short", SECONDS)
    assert answer.read(100) == b"short"
    assert reason(lambda: answer.read(100)) == "SOURCE_UNAVAILABLE"
    answer.close()
    assert reason(lambda: out.get("http://127.0.0.1:1/", SECONDS)) == "SOURCE_UNAVAILABLE"


def test_content_in_chunks_is_read_to_its_end_and_chunks_of_no_size_are_no_content(
    port: int,
) -> None:
    out = Outbound([f"http://127.0.0.1:{port}"], LOOPBACK)
    answer = out.get(f"http://127.0.0.1:{port}/chunks", SECONDS)
    assert (answer.read(3), answer.read(9), answer.read(9)) == (b"goo", b"d", b"")
    answer.close()
    for path in ("chunk-of-all", "chunk-below-nothing"):
        answer = out.get(f"http://127.0.0.1:{port}/{path}", SECONDS)
        assert len(answer.read(10)) >= 10
        assert reason(lambda answer=answer: answer.read(10_000)) == "SOURCE_UNAVAILABLE"
        answer.close()


def test_a_server_that_hangs_up_before_it_proves_who_it_is_can_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = ssl.create_default_context
    with socket.create_server(("127.0.0.1", 0)) as server:

        def after_it_hung_up() -> ssl.SSLContext:
            caller, _ = server.accept()
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            caller.close()
            return real()

        monkeypatch.setattr(ssl, "create_default_context", after_it_hung_up)
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
        out = Outbound([url], LOOPBACK)
        assert reason(lambda: out.get(f"{url}/", SECONDS)) == "SOURCE_UNAVAILABLE"


def test_content_that_trickles_ends_though_it_never_falls_silent(port: int) -> None:
    out = Outbound([f"http://127.0.0.1:{port}"], LOOPBACK)
    answer = out.get(f"http://127.0.0.1:{port}/trickle", 1)
    data = answer.read(100_000)
    assert len(data) < 100
    assert reason(lambda: answer.read(100_000)) == "SOURCE_UNAVAILABLE"
    answer.close()


def test_a_server_that_is_not_the_one_named_is_not_read(port: int) -> None:
    out = Outbound([f"https://127.0.0.1:{port}"], LOOPBACK)
    url = f"https://127.0.0.1:{port}/good?x=1"
    assert reason(lambda: out.get(url, SECONDS)) == "SOURCE_UNAVAILABLE"


def test_lists_that_cannot_be_read_are_refused_at_the_start() -> None:
    for bad in ("images.example", "https://", "https://*.example", "https://a.example/path"):
        with pytest.raises(ValueError, match="is not https://host"):
            Outbound([bad])
    with pytest.raises(ValueError, match="is not a network"):
        Outbound([], ["10.0.0.1/8"])
