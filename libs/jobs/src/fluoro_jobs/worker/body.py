"""What one process of a worker runs: the executor of its queue's operations, made on first use."""

import gc
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from fluoro_blobs import BlobStore
from fluoro_telemetry.logs import configure_logging

from fluoro_jobs.celery import LEFT
from fluoro_jobs.ledger.attempts import Worker
from fluoro_jobs.ledger.connection import Ledger
from fluoro_jobs.ledger.heartbeats import TaskAttempt
from fluoro_jobs.wakeups import Publisher
from fluoro_jobs.worker.execute import Executor
from fluoro_jobs.worker.handler import Handler
from fluoro_jobs.worker.memory import limit_memory
from fluoro_jobs.worker.settings import WorkerSettings


@dataclass(frozen=True, slots=True)
class Plan:
    """How to set up a worker process; picklable, so that spawned children get it.

    handlers: where the queue's handlers are, `package.module:NAME`. Pool children import it; the
    main process of a prefork pool does not. warm_up: a function to call before the first task,
    `package.module:function`; "" for none. inventory: a function that returns the models of this
    process, an `inventory.Inventory`; "" for none, and in prefork pools.
    pool: prefork (crash of a child costs one task) or threads (one process shares a device).
    """

    service: str
    worker: Worker
    settings: WorkerSettings
    handlers: str
    pool: str
    warm_up: str = ""
    inventory: str = ""


COLLECT_AFTER_OBJECTS: Final = 10_000
"""New objects between two collections of garbage.

One task makes more than the 700 of Python's default.
"""


def calm_collector() -> None:
    """Keeps the garbage collector off what is there by now, and makes it run less often.

    What is there stays. Short tasks notice the collector's rounds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER_OBJECTS)


def load(path: str) -> Any:
    """The object at `package.module:name`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


class OperationBody:
    """The body of a worker's tasks. A pool of threads shares one; each pool child has its own."""

    def __init__(self, plan: Plan) -> None:
        """Connects to nothing yet."""
        self.plan = plan

    def __reduce__(self) -> tuple[Callable[[Plan], "OperationBody"], tuple[Plan]]:
        """Pickled as its plan: connections do not cross to a child."""
        return OperationBody, (self.plan,)

    @cached_property
    def executor(self) -> Executor:
        """What runs attempts in this process."""
        settings = self.plan.settings
        # Set in the child before anything is loaded, because the limit belongs to the process.
        if self.plan.pool == "prefork":
            limit_memory(settings.child_memory_limit_kib)
        # A connection for each attempt at a time: a pool child runs one.
        threads = settings.slots if self.plan.pool == "threads" else 1
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
        # After all was loaded: what is there now stays for the life of the process.
        calm_collector()
        return executor

    def warm_up(self) -> None:
        """Makes the executor before the first task, so that no task waits for it."""
        if self.plan.warm_up:
            load(self.plan.warm_up)()
        _ = self.executor

    def configure_logging(self) -> None:
        """As the settings say."""
        settings = self.plan.settings
        configure_logging(self.plan.service, level=settings.log_level, format=settings.log_format)

    def run(self, attempts: Sequence[TaskAttempt]) -> list[str]:
        """A line for each attempt, as `celery.Body.run` has it."""
        told = list(self.executor.run(attempts))
        # What it did not begin must come back: its message is gone from Redis.
        return told + [LEFT] * (len(attempts) - len(told))

    def close(self) -> None:
        """Sends the wake-ups of the last task, which may still wait."""
        # A process that never ran a task has no executor to close.
        if "executor" in vars(self):
            self.executor.close()
