"""The Celery app of a worker, the tasks it registers, and what its main process hears of them."""

import logging
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from celery import Celery, Task, signals
from celery.exceptions import WorkerLostError
from celery.worker.request import Request
from kombu import Queue

from fluoro_jobs.celery.configuration import configure
from fluoro_jobs.celery.handful import MORE, Hand, attempts_of
from fluoro_jobs.celery.transport import Amqp
from fluoro_jobs.ledger.heartbeats import TaskAttempt
from fluoro_jobs.operations import task_names_of

STALE: Final = "stale"
"""A body's line for an attempt that is not there to be claimed."""
UNREPORTED: Final = "unreported"
"""Its line if the ledger may not know of the attempt, or of its end."""
LEFT: Final = "left"
"""Its line for an attempt that it did not begin."""
LONGEST_RESULT: Final = 65_536
"""Characters of a result that cross from a pool child: several times the lines of a handful."""
OVERDUE_SECONDS: Final = 0.4
"""After which a task that is not over has others of its handful dispatched anew."""
_SEPARATOR: Final = "|"
_ENDS: Final = threading.Lock()
"""Held while a pool child is killed, and when a request ends.

A child gets its next request after the end of the one before.
"""


@dataclass(frozen=True, slots=True)
class Options:
    """What a worker process asks of Celery; picklable, so that spawned children get it.

    worker: `host:pid`. pool: prefork (crash of a child costs one task) or threads (one process
    shares a device). slots: tasks run at once. max_memory_per_child_kib: a child that has grown
    beyond it is replaced after its task; 0 for never.
    """

    service: str
    worker: str
    queue: str
    pool: str
    slots: int
    redis_url: str
    max_memory_per_child_kib: int
    log_level: str


class Body(Protocol):
    """What a message sets off in a pool child or a pool thread.

    Picklable: each spawned child gets a copy before it has connected to anything.
    """

    def configure_logging(self) -> None:
        """Called first in each process."""

    def run(self, attempts: Sequence[TaskAttempt]) -> list[str]:
        """Runs these attempts one after the other; None for the next one of a task.

        For each of them: a line of words for `Listener.returned`, without quotes and bars; or
        STALE, UNREPORTED or LEFT.
        """

    def close(self) -> None:
        """Called at the end of each pool child."""


class Listener(Protocol):
    """What hears, in the main process, how requests end.

    Called by Celery's main loop or a thread of the pool: must be quick.
    """

    def more(self) -> int:
        """How many further tasks a slot may take together with one."""

    def finished(self) -> None:
        """A slot is free."""

    def returned(self, line: str) -> None:
        """A body returned this line."""

    def unreported(self, attempt: TaskAttempt) -> None:
        """The ledger may not have heard of this attempt's claim or of its end."""

    def lost(self, attempts: Sequence[TaskAttempt], *, killed: bool) -> None:
        """The pool child that was to run these attempts died; killed: `LedgerRequest.kill` did it.

        It had ended some of them, and not begun others.
        """

    def left(self, attempt: TaskAttempt) -> None:
        """Nobody runs this attempt yet, and others should."""

    def unknown(self, attempt: TaskAttempt) -> None:
        """A message asked for this attempt of an operation that this process does not know."""


class WorkerApp(Celery):
    """A Celery app that a spawned child can build again. `listener` is the main process's."""

    options: Options
    body: Body
    listener: Listener
    hand: Hand
    wake: Callable[[], None]
    later: Callable[[float, Callable[[], None]], None]

    def __reduce__(self) -> tuple[Callable[[Options, Body], "WorkerApp"], tuple[Options, Body]]:
        """Pickled as what it was made from."""
        return make_worker_app, (self.options, self.body)


