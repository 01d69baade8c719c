"""What a folder needs beyond obstore: durability against power loss, and a broom for uploads whose process died."""

import os
import re
import time
from pathlib import Path
from typing import Final

_UNFINISHED: Final = re.compile(r".+#\d+")
"""Names of files obstore writes to before it renames them; its other methods never show them."""


def make_durable(path: Path, top: Path) -> None:
    """Flushes a file and the folders above it, up to `top`: obstore renames without a flush. OSError as the system gives it."""
    for each in (path, *path.parents):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if each == top:
            return


def remove_unfinished(top: Path, older_than_seconds: float) -> int:
    """Deletes what uploads left whose process died, if nobody wrote to it for that long. Returns how many files that were."""
    limit = time.time() - older_than_seconds
    removed = 0
    for path in top.rglob("*#*"):
        if _UNFINISHED.fullmatch(path.name) and path.stat().st_mtime < limit:
            path.unlink(missing_ok=True)
            removed += 1
    return removed
