"""Child processes that never outlive us.

Each leads its own process group, and a guard process ends the groups if we are killed.
"""

import atexit
import contextlib
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LOG_TAIL_BYTES = 2_000
"""How much of a log is shown when its process failed."""
LOG_KEEP_BYTES = 16 * 2**20
"""A log above this is moved to `.1` before the next process writes to it."""


@dataclass(frozen=True, slots=True)
class Account:
    """The user and group ids of a process."""

    uid: int
    gid: int


@dataclass(slots=True, eq=False)
class Child:
    """A running child process and its log.

    log_offset: where in the log file, in bytes, the output of this process begins.
    """

    process: "subprocess.Popen[bytes]"
    log: Path
    log_offset: int

    @property
    def pid(self) -> int:
        """Process id, also that of its group."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def log_tail(self) -> str:
        """The end of what this process wrote to its log, at most LOG_TAIL_BYTES."""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self.log_offset, size - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").strip()

    def stop(self, signal_number: int, grace_seconds: float) -> bool:
        """Ask it to end, and kill it if it does not; whether it ended in time.

        Nothing of its group is left either way.
        """
        if self.running:
            self.process.send_signal(signal_number)
        return self.finish(grace_seconds)

    def finish(self, grace_seconds: float) -> bool:
        """Wait for it to end, then kill what is left of its group; whether it ended by itself."""
        try:
            self.process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            return False
        # Also if it ended by itself: others of its group may be left.
        finally:
            self.kill()
        return True

    def kill(self) -> None:
        """SIGKILL it and every process left in its group, and wait until it is gone."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            self.process.poll()
        self.process.wait()
        # If someone killed the guard, there is nobody to tell.
        with contextlib.suppress(BrokenPipeError):
            os.write(_guard(), f"- {self.pid} 0\n".encode())


def spawn(
    command: Sequence[str | Path],
    *,
    log: Path,
    orphan_signal: int = signal.SIGKILL,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    account: Account | None = None,
    keep_open: Sequence[int] = (),
) -> Child:
    """Start a command in its own process group, with output appended to `log`.

    command: an absolute path and its arguments.
    orphan_signal: what its group is sent if this process dies first.
    account: runs as this user instead of ours (needs root).
    keep_open: file descriptors it inherits.
    """
    guard = _guard()
    me = account or Account(os.getuid(), os.getgid())
    leash = [
        sys.executable,
        "-I",
        "-S",
        str(Path(__file__).with_name("leash.py")),
        *map(str, (guard, int(orphan_signal), me.uid, me.gid)),
    ]
    if log.exists() and log.stat().st_size > LOG_KEEP_BYTES:
        log.rename(log.with_name(f"{log.name}.1"))
    with log.open("ab") as output:
        offset = output.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            [*leash, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            cwd=cwd,
            pass_fds=(guard, *keep_open),
            start_new_session=True,
        )
    return Child(process, log, offset)


@functools.cache
def _guard() -> int:
    """Start this process's guard at first need; returns the writing end of its pipe.

    The kernel closes that end when we die.
    """
    read, write = os.pipe()
    script = Path(__file__).with_name("guard.py")
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(script)],
        stdin=read,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(read)

    def dismiss() -> None:
        os.close(write)
        process.wait()

    atexit.register(dismiss)
    return write
