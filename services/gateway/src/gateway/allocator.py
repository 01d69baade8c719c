"""How the C library treats freed memory."""

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

KEPT_BYTES: Final = 8 * 2**20
"""Freed memory at the top of a heap that stays with the process."""

LARGEST_BYTES: Final = 4 * 2**20
"""Buffers up to this size come from a heap: all that hold a chunk."""


def keep_freed_memory() -> None:
    """Makes buffers of a chunk's size cheap to come by, for the whole process.

    Left to itself, glibc gives their memory back to the system each time. Getting it again, page by
    page, would take about as much of the CPU as everything else that receiving a chunk takes. Other
    C libraries stay as they are: they have no mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGEST_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
