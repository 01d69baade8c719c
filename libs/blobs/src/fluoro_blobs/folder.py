"""What a folder needs beyond obstore.

Durability against power loss, a probe, and a broom for uploads whose process died.
"""

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
"""Free space below which a folder counts as full.

Work then stops before an upload meets the end of the disk.
"""

_PROBE: Final = bytes(4096)

_UNFINISHED: Final = re.compile(r".+#\d+")
"""Names of files obstore writes to before it renames them; its other methods never show them."""


_KNOWN: Final[set[tuple[int, int]]] = set()
"""Device and inode of folders that the folders above name durably. At most 256 for each store."""


def make_durable(path: Path, top: Path) -> None:
    """Flushes a file, and what names it up to `top`: obstore renames without a flush.

    OSError as the system gives it.
    """
    _flush(path)
    make_findable(path, top)


def make_findable(path: Path, top: Path) -> None:
    """`make_durable` for a file that was flushed under another name."""
    folder = _flush(path.parent)
    # A flush waits for the disk even if nothing changed, and only a new folder changes those above.
    if folder not in _KNOWN and path.parent != top:
        for above in path.parent.parents:
            _flush(above)
            if above == top:
                break
        _KNOWN.add(folder)


def _flush(path: Path) -> tuple[int, int]:
    """Writes a file or folder to the disk. Its device and inode."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return status.st_dev, status.st_ino


def probe(top: Path) -> None:
    """Writes a small file and removes it.

    OSError as the system gives it, ENOSPC too if less than RESERVE_BYTES are free.

    Only a write tells. os.access lets root do anything, and a disk that turned read-only keeps its
    permissions.
    """
    # Named like an unfinished upload: if this process is killed in between, `remove_unfinished`
    # finds the file.
    path = top / f"check-{uuid4()}#1"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        # Some file systems report a full disk only at the flush.
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
    """Deletes what dead processes left of their uploads, if nobody wrote to it for that long.

    Returns the number of files.
    """
    limit = time.time() - older_than_seconds
    removed = 0
    for path in chain.from_iterable(folder.glob("*#*") for folder in folders):
        # Another process may sweep at the same time, or the upload may end.
        with suppress(FileNotFoundError):
            if _UNFINISHED.fullmatch(path.name) and path.stat().st_mtime < limit:
                path.unlink()
                removed += 1
    return removed
