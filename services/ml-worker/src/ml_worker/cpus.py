"""How many processors this process may use."""

import os
from pathlib import Path
from typing import Final

QUOTAS: Final = (
    # Version 2 has quota and period in one file, version 1 has two.
    ("/sys/fs/cgroup/cpu.max",),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)
MOST_THREADS: Final = 16
"""Most threads that a run gets unless told otherwise: more bring little."""


def run_threads() -> int:
    """Threads of one run: a processor each, as far as the cgroup's quota goes."""
    there = len(os.sched_getaffinity(0))
    # A quota of half a processor still needs a thread.
    return max(1, min(there, MOST_THREADS, round(quota() or there)))


def quota() -> float | None:
    """Processors that the cgroup may use (cgroups(7)), None if it has no limit."""
    for files in QUOTAS:
        try:
            words = " ".join(Path(file).read_text() for file in files).split()
            limit, period = (float(word) for word in words)
        except (OSError, ValueError):  # no such file, or `max`
            continue
        if limit > 0 and period > 0:
            return limit / period
    return None
