"""Runs the codecs in a child process: bytes that crash a codec fail their own item only."""

import atexit
import fcntl
import mmap
import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import cache
from math import prod
from threading import Lock
from typing import Any, Final

import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray

from dicom_worker.pixels.codecs import FrameSpec
from dicom_worker.pixels.sandbox_child import read_message, write_message

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
"""Shared memory that stays for the next frame; what a larger one took goes back."""


class Sandbox:
    """One child process, started when first needed and again after it died.

    Frames of several threads take turns. Pixels come back through memory that both share. It is
    sealed: the child cannot take away what this process is reading.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._turn = Lock()
        self._memory = os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(self._memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        os.ftruncate(self._memory, mmap.PAGESIZE)
        self._shared = mmap.mmap(self._memory, mmap.PAGESIZE)

    def decode(self, decoder: str, frame: FrameSpec, data: bytes) -> NDArray[Any]:
        """The samples of a code stream, as this decoder of `codecs` has them.

        FluoroError: PIXELS_UNDECODABLE if the decoder refused or crashed, or gave another shape
        than the frame's; WORKER_LOST if the child was killed from outside.
        """
        # Samples have 4 bytes at most, because no decoder gives more than 32 bits.
        room = frame.rows * frame.columns * frame.samples * max(4, frame.bits // 8)
        reply, array = self.call({"decoder": decoder, "frame": frame}, data, room)
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
        start = -(-len(data) // mmap.PAGESIZE) * mmap.PAGESIZE
        place = {"data_bytes": len(data), "pixels_start": start, "pixels_end": start + room}
        with self._turn:
            self._make_room(max(1, start + room))
            self._shared[: len(data)] = data
            try:
                reply = self._ask(request | place)
                if "shape" not in reply:
                    return reply, None
                dtype, shape = np.dtype(reply["dtype"]), tuple(reply["shape"])
                if dtype.itemsize * prod(shape) > room:
                    raise FluoroError(
                        Reason.PIXELS_UNDECODABLE, "The decoder gave more pixels than it may."
                    )
                shared = np.frombuffer(self._shared, dtype, prod(shape), start)
                return reply, shared.reshape(shape).copy()
            finally:
                if len(self._shared) > KEPT_BYTES:
                    self._shared.madvise(mmap.MADV_REMOVE)

    def _make_room(self, size: int) -> None:
        if size > len(self._shared):
            os.ftruncate(self._memory, size)
            # In this order: where there is no room for more, what there was stays in use.
            larger = mmap.mmap(self._memory, size)
            self._shared.close()
            self._shared = larger

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        child = self._start()
        assert child.stdin and child.stdout  # noqa: PT018 - one fact: both are pipes
        try:
            write_message(child.stdin, request)
            reply = read_message(child.stdout)
        except BrokenPipeError:
            reply = None
        if reply is None:
            raise self._obituary(child)
        return reply

    def _start(self) -> "subprocess.Popen[bytes]":
        if self._child is None:
            module = "dicom_worker.pixels.sandbox_child"
            command = [sys.executable, "-I", "-m", module, str(self._memory)]
            # A session of its own, because signals to the worker's process group are not for it.
            # Nothing of our environment, because it needs no secrets.
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=ENVIRONMENT,
                pass_fds=(self._memory,),
                start_new_session=True,
            )
        return self._child

    def _obituary(self, child: "subprocess.Popen[bytes]") -> FluoroError:
        code = child.wait()
        self.close()
        if -code in CRASHES:
            return FluoroError(Reason.PIXELS_UNDECODABLE, "The decoder crashed on the pixel data.")
        if code < 0:
            return FluoroError(Reason.WORKER_LOST, "The decoder's process was killed.")
        return FluoroError(Reason.INTERNAL, f"The decoder's process ended with exit code {code}.")

    def close(self) -> None:
        """Ends the child."""
        child, self._child = self._child, None
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
