"""Starts the gateway: `python -m gateway`."""

import asyncio
import gc
import os
import resource
import signal
import sys
from typing import Final

import structlog
from fluoro_jobs.settings import from_environment
from fluoro_telemetry.logs import configure_logging

from gateway.allocator import keep_freed_memory
from gateway.serve import running
from gateway.server import PortTakenError
from gateway.settings import Settings

log = structlog.get_logger(__name__)

COLLECT_AFTER_OBJECTS: Final = 20_000
"""New objects after which Python looks for garbage among them.

Its own 700 is for small programs: with thousands of streams it would take a third of the time in
which they open.
"""
COLLECT_OLDER_AFTER: Final = 20
"""Such looks after which it looks at older objects too, each generation."""


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then drains."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Through the loop: a plain signal handler would not wake what waits there.
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(settings) as gateway:
        # What is there now stays: no look for garbage has to walk through it.
        gc.collect()
        gc.freeze()
        log.info("gateway_ready", grpc_port=gateway.grpc_port, http_port=gateway.http_port)
        await stop.wait()
    log.info("gateway_stopped")


def allow_connections() -> None:
    """Takes all file descriptors that the system gives.

    Each connection is one. Systems begin with 1024 for the sake of select(2), which nothing here
    uses, and one caller would soon have them all.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> None:
    """Exits 0 after a drain, 1 with one line that says what to change."""
    settings = from_environment(Settings)
    configure_logging("gateway", level=settings.log_level, format=settings.log_format)
    keep_freed_memory()
    allow_connections()
    gc.set_threshold(COLLECT_AFTER_OBJECTS, COLLECT_OLDER_AFTER, COLLECT_OLDER_AFTER)
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
