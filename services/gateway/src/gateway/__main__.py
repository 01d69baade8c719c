"""Starts the gateway: `python -m gateway`."""

import asyncio
import os
import signal
import sys

import structlog
from fluoro_jobs.settings import from_environment
from fluoro_telemetry.logs import configure_logging

from gateway.serve import running
from gateway.server import PortTakenError
from gateway.settings import Settings

log = structlog.get_logger(__name__)


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then drains."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(settings) as gateway:
        log.info("gateway_ready", grpc_port=gateway.grpc_port, http_port=gateway.http_port)
        await stop.wait()
    log.info("gateway_stopped")


def main() -> None:
    """Exits 0 after a drain, 1 with one line that says what to change."""
    settings = from_environment(Settings)
    configure_logging("gateway", level=settings.log_level, format=settings.log_format)
    try:
        asyncio.run(serve(settings))
    except (PortTakenError, OSError, ValueError) as error:
        sys.exit(f"The gateway cannot start: {error}")
    # Not by returning: the interpreter would wait, without a deadline, for threads that a disk or
    # bucket keeps.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
