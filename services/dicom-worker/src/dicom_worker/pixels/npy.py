"""Writes an array to a file frame by frame (NumPy's NPY format, version 1.0).

Memory is bounded by a frame.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray

HEADER_BYTES: Final = 128
"""Bytes of the header of any array of up to four dimensions.

NumPy pads it to a multiple of 64, and leaves room for the first dimension to grow.
"""


@dataclass(slots=True)
class NpyWriter:
    """An array of shape (frames, *frame shape) in C order, written to `path` frame by frame.

    dtype: that of the first frame. Only the last frame shows whether all values are whole and fit:
    a `<f4` frame after `<i2` frames converts what is there. minimum, maximum: of the values that
    are numbers. frames: up to the last one written; those that were left out are zeros.
    """

    path: Path
    frames: int = field(default=0, init=False)
    shape: tuple[int, ...] = field(default=(), init=False)
    dtype: np.dtype[Any] | None = field(default=None, init=False)
    minimum: float = field(default=float("inf"), init=False)
    maximum: float = field(default=float("-inf"), init=False)

    def append(self, frame: NDArray[Any]) -> None:
        """Appends a frame. ValueError if its shape differs from the first one's."""
        self.put(self.frames, frame)

    def put(self, at: int, frame: NDArray[Any]) -> None:
        """Writes the frame of that number, 0-based. ValueError as for `append`."""
        if self.dtype is None:
            self.dtype, self.shape = frame.dtype, frame.shape
            # The header needs the number of frames and the final dtype, so `close` writes it.
            self.path.write_bytes(bytes(HEADER_BYTES))
        # NumPy would write it all the same, and every later frame would lie in the wrong place.
        if frame.shape != self.shape:
            raise ValueError(f"frame {at} has shape {frame.shape}, the first has {self.shape}")
        # Integers fit into floats and not the other way: a later frame of integers becomes floats.
        if np.can_cast(self.dtype, frame.dtype) and frame.dtype != self.dtype:
            self._widen(frame.dtype)
        cells = np.ascontiguousarray(frame, self.dtype)
        with self.path.open("r+b") as file:
            file.seek(HEADER_BYTES + at * cells.nbytes)
            file.write(cells.data)
        self.frames = max(self.frames, at + 1)
        self.minimum = min(self.minimum, float(np.fmin.reduce(frame, axis=None)))
        self.maximum = max(self.maximum, float(np.fmax.reduce(frame, axis=None)))

    def close(self) -> bytes:
        """Writes the header and returns the SHA-256 of the array's bytes."""
        assert self.dtype is not None, "an array has at least one frame"
        with self.path.open("r+b") as file:
            write_array_header_1_0(
                file,
                {
                    "descr": self.dtype.str,
                    "fortran_order": False,
                    "shape": (self.frames, *self.shape),
                },
            )
            # A longer header has just overwritten the first values.
            if file.tell() != HEADER_BYTES:
                raise ValueError(
                    f"the header of {self.frames} frames has {file.tell()} bytes, "
                    f"not {HEADER_BYTES}"
                )
            # The file now stands right behind its header, so the digest is of the values alone.
            return hashlib.file_digest(file, "sha256").digest()

    def _widen(self, dtype: np.dtype[Any]) -> None:
        narrow = self.path.with_suffix(".narrow")
        self.path.rename(narrow)
        with self.path.open("wb") as file:
            file.write(bytes(HEADER_BYTES))
            for frame in stored_frames(narrow, self.frames, self.shape, self.dtype or dtype):
                file.write(frame.astype(dtype).data)
        narrow.unlink()
        self.dtype = dtype


def stored_frames(
    path: Path, frames: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Iterator[NDArray[Any]]:
    """The frames of an array that an `NpyWriter` wrote, one in memory at a time."""
    with path.open("rb") as file:
        file.seek(HEADER_BYTES)
        for _ in range(frames):
            yield np.fromfile(file, dtype, int(np.prod(shape))).reshape(shape)
