"""Celery's prefork pool, which hears at once that a child has died."""

import contextlib
import os
from typing import Any

from celery.concurrency.asynpool import AsynPool
from celery.concurrency.prefork import TaskPool


class PromptAsynPool(AsynPool):
    """Watches children through pidfds (pidfd_open(2)), readable once a child can be reaped.

    Celery watches a pipe that the child holds. The kernel closes the pipe a little before the child
    can be reaped. Celery then asks too early, is told that the child lives, and asks again only
    seconds later.
    """

    def _track_child_process(self, proc: Any, hub: Any) -> None:
        # Celery looks at this attribute before it takes the pipe.
        if not hasattr(proc, "_sentinel_poll"):
            # Not on Linux, or not allowed there: Celery keeps its pipe.
            with contextlib.suppress(AttributeError, OSError):
                proc._sentinel_poll = os.pidfd_open(proc.pid)  # noqa: SLF001 - see above
        super()._track_child_process(proc, hub)  # type: ignore[misc]  # the stubs left it out


class PreforkPool(TaskPool):
    """A worker's pool of processes."""

    Pool = PromptAsynPool
