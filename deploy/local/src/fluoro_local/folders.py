"""What a server needs before it starts: a folder of its own with space in it, and a port."""

import fcntl
import os
import secrets
import shutil
import socket
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

from fluoro_local.errors import StartError

FREE_BYTES = 200 * 2**20
"""Free space below which no server is started. A refusal is cheaper than a disk full mid-write."""
ORPHAN_SECONDS = 20.0
"""How long to wait for the servers of a Fluoro that was killed to finish."""

LOWEST_PORT = 10_000
"""Below it are the ports that well-known servers have."""
DYNAMIC_PORTS = 49_152
"""The first port that IANA keeps for connections (RFC 6335)."""
PORTS_OF_CONNECTIONS = Path("/proc/sys/net/ipv4/ip_local_port_range")

_ports = count(secrets.randbelow(DYNAMIC_PORTS))


def prepare(folder: Path, free_bytes: int = FREE_BYTES) -> None:
    """Make sure `folder` exists, can be written, and has `free_bytes` left on its disk.

    Raises StartError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".probe").write_bytes(b"")
        (folder / ".probe").unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StartError(
            f"Fluoro cannot write to {folder}: {error.strerror}. "
            "Choose another folder, or mend its permissions."
        ) from error
    if free < free_bytes:
        raise StartError(
            f"The disk that holds {folder} has {free >> 20} MiB left and Fluoro wants "
            f"{free_bytes >> 20}. Free some, or use another disk."
        )


def deidentification_keys(data: Path) -> Path:
    """The folder with the key of project `default`, which is made once and then stays.

    Pseudonyms of one run agree with those of the next.
    """
    folder = data / "keys"
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        key = os.open(folder / "default", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return folder
    with os.fdopen(key, "w") as file:
        file.write(secrets.token_hex(32))
    return folder


class FolderLock:
    """One Fluoro per folder.

    The servers inherit the descriptor, so that the lock is held until the last of them has really
    ended.
    """

    def __init__(self, folder: Path) -> None:
        """Wait until what a killed Fluoro left has ended. Refuse at once if another one is alive.

        Raises StartError.
        """
        self.descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + ORPHAN_SECONDS
        while not self._try():
            holder = int(os.pread(self.descriptor, 20, 0) or b"0")
            # If the holder is dead, its servers still hold the lock, and are about to end.
            if holder != os.getpid() and _alive(holder):
                os.close(self.descriptor)
                raise StartError(
                    f"Another Fluoro (process {holder}) is using {folder}. "
                    "Stop it, or give this one its own folder."
                )
            if time.monotonic() > deadline:
                os.close(self.descriptor)
                raise StartError(
                    f"A server left by Fluoro process {holder} still has {folder} open after "
                    f"{ORPHAN_SECONDS:.0f} s. End it first."
                )
            time.sleep(0.05)
        os.truncate(self.descriptor, 0)
        os.pwrite(self.descriptor, str(os.getpid()).encode(), 0)

    def _try(self) -> bool:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Give up our own hold of it."""
        os.close(self.descriptor)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # It belongs to another user, so it exists.
    except PermissionError:
        return True
    return True


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago, and still is when a server comes back.

    The system gives none of these to a connection, and a process gets each of them once. Processes
    begin at different ones: two that look at the same moment do not find the same.
    """
    while True:
        port = LOWEST_PORT + next(_ports) % (_lowest_of_connections() - LOWEST_PORT)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _lowest_of_connections() -> int:
    """The first port that the system takes for the near end of a connection."""
    try:
        lowest = int(PORTS_OF_CONNECTIONS.read_text().split()[0])
    except FileNotFoundError:  # not Linux
        lowest = DYNAMIC_PORTS
    return lowest if lowest > LOWEST_PORT else DYNAMIC_PORTS


def require_free_port(port: int, what: str, setting: str) -> None:
    """Raise StartError if something listens on 127.0.0.1:`port`.

    setting: tells the reader how to choose another port.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise StartError(
                f"Port {port} for {what} is taken ({error.strerror}). "
                f"Stop what uses it, or choose another: {setting}."
            ) from error
