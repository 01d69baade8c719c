"""The barest fan-out: one Redis subscription, and one grpc.aio stream per job.

The latest message of a job is passed on as it is.
"""

import asyncio
import gc
import os
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import grpc.aio
from fluoro.v1.event_pb2 import Progress
from fluoro.v1.job_service_pb2 import WatchJobRequest
from redis.asyncio import Redis

CHANNEL: Final = "bare"
OPTIONS: Final = [
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
]
"""As the gateway: gRPC's own limit turns bursts away."""
Context = grpc.aio.ServicerContext[bytes, bytes]

waiting: dict[str, "asyncio.Queue[bytes]"] = {}


async def watch(request: bytes, _: Context) -> AsyncIterator[bytes]:
    """Every message of the job; the first one, empty, says that the stream is open."""
    mine = waiting[WatchJobRequest.FromString(request).name] = asyncio.Queue()
    yield b""
    while True:
        yield await mine.get()


async def as_it_is(message: Any) -> Any:
    """redis-py's own handler formats each message for its log."""
    return message


async def tail() -> None:
    """Hands out what comes: the message is parsed, because only it says whose it is."""
    async with (
        Redis.from_url(os.environ["PEER_REDIS_URL"]) as client,
        client.pubsub(ignore_subscribe_messages=True, push_handler_func=as_it_is) as pubsub,
    ):
        await pubsub.subscribe(CHANNEL)
        async for message in pubsub.listen():
            queue = waiting.get(Progress.FromString(message["data"]).job)
            if queue is not None:
                queue.put_nowait(message["data"])


async def main(port: int) -> None:
    """Serves until killed."""
    gc.set_threshold(20_000, 20, 20)
    server = grpc.aio.server(options=OPTIONS)
    handlers: dict[str, Any] = {"WatchJob": grpc.unary_stream_rpc_method_handler(watch)}
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("fluoro.v1.JobService", handlers)]
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    await tail()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
