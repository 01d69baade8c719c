"""Connections to servers that a caller names: to those on a list, at addresses that were checked.

A caller who may name any URL can have Fluoro reach what only Fluoro reaches: its own stores, other
services of the cluster, the cloud's metadata. So a host must be on the operator's list. Its name
may still lead inside, by mistake or because whoever owns the name wants that, and may lead
elsewhere from one look-up to the next. So it is looked up once, addresses that are not public are
left out, and the connection goes to one of the others: the one that was checked.

An operator who means a server inside, a PACS say, names its network too.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from fluoro_jobs.errors import FluoroError, Reason

PORTS: Final = {"https": 443, "http": 80}

PASSING: Final = frozenset(
    {http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_EARLY, http.HTTPStatus.TOO_MANY_REQUESTS}
)
"""Statuses below 500 after which another try may succeed."""

LONGEST_URL: Final = 2048
"""Characters."""

LOOK_UP_SECONDS: Final = 10
"""How long the look-up of a name may take."""

LOOK_UPS: Final = 8
"""Look-ups at one time."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Target(NamedTuple):
    """What a URL names. path: with the query."""

    scheme: str
    host: str
    port: int
    path: str


class Answer:
    """The content that a server sends. Its methods block, for a limited time."""

    def __init__(
        self,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
        raw: socket.socket,
        seconds: float,
    ) -> None:
        """raw: under the response. seconds: that a read may take."""
        self._connection, self._response = connection, response
        self._raw, self._seconds = raw, seconds

    @property
    def size_bytes(self) -> int | None:
        """Of all content, before any is read; None if the source does not say."""
        return self._response.length

    def read(self, most_bytes: int) -> bytes:
        """The next bytes; none at the end. FluoroError SOURCE_UNAVAILABLE if it breaks off."""
        data = bytearray()
        try:
            with ended(self._raw, self._seconds):
                # Not `read`, which takes a chunk of -1 bytes for all that ever comes.
                while len(data) < most_bytes:
                    if not (piece := self._response.read1(most_bytes - len(data))):
                        break
                    data += piece
        except (OSError, http.client.HTTPException) as error:
            raise _unavailable("the connection broke") from error
        if not data and self._response.length:
            raise _unavailable("the connection broke")
        return bytes(data)

    def abort(self) -> None:
        """Has a read that is under way in another thread end at once."""
        _shut_down(self._raw)

    def close(self) -> None:
        """Ends the connection."""
        self._response.close()
        self._connection.close()


