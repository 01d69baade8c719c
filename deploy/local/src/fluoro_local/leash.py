"""Run as a script by `children.spawn`: reports itself to the guard, gives up root if asked to, and becomes the command.

Arguments: the guard's pipe (a file descriptor), the signal that ends the command, user id, group
id, the command with its arguments. Only the standard library, because it runs without site-packages
(`-I -S`) to start in milliseconds.
"""

import os
import sys


def main() -> None:
    """Enter the guard's list before the command exists, so that there is no moment in which it could be orphaned."""
    guard, signal_number, uid, gid, *command = sys.argv[1:]
    os.write(int(guard), f"+ {os.getpid()} {signal_number}\n".encode())
    os.set_inheritable(int(guard), False)
    if int(uid) != os.getuid():
        os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))
    os.execv(command[0], command)  # noqa: S606 - becoming the command, under the same process id, is the purpose


if __name__ == "__main__":
    main()
