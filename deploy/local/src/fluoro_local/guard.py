"""Run as a script by `children.spawn`: ends what the process that started it left behind.

Reads `+ PID SIGNAL` when a process group starts and `- PID 0` when it has ended. End of input means
the supervisor is gone, however it died. PR_SET_PDEATHSIG would not do: it follows the thread that
forked rather than the process, and reaches no grandchildren.
"""

import os
import signal
import sys
import time

GRACE_SECONDS = 10.0
"""Time between a group's own signal and SIGKILL."""


def send(group: int, signal_number: int) -> bool:
    """Whether the process group still has members to receive the signal (0 only asks)."""
    try:
        os.killpg(group, signal_number)
    except ProcessLookupError:
        return False
    return True


def main() -> None:
    """Keep the list while the supervisor lives, then end the groups on it, the newest first."""
    # It ends when the pipe does, and not before those it has to end.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    wards: dict[int, int] = {}
    for line in sys.stdin:
        verb, group, signal_number = line.split()
        if verb == "+":
            wards[int(group)] = int(signal_number)
        else:
            wards.pop(int(group), None)
    left = [group for group, signal_number in reversed(wards.items()) if send(group, signal_number)]
    deadline = time.monotonic() + GRACE_SECONDS
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [group for group in left if send(group, 0)]
    for group in left:
        send(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
