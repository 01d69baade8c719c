"""The Celery app of a worker: its tasks, and how a spawned pool child builds the same app again."""

import gc
import importlib
import logging
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final
from uuid import UUID

import structlog
from celery import Celery, Task, signals
from celery.exceptions import WorkerLostError
from celery.worker.request import Request
from fluoro_blobs import BlobStore
from fluoro_telemetry.logs import configure_logging
from kombu import Queue

from fluoro_jobs.dispatch import attempt_of
from fluoro_jobs.errors import FluoroError
from fluoro_jobs.ledger.attempts import TaskAttempt, Worker
from fluoro_jobs.ledger.connection import Ledger
from fluoro_jobs.operations import OPERATIONS
from fluoro_jobs.wakeups import Publisher
from fluoro_jobs.worker.broker import Amqp
from fluoro_jobs.worker.celery_app import configure
from fluoro_jobs.worker.execute import Executor, Report
from fluoro_jobs.worker.handler import Handler
from fluoro_jobs.worker.keeper import Keeper
from fluoro_jobs.worker.settings import WorkerSettings

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a worker process is to be; picklable, so that spawned children get it.

    handlers: where the queue's handlers are, `package.module:NAME`. Pool children import it; the
    main process of a prefork pool does not. warm_up: a function to call before the first task,
    `package.module:function`; "" for none.
    pool: prefork (crash of a child costs one task) or threads (one process shares a device).
    """

    service: str
    worker: Worker
    settings: WorkerSettings
    handlers: str
    pool: str
    warm_up: str = ""


COLLECT_AFTER_OBJECTS: Final = 10_000
"""New objects between two collections of garbage.

Python's own 700 is less than what one task makes.
"""


def calm_collector() -> None:
    """Spares the garbage collector what is there by now, which stays, and most of its rounds: short tasks notice them."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER_OBJECTS)


def load(path: str) -> Any:
    """The object at `package.module:name`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


class WorkerApp(Celery):
    """A Celery app that a spawned child can build again."""

    plan: Plan
    keeper: Keeper
    hub: Any = None
    """Celery's event loop in the worker's main process.

    kombu's `get_event_loop` forgets it with the first connection that is lost.
    """

    def __reduce__(self) -> tuple[Callable[[Plan], "WorkerApp"], tuple[Plan]]:
        """Pickled as its plan."""
        return make_worker_app, (self.plan,)

    def wake_consumer(self) -> None:
        """Lets Celery's main loop see at once that it may fetch messages; by itself it looks once a second."""
        if self.hub is not None:
            self.hub.call_soon(_nothing)

    @cached_property
    def executor(self) -> Executor:
        """What runs attempts in this process; made on first use, so that each pool child has its own connections."""
        settings, threads = (
            self.plan.settings,
            self.plan.settings.slots if self.plan.pool == "threads" else 1,
        )
        handlers: Mapping[str, Handler[Any, Any]] = {
            handler.operation.task_name: handler for handler in load(self.plan.handlers)
        }
        executor = Executor(
            Ledger(settings.database_url, max_connections=threads),
            BlobStore.from_url(settings.blob_url),
            Publisher(settings.redis_url),
            self.plan.worker,
            handlers,
            settings.scratch_folder,
        )
        calm_collector()
        return executor

    def close_executor(self, **_: Any) -> None:
        """At the end of this process: wake-ups of its last task may still wait."""
        if "executor" in vars(self):
            self.executor.close()


UNREPORTED: Final = "unreported"
"""What a task's body returns when the ledger did not hear of its attempt, or of its end."""
_ENDS: Final = threading.Lock()
"""Held while a pool child is killed, and when a request ends: a child gets its next request after the end of the one before."""


