"""Calls at a rate of their own, whether or not those before are answered: an open loop.

HTTP/2 by hand (RFC 9113), because a gRPC client in Python costs as much as the server that it is to
flood. It tells an answer from a refusal by their frames alone: a refusal has no DATA.
"""

import asyncio
import itertools
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
WINDOW_BYTES: Final = 2**31 - 1 - 65_535
"""What is added to the first window of a connection: all there may be."""
TICK_SECONDS: Final = 0.005
"""How often calls are sent; those that are due go together."""

LAST_SECONDS: Final = 5
"""How long a round of the closed loop waits for its last answers."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame (RFC 9113 section 4.1)."""
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def headers(path: str, *, timeout: str, metadata: Sequence[tuple[str, str]] = ()) -> bytes:
    """The block of a call, as literals that no table remembers (RFC 7541 section 6.2.2).

    timeout: as of the header grpc-timeout, `1S`.
    """
    fields = (("te", "trailers"), ("grpc-timeout", timeout), *metadata)
    return b"".join(
        (
            b"\x83\x86",  # POST, http
            b"\x04" + _text(path),
            b"\x01" + _text("localhost"),
            b"\x0f\x10" + _text("application/grpc"),  # content-type
            *(b"\x00" + _text(name) + _text(value) for name, value in fields),
        )
    )


def _text(value: str) -> bytes:
    data = value.encode()
    if len(data) > 126:
        raise ValueError("Longer than this needs another form.")
    return bytes([len(data)]) + data


@dataclass
class Seen:
    """What became of the calls of a round.

    sent, refused, cut: how many. seconds: of each answer, in the order of their coming.
    """

    sent: int = 0
    refused: int = 0
    cut: int = 0
    seconds: list[float] = field(default_factory=list)
    refused_seconds: list[float] = field(default_factory=list)

    def add(self, other: "Seen") -> None:
        """Those of another round, too."""
        self.sent += other.sent
        self.refused += other.refused
        self.cut += other.cut
        self.seconds += other.seconds
        self.refused_seconds += other.refused_seconds


class Connection(asyncio.Protocol):
    """One connection, which makes calls and takes their answers."""

    def __init__(self, block: bytes, message: Callable[[], bytes]) -> None:
        """block: of `headers`. message: the next request, as bytes."""
        self._block, self._message = block, message
        self._streams = itertools.count(1, 2)
        self._open: dict[int, tuple[float, Seen]] = {}
        self._answered: set[int] = set()
        self._unread = b""
        self._window = 65_535
        self._unsent: list[bytes] = []
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins as HTTP/2 wants it, and lets the server send whatever it likes."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(
            PREFACE
            + frame(SETTINGS, 0, 0)
            + frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", WINDOW_BYTES))
        )

    def call(self, seen: Seen) -> None:
        """Makes one call, sent with the next `flush`.

        If the server's window does not let it, it counts as cut off.
        """
        message = self._message()
        body = struct.pack("!BI", 0, len(message)) + message
        seen.sent += 1
        if len(body) > self._window:
            seen.cut += 1
            return
        self._window -= len(body)
        stream = next(self._streams)
        self._open[stream] = (time.perf_counter(), seen)
        self._unsent += (
            frame(HEADERS, END_HEADERS, stream, self._block),
            frame(DATA, END_STREAM, stream, body),
        )

    def flush(self) -> None:
        """Sends the calls made since the last time, together."""
        if self._unsent:
            self._transport.write(b"".join(self._unsent))
            self._unsent.clear()

    @property
    def unanswered(self) -> int:
        """Calls under way."""
        return len(self._open)

    def close(self) -> None:
        """Breaks it off."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Takes the frames that are whole."""
        data = self._unread + data
        at = 0
        while len(data) - at >= 9:
            end = at + 9 + (int.from_bytes(data[at : at + 3]))
            if end > len(data):
                break
            stream = int.from_bytes(data[at + 5 : at + 9]) & 0x7FFFFFFF
            self._take(data[at + 3], data[at + 4], stream, data[at + 9 : end])
            at = end
        self._unread = data[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self._answered.add(stream)
        elif kind == HEADERS and flags & END_STREAM and stream in self._open:
            began, seen = self._open.pop(stream)
            took = time.perf_counter() - began
            if stream in self._answered:
                self._answered.discard(stream)
                seen.seconds.append(took)
            else:
                seen.refused += 1
                seen.refused_seconds.append(took)
        elif kind == RST_STREAM and stream in self._open:
            _, seen = self._open.pop(stream)
            self._answered.discard(stream)
            seen.cut += 1
        elif kind == WINDOW_UPDATE and not stream:
            self._window += int.from_bytes(payload) & 0x7FFFFFFF
        elif kind == SETTINGS and not flags & ACK:
            self._transport.write(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._transport.write(frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            raise SystemExit("the server ended the connection")


async def flood(
    connections: Sequence[Connection], per_second: float, seconds: float, wait_seconds: float
) -> Seen:
    """One round: calls at that rate, spread over the connections. Waits for answers afterwards."""
    seen, turn = Seen(), itertools.cycle(connections)
    began = time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        for _ in range(int(passed * per_second) - seen.sent):
            next(turn).call(seen)
        for each in connections:
            each.flush()
        await asyncio.sleep(TICK_SECONDS)
    await _answered(connections, wait_seconds)
    return seen


async def closed_loop(connections: Sequence[Connection], in_flight: int, seconds: float) -> Seen:
    """One round with so many calls under way at any time: what the server can take."""
    seen = Seen()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for each in connections:
            for _ in range(in_flight // len(connections) - each.unanswered):
                each.call(seen)
            each.flush()
        await asyncio.sleep(TICK_SECONDS / 5)
    await _answered(connections, LAST_SECONDS)
    return seen


async def _answered(connections: Sequence[Connection], seconds: float) -> None:
    """Returns when every call is, or after the seconds."""
    for _ in range(int(seconds / TICK_SECONDS)):
        if not any(each.unanswered for each in connections):
            return
        await asyncio.sleep(TICK_SECONDS)
