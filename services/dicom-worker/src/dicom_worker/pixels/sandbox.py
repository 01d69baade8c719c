"""Runs the codecs in a child process: bytes that crash a codec fail their own item only."""

import atexit
import fcntl
import mmap
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from math import prod
from threading import Lock
from typing import Any, Final
from weakref import ref

import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray

from dicom_worker.pixels.codecs import FrameSpec
from dicom_worker.pixels.sandbox_child import read_message, write_message

# SIGALRM is the child's own limit of time, see `sandbox_child.serve`.
CRASHES: Final = frozenset(
    (signal.SIGABRT, signal.SIGALRM, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV)
)
"""Signals by which a file brings the child down. Any other, such as SIGKILL, comes from outside."""


ENVIRONMENT: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(16 * 1024 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(32 * 1024 * 1024),
}
"""Of the child (mallopt(3)): without them it takes the memory of every frame anew from the kernel.

With RLE that is half of its time.
"""
KEPT_BYTES: Final = 16 * 1024 * 1024
"""Shared memory that stays for the next frame, twice; what a larger one took goes back."""


class Memory:
    """Memory that this process and the child share, sealed: the child cannot take it away.

    holds: whose pixels lie in it, until they are taken out.
    """

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        # A child that cut the memory short would kill this process with SIGBUS at the next access.
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        os.ftruncate(self.descriptor, mmap.PAGESIZE)
        self.shared = mmap.mmap(self.descriptor, mmap.PAGESIZE)
        self.holds: ref[Ticket] | None = None

    def make_room(self, size: int) -> None:
        """At least so many bytes."""
        if size > len(self.shared):
            os.ftruncate(self.descriptor, size)
            # In this order: where there is no room for more, what there was stays in use.
            larger = mmap.mmap(self.descriptor, size)
            self.shared.close()
            self.shared = larger

    def empty(self) -> None:
        """Takes the pixels out, for whoever still has their ticket."""
        held, self.holds = self.holds, None
        if held is None:
            return
        if (ticket := held()) and isinstance(ticket.reply, dict) and "shape" in ticket.reply:
            try:
                ticket.array = self._pixels(ticket)
            except MemoryError as error:
                ticket.reply = error  # for its owner: others only need the room
        if len(self.shared) > KEPT_BYTES:
            self.shared.madvise(mmap.MADV_REMOVE)

    def _pixels(self, ticket: "Ticket") -> NDArray[Any] | None:
        assert isinstance(ticket.reply, dict)
        dtype, shape = np.dtype(ticket.reply["dtype"]), tuple(ticket.reply["shape"])
        # Hostile bytes may have taken over the child, so its reply is checked like any input.
        if dtype.itemsize * prod(shape) > ticket.room:
            ticket.reply = FluoroError(
                Reason.PIXELS_UNDECODABLE, "The decoder gave more pixels than it may."
            )
            return None
        # A copy, because the next frame overwrites the shared memory.
        return np.frombuffer(self.shared, dtype, prod(shape), ticket.start).reshape(shape).copy()


@dataclass(slots=True, weakref_slot=True, eq=False)
class Ticket:
    """For a request, and then its reply.

    start, room: where in `memory` its pixels may be, in bytes.
    """

    memory: Memory
    start: int
    room: int
    reply: dict[str, Any] | FluoroError | MemoryError = field(default_factory=dict)
    array: NDArray[Any] | None = None