class LedgerRequest(Request):
    """Celery's view of one message, in the worker's main process.

    Tells the keeper what happens to it.
    """

    _app: WorkerApp
    _over = False

    @property
    def task_attempt(self) -> TaskAttempt:
        """Which attempt of which task its message asks for."""
        return UUID(self.id), attempt_of(self.request_dict)

    def kill(self, pool: Any) -> None:
        """Kills the pool child that runs this request, unless the request is over: the child may run another one by then."""
        with _ENDS:
            if not self._over:
                self.terminate(pool, signal.SIGKILL)

    def _end(self) -> None:
        with _ENDS:
            self._over = True

    def __init_subclass__(cls, **options: Any) -> None:
        """Celery derives a class per task whose `on_success` does not call its base: what the child returned is seen by wrapping it."""
        super().__init_subclass__(**options)
        inner = cls.on_success

        def on_success(
            self: LedgerRequest, failed__retval__runtime: tuple[bool, Any, float], **options: Any
        ) -> Any:
            self._end()
            failed, returned, _ = failed__retval__runtime
            line = "None" if failed else returned.strip("'")  # a result comes back as its repr()
            if line not in {UNREPORTED, "None"}:
                self._app.keeper.report(Report.from_line(line))
            answer = inner(self, failed__retval__runtime, **options)
            if (
                line == UNREPORTED
            ):  # after Celery is done with the request, which the keeper would spare
                self._app.keeper.unreported(self.task_attempt)
            return answer

        cls.on_success = on_success  # type: ignore[method-assign, assignment]  # that is the point

    def acknowledge(self) -> None:
        """The task is done with, one way or the other: a slot is free.

        Redis forgot its message when it gave it away.
        """
        if not self.acknowledged:
            self.acknowledged = True
            self._app.keeper.finished()
            # In a pool of threads this is not the thread that fetches messages, and nothing else
            # would tell that one.
            self._app.wake_consumer()

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> None:
        """A pool child that died gives its lease back at once."""
        self._end()
        exception = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(exception, (WorkerLostError, SystemExit)):
            self._app.keeper.lost(self.task_attempt)
        super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)


def _nothing() -> None:
    """Wakes an event loop."""


class OperationTask(Task):  # type: ignore[type-arg]  # generic in the stubs alone
    """The body of every Celery task: its argument names a task of the ledger, its message's header the attempt."""

    Request = LedgerRequest  # type: ignore[assignment]  # a class will do
    app: WorkerApp
    ignore_result = True

    def run(self, task_id: str) -> str | None:
        """Runs the attempt in this pool child or thread.

        What it reports, as a line; None if it did not run.
        """
        try:
            report: Report | None = self.app.executor.run(
                UUID(task_id), attempt_of(vars(self.request))
            )
        except FluoroError as error:  # the ledger is away: not claimed, it is queued there still, and its message is sent again
            log.warning("task_not_run", task=task_id, reason=error.reason)
            return UNREPORTED
        return None if report is None else report.line()


def _log_as(plan: Plan, **_: Any) -> None:
    configure_logging(plan.service, level=plan.settings.log_level, format=plan.settings.log_format)
    logging.getLogger("celery").setLevel(logging.WARNING)  # a line per task is ours to write


def make_worker_app(plan: Plan) -> WorkerApp:
    """The app of a worker process or of one of its pool children."""
    app = WorkerApp(plan.service, set_as_current=False, amqp=Amqp)
    app.plan = plan
    configure(app, plan.settings.redis_url)
    # A receiver keeps Celery from setting up logging of its own, in the main process and in each
    # child.
    signals.setup_logging.connect(partial(_log_as, plan), weak=False, dispatch_uid="fluoro")
    signals.worker_process_shutdown.connect(
        app.close_executor, weak=False, dispatch_uid="fluoro"
    )  # of a pool child
    queue = plan.worker.queue
    app.conf.update(
        # Without acknowledgements: what a dead worker had taken, the ledger sends again.
        task_queues=[Queue(queue, routing_key=queue, no_ack=True)],
        worker_max_memory_per_child=plan.settings.max_memory_per_child_kib or None,
    )
    for operation in OPERATIONS:
        if operation.queue == plan.worker.queue:
            app.register_task(
                type(
                    "OperationTask",
                    (OperationTask,),
                    {"name": operation.task_name, "__module__": __name__},
                )()
            )
    return app
