"""The gRPC server: services, options, port."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

from fluoro.v1 import (
    audit_service_pb2,
    blob_service_pb2,
    deployment_service_pb2,
    job_service_pb2,
    model_service_pb2,
    pipeline_service_pb2,
    token_service_pb2,
)
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from gateway.grpc_server import Server
from gateway.identity.tls import Certificates, TlsFiles
from gateway.limits.gate import WAITING
from gateway.rpc import Adapter, Call
from gateway.settings import Settings

JOB_SERVICE: Final = job_service_pb2.DESCRIPTOR.services_by_name["JobService"]
BLOB_SERVICE: Final = blob_service_pb2.DESCRIPTOR.services_by_name["BlobService"]
MODEL_SERVICE: Final = model_service_pb2.DESCRIPTOR.services_by_name["ModelService"]
PIPELINE_SERVICE: Final = pipeline_service_pb2.DESCRIPTOR.services_by_name["PipelineService"]
AUDIT_SERVICE: Final = audit_service_pb2.DESCRIPTOR.services_by_name["AuditService"]
TOKEN_SERVICE: Final = token_service_pb2.DESCRIPTOR.services_by_name["TokenService"]
DEPLOYMENT_SERVICE: Final = deployment_service_pb2.DESCRIPTOR.services_by_name["DeploymentService"]
HEALTH_SERVICE: Final = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION_SERVICE: Final = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]

OF_OWNERS: Final = (
    JOB_SERVICE,
    BLOB_SERVICE,
    PIPELINE_SERVICE,
    MODEL_SERVICE,
    TOKEN_SERVICE,
    AUDIT_SERVICE,
    DEPLOYMENT_SERVICE,
)
"""Services whose calls belong to an owner. The others are open to everybody."""
SERVICES: Final = (*OF_OWNERS, HEALTH_SERVICE, REFLECTION_SERVICE)
"""All services of the gateway."""


AT_FIRST: Final = 4096
"""Calls of a method that may wait for a first look, before gRPC refuses more, whose ever they are.

A look takes a tenth of a millisecond, so they wait here only while the event loop is held up.
"""


LOOKAHEAD_BYTES: Final = 16 * 2**10
"""What a caller may send ahead of being read. A flood of calls that wait may take it for each."""
HANDSHAKE_SECONDS: Final = 20
"""How long TLS and the first words of HTTP/2 may take."""


class PortTakenError(Exception):
    """Another process listens on the port."""


def options(settings: Settings) -> list[tuple[str, int]]:
    """Channel arguments of the server."""
    chosen = [
        # Twice what the adapter allows: what is in between is refused with a reason, what is over
        # by gRPC itself with the bare code.
        ("grpc.max_receive_message_length", 2 * settings.max_message_bytes),
        # With it, a second process on the port would start unnoticed, and take some of the calls.
        ("grpc.so_reuseport", 0),
        # gRPC reads ahead of the store no further than this, also for uploads that nobody looks at
        # yet; left to itself it grows its window with the bandwidth, 100 MiB an upload. A message
        # that is waited for comes whole all the same.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", LOOKAHEAD_BYTES),
        # Whoever connects and says nothing is gone by then.
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
        # Over one connection no caller has more under way. gRPC's clients keep what is more to
        # themselves; of others it is refused for next to nothing.
        ("grpc.max_concurrent_streams", settings.max_streams_per_connection),
        ("grpc.keepalive_time_ms", round(settings.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", round(settings.keepalive_timeout_seconds * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        # Clients may ping as often as every 30 s; gRPC's own 5 min would cut those off that only
        # keep a NAT entry alive.
        ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
        ("grpc.server.max_pending_requests", AT_FIRST),
        ("grpc.server.max_pending_requests_hard_limit", AT_FIRST),
    ]
    if settings.max_connection_age_seconds:
        chosen += [
            # Connections of clients end in turn, so that new gateways get their share of them.
            ("grpc.max_connection_age_ms", round(settings.max_connection_age_seconds * 1000)),
            ("grpc.max_connection_age_grace_ms", round(settings.shutdown_grace_seconds * 1000)),
        ]
    return chosen


class Reflection:
    """The method of grpc.reflection.v1alpha.ServerReflection."""

    def __init__(self, services: Sequence[str]) -> None:
        """services: full names of what is served."""
        servicer: Any = reflection.aio.ReflectionServicer
        self._servicer = servicer(services)

    async def server_reflection_info(
        self, requests: AsyncIterator[Message], _call: Call
    ) -> AsyncIterator[Message]:
        """An answer for each question about the descriptors."""
        async for response in self._servicer.ServerReflectionInfo(requests, None):
            yield response


def _mostly_wait() -> set[str]:
    """Paths of methods whose calls take little once they have begun: streams, and WaitJob."""
    return {
        f"/{service.full_name}/{method.name}"
        for service in OF_OWNERS
        for method in service.methods
        if method.client_streaming or method.server_streaming or method.full_name in WAITING
    }


def build(
    settings: Settings,
    adapter: Adapter,
    servicers: Mapping[ServiceDescriptor, object],
    health: object,
) -> tuple[Server, int]:
    """A server that is bound but not started, and its port.

    servicers: of each service of owners. PortTakenError if the port is taken, TlsFilesError if
    files of the certificate cannot be used.
    """
    server = Server(
        options(settings), _mostly_wait(), adapter.first_sight.owner, settings.max_pending_requests
    )
    open_to_all = {HEALTH_SERVICE: health}
    if settings.reflection:
        names = [service.full_name for service in SERVICES]
        open_to_all[REFLECTION_SERVICE] = Reflection(names)
    for service, servicer in {**servicers, **open_to_all}.items():
        server.add_registered_method_handlers(
            service.full_name, adapter.handlers(service, servicer, of_owners=service in OF_OWNERS)
        )
    address = f"{settings.grpc_host}:{settings.grpc_port}"
    files = TlsFiles(
        settings.tls_certificate_file, settings.tls_key_file, settings.tls_client_ca_file
    )
    try:
        port = (
            server.add_secure_port(address, Certificates(files).credentials())
            if files.certificate
            else server.add_insecure_port(address)
        )
    # grpcio says no more than that it failed.
    except RuntimeError as error:
        raise PortTakenError(
            f"Cannot listen on {address}: it is taken or not an address of this machine. "
            "Set FLUORO_GRPC_HOST or _PORT."
        ) from error
    return server, port
