"""The process that runs the codecs: it decodes one frame after the other until its input ends.

Codecs are C and C++, and see hostile bytes. GDCM, for one, ends the process on some (`terminate
called after throwing gdcm::Exception`). Here that costs a frame. This process has no settings, no
network client and no secrets in its environment; memory and time are limited.

A message, in both directions, is two lengths (`HEADER`), a JSON object and bytes. Decoded pixels go
through memory that both processes share, because a pipe takes as long as a fast decoder.
"""

import json
import mmap
import os
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from fluoro_jobs.errors import Reason
from numpy.typing import NDArray

from dicom_worker import limits
from dicom_worker.blame import blame_file
from dicom_worker.pixels.codecs import FUNCTIONS, FrameSpec

HEADER: Final = struct.Struct("<QQ")
"""Bytes of the JSON object, bytes of the rest."""


def read_message(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next message; None if the stream ends before its last byte."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    object_bytes, rest_bytes = HEADER.unpack(header)
    text, rest = stream.read(object_bytes), stream.read(rest_bytes)
    return (json.loads(text), rest) if len(rest) == rest_bytes else None


def write_message(stream: BinaryIO, message: dict[str, Any], rest: bytes | memoryview) -> None:
    """Sends a message."""
    text = json.dumps(message).encode()
    stream.write(HEADER.pack(len(text), len(rest)))
    stream.write(text)
    stream.write(rest)
    stream.flush()


def serve(requests: BinaryIO, replies: BinaryIO, shared: int) -> None:
    """Decodes until `requests` ends. shared: descriptor of the memory that takes the pixels."""
    while message := read_message(requests):
        request, data = message
        signal.alarm(limits.DECODER_TIME_LIMIT_SECONDS)
        try:
            with blame_file(Reason.PIXELS_UNDECODABLE, "The decoder refused the pixel data."):
                array = FUNCTIONS[request["decoder"]](data, FrameSpec(**request["frame"]))
                share(array, shared, request["capacity"])
        except BaseException:  # noqa: BLE001 - a panic of pylibjpeg-rle (Rust) is no Exception
            signal.alarm(0)
            write_message(replies, {"decoded": False}, b"")
            continue
        signal.alarm(0)
        write_message(
            replies, {"decoded": True, "dtype": array.dtype.str, "shape": array.shape}, b""
        )


def share(array: NDArray[Any], shared: int, capacity: int) -> None:
    """Copies the pixels to the start of the shared memory. ValueError if they do not fit."""
    if array.nbytes > capacity:
        raise ValueError("the decoded frame is larger than its header says")
    with mmap.mmap(shared, capacity) as memory:
        target = np.frombuffer(memory, array.dtype, array.size).reshape(array.shape)
        np.copyto(target, array)
        del target  # the mapping cannot close while an array points into it


def main() -> None:
    """Keeps standard output for replies, away from what codecs print, and serves."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold pixels
    resource.setrlimit(resource.RLIMIT_AS, (limits.DECODER_MEMORY_LIMIT_BYTES,) * 2)
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    serve(requests, replies, int(sys.argv[1]))


if __name__ == "__main__":
    main()
