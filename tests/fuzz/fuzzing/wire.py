"""One gRPC call put on the wire byte by byte: what no client of gRPC's would send."""

import asyncio
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from fuzzing.values import MARKED_BYTES

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_STATUS: Final = re.compile(rb"grpc-status.(\d+)", re.DOTALL)
_MESSAGE: Final = re.compile(rb"grpc-message(.)(.*)", re.DOTALL)

Header = tuple[bytes, bytes]
EMPTY: Final = b"\0\0\0\0\0"
"""A message of no bytes, as gRPC frames it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended: its grpc-status, and the bytes of its trailers. None: the stream broke."""

    status: int | None
    trailers: bytes


async def call(
    port: int, path: bytes, body: bytes, headers: Sequence[Header], seconds: float = 10
) -> Answer:
    """Makes a call on a connection of its own. TimeoutError if it does not end in time."""
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            return await _call(reader, writer, path, body, headers)
        finally:
            writer.close()


async def _call(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    path: bytes,
    body: bytes,
    headers: Sequence[Header],
) -> Answer:
    head = [
        *((b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x")),
        *((b"content-type", b"application/grpc"), (b"te", b"trailers"), *headers),
    ]
    block = b"".join(b"\0" + _literal(name) + _literal(value) for name, value in head)
    writer.write(_PREFACE + _frame(_SETTINGS, 0, 0, b"") + _frame(_HEADERS, _END_HEADERS, 1, block))
    writer.write(_frame(_DATA, _END_STREAM, 1, body))
    try:
        return await _answer(reader, writer)
    except (asyncio.IncompleteReadError, ConnectionError):
        return Answer(None, b"")


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Answer:
    while True:
        head = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        kind, flags = head[3], head[4]
        if kind in {_SETTINGS, _PING} and not flags & _ACK:
            writer.write(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
        elif kind in {_RESET, _GOAWAY}:
            return Answer(None, b"")
        elif kind == _HEADERS and flags & _END_STREAM:
            # The first headers of a connection have their texts in the clear.
            found = _STATUS.search(payload)
            return Answer(int(found[1]) if found else None, payload)


def _literal(text: bytes) -> bytes:
    """A string of HPACK (RFC 7541 section 5.2), not compressed."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    left, out = len(text) - 127, bytearray([127])
    while left > 127:
        out.append(left & 127 | 128)
        left >>= 7
    return bytes([*out, left]) + text


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream)
    return head + payload


@dataclass(frozen=True, slots=True)
class Case:
    """A call that no client sends.

    refused_by_grpc: its headers or frames break gRPC's protocol, whose code for that is INTERNAL.
    """

    path: bytes
    body: bytes
    headers: tuple[Header, ...]
    refused_by_grpc: bool = False


def case(path: bytes, owner: bytes, random: Random) -> Case:
    """One of the calls that no client sends."""
    mine = (b"fluoro-owner", owner)
    framed = struct.pack(">BI", 0, len(MARKED_BYTES)) + MARKED_BYTES
    whole = random.choice((EMPTY, framed))
    decoded = (
        Case(path, whole, ((b"fluoro-owner", b"\xff\xfe" + MARKED_BYTES),)),
        Case(path, whole, ((b"fluoro-owner", MARKED_BYTES + b"\0\r\n"),)),
        Case(path, whole, (mine, (b"x-note", b"\xff" + MARKED_BYTES))),
        Case(path, whole, (mine, (b"x-note", "Müller".encode("latin-1") + MARKED_BYTES))),
        Case(path, whole, (mine, (b"grpc-timeout", b"99999999H"))),
        Case(path, whole, (mine, (b"grpc-timeout", b"1n"))),
        Case(path, b"", (mine,)),
        Case(path, framed[:-3], (mine,)),
        Case(path, b"\0\xff\xff\xff\xff" + MARKED_BYTES, (mine,)),
        Case(path + b"\xff\xfe" + MARKED_BYTES, whole, (mine,)),
        Case(b"/" + MARKED_BYTES, whole, (mine,)),
        Case(b"", whole, (mine,)),
    )
    broken = (
        Case(path, whole, (mine, (b"grpc-timeout", MARKED_BYTES)), True),
        Case(path, whole, (mine, (b"grpc-encoding", MARKED_BYTES)), True),
        Case(path, whole, (mine, (b"note-bin", b"!" + MARKED_BYTES)), True),
        Case(path, whole, (mine, (b"x-note", MARKED_BYTES * 900)), True),
        Case(path, b"\1" + framed[1:], (mine,), True),
        Case(path, b"\1" + framed[1:], (mine, (b"grpc-encoding", b"gzip")), True),
    )
    return random.choice(decoded + broken)
