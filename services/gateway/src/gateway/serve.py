"""One gateway process from start to drain."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog
from fluoro_blobs import BlobStore
from fluoro_jobs.dispatch import Dispatcher
from fluoro_jobs.ledger.accept import GroupCommit
from fluoro_jobs.ledger.connection import Ledger
from fluoro_jobs.pipelines import load as load_pipelines
from fluoro_jobs.wakeups import Publisher
from fluoro_telemetry import http

from gateway import server
from gateway.audit import Audit
from gateway.audit_service import AuditEvents
from gateway.blobs import Blobs
from gateway.collector import Collector
from gateway.deployment import Deployment
from gateway.grpc_server import Server, quiet_logs
from gateway.health import Health
from gateway.identity.sources import Sources
from gateway.jobs import Jobs
from gateway.ledger_calls import LedgerCalls
from gateway.limits.buckets import Buckets
from gateway.limits.gate import Limits
from gateway.limits.owners import Owners
from gateway.limits.quotas import OpenJobs
from gateway.limits.stored import StoredBytes
from gateway.models import Models
from gateway.pipelines import PipelineCatalogue
from gateway.rpc import Adapter
from gateway.settings import Settings
from gateway.tokens import Tokens
from gateway.watch import Hub

log = structlog.get_logger(__name__)

WATCH_THREADS: Final = 2
"""Threads in which the watch hub reads the ledger, whatever its callers do with theirs."""

OWN_CONNECTIONS: Final = 8
"""Connections to the ledger besides those of threads that read.

Group commit, dispatch, the collector, identity, the two kinds of health, and two for the audit.
"""

TURN_AWAY_SECONDS: Final = 1
"""How long new callers are sent elsewhere before the port closes."""

LAST_WORDS_SECONDS: Final = 0.5
"""Time for answers on their way once no call is being worked on.

Clients' health watches use it up: they never end by themselves.
"""


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that serves, and its ports."""

    grpc_port: int
    http_port: int


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Gateway]:
    """A gateway for the duration of the block, drained at its end.

    server.PortTakenError, OSError about the HTTP port, BadPipelineError, LimitsFileError,
    ValueError for a blob URL of an unknown kind. Ledger and Redis may be down at the start.
    """
    quiet_logs()
    pipelines = load_pipelines(settings.pipelines_folder)
    store = BlobStore.from_url(settings.blob_url, request_seconds=settings.blob_request_seconds)
    ledger = _ledger(settings)
    calls = LedgerCalls(ledger, settings.ledger_threads, settings.ledger_waiting_calls)
    hub_calls, limits = LedgerCalls(ledger, WATCH_THREADS), _limits(settings, calls)
    publisher, dispatcher = Publisher(settings.redis_url), Dispatcher(ledger, settings.redis_url)
    hub = Hub(hub_calls, calls, settings)
    commits = _commits(ledger, settings)
    identity = Sources(settings, ledger)
    audit = Audit(ledger, settings.ledger_waiting_calls)
    adapter = Adapter(settings.max_message_bytes, identity.door, audit, limits)
    parts = (identity, audit, hub, limits)
    health = Health(ledger, store, settings)
    health.probes.watch(commits)
    health.probes.watch(dispatcher)
    collector = Collector(ledger, store, settings)
    servicers = {
        server.JOB_SERVICE: Jobs(calls, commits, dispatcher, publisher, hub, pipelines, settings),
        server.BLOB_SERVICE: Blobs(calls, store, settings),
        server.PIPELINE_SERVICE: PipelineCatalogue(pipelines),
        server.MODEL_SERVICE: Models(calls),
        server.TOKEN_SERVICE: Tokens(calls),
        server.DEPLOYMENT_SERVICE: Deployment(store, settings),
        server.AUDIT_SERVICE: AuditEvents(calls),
    }
    try:
        grpc_server, grpc_port = server.build(settings, adapter, servicers, health.servicer)
        http_server = http.serve(settings.http_host, settings.http_port, health.probes)
        for part in (dispatcher, hub, collector, audit, limits):
            part.start()
        await identity.start()
        await health.look()
        looking = asyncio.create_task(health.run(), name="health")
        await grpc_server.start()
        serving = asyncio.create_task(_served(grpc_server), name="grpc")
        needed = [task for each in parts for task in each.tasks]
        beating = asyncio.create_task(health.beat(looking, serving, *needed), name="beat")
        try:
            yield Gateway(grpc_port, http_server.port)
        finally:
            await _drain(grpc_server, adapter, health, hub, settings.shutdown_grace_seconds)
            for task in (looking, serving, beating):
                task.cancel()
            http_server.close()
    finally:
        collector.close()
        for closing in parts:
            await closing.close()
        for each in (commits, dispatcher, calls, hub_calls, health):
            await asyncio.to_thread(each.close)
        publisher.close()
        # Last: whatever was closed before may still have used it.
        ledger.close()


def _limits(settings: Settings, calls: LedgerCalls) -> Limits:
    return Limits(
        Owners(settings.owner_limits, settings.owner_limits_file),
        Buckets(settings.redis_url),
        OpenJobs(calls),
        StoredBytes(calls),
        settings.call_timeout_seconds,
    )


def _commits(ledger: Ledger, settings: Settings) -> GroupCommit:
    return GroupCommit(
        ledger,
        max_waiting=settings.submit_queue_jobs,
        max_waiting_bytes=settings.submit_queue_bytes,
    )


def _ledger(settings: Settings) -> Ledger:
    """With a connection for each thread that may ask for one: nobody waits for another's."""
    return Ledger(
        settings.database_url,
        max_connections=settings.ledger_threads + WATCH_THREADS + OWN_CONNECTIONS,
        statement_seconds=settings.ledger_statement_seconds,
    )


async def _served(grpc_server: Server) -> None:
    """Ends, with what went wrong, if the server does before it is stopped."""
    await grpc_server.wait_for_termination()
    # A server that was stopped is not a failure; only one that ends by itself is.
    await asyncio.Event().wait()


async def _drain(
    grpc_server: Server, adapter: Adapter, health: Health, hub: Hub, grace_seconds: float
) -> None:
    """Takes no new calls. Watches end with their cursor, other calls within the grace period."""
    log.info("draining", grace_seconds=grace_seconds)
    # First of all: load balancers must send nobody here any more.
    health.drain()
    # Watches do not end by themselves, and would use up the whole grace.
    hub.end_all()
    loop = asyncio.get_running_loop()
    until = loop.time() + grace_seconds
    await adapter.close(min(TURN_AWAY_SECONDS, grace_seconds / 4))
    # Closes the port now. The stops below shorten the grace of this one.
    stopping = asyncio.create_task(grpc_server.stop(until - loop.time()))
    try:
        async with asyncio.timeout_at(until):
            await adapter.idle()
            # Shielded: grpcio's own future of the end would be cancelled, and every later stop with
            # it.
            await asyncio.shield(grpc_server.stop(LAST_WORDS_SECONDS))
    except TimeoutError:
        log.warning("calls_cut_off", meaning="they did not end within the grace")
        await grpc_server.stop(None)
    await stopping
