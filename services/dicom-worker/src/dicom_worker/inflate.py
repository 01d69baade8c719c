"""Bounded inflate of a Deflated Explicit VR Little Endian data set (PS3.5 A.5)."""

import zlib
from pathlib import Path
from typing import Final

from fluoro_jobs.errors import FluoroError, Reason

from dicom_worker import limits

CHUNK_BYTES: Final = 1024 * 1024
"""Bytes read, and at most inflated, at a time: memory is bounded by it, whatever the ratio."""


def inflate(
    source: Path, start: int, target: Path, limit: int = limits.INFLATED_LIMIT_BYTES
) -> None:
    """Inflates what follows byte `start` of `source` into `target`. limit: bytes it may become.

    FluoroError: IMAGE_TOO_LARGE past the limit, DICOM_TRUNCATED if the stream has no end,
    DICOM_INVALID if it is none.
    """
    # Negative: the data set is raw deflate (RFC 1951), without zlib's header (PS3.5 A.5).
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    size = 0
    with source.open("rb") as deflated, target.open("wb") as inflated:
        deflated.seek(start)
        # Behind the end of the stream there may be a byte of padding (PS3.5 A.5). It is never read.
        while not stream.eof:
            # What did not fit into the last chunk comes first: it holds up to 1,000 chunks.
            data = stream.unconsumed_tail or deflated.read(CHUNK_BYTES)
            if not data:
                raise FluoroError(
                    Reason.DICOM_TRUNCATED,
                    "The deflated data set ends before its data does. Send it again.",
                )
            try:
                chunk = stream.decompress(data, CHUNK_BYTES)
            except zlib.error:
                raise FluoroError(
                    Reason.DICOM_INVALID, "The deflated data set cannot be inflated."
                ) from None
            size += len(chunk)
            if size > limit:
                raise FluoroError(
                    Reason.IMAGE_TOO_LARGE, f"The data set inflates to more than {limit} bytes."
                )
            inflated.write(chunk)
