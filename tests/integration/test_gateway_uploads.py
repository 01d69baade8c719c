"""Uploads that stall, trickle, are too large or too many: each ends, and memory is bounded."""

import asyncio
import gc
import hashlib
import os
import re
import threading
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import grpc
import pytest
from fluoro.v1.blob_service_pb2 import (
    Blob,
    GetBlobRequest,
    UploadBlobHeader,
    UploadBlobRequest,
)
from fluoro_blobs.store import THREADS
from fluoro_client import AsyncClient
from fluoro_client.sending import send
from fluoro_jobs.testing.rig import Rig, until
from fluoro_local.folders import free_port
from gateway.testing import Client, connected, refused, serving
from gateway.uploads import WIDE_AFTER_BYTES

MIB = 2**20
IDLE_SECONDS = 3
STALLED_BYTES = MIB // 2


def stored(blob_url: str) -> list[Path]:
    """Every file in the blob store, finished or not."""
    return [path for path in Path(urlsplit(blob_url).path).rglob("*") if path.is_file()]


def memory_bytes(pid: int, what: str) -> int:
    """VmRSS is what a process has now, VmHWM the most it ever had."""
    lines = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return int(lines[what].removesuffix("kB")) * 1024


def ended_uploads(http_port: int) -> Counter[str]:
    """How many uploads the gateway ended, by code."""
    with urlopen(f"http://127.0.0.1:{http_port}/metrics", timeout=30) as reply:
        lines = reply.read().decode()
    method = "fluoro.v1.BlobService.UploadBlob"
    pattern = rf'^fluoro_rpc_requests_total\{{code="(\w+)",method="{method}"\}} (\S+)$'
    return Counter(
        {code: int(float(count)) for code, count in re.findall(pattern, lines, flags=re.MULTILINE)}
    )


async def stall(client: Client, owner: str, opening: asyncio.Semaphore) -> str:
    """Why an upload is ended that sends more than its share of memory, and then nothing."""
    call = client.blobs.UploadBlob(metadata=(("fluoro-owner", owner),))
    async with opening:
        try:
            await call.write(UploadBlobRequest(header=UploadBlobHeader()))
            await call.write(UploadBlobRequest(chunk=bytes(STALLED_BYTES)))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # it has been refused already, which the call tells
    return (await refused(call)).reason


