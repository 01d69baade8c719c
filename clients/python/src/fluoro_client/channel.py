"""How the client talks to gateways: load balancing, keepalive, reconnecting.

What is tried again is in `retrying.py`.
"""

import json
from typing import Final

import grpc

OWNER_KEY: Final = "fluoro-owner"
"""Metadata key with the caller's identity."""

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
