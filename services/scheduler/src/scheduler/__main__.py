"""Starts the scheduler: `python -m scheduler`."""

import signal
import threading
from functools import partial
from typing import Final

import structlog
from fluoro_jobs.dispatch import Dispatcher
from fluoro_jobs.ledger.connection import Ledger
from fluoro_jobs.redis_url import connect, probe
from fluoro_jobs.settings import from_environment
from fluoro_jobs.wakeups import Publisher
from fluoro_telemetry.http import Health, serve
from fluoro_telemetry.logs import configure_logging

from scheduler.settings import Settings
from scheduler.sweep import Sweeper

log = structlog.get_logger(__name__)

LAST_ROUND_SECONDS: Final = 5
"""After SIGTERM: how long the round under way may take.

Every write of it is one statement, so cutting it off leaves nothing half done.
"""


def main() -> None:
    """Sweeps until SIGTERM or SIGINT."""
    settings = from_environment(Settings)
    configure_logging("scheduler", level=settings.log_level, format=settings.log_format)
    ledger = Ledger(settings.database_url, max_connections=1)
    dispatcher = Dispatcher(ledger, settings.redis_url)
    health = Health(settings.liveness_seconds)
    health.add_check("ledger", ledger.check)
    health.add_check("redis", partial(probe, connect(settings.redis_url)))
    server = serve(settings.http_host, settings.http_port, health)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    publisher = Publisher(settings.redis_url)
    sweeper = Sweeper(ledger, dispatcher, publisher, health.beat)
    # A daemon: a store that hangs must not hold up the end of the process.
    sweeping = threading.Thread(
        target=sweeper.run,
        args=(stop, settings.sweep_interval_seconds),
        name="sweeper",
        daemon=True,
    )
    health.watch(sweeping)
    sweeping.start()
    health.beat()
    log.info("scheduler_ready")
    while not stop.wait(min(1, settings.liveness_seconds / 4)):
        health.beat()  # here, because the sweeper may wait for a store
    health.set_draining()
    sweeping.join(LAST_ROUND_SECONDS)
    publisher.close()
    server.close()
    ledger.close()


if __name__ == "__main__":
    main()
