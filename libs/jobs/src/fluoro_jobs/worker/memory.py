"""How much memory a pool child may have, and whether one item asked for too much of it."""

import resource
import traceback
from pathlib import Path
from types import TracebackType
from typing import Final

ROOMY: Final = 0.75
"""Share of the limit below which a process is not full."""


def limit_memory(kib: int) -> None:
    """Has whatever asks for more than this raise MemoryError. 0: as it is.

    Without it the kernel would end any process of the pod, and a whole handful of tasks with it.
    """
    if kib:
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        asked = kib * 1024
        # The hard limit stays: once lowered, it could not be raised again.
        soft = asked if most == resource.RLIM_INFINITY else min(asked, most)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, most))


def asked_too_much(trace: TracebackType | None) -> bool:
    """Whether a MemoryError, of which this is the trace, is the fault of the work that raised it.

    So it is where the process has a limit of its own, and room again once the work has let go of
    its variables, which this does. Otherwise the machine is full, or the process is: others may
    have filled it.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    # No limit of its own: the machine ran out, which says nothing about this work.
    if limit == resource.RLIM_INFINITY:
        return False
    # The frames of the failed work hold what it had allocated; without them the figure shows what
    # stays.
    traceback.clear_frames(trace)
    # proc_pid_statm(5): the sixth number is data and stack, in pages.
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    return pages * resource.getpagesize() <= ROOMY * limit
