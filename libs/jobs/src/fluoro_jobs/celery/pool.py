"""Celery's pools: one hears at once that a child has died, the other of all that ends a thread."""

import contextlib
import os
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import structlog
from celery.app.trace import ExceptionInfo  # type: ignore[attr-defined]  # stubs left it out
from celery.concurrency import prefork, thread
from celery.concurrency.asynpool import AsynPool
from celery.exceptions import WorkerLostError

log = structlog.get_logger(__name__)


class PromptAsynPool(AsynPool):
    """Watches children through pidfds (pidfd_open(2)), readable once a child can be reaped.

    Celery watches a pipe that the child holds. The kernel closes the pipe a little before the child
    can be reaped. Celery then asks too early, learns that the child lives, and asks again only
    seconds later.
    """

    def _track_child_process(self, proc: Any, hub: Any) -> None:
        # Celery looks at this attribute before it takes the pipe.
        if not hasattr(proc, "_sentinel_poll"):
            # Not on Linux, or not allowed there: Celery keeps its pipe.
            with contextlib.suppress(AttributeError, OSError):
                proc._sentinel_poll = os.pidfd_open(proc.pid)  # noqa: SLF001 - see above
        super()._track_child_process(proc, hub)  # type: ignore[misc]  # the stubs left it out


class PreforkPool(prefork.TaskPool):
    """A worker's pool of processes."""

    Pool = PromptAsynPool


class ThreadsPool(thread.TaskPool):
    """A worker's pool of threads.

    Celery forgets a task that ended in anything but an `Exception` of its body, and its slot is
    taken for ever. A panic of a library in Rust is no `Exception`.
    """

    def on_apply(  # type: ignore[override]  # Celery always gives one
        self, *arguments: Any, error_callback: Callable[[ExceptionInfo], object], **options: Any
    ) -> Any:
        """Runs a task. error_callback: gets whatever else ends it, as WorkerLostError."""
        result: Any = super().on_apply(*arguments, **options)

        def ended(future: "Future[None]") -> None:
            if future.cancelled() or (error := future.exception()) is None:
                return
            # The first of a chain is what went wrong. The later ones were raised while it was
            # handled.
            while error.__context__ is not None:
                error = error.__context__
            # Not what it says: that may quote the file.
            what = type(error).__qualname__
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error("task_thread_lost", exception=what, where=where)
            # As if a pool child had died: the ledger counts the attempt, and another worker may run
            # the task.
            lost = WorkerLostError, WorkerLostError(what), error.__traceback__
            error_callback(ExceptionInfo(lost))

        result.f.add_done_callback(ended)
        return result
