"""The gateway as a process: how it starts, refuses to start, stays small and ends."""

import asyncio
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import psycopg
import pytest
from fluoro.v1.blob_service_pb2 import (
    Blob,
    DownloadBlobRequest,
    UploadBlobHeader,
    UploadBlobRequest,
)
from fluoro.v1.job_pb2 import Job, Step
from fluoro.v1.job_service_pb2 import (
    GetJobRequest,
    ListJobsRequest,
    SubmitJobRequest,
    WaitJobRequest,
    WatchJobRequest,
)
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import blobs
from fluoro_local.folders import free_port
from gateway.testing import Client, connected, parse, refused
from harness.proxy import close_listener

MIB = 2**20
READY_SECONDS = 30


def environment(database_url: str, redis_url: str, blob_url: str, **more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("FLUORO_")} | {
        "FLUORO_DATABASE_URL": database_url,
        "FLUORO_REDIS_URL": redis_url,
        "FLUORO_BLOB_URL": blob_url,
        "FLUORO_GRPC_HOST": "127.0.0.1",
        "FLUORO_HTTP_HOST": "127.0.0.1",
        "FLUORO_GRPC_PORT": str(free_port()),
        "FLUORO_HTTP_PORT": str(free_port()),
        "FLUORO_SINGLE_OWNER": "me",
        **more,
    }


def command() -> list[str]:
    return [sys.executable, "-m", "gateway"]


FEW_FILES = 128
"""File descriptors that the system gives at first."""


