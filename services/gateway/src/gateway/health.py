"""What the gateway says of its own health: over gRPC, and at /healthz and /readyz."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import structlog
from fluoro_blobs import BlobStore
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger.clock import Clock
from fluoro_jobs.ledger.connection import Ledger
from fluoro_telemetry.health import Health as Probes
from grpc_health.v1.health_pb2 import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)

from gateway.ledger_calls import LedgerCalls
from gateway.rpc import Call
from gateway.settings import Settings

log = structlog.get_logger(__name__)

JOB_SERVICE: Final = "fluoro.v1.JobService"
"""Health of this name: SERVING while the ledger answers. The name "" stands for the process."""

_STATUS: Final = {True: HealthCheckResponse.SERVING, False: HealthCheckResponse.NOT_SERVING}


class Servicer:
    """The methods of grpc.health.v1.Health."""

    def __init__(self) -> None:
        self._statuses = {"": HealthCheckResponse.SERVING}
        self._changed = asyncio.Event()
        self._is_draining = False

    async def check(self, request: HealthCheckRequest, _call: Call) -> HealthCheckResponse:
        """How a service is. FluoroError SERVICE_UNKNOWN if there is none of the name."""
        if (status := self._statuses.get(request.service)) is None:
            raise FluoroError(
                Reason.SERVICE_UNKNOWN,
                f'Health is known of {JOB_SERVICE} and, by the name "", of the process.',
            )
        return HealthCheckResponse(status=status)

    async def list(self, _request: HealthListRequest, _call: Call) -> HealthListResponse:
        """How each service is."""
        return HealthListResponse(
            statuses={
                name: HealthCheckResponse(status=status) for name, status in self._statuses.items()
            }
        )

    async def watch(
        self, request: HealthCheckRequest, _call: Call
    ) -> AsyncIterator[HealthCheckResponse]:
        """How a service is, now and after each change. Does not end by itself."""
        last = None
        while True:
            # Taken before the status is read: a change in between then wakes this at once.
            changed = self._changed
            status = self._statuses.get(request.service, HealthCheckResponse.SERVICE_UNKNOWN)
            # The protocol says: now, and then at each change.
            if status != last:
                last = status
                yield HealthCheckResponse(status=status)
            await changed.wait()

    def set(self, service: str, status: "HealthCheckResponse.ServingStatus") -> None:
        """Tells watchers, unless the gateway drains."""
        # A draining gateway never serves again, whatever a later check of the ledger says.
        if not self._is_draining and self._statuses.get(service) != status:
            self._statuses[service] = status
            self._tell()

    def drain(self) -> None:
        """From now on nothing is serving, for good."""
        self._is_draining = True
        self._statuses = dict.fromkeys(self._statuses, HealthCheckResponse.NOT_SERVING)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        # A new event for the next change; whoever waits for the old one has been woken.
        self._changed = asyncio.Event()


class Health:
    """Both kinds of health, kept in step.

    Redis is in neither: without it the gateway accepts, reads and watches all the same.
    """

    def __init__(self, ledger: Ledger, store: BlobStore, settings: Settings) -> None:
        self.servicer = Servicer()
        self.probes = Probes(settings.liveness_seconds)
        self.probes.add_check("ledger", ledger.check)
        self.probes.add_check("blobs", store.check)
        self.probes.add_check("grpc", self._check_serving)
        self._is_serving = False
        # Of its own: how busy the others are says nothing about the ledger.
        self._calls = LedgerCalls(ledger, threads=1)
        self._interval_seconds = settings.health_check_interval_seconds
        self._clock = Clock()
        self._beat_seconds = min(1, settings.liveness_seconds / 4)

    async def beat(self, *needed: asyncio.Task[None]) -> None:
        """Shows until cancelled that the event loop turns and that all needed tasks run.

        It runs in a task of its own, and waits for nothing, least of all for a store. It begins
        once calls are served, and makes the gateway ready.
        """
        self._is_serving = True
        # A task that has ended is as bad as a loop that stands still: the probe then fails.
        while not (ended := [task.get_name() for task in needed if task.done()]):
            self.probes.beat()
            await asyncio.sleep(self._beat_seconds)
        log.error("tasks_ended", tasks=ended)

    def _check_serving(self) -> None:
        # Ready before that, it would get calls that nobody takes, and its loop, not beating yet,
        # would count as alive even if it stood still.
        if not self._is_serving:
            raise RuntimeError("the gRPC server has not started")

    async def run(self) -> None:
        """Keeps looking until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._interval_seconds)

    async def look(self) -> None:
        """Asks the ledger and tells the gRPC health service."""
        self.servicer.set(JOB_SERVICE, _STATUS[await self._ledger_answers()])

    def drain(self) -> None:
        """From now on not serving and not ready, for good."""
        self.probes.set_draining()
        self.servicer.drain()

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
