"""grpcio's wake-ups of the event loop, all that there are in one turn.

A thread of grpcio writes a byte to the loop for each call that came and each part of one that is
done. The loop takes all that is done at the first byte, but one byte in each turn. Each of the
others is a turn for nothing. Under load they come faster than turns: at some 200 bytes their socket
is full, grpcio's thread stands still, and the loop hears of one thing in a turn from then on. All
owners' calls wait behind those of whoever makes the most, where nobody can tell them apart.
"""

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Callable
from functools import partial
from typing import Any


def taken_together(loop: asyncio.AbstractEventLoop) -> list[socket.socket]:
    """Makes the loop take them together, once grpcio has begun on it.

    The sockets of grpcio that it found and that were not dealt with yet.
    """
    inside: Any = loop
    found = [
        (key.fileobj, key.data[0]._callback)  # noqa: SLF001 - grpcio gives no other way to them
        for key in inside._selector.get_map().values()  # noqa: SLF001
        if key.data[0] is not None
    ]
    sockets = [(each, handle) for each, handle in found if _is_grpcios(handle)]
    for each, handle in sockets:
        loop.add_reader(each, _take, each, handle)
    return [each for each, _ in sockets]


def _is_grpcios(handle: object) -> bool:
    return (
        isinstance(handle, partial)
        and handle.func.__qualname__ == "PollerCompletionQueue._handle_events"
    )


def _take(wakeups: socket.socket, handle: Callable[[], object]) -> None:
    # How many bytes lie there, without taking them: each call of the handle takes one.
    (written,) = struct.unpack("i", fcntl.ioctl(wakeups, termios.FIONREAD, bytes(4)))
    # Each time it takes one byte, and for next to nothing: the first time it has done the work. It
    # fails at what is meant for a loop that was closed; then the other bytes call it in again.
    for _ in range(written):
        handle()
