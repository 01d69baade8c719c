"""The process that runs the codecs: it decodes one frame after the other until its input ends.

Codecs are C and C++, and see hostile bytes. GDCM, for one, ends the process on some (`terminate
called after throwing gdcm::Exception`). Here that costs a frame. This process has no settings, no
network client and no secrets in its environment; memory and time are limited.

A message, in both directions, is a JSON object on a line. Code streams and pixels lie in memory
that both processes share, because a pipe takes longer than a fast decoder.
"""

import json
import mmap
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from fluoro_jobs.errors import Reason
from numpy.typing import NDArray

from dicom_worker import limits
from dicom_worker.blame import blame_file
from dicom_worker.pixels.codecs import FUNCTIONS, FrameSpec


def read_message(stream: IO[bytes]) -> dict[str, Any] | None:
    """The next message; None if the stream ends before its last byte."""
    line = stream.readline()
    message: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
    return message


def write_message(stream: IO[bytes], message: dict[str, Any]) -> None:
    """Sends a message."""
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def serve(requests: IO[bytes], replies: IO[bytes], memories: Sequence[int]) -> None:
    """Decodes until `requests` ends. memories: descriptors of what both processes share."""
    mapped = [mmap.mmap(memory, 0) for memory in memories]
    while request := read_message(requests):
        number = request["memory"]
        # The parent has enlarged this memory since it was mapped.
        if request["pixels_end"] > len(mapped[number]):
            mapped[number] = mmap.mmap(memories[number], 0)
        shared = mapped[number]
        # Nothing handles SIGALRM: the kernel ends the process, even inside a codec that never
        # returns.
        signal.alarm(limits.DECODER_TIME_LIMIT_SECONDS)
        try:
            with blame_file(Reason.PIXELS_UNDECODABLE, "The decoder refused the pixel data."):
                reply = answer(request, memoryview(shared))
        except Exception:  # noqa: BLE001 - codecs raise anything
            reply = {"decoded": False}
        signal.alarm(0)
        write_message(replies, reply)


def answer(request: dict[str, Any], shared: memoryview) -> dict[str, Any]:
    """The reply to a request. Pixels are left in the shared memory."""
    if "path" not in request and "slide" not in request:
        return {"decoded": True} | left(decode(request, shared), request, shared)
    # Here, because most DICOM does without Pillow and tifffile.
    from dicom_worker.photographs.refusals import RefusedError  # noqa: PLC0415 - see above

    try:
        if "slide" in request:
            from dicom_worker.slides import child as slides  # noqa: PLC0415 - see above

            room = shared[request["pixels_start"] : request["pixels_end"]]
            facts, array = slides.answer(request, room)
        else:
            from dicom_worker.photographs import child as photographs  # noqa: PLC0415 - see above

            facts, array = photographs.answer(request)
    except RefusedError as error:
        return {"decoded": False, "refusal": error.refusal.name}
    return {"decoded": True} | facts | ({} if array is None else left(array, request, shared))


def decode(request: dict[str, Any], shared: memoryview) -> NDArray[Any]:
    """Decodes the code stream at the start of the shared memory."""
    data = bytes(shared[: request["data_bytes"]])
    room = shared[request["pixels_start"] : request["pixels_end"]]
    return FUNCTIONS[request["decoder"]](data, FrameSpec(*request["frame"]), room)


def left(array: NDArray[Any], request: dict[str, Any], shared: memoryview) -> dict[str, Any]:
    """Leaves the pixels in the shared memory, and says what they are."""
    start, end = request["pixels_start"], request["pixels_end"]
    if array.nbytes > end - start:
        raise ValueError("the decoded frame is larger than its header says")
    place = np.frombuffer(shared, array.dtype, array.size, start).reshape(array.shape)
    # A decoder may have written them there already.
    if array.__array_interface__ != place.__array_interface__:
        np.copyto(place, array)
    return {"dtype": array.dtype.str, "shape": array.shape}


def main() -> None:
    """Keeps standard output for replies, away from what codecs print, and serves."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold pixels
    resource.setrlimit(resource.RLIMIT_AS, (limits.DECODER_MEMORY_LIMIT_BYTES,) * 2)
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    serve(requests, replies, [int(each) for each in sys.argv[1:]])


if __name__ == "__main__":
    main()