class LedgerRequest(Request):
    """Celery's view of one message, in the worker's main process: tells the listener of its end.

    attempts: of which task its message asks for, and with it the messages of its handful.
    """

    _app: WorkerApp
    _over = False
    _killed = False

    def __init__(self, message: Any, **options: Any) -> None:
        """As Celery makes it: when it sends the message to the pool."""
        super().__init__(message, **options)
        # Unknown operations go back at once, because the child could not run them.
        more = [attempt for name, attempt in self._more() if self._known(name, attempt)]
        # In any case: whoever sent the message has no say in this.
        self.request_dict[MORE] = [(str(task), number) for task, number in more]
        self.attempts = attempts_of(self.id, self.request_dict)
        if more:
            # Most handfuls are over by then. Only a task that turned out long gives its companions
            # away.
            self._app.later(OVERDUE_SECONDS, self._hand_back)

    def _more(self) -> list[tuple[str, TaskAttempt]]:
        return self._app.hand.take(self._app.listener.more())

    def _known(self, name: str, attempt: TaskAttempt) -> bool:
        known = name in self._app.tasks
        if not known:
            self._app.listener.unknown(attempt)
        return known

    def _hand_back(self) -> None:
        """A task takes long: those behind it are not to wait. Whichever has begun does not mind."""
        if not self._over:
            for attempt in self.attempts[1:]:
                self._app.listener.left(attempt)

    def kill(self, pool: Any) -> None:
        """Kills the pool child that runs this request, unless the request is over."""
        # The child must not begin another request between the check and the signal.
        with _ENDS:
            # After its end the child may run another request, which must not be hit.
            if not self._over:
                self._killed = True
                self.terminate(pool, signal.SIGKILL)

    def _end(self) -> None:
        with _ENDS:
            self._over = True

    def __init_subclass__(cls, **options: Any) -> None:
        """Wraps `on_success`, where the line comes in that the child returned.

        Celery derives a class from this one for each task. The `on_success` of that class does not
        call its base, so overriding it here would have no effect.
        """
        super().__init_subclass__(**options)
        inner = cls.on_success

        def on_success(
            self: LedgerRequest, failed__retval__runtime: tuple[bool, Any, float], **options: Any
        ) -> Any:
            self._end()
            failed, returned, _ = failed__retval__runtime
            # A result crosses from the child as its repr().
            lines = [] if failed else returned.strip("'").split(_SEPARATOR)
            try:
                for line in lines:
                    if line not in {STALE, UNREPORTED, LEFT}:
                        self._app.listener.returned(line)
            finally:  # Whatever is wrong with a line, it costs no slot.
                answer = inner(self, failed__retval__runtime, **options)
            # Only now: the listener spares attempts whose request Celery still holds.
            for attempt, line in zip(self.attempts, lines, strict=False):
                if line == UNREPORTED:
                    self._app.listener.unreported(attempt)
                elif line == LEFT:
                    self._app.listener.left(attempt)
            return answer

        cls.on_success = on_success  # type: ignore[method-assign, assignment]  # that is the point

    def acknowledge(self) -> None:
        """The request has ended, one way or the other: a slot is free.

        Nothing is sent to Redis, which forgot the message when it gave it away.
        """
        if not self.acknowledged:
            self.acknowledged = True
            self._app.listener.finished()
            # In a pool of threads this is not the thread that fetches messages, and nothing else
            # would tell that one.
            self._app.wake()

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> None:
        """A pool child that died gives its lease back at once."""
        self._end()
        exception = getattr(exc_info.exception, "exc", exc_info.exception)
        try:
            # Other errors come from the body, whose executor has told the ledger already.
            if isinstance(exception, (WorkerLostError, SystemExit)):
                self._app.listener.lost(self.attempts, killed=self._killed)
        finally:
            super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)


class OperationTask(Task):  # type: ignore[type-arg]  # generic in the stubs alone
    """Every Celery task: its argument names a task of the ledger, its headers the attempts."""

    Request = LedgerRequest  # type: ignore[assignment]  # a class will do
    app: WorkerApp
    ignore_result = True
    # Celery's own limit, 1,024, cuts the lines of a handful short.
    resultrepr_maxsize = LONGEST_RESULT

    def run(self, task_id: str) -> str:
        """Runs the body in this pool child or thread; the lines it returned."""
        return _SEPARATOR.join(self.app.body.run(attempts_of(task_id, vars(self.request))))


def make_worker_app(options: Options, body: Body) -> WorkerApp:
    """The app of a worker process, or of one of its pool children."""
    app = WorkerApp(options.service, set_as_current=False, amqp=Amqp)
    app.options, app.body = options, body
    configure(app, options.redis_url)
    # A receiver keeps Celery from setting up logging of its own in the main process and in each
    # child.
    # A weak reference to a partial would be gone at once. The uid keeps a second app from
    # connecting it twice.
    signals.setup_logging.connect(
        partial(_configure_logging, body), weak=False, dispatch_uid="fluoro"
    )
    signals.worker_process_shutdown.connect(
        partial(_close, body), weak=False, dispatch_uid="fluoro"
    )
    app.conf.update(
        # Without acknowledgements: what a dead worker had taken, the ledger sends again.
        task_queues=[Queue(options.queue, routing_key=options.queue, no_ack=True)],
        worker_max_memory_per_child=options.max_memory_per_child_kib or None,
        worker_consumer="fluoro_jobs.celery.unknown:LedgerConsumer",
    )
    for name in task_names_of(options.queue):
        app.register_task(
            type("OperationTask", (OperationTask,), {"name": name, "__module__": __name__})()
        )
    return app


def _configure_logging(body: Body, **_: Any) -> None:
    body.configure_logging()
    # Celery writes a line for each task at INFO. The executor's own lines say more.
    logging.getLogger("celery").setLevel(logging.WARNING)


def _close(body: Body, **_: Any) -> None:
    body.close()
