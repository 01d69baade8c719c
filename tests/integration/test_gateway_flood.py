"""One owner who opens calls without end, whatever it is told, and another who is served."""

import asyncio
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from fluoro.v1.job_service_pb2 import GetJobRequest, WaitJobRequest
from fluoro_local.folders import free_port
from gateway.limits.arrivals import MOST_HELD
from gateway.testing import Client, refused, serving

PATIENCE_SECONDS = 20
FLOOD_SECONDS = 2
CALM_SECONDS = 5
"""A call of the other owner takes no longer, on a machine that is busy with tests."""

CLIENT_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What a client of HTTP/2 says first, with empty SETTINGS."""
INITIAL_WINDOW_SIZE = 4
"""The key in SETTINGS of how many bytes of a stream may come before anybody reads them."""
POD_BYTES = 512 * 2**20
"""Memory of a gateway's pod, in deploy/k8s."""

FLOOD = """
import asyncio, sys
import grpc.aio

method, message, owner = sys.argv[1], bytes.fromhex(sys.argv[2]), (("fluoro-owner", "hasty"),)
port, connections, calls = map(int, sys.argv[3:])

async def hurry(call):
    while True:
        try:
            await call(message, metadata=owner)
        except grpc.aio.AioRpcError as error:
            if error.code() in ASKS_TO_WAIT and not told.done():
                told.set_result(None)

async def main():
    global told
    told = asyncio.get_running_loop().create_future()
    options = [("grpc.use_local_subchannel_pool", 1)]
    open = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) for _ in range(connections)]
    hurries = [hurry(each.unary_unary(method)) for each in open for _ in range(calls)]
    flood = asyncio.gather(*hurries)
    await told
    print("flooded", flush=True)
    await flood

ASKS_TO_WAIT = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED
asyncio.run(main())
"""


@contextmanager
def hurrying(port: int, method: str, message: bytes, *sizes: int) -> Iterator[Any]:
    """A process that floods; it says so once it is told to wait. sizes: connections, calls each."""
    arguments = [method, message.hex(), *map(str, (port, *sizes))]
    command = [sys.executable, "-c", FLOOD, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as flooder:
        try:
            yield flooder
        finally:
            flooder.kill()


async def seconds_of(client: Client, method: str, request: Any) -> float:
    began = time.monotonic()
    call = getattr(client.jobs, method)
    metadata = (("fluoro-owner", "calm"),)
    answer = await refused(call(request, metadata=metadata, timeout=2 * CALM_SECONDS))
    assert answer.reason == "JOB_NOT_FOUND"
    return time.monotonic() - began


async def test_what_held_calls_send_ahead_takes_less_than_half_of_a_pod_s_memory(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    port = free_port()
    async with serving(database_url, redis_url, blob_url, grpc_port=port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(CLIENT_HELLO)
        async with asyncio.timeout(PATIENCE_SECONDS):
            size = int.from_bytes(await reader.readexactly(3))
            kind, *_ = await reader.readexactly(6)
            settings = dict(struct.iter_unpack("!HI", await reader.readexactly(size)))
        writer.close()
    assert kind == 4, "SETTINGS"
    assert settings[INITIAL_WINDOW_SIZE] * MOST_HELD < POD_BYTES / 2


@pytest.mark.parametrize(
    ("method", "request_type", "connections", "calls"),
    [
        ("GetJob", GetJobRequest, 1, 2000),
        ("GetJob", GetJobRequest, 8, 250),
        ("WaitJob", WaitJobRequest, 8, 500),
    ],
)
async def test_a_flood_that_lasts_refuses_no_call_of_another_owner(
    database_url: str,
    redis_url: str,
    blob_url: str,
    method: str,
    request_type: Any,
    connections: int,
    calls: int,
) -> None:
    port, path = free_port(), f"/fluoro.v1.JobService/{method}"
    request = request_type(name=f"jobs/{uuid4()}")
    async with serving(database_url, redis_url, blob_url, grpc_port=port) as calm:
        await seconds_of(calm, method, request)
        with hurrying(port, path, request.SerializeToString(), connections, calls) as flooder:
            said = await asyncio.wait_for(
                asyncio.to_thread(flooder.stdout.readline), PATIENCE_SECONDS
            )
            assert said == b"flooded\n"
            took, until = [], time.monotonic() + FLOOD_SECONDS
            while time.monotonic() < until:
                took.append(await seconds_of(calm, method, request))
            assert flooder.poll() is None
    assert max(took) < CALM_SECONDS
