"""Run as a script by `children.spawn`: tells the guard of itself, then becomes the command.

It gives up root if asked to. Arguments: the guard's pipe (a file descriptor), the signal that ends
the command, user id, group id, the command with its arguments. It uses only the standard library:
without site-packages (`-I -S`) it starts in milliseconds.
"""

import os
import sys


def main() -> None:
    """Enter the guard's list before the command exists, so that it can never be orphaned."""
    guard, signal_number, uid, gid, *command = sys.argv[1:]
    os.write(int(guard), f"+ {os.getpid()} {signal_number}\n".encode())
    # If the command held the pipe open, too, the guard would never see its end.
    os.set_inheritable(int(guard), False)
    if int(uid) != os.getuid():
        # The user last: without root, groups can no longer be given up.
        os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))
    os.execv(command[0], command)  # noqa: S606 - it becomes the command under the same process id


if __name__ == "__main__":
    main()