@pytest.mark.parametrize("owners", [1, 10])
async def test_a_thousand_stalled_uploads_cost_little_memory_and_end_by_themselves(
    rig: Rig, owners: int
) -> None:
    port, http_port = free_port(), free_port()
    gateway = rig.served(
        "gateway",
        http_port,
        grpc_host="127.0.0.1",
        grpc_port=port,
        upload_idle_seconds=IDLE_SECONDS,
    )
    before = memory_bytes(gateway.pid, "VmRSS")
    opening = asyncio.Semaphore(50)
    async with (
        connected(port) as one,
        connected(port) as two,
        AsyncClient(f"127.0.0.1:{port}", owner="other") as other,
    ):
        stalled = [
            asyncio.create_task(stall((one, two)[n % 2], f"owner-{n % owners}", opening))
            for n in range(1000)
        ]
        await asyncio.wait(stalled, return_when=asyncio.FIRST_COMPLETED)
        # One owner leaves room for others; ten leave none, and the client waits until there is
        # some.
        blob = await other.upload(bytes(3 * MIB))
        assert (await other.get_blob(blob.name)).size_bytes == 3 * MIB
        assert owners > 1 or not all(task.done() for task in stalled), "others are served meanwhile"
        async with asyncio.timeout(5 * IDLE_SECONDS):
            reasons = Counter(await asyncio.gather(*stalled))
    grown = memory_bytes(gateway.pid, "VmHWM") - before
    # grpc.aio puts a status without a reason over that of a call that ended while it was written
    # to.
    assert set(reasons) <= {"UPLOAD_TOO_SLOW", "UPLOADS_BUSY", ""}, rig.logs()
    # A client may know of an end before the gateway has counted it.
    until(lambda: ended_uploads(http_port).total() >= 1001, 10, "an end for each upload")
    ended = ended_uploads(http_port)
    assert reasons["UPLOAD_TOO_SLOW"] == ended["DEADLINE_EXCEEDED"] >= (32 if owners == 1 else 64)
    assert set(ended) == {"OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
    assert grown <= 256 * MIB
    assert [path.stat().st_size for path in stored(rig.blob_url)] == [3 * MIB]


@pytest.fixture
async def client(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Client]:
    limits = {
        "max_blob_bytes": 2 * MIB,
        "upload_idle_seconds": 0.5,
        "upload_min_bytes_per_second": 1000,
        "upload_memory_bytes": 4 * MIB,
        "blob_request_seconds": 0.4,
    }
    async with serving(database_url, redis_url, blob_url, **limits) as made:
        yield made


async def parts(
    total_bytes: int, chunk_bytes: int = MIB, pause_seconds: float = 0, **header: int
) -> AsyncGenerator[UploadBlobRequest, None]:
    yield UploadBlobRequest(header=UploadBlobHeader(**header))
    for start in range(0, total_bytes, chunk_bytes):
        await asyncio.sleep(pause_seconds)
        yield UploadBlobRequest(chunk=bytes(min(chunk_bytes, total_bytes - start)))


def chunks_held() -> int:
    """How many large chunks this process holds. The gateway's chunks are views of messages."""
    of = [each.obj for each in gc.get_objects() if type(each) is memoryview]
    return len({id(each) for each in of if isinstance(each, bytes) and len(each) > MIB // 2})


async def test_a_refused_upload_leaves_no_chunk_for_the_garbage_collector(client: Client) -> None:
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            # Sometimes grpc.aio puts a status of its own over the gateway's.
            with pytest.raises(grpc.aio.AioRpcError):
                await client.blobs.UploadBlob(parts(6 * MIB, size_bytes=MIB))
        await asyncio.to_thread(until, lambda: not chunks_held(), 10, "no chunk")
    finally:
        gc.enable()


async def test_a_disk_that_hangs_does_not_keep_the_chunks_of_failed_uploads(
    database_url: str, redis_url: str, blob_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, write = threading.Event(), os.write

    def hung_disk(descriptor: int, data: bytes) -> int:
        go_on.wait(60)
        return write(descriptor, data)

    async with serving(database_url, redis_url, blob_url, blob_request_seconds=0.4) as client:
        monkeypatch.setattr(os, "write", hung_disk)
        try:
            ended = await asyncio.gather(
                *(refused(send(client.blobs.UploadBlob(), parts(3 * MIB))) for _ in range(24))
            )
            assert {each.reason for each in ended} == {"BLOB_STORE_UNAVAILABLE"}
            await asyncio.to_thread(
                until, lambda: chunks_held() <= THREADS, 10, "no chunk but in threads"
            )
        finally:
            go_on.set()


async def test_a_blob_over_the_limit_is_refused_by_its_header_or_as_soon_as_it_is_over(
    client: Client, blob_url: str
) -> None:
    assert (
        await refused(client.blobs.UploadBlob(parts(0, size_bytes=2 * MIB + 1)))
    ).reason == "BLOB_TOO_LARGE"
    # Not by the stub alone: grpc.aio puts a status of its own over that of a call that ends while
    # it is written to.
    assert (
        await refused(send(client.blobs.UploadBlob(), parts(3 * MIB)))
    ).reason == "BLOB_TOO_LARGE"
    assert (await client.blobs.UploadBlob(parts(2 * MIB))).blob.size_bytes == 2 * MIB
    assert len(stored(blob_url)) == 1


async def test_an_upload_that_trickles_is_ended_though_it_never_falls_silent(
    client: Client, blob_url: str
) -> None:
    assert (
        await refused(
            send(client.blobs.UploadBlob(), parts(1000, chunk_bytes=10, pause_seconds=0.1))
        )
    ).reason == "UPLOAD_TOO_SLOW"
    assert stored(blob_url) == []


async def test_uploads_that_find_no_memory_wait_for_it(client: Client) -> None:
    async def upload(number: int) -> int:
        call = client.blobs.UploadBlob(
            parts(MIB, chunk_bytes=300_000 + number),
            metadata=(("fluoro-owner", f"owner-{number}"),),
        )
        return int((await call).blob.size_bytes)

    assert await asyncio.gather(*map(upload, range(12))) == [MIB] * 12


async def test_large_uploads_that_took_more_memory_leave_enough_for_the_next(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    size_bytes = WIDE_AFTER_BYTES + 5 * MIB
    limits = {"upload_memory_bytes": 16 * MIB, "upload_owner_share": 1}
    async with serving(database_url, redis_url, blob_url, **limits) as client:

        async def upload(number: int) -> Blob:
            chunk, digest = bytes([number]) * (MIB - number), hashlib.sha256()

            async def requests() -> AsyncGenerator[UploadBlobRequest, None]:
                yield UploadBlobRequest(header=UploadBlobHeader(size_bytes=size_bytes))
                for start in range(0, size_bytes, len(chunk)):
                    sent = chunk[: size_bytes - start]
                    digest.update(sent)
                    yield UploadBlobRequest(chunk=sent)

            blob = (await client.blobs.UploadBlob(requests())).blob
            assert blob.sha256 == digest.digest()
            return blob

        blobs = [await upload(0), *await asyncio.gather(*map(upload, range(1, 12)))]
    assert [blob.size_bytes for blob in blobs] == [size_bytes] * 12
    assert len(stored(blob_url)) == 12


async def test_a_disk_that_hangs_ends_uploads_and_holds_up_nothing_else(
    database_url: str, redis_url: str, blob_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, fsync = threading.Event(), os.fsync

    def hung_disk(descriptor: int) -> None:
        go_on.wait(20)
        fsync(descriptor)

    async with serving(database_url, redis_url, blob_url, blob_request_seconds=0.4) as client:
        blob = (await client.blobs.UploadBlob(parts(10))).blob
        monkeypatch.setattr(os, "fsync", hung_disk)
        try:
            hung = [
                asyncio.create_task(refused(client.blobs.UploadBlob(parts(20 + number))))
                for number in range(30)
            ]
            get = client.blobs.GetBlob(GetBlobRequest(name=blob.name), timeout=1)
            assert (await get).blob == blob
            async with asyncio.timeout(30):
                reasons = Counter(ended.reason for ended in await asyncio.gather(*hung))
            assert reasons == {"BLOB_STORE_UNAVAILABLE": 30}
        finally:
            go_on.set()
