"""Runs a worker process: `run_worker(...)` is all that a worker's `__main__` calls."""

import os
import socket
import sys
import threading
import time
from functools import partial
from typing import Final

import structlog
from fluoro_blobs import BlobStore
from fluoro_telemetry.http import Health, serve
from fluoro_telemetry.logs import configure_logging

from fluoro_jobs.celery import Consumer, DeafWatch, LedgerRequest, Options, SlotWatch
from fluoro_jobs.dispatch import Dispatcher
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger.attempts import Worker
from fluoro_jobs.ledger.connection import Ledger
from fluoro_jobs.operations import task_names_of
from fluoro_jobs.redis_url import connect, probe
from fluoro_jobs.settings import from_environment
from fluoro_jobs.wakeups import Publisher
from fluoro_jobs.worker.body import OperationBody, Plan, calm_collector
from fluoro_jobs.worker.gate import Gate
from fluoro_jobs.worker.inventory import InventoryReports
from fluoro_jobs.worker.keeper import Keeper
from fluoro_jobs.worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

TEARDOWN_SECONDS: Final = 5
"""How long Celery may take to end once nothing runs any more.

billiard can wait 30 s for children that no longer exist.
"""


def run_worker(
    service: str,
    queue: str,
    pool: str,
    handlers: str,
    version: str,
    warm_up: str = "",
    inventory: str = "",
    settings: WorkerSettings | None = None,
) -> None:
    """Drains `queue` with the handlers at `handlers` until SIGTERM.

    Arguments as in `fluoro_jobs.worker.body.Plan`.
    """
    settings = settings or from_environment(WorkerSettings)
    configure_logging(service, level=settings.log_level, format=settings.log_format)
    # A new id with each start: leases of a process that died are not this one's, though host and
    # pid may be the same.
    worker = Worker(
        new_id(),
        f"{socket.gethostname()}:{os.getpid()}",
        queue,
        settings.slots,
        version,
        task_names_of(queue),
    )
    plan = Plan(service, worker, settings, handlers, pool, warm_up, inventory)
    WorkerProcess(OperationBody(plan)).run()


class WorkerProcess:
    """The main process: Celery's consumer, the keeper, the dispatcher and the health endpoint."""

    def __init__(self, body: OperationBody) -> None:
        """Nothing is started yet."""
        self._body = body
        self._plan = plan = body.plan
        settings, worker = plan.settings, plan.worker
        # One connection for keeper, dispatcher and checks: a thousand workers must not open
        # thousands (ADR 0020).
        self._ledger = Ledger(settings.database_url, max_connections=1)
        self._publisher = Publisher(settings.redis_url)
        self._dispatcher = Dispatcher(self._ledger, settings.redis_url, [worker.queue])
        self._health = Health()
        self._health.add_check("ledger", self._ledger.check)
        self._health.add_check("redis", partial(probe, connect(settings.redis_url)))
        self._health.add_check("blobs", BlobStore.from_url(settings.blob_url).check)
        self._consuming = False
        self._health.add_check("consumer", self._check_consumer)
        self._draining = False
        self._exit_code = 0
        self._stopped = threading.Event()
        self._gate = Gate(self._health, ("ledger", "blobs"), self._on_gate)
        self._keeper = Keeper(
            self._ledger,
            self._publisher,
            settings.redis_url,
            worker,
            stop_task=self._stop_task,
            on_slots=self._dispatcher.wake,
            on_beat=self._health.beat,
            deaf_watch=DeafWatch(
                settings.redis_url, worker.queue, settings.deaf_after_seconds, self._on_deaf
            ),
            slot_watch=SlotWatch(settings.deaf_after_seconds, self._on_stuck),
            gate=self._gate,
            # A thread is told to stop an attempt; a child is killed with its whole handful.
            handfuls=plan.pool == "prefork",
            inventory=InventoryReports(worker.id, plan.inventory),
        )
        self._consumer = Consumer(
            Options(
                plan.service,
                worker.name,
                worker.queue,
                plan.pool,
                worker.slots,
                settings.redis_url,
                settings.max_memory_per_child_kib,
                settings.log_level,
            ),
            body,
            self._keeper,
            may_fetch=lambda: self._gate.is_open,
            on_ready=self._on_ready,
            on_shutdown=self._on_shutdown,
        )
        self._health.watch(self._gate)
        self._health.watch(self._keeper)
        self._health.watch(self._dispatcher)

    def run(self) -> None:
        """Works until told to stop; then finishes or hands back what runs, and exits."""
        settings = self._plan.settings
        # Serves first, so that the probes of a worker that hangs at its start can say why.
        server = serve(settings.http_host, settings.http_port, self._health)
        # Threads run their tasks here. In a prefork pool the children do, and each makes its own
        # executor.
        if self._plan.pool == "threads":
            # Before the keeper lists this worker: no task must wait for a model to load.
            self._body.warm_up()
        self._gate.start()
        self._keeper.start()
        self._dispatcher.start()
        exit_code = 0
        try:
            exit_code = self._consumer.run()
        finally:
            self._stopped.set()
            self._close()
            server.close()
        sys.exit(exit_code or self._exit_code)

    def _close(self) -> None:
        # The keeper before the publisher, which announces what the keeper hands back.
        self._gate.close()
        self._keeper.close()
        self._publisher.close()
        self._body.close()
        self._dispatcher.close()
        self._ledger.close()
        log.info("worker_stopped")

    def _on_shutdown(self) -> None:
        """SIGTERM: Celery takes no more messages and waits for what runs, however long it runs.

        The drain thread ends the wait.
        """
        # A second SIGTERM changes nothing; the deadline runs from the first.
        if self._draining:
            return
        self._draining = True
        self._health.set_draining()
        # In a thread of its own: this may be the signal's handler, where nothing may wait.
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def _on_deaf(self) -> None:
        self._give_up("consumer_deaf")

    def _on_stuck(self) -> None:
        self._give_up("slot_stuck")

    def _give_up(self, event: str) -> None:
        """Ends this process. Whoever looks after it starts another one, which works again."""
        # It is about to end anyway, and hands back what runs.
        if self._draining:
            return
        log.error(event, queue=self._plan.worker.queue)
        self._exit_code = 1
        # Not left to the signal: the main thread, which would see it, may be the one that hangs.
        self._on_shutdown()
        self._consumer.stop()

    def _drain(self) -> None:
        # Here and not in the signal's handler, which may have interrupted whoever wakes the keeper.
        self._keeper.drain()
        deadline = time.monotonic() + self._plan.settings.shutdown_grace_seconds
        while self._keeper.busy() and time.monotonic() < deadline and not self._stopped.wait(0.1):
            continue
        self._keeper.hand_back()
        if not self._stopped.wait(TEARDOWN_SECONDS):
            log.warning("teardown_cut_short")
            self._close()
            # Nothing is lost: what ran has been committed or handed back.
            os._exit(self._exit_code)

    def _on_gate(self) -> None:
        self._keeper.wake()
        self._consumer.wake()

    def _on_ready(self) -> None:
        self._consuming = True
        calm_collector()
        worker = self._plan.worker
        log.info("worker_ready", queue=worker.queue, slots=worker.slots)

    def _check_consumer(self) -> None:
        if not self._consuming:
            raise RuntimeError("Celery's consumer has not started; is Redis reachable?")

    def _stop_task(self, request: LedgerRequest) -> None:
        if self._plan.pool == "threads":
            for attempt in request.attempts:  # one: threads take no handfuls
                self._body.executor.cancel(*attempt)
        else:
            self._consumer.kill(request)
