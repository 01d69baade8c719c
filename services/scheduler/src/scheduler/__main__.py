"""Starts the scheduler: `python -m scheduler`."""

import signal
import threading

import structlog
from fluoro_jobs.dispatch import Dispatcher
from fluoro_jobs.errors import FluoroError
from fluoro_jobs.ledger.connection import Ledger
from fluoro_jobs.wakeups import Publisher, connect
from fluoro_telemetry.http import Health, serve
from fluoro_telemetry.logs import configure_logging

from scheduler.settings import Settings
from scheduler.sweep import Sweeper

log = structlog.get_logger(__name__)


def main() -> None:
    """Sweeps until SIGTERM or SIGINT."""
    settings = Settings()  # type: ignore[call-arg]  # from the environment
    configure_logging("scheduler", level=settings.log_level, format=settings.log_format)
    ledger = Ledger(settings.database_url, max_connections=3)
    dispatcher = Dispatcher(ledger, settings.redis_url)
    sweeper = Sweeper(ledger, dispatcher, Publisher(settings.redis_url))
    health = Health()
    health.add_check("ledger", ledger.check)
    health.add_check("redis", connect(settings.redis_url).ping)
    server = serve(settings.http_host, settings.http_port, health)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    log.info("scheduler_ready")
    while not stop.is_set():
        health.beat()
        try:
            sweeper.sweep()
        except FluoroError as error:
            log.warning("sweep_waits", reason=error.reason)
        stop.wait(settings.sweep_interval_seconds)
    health.set_draining()
    server.close()
    ledger.close()


if __name__ == "__main__":
    main()