class Outbound:
    """The way out, for one process. Its methods block; safe to share between threads."""

    def __init__(self, hosts: Sequence[str], networks: Sequence[str] = ()) -> None:
        """hosts: `https://host` or `https://host:port`, `http://` if that must be.

        networks: in CIDR notation, of addresses that are allowed though they are not public.
        ValueError, which names the bad one, if either cannot be read.
        """
        self._hosts = frozenset(_listed(host) for host in hosts)
        self._networks = tuple(_network(text) for text in networks)
        # Look-ups have no time limit of their own. Those that hang hold up only others.
        self._lookups = ThreadPoolExecutor(LOOK_UPS, thread_name_prefix="look-up")

    def target(self, url: str) -> Target:
        """What the URL names. FluoroError SOURCE_NOT_ALLOWED unless its host is on the list."""
        target = _parsed(url) if len(url) <= LONGEST_URL else None
        if target is None or target[:3] not in self._hosts:
            raise not_allowed()
        return target

    def connect(self, target: Target, seconds: float) -> socket.socket:
        """A connection to the target, encrypted if its scheme says so.

        seconds: for each address that is tried, for proving who it is, and then for each wait on
        the socket. FluoroError
        SOURCE_NOT_ALLOWED if the name leads to no address that may be used, SOURCE_UNAVAILABLE if
        nobody answers there.
        """
        addresses = [each for each in self._addresses(target) if self._may_use(each)]
        if not addresses:
            raise not_allowed()
        for address in addresses:
            try:
                # To the address and not to the name, which may lead elsewhere by now.
                connection = socket.create_connection((str(address), target.port), seconds)
            except OSError:
                continue
            return self._secured(connection, target, seconds)
        raise _unavailable("nobody answers there")

    def get(self, url: str, seconds: float) -> "Answer":
        """The answer to a GET. Redirects are not followed: they lead anywhere.

        seconds: as for `connect`; then for the head of the answer, and for each read of its
        content, however slowly it trickles. FluoroError as there, and SOURCE_REFUSED for a status
        other than 200, or if it does not say where its content ends.
        """
        target = self.target(url)
        connection = http.client.HTTPConnection(target.host, target.port, timeout=seconds)
        connection.default_port = PORTS[target.scheme]
        connection.auto_open = 0  # or it would connect anew, by name
        raw = connection.sock = self.connect(target, seconds)
        try:
            with ended(raw, seconds):
                # As it is: what is unpacked on the way may be a bomb.
                connection.request("GET", target.path, headers={"Accept-Encoding": "identity"})
                response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise _unavailable("the connection broke") from error
        answer = Answer(connection, response, raw, seconds)
        if refusal := _refusal(response):
            answer.close()
            raise refusal
        return answer

    def _addresses(self, target: Target) -> list[Address]:
        look_up: Future[list[Address]] = self._lookups.submit(_look_up, target.host, target.port)
        try:
            return look_up.result(LOOK_UP_SECONDS)
        except (OSError, TimeoutError, UnicodeError) as error:
            raise _unavailable("its name cannot be looked up") from error

    def _may_use(self, address: Address) -> bool:
        if any(address in network for network in self._networks):
            return True
        # Loopback, private, link-local (where clouds have their metadata), shared and documentation
        # networks are not global. Reserved are also those that carry an IPv4 address (NAT64).
        return address.is_global and not (
            address.is_multicast or address.is_reserved or _leads_inside(address)
        )

    @staticmethod
    def _secured(connection: socket.socket, target: Target, seconds: float) -> socket.socket:
        if target.scheme == "http":
            return connection
        context = ssl.create_default_context()
        secured = connection
        try:
            # A server may have hung up already. Asked first, as wrapping would then leave it open.
            connection.getpeername()
            secured = wrapped = context.wrap_socket(
                connection, server_hostname=target.host, do_handshake_on_connect=False
            )
            with ended(wrapped, seconds):
                wrapped.do_handshake()
        except OSError as error:  # ssl.SSLError is one
            secured.close()
            raise _unavailable("it does not prove who it is") from error
        return wrapped


@contextmanager
def ended(connection: socket.socket, seconds: float) -> Iterator[None]:
    """Shuts the connection down if the body takes longer.

    The time limit of a socket counts from byte to byte.
    """
    timer = threading.Timer(seconds, _shut_down, [connection])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):  # it has ended by itself
        # Not ssl's own, which another thread may not call.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _look_up(host: str, port: int) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(_plain(str(each[4][0])) for each in found))


def _plain(text: str) -> Address:
    """The address without a zone; an IPv4 address that is written as IPv6 as what it is."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _leads_inside(address: Address) -> bool:
    """Whether it is of a kind that is called global and leads to networks that are not."""
    return isinstance(address, ipaddress.IPv6Address) and bool(
        address.sixtofour or address.teredo or address.is_site_local
    )


def _parsed(url: str) -> Target | None:
    """None for what is no URL, has user names, or could be read in more than one way."""
    if not url.isascii() or any(character <= " " or character in "\\\x7f" for character in url):
        return None
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS.get(parts.scheme)
    except ValueError:
        return None
    if parts.scheme not in PORTS or not parts.hostname or "@" in parts.netloc or port is None:
        return None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, parts.hostname.rstrip("."), port, path)


def _listed(text: str) -> tuple[str, str, int]:
    target = _parsed(text)
    if target is None or target.path != "/" or "*" in text:
        raise ValueError(f"{text} is not https://host or https://host:port")
    return target[:3]


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text} is not a network such as 10.1.0.0/16") from error


def not_allowed() -> FluoroError:
    """The same for every cause: which names lead inside is nobody's business."""
    return FluoroError(
        Reason.SOURCE_NOT_ALLOWED,
        "This deployment fetches nothing from there. Ask its operator, or upload the bytes.",
    )


def _unavailable(what: str) -> FluoroError:
    return FluoroError(Reason.SOURCE_UNAVAILABLE, f"The source cannot be reached: {what}.")


def _refusal(response: http.client.HTTPResponse) -> FluoroError | None:
    if response.status in PASSING or response.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        return _unavailable(f"it answered {response.status}")
    if response.status != http.HTTPStatus.OK:
        text = f"The source answered {response.status}. Redirects are not followed."
        return FluoroError(Reason.SOURCE_REFUSED, text)
    if response.length is None and not response.chunked:
        text = "The source does not say how much it sends (Content-Length)."
        return FluoroError(Reason.SOURCE_REFUSED, text)
    return None
