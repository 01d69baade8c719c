"""The folder that blobs lie in, on a file system of its own where that can be had: one that can be full, or read-only.

A file system needs root, and a namespace to be mounted in; who lacks either gets the nearest thing, see `Disk.mounted`.
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

BYTES: Final = 96 * 2**20
"""Size of the file system. It is memory."""
REMOUNT_SECONDS: Final = 3
"""How long to wait for a moment in which nobody has a file open for writing."""
_APART: Final = "CHAOS_APART"


def enter_namespace() -> None:
    """Starts this program anew in a mount namespace of its own, where there is leave to: what it mounts ends with it."""
    if os.environ.pop(_APART, "") or os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        return
    os.environ[_APART] = "yes"
    os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv])


class Disk:
    """folder: where the blobs lie. mounted: whether it is a file system of its own; if not, it can be neither full nor read-only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mounted = False
        self._ballast = folder / "ballast"

    def start(self) -> None:
        """Makes the folder."""
        self.folder.mkdir()
        if os.geteuid() == 0:
            self.mounted = not _mount("-t", "tmpfs", "-o", f"size={BYTES}", "tmpfs", str(self.folder))

    def fill(self) -> None:
        """From now on there is no space for anything."""
        with self._ballast.open("wb") as file:
            while free := os.statvfs(self.folder).f_bavail * os.statvfs(self.folder).f_frsize:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), free)

    def empty(self) -> None:
        """Undoes `fill`."""
        self._ballast.unlink(missing_ok=True)

    def make_read_only(self) -> None:
        """From now on nothing can be written. A file that is just being written delays that."""
        self._remount("ro")

    def make_writable(self) -> None:
        """Undoes `make_read_only`."""
        self._remount("rw")

    def _remount(self, how: str) -> None:
        deadline = time.monotonic() + REMOUNT_SECONDS
        while trouble := _mount("-o", f"remount,{how}", str(self.folder)):
            if time.monotonic() > deadline:
                raise OSError(trouble)
            threading.Event().wait(0.01)


def _mount(*arguments: str) -> str:
    """What was wrong; "" for nothing."""
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    return done.stderr.strip() or f"mount ended with {done.returncode}" if done.returncode else ""
