"""Runs a worker process: `run_worker(...)` is all that a worker's `__main__` calls."""

import os
import signal
import socket
import sys
import threading
import time
import warnings
from functools import partial
from typing import Any, Final

import structlog
from celery import signals
from celery.platforms import SecurityWarning  # type: ignore[attr-defined]  # the stubs left it out
from fluoro_blobs import BlobStore
from fluoro_telemetry.http import Health, serve
from fluoro_telemetry.logs import configure_logging

from fluoro_jobs.dispatch import Dispatcher
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger.attempts import Worker
from fluoro_jobs.ledger.connection import Ledger
from fluoro_jobs.redis_url import connect, probe
from fluoro_jobs.settings import from_environment
from fluoro_jobs.wakeups import Publisher
from fluoro_jobs.worker.app import Plan, WorkerApp, calm_collector, load, make_worker_app
from fluoro_jobs.worker.gate import Gate, gated
from fluoro_jobs.worker.keeper import Keeper
from fluoro_jobs.worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

TEARDOWN_SECONDS: Final = 5
"""How long Celery may take to end once nothing runs any more.

billiard can wait 30 s for children that are gone.
"""

POOLS: Final = {"prefork": "fluoro_jobs.worker.pool:PreforkPool", "threads": "threads"}
"""Celery's implementations of the pools a worker may have."""


def run_worker(
    service: str,
    queue: str,
    pool: str,
    handlers: str,
    version: str,
    warm_up: str = "",
    settings: WorkerSettings | None = None,
) -> None:
    """Drains `queue` with the handlers at `handlers` until SIGTERM.

    Arguments as in `fluoro_jobs.worker.app.Plan`.
    """
    settings = settings or from_environment(WorkerSettings)
    # Celery warns root for the sake of pickle; we take JSON only. Images run as nobody anyway.
    warnings.simplefilter("ignore", SecurityWarning)
    configure_logging(service, level=settings.log_level, format=settings.log_format)
    worker = Worker(
        new_id(), f"{socket.gethostname()}:{os.getpid()}", queue, settings.slots, version
    )
    app = make_worker_app(Plan(service, worker, settings, handlers, pool, warm_up))
    WorkerProcess(app).run()


class WorkerProcess:
    """The main process: Celery's consumer, the keeper, the dispatcher and the health endpoint."""

    def __init__(self, app: WorkerApp) -> None:
        """Nothing is started yet."""
        plan = app.plan
        self._app = app
        self._ledger = Ledger(plan.settings.database_url, max_connections=3)
        self._publisher = Publisher(plan.settings.redis_url)
        self._dispatcher = Dispatcher(self._ledger, plan.settings.redis_url)
        self._health = Health()
        self._health.add_check("ledger", self._ledger.check)
        self._health.add_check("redis", partial(probe, connect(plan.settings.redis_url)))
        self._health.add_check("blobs", BlobStore.from_url(plan.settings.blob_url).check)
        self._consuming = False
        self._health.add_check("consumer", self._check_consumer)
        self._celery: Any = None
        self._draining = False
        self._exit_code = 0
        self._stopped = threading.Event()
        self._gate = Gate(self._health, ("ledger", "blobs"), self._on_gate)
        app.steps["consumer"].add(gated(self._gate))
        self._keeper = Keeper(
            self._ledger,
            self._publisher,
            plan.settings.redis_url,
            plan.worker,
            stop_task=self._stop_task,
            on_slots=self._dispatcher.wake,
            on_beat=self._health.beat,
            on_deaf=self._on_deaf,
            deaf_after_seconds=plan.settings.deaf_after_seconds,
            gate=self._gate,
        )
        self._health.watch(self._gate)
        self._health.watch(self._keeper)
        self._health.watch(self._dispatcher)
        app.keeper = self._keeper

    def run(self) -> None:
        """Works until told to stop; then finishes or hands back what runs, and exits."""
        plan = self._app.plan
        server = serve(plan.settings.http_host, plan.settings.http_port, self._health)
        if plan.pool == "threads":
            self._warm_up()
        signals.worker_ready.connect(self._on_ready)
        signals.worker_shutting_down.connect(self._on_shutdown)
        self._celery = self._app.Worker(
            hostname=f"{plan.service}@{plan.worker.name}",
            pool=POOLS[plan.pool],
            concurrency=plan.settings.slots,
            queues=[plan.worker.queue],
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
            loglevel=plan.settings.log_level,
        )
        self._app.hub = self._celery.hub
        os.environ.pop(
            "_MP_FORK_LOGLEVEL_", None
        )  # set by Celery; with it pool children write lines of their own among ours
        self._gate.start()
        self._keeper.start()
        self._dispatcher.start()
        try:
            self._celery.start()
        finally:
            self._stopped.set()
            self._close()
            server.close()
        sys.exit(self._celery.exitcode or self._exit_code)

    def _close(self) -> None:
        self._gate.close()
        self._keeper.close()
        self._publisher.close()
        self._app.close_executor()
        self._dispatcher.close()
        self._ledger.close()
        log.info("worker_stopped")

    def _on_shutdown(self, **_: Any) -> None:
        """SIGTERM: Celery takes no more messages and waits for what runs; this thread sees to it that it does not wait for ever."""
        if self._draining:
            return
        self._draining = True
        self._health.set_draining()
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def _on_deaf(self) -> None:
        """Whoever looks after this process starts another one, which hears again."""
        if self._draining:
            return
        log.error("consumer_deaf", queue=self._app.plan.worker.queue)
        self._exit_code = 1
        self._on_shutdown()  # not left to the signal: the thread that would see it may be the one that hangs
        os.kill(os.getpid(), signal.SIGTERM)

    def _drain(self) -> None:
        deadline = time.monotonic() + self._app.plan.settings.shutdown_grace_seconds
        while self._keeper.busy() and time.monotonic() < deadline and not self._stopped.wait(0.1):
            continue
        self._keeper.hand_back()
        if not self._stopped.wait(TEARDOWN_SECONDS):
            log.warning("teardown_cut_short")
            self._close()
            os._exit(self._exit_code)  # nothing is lost: what ran has been committed or handed back

    def _warm_up(self) -> None:
        if self._app.plan.warm_up:
            load(self._app.plan.warm_up)()
        _ = self._app.executor

    def _on_gate(self) -> None:
        self._keeper.wake()
        self._app.wake_consumer()

    def _on_ready(self, **_: Any) -> None:
        self._consuming = True
        calm_collector()
        log.info(
            "worker_ready", queue=self._app.plan.worker.queue, slots=self._app.plan.worker.slots
        )

    def _check_consumer(self) -> None:
        if not self._consuming:
            raise RuntimeError("Celery's consumer has not started; is Redis reachable?")

    def _stop_task(self, request: Any) -> None:
        if self._app.plan.pool == "threads":
            self._app.executor.cancel(*request.task_attempt)
        else:
            request.kill(self._celery.pool)
