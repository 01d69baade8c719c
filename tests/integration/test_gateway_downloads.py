"""Downloads whose callers stop reading end, and what they hold of a gateway is bounded."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
from fluoro.v1.blob_service_pb2 import DownloadBlobRequest
from fluoro.v1.blob_service_pb2_grpc import BlobServiceStub
from fluoro_client import AsyncClient
from fluoro_jobs.testing.rig import Rig
from fluoro_local.folders import free_port
from gateway.testing import parse

MIB = 2**20
BLOB_BYTES = 3 * MIB
STALLED, PLACES = 80, 32
STALL_SECONDS = 2
READ_NOTHING_AHEAD = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 * 1024)]
"""Or gRPC takes megabytes off the gateway before anybody reads."""


def most_memory_bytes(pid: int) -> int:
    lines = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return int(lines["VmHWM"].removesuffix("kB")) * 1024


async def how_it_ends(call: Any) -> str:
    """The reason, once a download is read on."""
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return parse(error).reason
    return "OK"


async def test_hundreds_of_stalled_downloads_cost_little_memory_and_give_their_places_to_others(
    rig: Rig, tmp_path: Path
) -> None:
    port = free_port()
    gateway = rig.served(
        "gateway",
        free_port(),
        grpc_host="127.0.0.1",
        grpc_port=port,
        download_stall_seconds=STALL_SECONDS,
    )
    stalled = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=READ_NOTHING_AHEAD)
    async with stalled as channel, AsyncClient(f"127.0.0.1:{port}", owner="ada") as reading:
        blob = await reading.upload(bytes(BLOB_BYTES))
        before = most_memory_bytes(gateway.pid)
        download: Any = BlobServiceStub(channel).DownloadBlob
        calls = [
            download(DownloadBlobRequest(name=blob.name), metadata=(("fluoro-owner", "ada"),))
            for _ in range(STALLED)
        ]
        async with asyncio.timeout(30):
            begun = [asyncio.create_task(call.initial_metadata()) for call in calls]
            while sum(task.done() for task in begun) < PLACES:
                await asyncio.wait(
                    [task for task in begun if not task.done()], return_when=asyncio.FIRST_COMPLETED
                )
            assert (await reading.download(blob, tmp_path / "blob")).stat().st_size == BLOB_BYTES
            ends = Counter(await asyncio.gather(*map(how_it_ends, calls)))
    assert ends["DOWNLOAD_TOO_SLOW"] >= PLACES
    assert set(ends) <= {"DOWNLOAD_TOO_SLOW", "OK"}
    assert most_memory_bytes(gateway.pid) - before <= 256 * MIB
