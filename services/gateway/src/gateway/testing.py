"""For tests that talk to a gateway: a real one on a free port, and a look at how it refuses."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio
from fluoro.v1.audit_service_pb2_grpc import AuditServiceStub
from fluoro.v1.blob_service_pb2_grpc import BlobServiceStub
from fluoro.v1.deployment_service_pb2_grpc import DeploymentServiceStub
from fluoro.v1.job_service_pb2_grpc import JobServiceStub
from fluoro.v1.model_service_pb2_grpc import ModelServiceStub
from fluoro.v1.pipeline_service_pb2_grpc import PipelineServiceStub
from fluoro.v1.token_service_pb2_grpc import TokenServiceStub
from google.rpc import error_details_pb2, status_pb2

from gateway.errors import DETAILS_KEY
from gateway.serve import running
from gateway.settings import Settings


@dataclass(frozen=True, slots=True)
class Client:
    """Stubs on one connection to a gateway.

    Calls without metadata are those of the gateway's single owner.
    """

    channel: grpc.aio.Channel
    jobs: Any
    blobs: Any
    pipelines: Any
    models: Any
    tokens: Any
    deployment: Any
    audit: Any


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    """A connection of its own to the gateway on a port of this machine."""
    async with grpc.aio.insecure_channel(
        f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        yield Client(
            channel,
            JobServiceStub(channel),
            BlobServiceStub(channel),
            PipelineServiceStub(channel),
            ModelServiceStub(channel),
            TokenServiceStub(channel),
            DeploymentServiceStub(channel),
            AuditServiceStub(channel),
        )


@asynccontextmanager
async def serving(
    database_url: str, redis_url: str, blob_url: str, **overrides: Any
) -> AsyncIterator[Client]:
    """A gateway in this event loop and a client of it.

    overrides: other fields of Settings; `single_owner` is `default`.
    """
    fields: dict[str, Any] = {
        "grpc_host": "127.0.0.1",
        "grpc_port": 0,
        "single_owner": "default",
        "http_host": "127.0.0.1",
        "http_port": 0,
        "shutdown_grace_seconds": 5,
    } | overrides
    settings = Settings(database_url=database_url, redis_url=redis_url, blob_url=blob_url, **fields)
    async with running(settings) as gateway, connected(gateway.grpc_port) as client:
        yield client


async def logged(event: str, logs: Sequence[Mapping[str, Any]], seconds: float = 20) -> None:
    """Returns once the event is in captured logs. TimeoutError if it does not come."""
    async with asyncio.timeout(seconds):
        while not any(line["event"] == event for line in logs):  # noqa: ASYNC110 - a log sets no Event
            await asyncio.sleep(0.01)


@dataclass(frozen=True, slots=True)
class Refused:
    """How a call ended in an error: its code, and the details in the status.

    quota: the limit that QuotaFailure names.
    """

    code: grpc.StatusCode
    message: str
    reason: str
    domain: str
    metadata: dict[str, str]
    violations: dict[str, str]
    retry_seconds: float | None
    quota: str = ""


async def refused(call: Awaitable[object]) -> Refused:
    """Awaits a call that must fail. AssertionError if it does not."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return parse(error)
    raise AssertionError("the call was not refused")


def parse(error: grpc.aio.AioRpcError) -> Refused:
    """The details of an error as a client sees it."""
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers.get(DETAILS_KEY, b""))
    info, bad, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    failure = error_details_pb2.QuotaFailure()
    found = {
        detail.type_url: [detail.Unpack(message) for message in (info, bad, retry, failure)]
        for detail in status.details
    }
    return Refused(
        code=error.code(),
        message=error.details() or "",
        reason=info.reason,
        domain=info.domain,
        metadata=dict(info.metadata),
        violations={violation.field: violation.description for violation in bad.field_violations},
        retry_seconds=retry.retry_delay.ToTimedelta().total_seconds()
        if any(ok[2] for ok in found.values())
        else None,
        quota=failure.violations[0].quota_id if failure.violations else "",
    )