class Sandbox:
    """One child process, started when first needed and again after it died.

    It works on one request at a time; those of several threads take turns. Pixels come back through
    shared memory, of which there are two: one is read while the child fills the other.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._turn = Lock()
        self._memories = (Memory(), Memory())
        self._under_way: ref[Ticket] | None = None

    def decode(self, decoder: str, frame: FrameSpec, data: bytes) -> NDArray[Any]:
        """The samples of a code stream, as this decoder of `codecs` has them.

        FluoroError: PIXELS_UNDECODABLE if the decoder refused or crashed, or gave another shape
        than the frame's; WORKER_LOST if the child was killed from outside.
        """
        return self.samples(self.begin(decoder, frame, data), frame)

    def begin(self, decoder: str, frame: FrameSpec, data: bytes) -> Ticket:
        """Has the child decode while this process does something else; `samples` has the result.

        What was begun before is waited for.
        """
        # Samples have 4 bytes at most, because no decoder gives more than 32 bits.
        room = frame.rows * frame.columns * frame.samples * max(4, frame.bits // 8)
        return self._begin({"decoder": decoder, "frame": frame}, data, room)

    def samples(self, ticket: Ticket, frame: FrameSpec) -> NDArray[Any]:
        """As `decode`, of what was begun."""
        reply, array = self._answer(ticket)
        if not reply["decoded"]:
            raise FluoroError(Reason.PIXELS_UNDECODABLE, "The decoder refused the pixel data.")
        expected = (frame.rows, frame.columns, *([frame.samples] if frame.samples > 1 else []))
        if array is None or array.shape != expected:
            raise FluoroError(
                Reason.PIXELS_UNDECODABLE,
                "The decoded frame has another shape than the header says.",
            )
        return array

    def call(
        self, request: dict[str, Any], data: bytes, room: int
    ) -> tuple[dict[str, Any], NDArray[Any] | None]:
        """The child's reply to a request, and the pixels that came with it.

        data: that the child may read. room: bytes that the pixels may take. FluoroError:
        PIXELS_UNDECODABLE if a codec crashed; WORKER_LOST if the child was killed from outside.
        """
        return self.reply(self.ask(request, data, room))

    def ask(self, request: dict[str, Any], data: bytes, room: int) -> Ticket:
        """Begins `call`, as `begin` does `decode`; `reply` ends it."""
        return self._begin(request, data, room)

    def reply(self, ticket: Ticket) -> tuple[dict[str, Any], NDArray[Any] | None]:
        """As `call`, of what was asked."""
        return self._answer(ticket)

    def _begin(self, request: dict[str, Any], data: bytes, room: int) -> Ticket:
        # Pixels begin on a page of their own, aligned for values of any size.
        start = -(-len(data) // mmap.PAGESIZE) * mmap.PAGESIZE
        with self._turn:
            # The child answers in order. The reply of the request before must be read first, or it
            # would be taken for that of this one.
            self._settle()
            memory = self._free(start + room)
            memory.make_room(max(1, start + room))
            memory.shared[: len(data)] = data
            ticket = Ticket(memory, start, room)
            # Weak, so that pixels that nobody waits for any more are dropped and not copied out.
            self._under_way = memory.holds = ref(ticket)
            self._send(
                request
                | {"memory": self._memories.index(memory), "data_bytes": len(data)}
                | {"pixels_start": start, "pixels_end": start + room}
            )
        return ticket

    def _free(self, size: int) -> Memory:
        """Memory to use. What is larger than is kept goes to the first: the child has both."""
        first, second = self._memories
        if size <= KEPT_BYTES and first.holds is not None:
            first, second = second, first
        first.empty()
        return first

    def _answer(self, ticket: Ticket) -> tuple[dict[str, Any], NDArray[Any] | None]:
        with self._turn:
            if self._under_way is not None and self._under_way() is ticket:
                self._settle()
            if ticket.memory.holds is not None and ticket.memory.holds() is ticket:
                ticket.memory.empty()
        if not isinstance(ticket.reply, dict):
            raise ticket.reply
        return ticket.reply, ticket.array

    def _settle(self) -> None:
        """Waits for what is under way, and enters the reply into its ticket."""
        if self._under_way is None:
            return
        under_way, self._under_way = self._under_way, None
        try:
            reply: dict[str, Any] | FluoroError = self._receive()
        except FluoroError as error:
            reply = error
        if ticket := under_way():
            ticket.reply = reply

    def _send(self, request: dict[str, Any]) -> None:
        child = self._start()
        assert child.stdin
        # One that has died says so when its reply is read.
        with suppress(BrokenPipeError):
            write_message(child.stdin, request)

    def _receive(self) -> dict[str, Any]:
        child = self._start()
        assert child.stdout
        reply = read_message(child.stdout)
        if reply is None:
            raise self._obituary(child)
        return reply

    def _start(self) -> "subprocess.Popen[bytes]":
        if self._child is None:
            module = "dicom_worker.pixels.sandbox_child"
            memories = [memory.descriptor for memory in self._memories]
            # Isolated (-I): no environment variable and no working folder can put another module in
            # the way.
            command = [sys.executable, "-I", "-m", module, *map(str, memories)]
            # A session of its own, because signals to the worker's process group are not for it.
            # Nothing of our environment, because it needs no secrets.
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=ENVIRONMENT,
                pass_fds=memories,
                start_new_session=True,
            )
        return self._child

    def _obituary(self, child: "subprocess.Popen[bytes]") -> FluoroError:
        code = child.wait()
        self.close()
        if -code in CRASHES:
            return FluoroError(Reason.PIXELS_UNDECODABLE, "The decoder crashed on the pixel data.")
        # By another signal: the kernel's killer of processes most likely, which another attempt may
        # escape.
        if code < 0:
            return FluoroError(Reason.WORKER_LOST, "The decoder's process was killed.")
        return FluoroError(Reason.INTERNAL, f"The decoder's process ended with exit code {code}.")

    def close(self) -> None:
        """Ends the child."""
        child, self._child = self._child, None
        if child is not None and self._under_way is not None:
            child.kill()  # nobody waits for it any more
        self._under_way = None
        if child is None:
            return
        assert child.stdin and child.stdout  # noqa: PT018 - one fact: both are pipes
        # A dead child may have left part of its input unread.
        with suppress(BrokenPipeError):
            child.stdin.close()
        child.stdout.close()
        child.wait()


@cache
def sandbox() -> Sandbox:
    """The sandbox of this process."""
    shared = Sandbox()
    atexit.register(shared.close)
    return shared
