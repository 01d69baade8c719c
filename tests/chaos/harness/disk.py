"""The folder that blobs lie in, if possible on a file system that can be full or read-only.

A file system needs root, and a namespace to be mounted in; who lacks either gets the nearest thing,
see `Disk.mounted`.
"""

import contextlib
import errno
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
FILLS: Final = 50
"""How often to try to take what space is left, while others write."""
_APART: Final = "CHAOS_APART"


def enter_namespace() -> None:
    """Starts this program anew in a mount namespace, if allowed: what it mounts ends with it."""
    if (
        os.environ.pop(_APART, "")
        or os.geteuid() != 0
        or subprocess.run(["unshare", "--mount", "true"], check=False).returncode
    ):
        return
    os.environ[_APART] = "yes"
    os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv])


class Disk:
    """folder: where the blobs lie.

    mounted: whether it is a file system of its own; if not, it can be neither full nor read-only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mounted = False
        self._ballast = folder / "ballast"

    def start(self) -> None:
        """Makes the folder."""
        self.folder.mkdir()
        if os.geteuid() == 0:
            self.mounted = not _mount(
                "-t", "tmpfs", "-o", f"size={BYTES}", "tmpfs", str(self.folder)
            )

    def fill(self) -> None:
        """From now on there is no space for anything. OSError without a file system of its own."""
        self._refuse_others()
        with self._ballast.open("wb") as file:
            for _ in range(FILLS):
                space = os.statvfs(self.folder)
                if not space.f_bavail:
                    return
                with contextlib.suppress(OSError):  # somebody was quicker, and there is less
                    os.posix_fallocate(
                        file.fileno(), file.seek(0, os.SEEK_END), space.f_bavail * space.f_frsize
                    )

    def empty(self) -> None:
        """Undoes `fill`."""
        self._ballast.unlink(missing_ok=True)

    def make_read_only(self) -> None:
        """From now on nothing can be written.

        OSError without a file system of its own, or while somebody has a file open for writing.
        """
        self._refuse_others()
        self._remount("ro")

    def make_writable(self) -> None:
        """Undoes `make_read_only`."""
        self._remount("rw")

    def _refuse_others(self) -> None:
        if not self.mounted:
            raise OSError(errno.ENOTSUP, "The folder is no file system of its own.")

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