class Process:
    """A running gateway."""

    def __init__(self, process: "subprocess.Popen[bytes]", client: Client, http_port: int) -> None:
        self.process, self.client, self.http_port = process, client, http_port

    async def get(self, path: str) -> tuple[int, str]:
        return await asyncio.to_thread(get, self.http_port, path)

    def status(self, field: str) -> int:
        """A figure in KiB of /proc/PID/status."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
        assert found is not None
        return int(found[1])

    async def ends(self, signal_number: int) -> int:
        self.process.send_signal(signal_number)
        return await asyncio.to_thread(self.process.wait, 20)


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def spawn(settings: dict[str, str]) -> "subprocess.Popen[bytes]":
    limited = ["bash", "-c", f'ulimit -Sn {FEW_FILES}; exec "$@"', "gateway", *command()]
    return subprocess.Popen(limited, env=settings)


@asynccontextmanager
async def started(*urls: str, **more: str) -> AsyncIterator[Process]:
    settings = environment(*urls, **more)
    process = spawn(settings)
    try:
        async with connected(int(settings["FLUORO_GRPC_PORT"])) as client:
            running = Process(process, client, int(settings["FLUORO_HTTP_PORT"]))
            deadline = time.monotonic() + READY_SECONDS
            while (await running.get("/readyz"))[0] != 200:
                assert process.poll() is None, "the gateway ended"
                assert time.monotonic() < deadline, "the gateway is not ready"
                await asyncio.sleep(0.02)
            yield running
    finally:
        process.kill()
        process.wait()


@pytest.fixture
async def gateway(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Process]:
    async with started(database_url, redis_url, blob_url) as running:
        yield running


def parts(chunks: Iterator[bytes], **header: Any) -> Iterator[UploadBlobRequest]:
    yield UploadBlobRequest(header=UploadBlobHeader(**header))
    for chunk in chunks:
        yield UploadBlobRequest(chunk=chunk)


async def submit(client: Client) -> str:
    blob = (await client.blobs.UploadBlob(parts(iter([b"x"]), size_bytes=1))).blob.name
    job = Job(inputs=[blob], steps=[Step(name="inspect", inspect_dicom={})])
    return str((await client.jobs.SubmitJob(SubmitJobRequest(job=job))).job.name)


async def test_callers_who_connect_and_say_nothing_keep_nobody_out(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    port = free_port()
    async with started(database_url, redis_url, blob_url, FLUORO_GRPC_PORT=str(port)):
        with ExitStack() as silent:
            for _ in range(2 * FEW_FILES):
                silent.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            async with connected(port) as client:
                await client.jobs.ListJobs(ListJobsRequest(), timeout=20)


async def test_it_starts_and_serves_probes_and_metrics(gateway: Process) -> None:
    assert (await gateway.get("/healthz"))[0] == 200
    await submit(gateway.client)
    status, text = await gateway.get("/metrics")
    assert status == 200
    assert re.search(
        r'^fluoro_rpc_requests_total{code="OK",method="fluoro.v1.JobService.SubmitJob"} 1.0$',
        text,
        re.MULTILINE,
    )


async def test_a_gateway_that_shuts_down_ends_watches_with_their_cursor_and_exits_0(
    gateway: Process,
) -> None:
    client = gateway.client
    job = await submit(client)
    watch = client.jobs.WatchJob(WatchJobRequest(name=job))
    first = await watch.read()
    waiting = asyncio.create_task(refused(client.jobs.WaitJob(WaitJobRequest(name=job))))
    await client.jobs.GetJob(GetJobRequest(name=job))
    began = time.monotonic()
    ending = asyncio.create_task(gateway.ends(signal.SIGTERM))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watch.read()
    how = parse(caught.value)
    assert (how.code.name, how.reason, how.metadata["cursor"], how.retry_seconds) == (
        "UNAVAILABLE",
        "SHUTTING_DOWN",
        first.cursor,
        1,
    )
    assert (await waiting).reason == "SHUTTING_DOWN"
    assert await ending == 0
    assert time.monotonic() - began < 5


async def test_an_upload_under_way_is_finished_before_the_gateway_ends(gateway: Process) -> None:
    upload = gateway.client.blobs.UploadBlob()
    await upload.write(UploadBlobRequest(header=UploadBlobHeader(size_bytes=2)))
    await upload.write(UploadBlobRequest(chunk=b"a"))
    await gateway.client.blobs.UploadBlob(
        parts(iter([b"x"]))
    )  # the server has seen the first upload by now
    ending = asyncio.create_task(gateway.ends(signal.SIGTERM))
    while (await gateway.get("/readyz"))[0] == 200:  # noqa: ASYNC110 - another process sets no Event
        await asyncio.sleep(0.02)
    await upload.write(UploadBlobRequest(chunk=b"b"))
    await upload.done_writing()
    assert (await upload).blob.sha256 == hashlib.sha256(b"ab").digest()
    assert await ending == 0


async def test_submits_in_flight_are_answered_or_refused_but_never_cut_off(
    gateway: Process,
) -> None:
    client = gateway.client
    blob = (await client.blobs.UploadBlob(parts(iter([b"x"]), size_bytes=1))).blob.name
    request = SubmitJobRequest(
        job=Job(inputs=[blob], steps=[Step(name="inspect", inspect_dicom={})])
    )
    calls = [client.jobs.SubmitJob(request) for _ in range(200)]
    await calls[0]
    ending = asyncio.create_task(gateway.ends(signal.SIGTERM))
    codes = {(await call.code()).name for call in calls}
    assert codes <= {"OK", "UNAVAILABLE"}
    assert await ending == 0


async def test_a_call_that_does_not_end_is_cut_off_after_the_grace(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    async with started(
        database_url, redis_url, blob_url, FLUORO_SHUTDOWN_GRACE_SECONDS="1"
    ) as gateway:
        upload = gateway.client.blobs.UploadBlob()
        await upload.write(UploadBlobRequest(header=UploadBlobHeader()))
        await submit(gateway.client)
        began = time.monotonic()
        assert await gateway.ends(signal.SIGTERM) == 0
        assert time.monotonic() - began < 3
        assert await upload.code() is not grpc.StatusCode.OK


async def test_a_bucket_that_does_not_answer_keeps_no_gateway_from_ending(
    database_url: str, redis_url: str
) -> None:
    asked, callers = asyncio.Event(), list[asyncio.StreamWriter]()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        callers.append(writer)
        if (await reader.read(1024)).startswith(b"HEAD"):
            asked.set()

    with psycopg.connect(database_url, autocommit=True) as connection:
        blob = blobs.add(
            connection,
            "me",
            Blob(name=f"blobs/{new_id()}", size_bytes=1, sha256=bytes(32), media_type="text/plain"),
        )
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as bucket:
        keys = {
            "AWS_ENDPOINT": f"http://127.0.0.1:{bucket.sockets[0].getsockname()[1]}",
            "AWS_ALLOW_HTTP": "true",
        }
        keys |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "a", "AWS_REGION": "us-east-1"}
        settings = environment(
            database_url, redis_url, "s3://bucket", FLUORO_SHUTDOWN_GRACE_SECONDS="1", **keys
        )
        process = spawn(settings)
        try:
            async with connected(int(settings["FLUORO_GRPC_PORT"])) as client:
                download = client.blobs.DownloadBlob(
                    DownloadBlobRequest(name=blob.name), wait_for_ready=True
                )
                async with asyncio.timeout(READY_SECONDS):
                    await asked.wait()
                assert await Process(process, client, 0).ends(signal.SIGTERM) == 0
                assert await download.code() is not grpc.StatusCode.OK
        finally:
            process.kill()
            process.wait()
            await close_listener(bucket)
            for caller in callers:
                caller.close()
                await caller.wait_closed()


async def test_without_redis_it_is_ready(database_url: str, blob_url: str) -> None:
    async with started(database_url, f"redis://127.0.0.1:{free_port()}/0", blob_url) as gateway:
        assert await submit(gateway.client)
        assert await gateway.ends(signal.SIGINT) == 0


async def test_64_mib_go_in_and_out_in_bounded_memory(gateway: Process) -> None:
    chunk = os.urandom(MIB)
    digest = hashlib.sha256()
    for _ in range(64):
        digest.update(chunk)
    await submit(gateway.client)
    before = gateway.status("VmRSS")
    uploads = [
        gateway.client.blobs.UploadBlob(
            parts(chunk for _ in range(64)), metadata=(("fluoro-owner", f"o{n}"),)
        )
        for n in range(2)
    ]
    blob, _ = [(await upload).blob for upload in uploads]
    assert (blob.size_bytes, blob.sha256) == (64 * MIB, digest.digest())
    got = hashlib.sha256()
    call = gateway.client.blobs.DownloadBlob(
        DownloadBlobRequest(name=blob.name), metadata=(("fluoro-owner", "o0"),)
    )
    async for response in call:
        got.update(response.chunk)
    assert got.digest() == digest.digest()
    assert (
        gateway.status("VmHWM") - before < 100 * 1024
    )  # two uploads at a time of 3 parts of 8 MiB each, and what gRPC and malloc hold on to


@pytest.mark.parametrize("taken", ["FLUORO_GRPC_PORT", "FLUORO_HTTP_PORT"])
def test_a_taken_port_is_named_and_ends_the_start(
    database_url: str, redis_url: str, blob_url: str, taken: str
) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = str(held.getsockname()[1])
        settings = environment(database_url, redis_url, blob_url, **{taken: port})
        done = subprocess.run(
            command(), env=settings, capture_output=True, text=True, timeout=30, check=False
        )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert port in last
    assert "taken" in last
    assert "Traceback" not in done.stderr


def test_a_pipeline_that_cannot_be_used_ends_the_start_with_its_file_and_line(
    database_url: str, redis_url: str, blob_url: str, tmp_path: Path
) -> None:
    (tmp_path / "look.yaml").write_text("name: look\nversion: 0\n")
    settings = environment(database_url, redis_url, blob_url, FLUORO_PIPELINES_FOLDER=str(tmp_path))
    done = subprocess.run(
        command(), env=settings, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert f"{tmp_path}/look.yaml:2: version must be a whole number from 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_or_bad_setting_is_named_without_any_value(blob_url: str) -> None:
    settings = environment("postgresql://u:s3cret@h/d", "", blob_url, FLUORO_GRPC_PORT="70000")
    del settings["FLUORO_BLOB_URL"]
    done = subprocess.run(
        command(), env=settings, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert {line.partition(":")[0] for line in done.stderr.splitlines()} == {
        "FLUORO_REDIS_URL",
        "FLUORO_BLOB_URL",
        "FLUORO_GRPC_PORT",
    }
    assert "s3cret" not in done.stderr


async def test_an_idle_watch_does_not_keep_the_snapshot_it_began_with(gateway: Process) -> None:
    client = gateway.client
    blob = (await client.blobs.UploadBlob(parts(iter([b"x"]), size_bytes=1))).blob.name
    job = Job(
        inputs=[blob] * 10_000,
        steps=[Step(name="inspect", inspect_dicom={}, max_inputs_per_task=10)],
    )
    name = (await client.jobs.SubmitJob(SubmitJobRequest(job=job))).job.name

    async def opened(count: int) -> list[Any]:
        calls = [client.jobs.WatchJob(WatchJobRequest(name=name)) for _ in range(count)]
        for call in calls:
            assert len((await call.read()).snapshot.inputs) == 10_000
        return calls

    calls = await opened(16)
    before = gateway.status("VmRSS")
    calls += [call for _ in range(8) for call in await opened(8)]
    grown = (gateway.status("VmRSS") - before) / 64
    assert grown < 400, f"{grown:.0f} KiB a watch"  # the snapshot has a MB
