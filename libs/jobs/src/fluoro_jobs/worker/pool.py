"""Celery's prefork pool, told at once when a child has died."""

import contextlib
import os
from typing import Any

from celery.concurrency.asynpool import AsynPool
from celery.concurrency.prefork import TaskPool


class PromptAsynPool(AsynPool):
    """Watches children through pidfds (pidfd_open(2)): readable once the child can be reaped.

    Celery watches a pipe that the child holds. The kernel closes that one a little earlier; who
    asks for the exit code in between hears that the child lives, and asks again only seconds later.
    """

    def _track_child_process(self, proc: Any, hub: Any) -> None:
        if not hasattr(proc, "_sentinel_poll"):  # where Celery looks before it takes the pipe
            with contextlib.suppress(
                AttributeError, OSError
            ):  # neither Linux nor allowed: the pipe it is
                proc._sentinel_poll = os.pidfd_open(proc.pid)  # noqa: SLF001 - see above
        super()._track_child_process(proc, hub)  # type: ignore[misc]  # the stubs left it out


class PreforkPool(TaskPool):
    """A worker's pool of processes."""

    Pool = PromptAsynPool
