"""How the client talks to gateways: load balancing, keepalive, reconnecting, certificates.

What is tried again is in `retrying.py`.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Final, Self, cast

import grpc
from fluoro.v1 import (
    audit_service_pb2_grpc,
    blob_service_pb2_grpc,
    deployment_service_pb2_grpc,
    job_service_pb2_grpc,
    model_service_pb2_grpc,
    pipeline_service_pb2_grpc,
    token_service_pb2_grpc,
)

from fluoro_client.credentials import Stamp, Tls

LOOK_SECONDS: Final = 1.0
"""Least time between two looks at the files of certificates."""

LAST_CALL_SECONDS: Final = 10 * 365 * 86_400.0
"""How long calls on a connection that was replaced may go on; a watch has no end of its own."""

log = logging.getLogger("fluoro_client")

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
"""Largest answer taken; a job with many items is one message."""

_OPTIONS: Final = (
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # The gateway permits a ping every 30 s; a connection that died silently is noticed within 80 s.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # gRPC waits up to 2 min before it connects again; a restarted gateway is back in seconds.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 3_000),
    # Otherwise clients of one process share connections, and a new one the back-off of those that
    # found nobody.
    ("grpc.use_local_subchannel_pool", 1),
)


def open_channel(endpoint: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    """A channel to `endpoint`, encrypted if there are credentials.

    endpoint: `host:port`, or any gRPC target such as `dns:///gateway:50051`. The channel belongs to
    the running event loop.
    """
    if credentials is None:
        return grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
    return grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)


class Connection:
    """A channel and its stubs, which are made anew when files of `tls` are replaced."""

    def __init__(
        self, endpoint: str, credentials: grpc.ChannelCredentials | None, tls: Tls | None
    ) -> None:
        """Made in the running event loop.

        ValueError for both credentials and tls; OSError if files of tls cannot be read.
        """
        if credentials is not None and tls is not None:
            raise ValueError("give either credentials or tls")
        self._endpoint, self._tls = endpoint, tls
        self._stamp: Stamp = tls.stamp() if tls else ()
        self._looked = time.monotonic()
        self._leaving: dict[asyncio.Task[None], grpc.aio.Channel] = {}
        self._open(tls.credentials() if tls else credentials)
        self.jobs = cast("job_service_pb2_grpc.JobServiceAsyncStub", _Newest(self, "_jobs"))
        """Its methods use the newest channel each time they are called."""
        self.tokens = cast("token_service_pb2_grpc.TokenServiceAsyncStub", _Newest(self, "_tokens"))
        self.deployment = cast(
            "deployment_service_pb2_grpc.DeploymentServiceAsyncStub", _Newest(self, "_deployment")
        )
        self.audit = cast("audit_service_pb2_grpc.AuditServiceAsyncStub", _Newest(self, "_audit"))
        self.blobs = cast("blob_service_pb2_grpc.BlobServiceAsyncStub", _Newest(self, "_blobs"))
        self.models = cast("model_service_pb2_grpc.ModelServiceAsyncStub", _Newest(self, "_models"))
        self.pipelines = cast(
            "pipeline_service_pb2_grpc.PipelineServiceAsyncStub", _Newest(self, "_pipelines")
        )

    async def close(self) -> None:
        """Ends every call that is still running."""
        for closing in self._leaving:
            closing.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        for channel in (*self._leaving.values(), self._channel):
            await channel.close()

    def newest(self) -> Self:
        """Itself, after a look at the files, once a second at most."""
        if self._tls is None or time.monotonic() - self._looked < LOOK_SECONDS:
            return self
        self._looked = time.monotonic()
        try:
            stamp = self._tls.stamp()
            if stamp != self._stamp:
                credentials, old = self._tls.credentials(), self._channel
                self._open(credentials)
                self._stamp = stamp
                self._leave(old)
        except OSError as error:
            # They are being replaced, or nobody may read them: what there is goes on.
            log.warning("TLS files cannot be read (%s); the earlier ones stay", error.strerror)
        return self

    def _open(self, credentials: grpc.ChannelCredentials | None) -> None:
        self._channel = open_channel(self._endpoint, credentials)
        self._jobs = job_service_pb2_grpc.JobServiceStub(self._channel)
        self._blobs = blob_service_pb2_grpc.BlobServiceStub(self._channel)
        self._deployment = deployment_service_pb2_grpc.DeploymentServiceStub(self._channel)
        self._audit = audit_service_pb2_grpc.AuditServiceStub(self._channel)
        self._tokens = token_service_pb2_grpc.TokenServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._pipelines = pipeline_service_pb2_grpc.PipelineServiceStub(self._channel)

    def _leave(self, channel: grpc.aio.Channel) -> None:
        """Closes a channel once its last call has ended; a watch on it may go on for days."""
        closing = asyncio.get_running_loop().create_task(channel.close(LAST_CALL_SECONDS))
        self._leaving[closing] = channel
        closing.add_done_callback(lambda done: done.cancelled() or self._leaving.pop(done))


class _Newest:
    """A stub's methods, each looked up when it is called."""

    def __init__(self, connection: Connection, stub: str) -> None:
        self._connection, self._stub = connection, stub

    def __getattr__(self, method: str) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            return getattr(getattr(self._connection.newest(), self._stub), method)(*args, **kwargs)

        return call
