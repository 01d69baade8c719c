"""The process that runs the codecs: it decodes one frame after the other until its input ends.

Codecs are C and C++, and see hostile bytes. GDCM, for one, ends the process on some (`terminate
called after throwing gdcm::Exception`). Here that costs a frame. This process has no settings, no
network client and no secrets in its environment; memory and time are limited.

A message, in both directions, is two lengths (`HEADER`), a JSON object and bytes.
"""

import json
import os
import resource
import signal
import struct
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from fluoro_jobs.errors import Reason
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder

from dicom_worker import limits
from dicom_worker.blame import blame_file

HEADER: Final = struct.Struct("<QQ")
"""Bytes of the JSON object, bytes of the rest."""


def decode(
    syntax: str, plugin: str, options: dict[str, Any], source: bytes | BinaryIO, index: int
) -> tuple[NDArray[Any], str]:
    """One frame by pydicom's decoder with this plugin.

    The array in native byte order, and its Photometric Interpretation, RGB for YBR.
    """
    array, properties = get_decoder(syntax).as_array(
        source, index=index, decoding_plugin=plugin, **options
    )
    return np.asarray(array, dtype=array.dtype.newbyteorder("=")), str(
        properties["photometric_interpretation"]
    )


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


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Decodes until `requests` ends."""
    while message := read_message(requests):
        request, frame = message
        signal.alarm(limits.DECODER_TIME_LIMIT_SECONDS)
        try:
            with blame_file(Reason.PIXELS_UNDECODABLE, "The decoder refused the pixel data."):
                array, photometric = decode(
                    request["syntax"],
                    request["plugin"],
                    request["options"],
                    encapsulate([frame]),
                    0,
                )
        except BaseException:  # noqa: BLE001 - a panic of pylibjpeg-rle (Rust) is no Exception
            signal.alarm(0)
            write_message(replies, {"decoded": False}, b"")
            continue
        signal.alarm(0)
        reply = {
            "decoded": True,
            "dtype": array.dtype.str,
            "shape": array.shape,
            "photometric": photometric,
        }
        write_message(replies, reply, np.ascontiguousarray(array).data.cast("B"))


def main() -> None:
    """Keeps standard output for replies, away from what codecs print, and serves."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold pixels
    resource.setrlimit(resource.RLIMIT_AS, (limits.DECODER_MEMORY_LIMIT_BYTES,) * 2)
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    serve(requests, replies)


if __name__ == "__main__":
    main()
