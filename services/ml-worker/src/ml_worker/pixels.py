"""Reads a pixel array that the decoder vouches for, and nothing else."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fluoro.v1 import dicom_pb2
from fluoro_jobs.errors import FluoroError, Reason
from numpy.lib.format import open_memmap
from numpy.typing import NDArray


def certified_pixels(
    path: Path, certificate: dicom_pb2.PixelCertificate, check: Callable[[], None]
) -> NDArray[Any]:
    """Maps an NPY file whose shape, dtype and bytes (SHA-256 in C order) its certificate names.

    Memory is bounded by one frame. check: called before each frame; stops the reading by raising.
    FluoroError PIXELS_NOT_CERTIFIED if anything differs.
    """
    try:
        pixels: NDArray[Any] = open_memmap(path, mode="r")
    # What NumPy raises for hostile headers, which it evaluates as Python literals.
    except (ValueError, TypeError, SyntaxError, OverflowError, EOFError) as error:
        raise not_certified("is not a whole NPY file") from error
    # Cheap looks first: the hash reads the whole file.
    if pixels.shape != tuple(certificate.shape):
        raise not_certified("has another shape than its certificate says")
    if pixels.dtype.str != certificate.dtype:
        raise not_certified("has another dtype than its certificate says")
    digest = hashlib.sha256()
    # Frame by frame: the file is mapped, and a whole series would not fit into memory.
    for frame in pixels:
        check()
        digest.update(np.ascontiguousarray(frame).data)
    if digest.digest() != certificate.sha256:
        raise not_certified("has other bytes than its certificate says")
    return pixels


def not_certified(what: str) -> FluoroError:
    """The refusal. what: a sentence."""
    return FluoroError(
        Reason.PIXELS_NOT_CERTIFIED,
        f"The pixel array {what}, so it was not shown to the model. Render the image again.",
    )
