"""Celery's consumer in a worker's main process: it fetches messages and feeds the pool."""

import os
import signal
import warnings
from collections.abc import Callable
from typing import Any, Final

from celery import signals
from celery.platforms import SecurityWarning  # type: ignore[attr-defined]  # the stubs left it out
from celery.worker import state

from fluoro_jobs.celery.fetching import fetch_only_if, wake
from fluoro_jobs.celery.handful import Hand
from fluoro_jobs.celery.tasks import Body, LedgerRequest, Listener, Options, make_worker_app

POOLS: Final = {
    "prefork": "fluoro_jobs.celery.pool:PreforkPool",
    "threads": "fluoro_jobs.celery.pool:ThreadsPool",
}
"""Celery's implementations of the pools a worker may have."""


class Consumer:
    """Drains a queue into a pool until the process gets SIGTERM."""

    def __init__(
        self,
        options: Options,
        body: Body,
        listener: Listener,
        *,
        may_fetch: Callable[[], bool],
        on_ready: Callable[[], None],
        on_shutdown: Callable[[], None],
    ) -> None:
        """Nothing is started yet.

        may_fetch: asked before each fetch. on_ready: called once messages can be fetched.
        on_shutdown: called after SIGTERM, when no more messages are fetched.
        """
        # Celery warns root because of pickle. We accept JSON only, and images run as nobody.
        warnings.simplefilter("ignore", SecurityWarning)
        self._options = options
        self._app = make_worker_app(options, body)
        self._app.listener = listener
        self._app.hand = Hand(options.redis_url, options.queue, options.slots)
        self._app.wake = self.wake
        self._app.later = self._later
        self._app.steps["consumer"].add(fetch_only_if(may_fetch))
        self._on_ready = on_ready
        self._on_shutdown = on_shutdown
        self._celery: Any = None
        self._hub: Any = None

    def run(self) -> int:
        """Works until the process is told to stop and nothing runs any more; Celery's exit code."""
        signals.worker_ready.connect(self._ready)
        signals.worker_shutting_down.connect(self._shutting_down)
        self._celery = self._app.Worker(
            hostname=f"{self._options.service}@{self._options.worker}",
            pool=POOLS[self._options.pool],
            concurrency=self._options.slots,
            queues=[self._options.queue],
            # Workers learn nothing from each other: who lives is in the ledger.
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
            loglevel=self._options.log_level,
        )
        # kombu's `get_event_loop` forgets the loop with the first connection that is lost.
        self._hub = self._celery.hub
        # Celery sets it, and pool children would write lines of their own among ours.
        os.environ.pop("_MP_FORK_LOGLEVEL_", None)
        self._celery.start()
        return int(self._celery.exitcode or 0)

    def wake(self) -> None:
        """A slot is free or `may_fetch` has changed: asks at once. Any thread may call it."""
        wake(self._hub)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._hub.call_later(seconds, call)

    def kill(self, request: LedgerRequest) -> None:
        """Kills the pool child that runs the request. For prefork pools."""
        request.kill(self._celery.pool)

    def stop(self) -> None:
        """Shuts down as SIGTERM does, which Celery handles in the main thread."""
        os.kill(os.getpid(), signal.SIGTERM)

    def _ready(self, **_: Any) -> None:
        self._on_ready()

    def _shutting_down(self, **_: Any) -> None:
        self._on_shutdown()


def received() -> list[LedgerRequest]:
    """Requests that this process has taken and not finished."""
    return list(state.reserved_requests)


def running() -> list[LedgerRequest]:
    """Requests whose body runs in this process's pool."""
    return list(state.active_requests)
