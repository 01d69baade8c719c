"""The gRPC server: services, options, port."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc
import grpc.aio
from fluoro.v1 import (
    blob_service_pb2,
    job_service_pb2,
    pipeline_service_pb2,
    token_service_pb2,
)
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gateway.identity.tls import Certificates, TlsFiles
from gateway.rpc import Adapter
from gateway.settings import Settings

JOB_SERVICE: Final = job_service_pb2.DESCRIPTOR.services_by_name["JobService"]
BLOB_SERVICE: Final = blob_service_pb2.DESCRIPTOR.services_by_name["BlobService"]
PIPELINE_SERVICE: Final = pipeline_service_pb2.DESCRIPTOR.services_by_name["PipelineService"]
TOKEN_SERVICE: Final = token_service_pb2.DESCRIPTOR.services_by_name["TokenService"]


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
        ("grpc.http2.lookahead_bytes", 64 * 2**10),
        ("grpc.keepalive_time_ms", round(settings.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", round(settings.keepalive_timeout_seconds * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        # Clients may ping as often as every 30 s; gRPC's own 5 min would cut those off that only
        # keep a NAT entry alive.
        ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
        ("grpc.server.max_pending_requests", settings.max_pending_requests),
        ("grpc.server.max_pending_requests_hard_limit", settings.max_pending_requests),
    ]
    if settings.max_connection_age_seconds:
        chosen += [
            ("grpc.max_connection_age_ms", round(settings.max_connection_age_seconds * 1000)),
            ("grpc.max_connection_age_grace_ms", round(settings.shutdown_grace_seconds * 1000)),
        ]
    return chosen


def build(
    settings: Settings,
    adapter: Adapter,
    servicers: Mapping[ServiceDescriptor, object],
    health: Any,
) -> tuple[grpc.aio.Server, int]:
    """A server that is bound but not started, and its port.

    servicers: of each service of ours. PortTakenError if the port is taken, TlsFilesError if files
    of the certificate cannot be used.
    """
    server = grpc.aio.server(options=options(settings))
    server.add_generic_rpc_handlers(
        [adapter.handlers(service, servicer) for service, servicer in servicers.items()]
    )
    health_pb2_grpc.add_HealthServicer_to_server(health, server)  # type: ignore[no-untyped-call]  # generated without types
    names: Sequence[str] = (
        *(service.full_name for service in servicers),
        health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
        reflection.SERVICE_NAME,
    )
    if settings.reflection:
        reflection.enable_server_reflection(names, server)  # type: ignore[no-untyped-call]  # has no types
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
    except RuntimeError as error:
        raise PortTakenError(
            f"Cannot listen on {address}: it is taken or not an address of this machine. "
            "Set FLUORO_GRPC_HOST or _PORT."
        ) from error
    return server, port
