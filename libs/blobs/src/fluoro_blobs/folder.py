"""What a folder needs beyond obstore: durability against power loss, a probe, and a broom for uploads whose process died."""

import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from errno import ENOSPC
from itertools import chain
from pathlib import Path
from typing import Final
from uuid import uuid4

RESERVE_BYTES: Final = 32 * 1024 * 1024
"""Free space below which a folder counts as full, so that work stops before an upload runs into the end of the disk."""

_PROBE: Final = bytes(4096)

_UNFINISHED: Final = re.compile(r".+#\d+")
"""Names of files obstore writes to before it renames them; its other methods never show them."""


def make_durable(path: Path, top: Path) -> None:
    """Flushes a file and the folders above it, up to `top`: obstore renames without a flush.

    OSError as the system gives it.
    """
    for each in (path, *path.parents):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if each == top:
            return


def probe(top: Path) -> None:
    """Writes a small file and removes it.

    OSError as the system gives it, ENOSPC too if less than RESERVE_BYTES are free.

    Only a write tells: root may do anything to os.access, and a disk that turned read-only keeps
    its permissions.
    """
    # Named like an unfinished upload, so that `remove_unfinished` finds what a process killed in
    # between leaves.
    path = top / f"check-{uuid4()}#1"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        # Some file systems tell of a full disk no sooner than at the flush.
        if os.write(descriptor, _PROBE) < len(_PROBE):
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)
    disk = os.statvfs(top)
    # A file system that does not count its blocks says 0.
    if disk.f_blocks and disk.f_bavail * disk.f_frsize < RESERVE_BYTES:
        raise OSError(ENOSPC, os.strerror(ENOSPC))


def remove_unfinished(folders: Iterable[Path], older_than_seconds: float) -> int:
    """Deletes what uploads left whose process died, if nobody wrote to it for that long.

    Returns how many files that were.
    """
    limit = time.time() - older_than_seconds
    removed = 0
    for path in chain.from_iterable(folder.glob("*#*") for folder in folders):
        with suppress(FileNotFoundError):  # another process may sweep too, or the upload end
            if _UNFINISHED.fullmatch(path.name) and path.stat().st_mtime < limit:
                path.unlink()
                removed += 1
    return removed
