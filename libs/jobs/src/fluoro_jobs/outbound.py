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
import select
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    def status(self) -> int:
        """The HTTP status."""
        return self._response.status

    @property
    def size_bytes(self) -> int | None:
        """Of all content, before any is read; None if the source does not say."""
        return self._response.length

    @property
    def is_ended(self) -> bool:
        """Whether all of it was read."""
        return self._response.isclosed()

    @property
    def is_delimited(self) -> bool:
        """Whether it says where its content ends, so that a broken connection shows."""
        return self._response.length is not None or self._response.chunked

    def header(self, name: str) -> str:
        """The value of a header; "" if there is none."""
        return self._response.headers.get(name, "")

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
        # read1 gives nothing both at the end and after a break; what is left of the length tells
        # which.
        if not data and self._response.length:
            raise _unavailable("the connection broke")
        if self._response.length == 0:
            self._response.close()  # which read1 does not, and the next request waits for it
        return bytes(data)

    def abort(self) -> None:
        """Has a read that is under way in another thread end at once."""
        # Only the shutdown is safe from another thread; a close could free the number for another
        # file.
        _shut_down(self._raw)

    def close(self) -> None:
        """Ends the connection."""
        self._response.close()
        self._connection.close()


class Line:
    """A connection to one server, for requests one after the other. Its methods block."""

    def __init__(self, target: Target, raw: socket.socket, seconds: float) -> None:
        """raw: leads there. seconds: as for `Outbound.get`, and for each piece that is sent."""
        self._raw, self._seconds = raw, seconds
        self._answer: Answer | None = None
        self._connection = http.client.HTTPConnection(target.host, target.port, timeout=seconds)
        self._connection.default_port = PORTS[target.scheme]
        self._connection.auto_open = 0  # or it would connect anew, by name
        self._connection.sock = raw

    @property
    def is_usable(self) -> bool:
        """Whether a request may be sent: the answer before was read, and nobody has hung up."""
        # Half an answer that is left on the connection would be read as the next one.
        if self._connection.sock is None or (self._answer and not self._answer.is_ended):
            return False
        # A server has nothing to say before it is asked, but that it ends an idle connection.
        waiting = select.poll()
        waiting.register(self._raw, select.POLLIN)
        return not waiting.poll(0)

    def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Iterable[bytes] = (),
    ) -> Answer:
        """The answer to a request, of whatever status. Read it to its end before the next one.

        headers: with Content-Length if there is a body. FluoroError SOURCE_UNAVAILABLE.
        """
        try:
            with ended(self._raw, self._seconds):
                self._connection.putrequest(method, path, skip_accept_encoding=True)
                # As it is: what is unpacked on the way may be a bomb.
                for name, value in {"Accept-Encoding": "identity", **headers}.items():
                    self._connection.putheader(name, value)
                self._connection.endheaders()
            # A body is sent piece by piece with a deadline for each: a large one may take hours in
            # all.
            self._send(body)
            with ended(self._raw, self._seconds):
                response = self._connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise _unavailable("the connection broke") from error
        self._answer = Answer(self._connection, response, self._raw, self._seconds)
        return self._answer

    def _send(self, body: Iterable[bytes]) -> None:
        for piece in body:
            try:
                with ended(self._raw, self._seconds):
                    self._connection.send(piece)
            except (BrokenPipeError, ConnectionResetError):
                return  # it has heard enough, and may have said why

    def close(self) -> None:
        """Ends it."""
        self._connection.close()
        self._raw.close()


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
        # Compares scheme, host and port, because a list that allows https must not allow http.
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
        line = Line(target, self.connect(target, seconds), seconds)
        answer = line.ask("GET", target.path, {})
        if refusal := _refusal(answer):
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
        # The operator's networks come first: they are there to allow what is not public.
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
        # The default context verifies the chain and the host's name. The address alone proves
        # nothing.
        context = ssl.create_default_context()
        secured = connection
        try:
            # A server may have hung up already. Asked first, as wrapping would then leave it open.
            connection.getpeername()
            # Without the handshake, which gets a deadline of its own below.
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
    # A daemon: a timer that still waits must not hold up the end of the process.
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
    # getaddrinfo gives an address once for each protocol.
    return list(dict.fromkeys(_plain(str(each[4][0])) for each in found))


def _plain(text: str) -> Address:
    """The address without a zone; an IPv4 address that is written as IPv6 as what it is."""
    # ::ffff:10.0.0.1 leads where 10.0.0.1 does, so it is judged as that.
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
    # Parsers differ in what they make of backslashes, blanks and letters beyond ASCII. What two of
    # them could read differently, one may check and another connect to.
    if not url.isascii() or any(character <= " " or character in "\\\x7f" for character in url):
        return None
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS.get(parts.scheme)
    except ValueError:
        return None
    # `https://allowed@evil` names evil: user names are refused rather than understood.
    if parts.scheme not in PORTS or not parts.hostname or "@" in parts.netloc or port is None:
        return None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    # `host.` names the same host, and the list is compared as text.
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


def may_pass(status: int) -> bool:
    """Whether another try may succeed after an answer of this HTTP status."""
    return status in PASSING or status >= http.HTTPStatus.INTERNAL_SERVER_ERROR


def _refusal(answer: Answer) -> FluoroError | None:
    if may_pass(answer.status):
        return _unavailable(f"it answered {answer.status}")
    if answer.status != http.HTTPStatus.OK:
        text = f"The source answered {answer.status}. Redirects are not followed."
        return FluoroError(Reason.SOURCE_REFUSED, text)
    # Without a length, a broken connection looks like the end: half a file would be taken for all.
    if not answer.is_delimited:
        text = "The source does not say how much it sends (Content-Length)."
        return FluoroError(Reason.SOURCE_REFUSED, text)
    return None
