"""What is certified of each frame, and which frames a second decoder has to confirm."""

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SAMPLES: Final = 1024
"""Values that entropy is estimated from: enough to tell a picture from nothing."""
GOLDEN: Final = (5**0.5 - 1) / 2
"""Steps of this share of an image are spread evenly, and in no column of any image."""
HEADER_BYTES: Final = 1024
"""Bytes of a code stream that are not counted as picture: markers, tables, comments."""
BLOCK: Final = 8
"""Rows and columns of JPEG's blocks."""
HOLE: Final = bytes(64)
"""Of a JPEG, so many zeros are a flat picture, or were never written."""
FACTOR: Final = 4
"""How much more than the picture's own entropy a code stream may plausibly take."""


@dataclass(frozen=True, slots=True)
class FrameCertificate:
    """What the decoder vouches for about one frame's stored values.

    sha256: of the values in C order, little endian, at Bits Allocated (RGB for colour). precision:
    bits per sample of the code stream, Bits Stored without one. entropy_bits: Shannon entropy per
    sample, estimated; 0 where all are equal. second_decoder: who confirmed it, "" if nobody had to.
    """

    sha256: bytes
    precision: int
    minimum: float
    maximum: float
    entropy_bits: float
    second_decoder: str = ""


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """Stored values, (rows, columns) or (rows, columns, 3) RGB.

    precision, second_decoder: as in their certificate.
    """

    values: NDArray[Any]
    precision: int
    second_decoder: str = ""


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """Stored values and what is certified of them."""

    values: NDArray[Any]
    certificate: FrameCertificate


def certified(frame: StoredFrame) -> DecodedFrame:
    """The frame with its certificate."""
    values = np.ascontiguousarray(frame.values)
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    # fmin and fmax ignore NaN. With min and max, one NaN in a float image would hide the whole
    # range.
    certificate = FrameCertificate(
        sha256=hashlib.sha256(little.data).digest(),
        precision=frame.precision,
        minimum=float(np.fmin.reduce(values, axis=None)),
        maximum=float(np.fmax.reduce(values, axis=None)),
        entropy_bits=entropy(values),
        second_decoder=frame.second_decoder,
    )
    return DecodedFrame(values, certificate)


def entropy(values: NDArray[Any]) -> float:
    """Shannon entropy, bits per sample, of `SAMPLES` values; exactly 0 only if all are equal."""
    flat = values.reshape(-1)
    if flat.size <= SAMPLES:
        chosen = flat
    else:
        chosen = flat[(np.arange(SAMPLES) * int(GOLDEN * flat.size)) % flat.size]
    _, counts = np.unique(chosen, return_counts=True)
    shares = counts / counts.sum()
    estimate = float(-(shares * np.log2(shares)).sum())
    # The samples may miss the few values that differ. Only a look at all of them proves a flat
    # frame.
    if estimate > 0 or flat.min() == flat.max():
        return max(estimate, 0.0)
    return 1 / flat.size


def looks_empty(stream_bytes: int, values: NDArray[Any], flat_bits: float) -> bool:
    """Whether the code stream holds far more than the picture that came out of it.

    A decoder that fails without a word leaves zeros, or one grey. flat_bits: what a frame of one
    value may take in this format, bits per sample.
    """
    rate = 8 * (stream_bytes - HEADER_BYTES) / values.size
    return rate > flat_bits and rate > FACTOR * entropy(values) + flat_bits


def ends_grey(samples: NDArray[Any], precision: int) -> bool:
    """Whether the last block ends in the grey with which libjpeg fills what a cut scan lacks."""
    last = (samples.shape[1] - 1) % BLOCK + 1
    return bool((samples[-1, -last:] == 1 << precision - 1).all())


def has_hole(jpeg: bytes) -> bool:
    """Whether part of the scans of a lossy JPEG may be lost, with zeros in its place.

    libjpeg makes blocks of them, and leaves what is too much at the end.
    """
    return jpeg.find(HOLE, jpeg.find(b"\xff\xda")) >= 0
