"""Runs the codecs in a child process: bytes that crash a codec fail their own item only."""

import atexit
import signal
import subprocess
import sys
from contextlib import suppress
from functools import cache
from threading import Lock
from typing import Any, Final

import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray

from dicom_worker.pixels.sandbox_child import read_message, write_message

CRASHES: Final = frozenset(
    (signal.SIGABRT, signal.SIGALRM, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV)
)
"""Signals by which a file brings the child down. Any other, such as SIGKILL, comes from outside."""


class Sandbox:
    """One child process, started when first needed and again after it died.

    Frames of several threads take turns.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._turn = Lock()

    def decode(
        self, syntax: str, plugin: str, options: dict[str, Any], frame: bytes
    ) -> tuple[NDArray[Any], str]:
        """The decoded frame and its Photometric Interpretation, as `sandbox_child.decode` has them.

        FluoroError: PIXELS_UNDECODABLE if the decoder refused or crashed; WORKER_LOST if the child
        was killed from outside.
        """
        with self._turn:
            reply = self._ask({"syntax": syntax, "plugin": plugin, "options": options}, frame)
        if not reply:
            raise FluoroError(Reason.PIXELS_UNDECODABLE, "The decoder refused the pixel data.")
        message, data = reply
        return np.frombuffer(bytearray(data), message["dtype"]).reshape(message["shape"]), message[
            "photometric"
        ]

    def _ask(self, request: dict[str, Any], frame: bytes) -> tuple[dict[str, Any], bytes] | None:
        """The reply to a request, None if it is a refusal."""
        child = self._start()
        assert child.stdin and child.stdout  # noqa: PT018 - one fact: both are pipes
        try:
            # typeshed's IO[bytes] is a BinaryIO.
            write_message(child.stdin, request, frame)  # type: ignore[arg-type]  # see above
            reply = read_message(child.stdout)  # type: ignore[arg-type]  # see above
        except BrokenPipeError:
            reply = None
        if reply is None:
            raise self._obituary(child)
        return reply if reply[0]["decoded"] else None

    def _start(self) -> "subprocess.Popen[bytes]":
        if self._child is None:
            command = [sys.executable, "-I", "-m", "dicom_worker.pixels.sandbox_child"]
            # A session of its own, because signals to the worker's process group are not for it.
            # No environment, because it needs no secrets.
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={},
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
