"""The shortest way from a Redis channel to a gRPC stream.

One subscription per stream; bytes are passed on as they are.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import grpc.aio
from redis.asyncio import Redis

CHANNEL: Final = "bare"
METHOD: Final = "/peers.PubSub/Watch"
Context = grpc.aio.ServicerContext[bytes, bytes]


async def watch(_request: bytes, _: Context) -> AsyncIterator[bytes]:
    """Every message of the channel; the first one, empty, says that the subscription is there."""
    async with (
        Redis.from_url(os.environ["PEER_REDIS_URL"]) as client,
        client.pubsub(ignore_subscribe_messages=True) as pubsub,
    ):
        await pubsub.subscribe(CHANNEL)
        yield b""
        async for message in pubsub.listen():
            yield message["data"]


async def main(port: int) -> None:
    """Serves until killed."""
    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Watch": grpc.unary_stream_rpc_method_handler(watch)}
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("peers.PubSub", handlers)]
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
