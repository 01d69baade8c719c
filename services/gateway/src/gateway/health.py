"""What the gateway says of its own health: over gRPC, and at /healthz and /readyz."""

import asyncio
from typing import Any, Final

import structlog
from fluoro_blobs import BlobStore
from fluoro_jobs.errors import FluoroError
from fluoro_jobs.ledger.clock import Clock
from fluoro_jobs.ledger.connection import Ledger
from fluoro_telemetry.health import Health as Probes
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as grpc_health

from gateway.ledger_calls import LedgerCalls
from gateway.settings import Settings

log = structlog.get_logger(__name__)

JOB_SERVICE: Final = "fluoro.v1.JobService"
"""Health of this name: SERVING while the ledger answers. The name "" stands for the process."""

_STATUS: Final = {
    True: health_pb2.HealthCheckResponse.SERVING,
    False: health_pb2.HealthCheckResponse.NOT_SERVING,
}


class Health:
    """Both kinds of health, kept in step.

    Redis is in neither: without it the gateway accepts, reads and watches all the same.
    """

    def __init__(self, ledger: Ledger, store: BlobStore, settings: Settings) -> None:
        self.servicer: Any = grpc_health.HealthServicer()
        self.probes = Probes(settings.liveness_seconds)
        self.probes.add_check("ledger", ledger.check)
        self.probes.add_check("blobs", store.check)
        # Of its own: how busy the others are says nothing about the ledger.
        self._calls = LedgerCalls(ledger, threads=1)
        self._interval_seconds = settings.health_check_interval_seconds
        self._clock = Clock()
        self._beat_seconds = min(1, settings.liveness_seconds / 4)

    async def beat(self, *needed: asyncio.Task[None]) -> None:
        """Shows until cancelled that the event loop turns and that all needed tasks run.

        It runs in a task of its own, and waits for nothing, least of all for a store.
        """
        while not (ended := [task.get_name() for task in needed if task.done()]):
            self.probes.beat()
            await asyncio.sleep(self._beat_seconds)
        log.error("tasks_ended", tasks=ended)

    async def run(self) -> None:
        """Keeps looking until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._interval_seconds)

    async def look(self) -> None:
        """Asks the ledger and tells the gRPC health service."""
        await self.servicer.set(JOB_SERVICE, _STATUS[await self._ledger_answers()])

    async def drain(self) -> None:
        """From now on not serving and not ready, for good."""
        self.probes.set_draining()
        await self.servicer.enter_graceful_shutdown()

    def close(self) -> None:
        """Waits for a look that is under way."""
        self._calls.close()

    async def _ledger_answers(self) -> bool:
        try:
            await self._calls.check()
            await self._calls.run(self._clock.compare)
        except (FluoroError, TimeoutError):
            return False
        except Exception as error:  # noqa: BLE001 - whatever it is, the next look has its turn
            log.error("ledger_not_looked_at", exception=type(error).__qualname__)
            return False
        return True
