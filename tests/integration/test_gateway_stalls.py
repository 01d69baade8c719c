"""The event loop never stands still for long: requests at every limit, the largest answers."""

import asyncio
import gc
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from fluoro.v1 import job_pb2
from fluoro.v1.blob_service_pb2 import UploadBlobHeader, UploadBlobRequest
from fluoro.v1.job_service_pb2 import (
    GetJobRequest,
    ListArtifactsRequest,
    ListInputsRequest,
    ListItemsRequest,
    ListJobsRequest,
    ListTasksRequest,
    SubmitJobRequest,
    WatchJobsRequest,
)
from fluoro_jobs.ids import new_id
from gateway.testing import Client, serving

LONGEST_SECONDS: Final = 0.05
INPUTS: Final = 10_000

RESULTS: Final = """
WITH job AS (SELECT id FROM jobs j WHERE (SELECT count(*) FROM steps s WHERE s.job_id = j.id) = 10),
blob AS (SELECT id FROM blobs LIMIT 1),
inputs AS (SELECT generate_series(0, %s - 1) AS input), items AS (
  INSERT INTO items (job_id, step, shard, number, key, input, state, reason, message)
  SELECT job.id, s, 0, input, input, input, 1, '', '' FROM job, inputs, generate_series(0, 4) s
), artifacts AS (
  INSERT INTO artifacts (job_id, step, shard, position, name, role, key, input, blob_id)
  SELECT job.id, s, 0, input, 'preview-' || input || '.png', 'preview', input, input, blob.id
    FROM job, blob, inputs, generate_series(0, 1) s
) SELECT id FROM job
"""
"""What steps leave that worked on each input: as much as fits into an answer."""

COPIES: Final = 60
COPY: Final = """
WITH first AS (SELECT * FROM jobs LIMIT 1), copy AS (
  INSERT INTO jobs (id, owner, input_count, labels, priority, state, last_sequence)
  SELECT %s, owner, input_count, labels, priority, state, last_sequence FROM first RETURNING id
)
INSERT INTO job_inputs (job_id, number, blob_id)
SELECT copy.id, i.number, i.blob_id FROM copy, first JOIN job_inputs i ON i.job_id = first.id
"""

SENDER: Final = """
import pathlib, sys
import grpc

target, folder = sys.argv[1:]
unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
with grpc.insecure_channel(target, options=unlimited) as channel:
    for path in sorted(pathlib.Path(folder).iterdir()):
        method, data = path.name.split("~")[1].replace("+", "/"), path.read_bytes()
        try:
            if "Watch" in method:
                next(channel.unary_stream(method)(data, timeout=60))
            elif "Upload" in method:
                channel.stream_unary(method)(iter([data]), timeout=60)
            else:
                channel.unary_unary(method)(data, timeout=60)
            print("OK")
        except grpc.RpcError as error:
            print(error.code().name)
"""


class Ticker:
    """Measures how long the event loop of this process does not turn.

    A stall counts with the CPU time that the process used meanwhile: on a busy machine it is the
    machine that lets it wait.
    """

    def __init__(self) -> None:
        self.longest_seconds = 0.0

    async def run(self) -> None:
        while True:
            wall, cpu = time.perf_counter(), time.process_time()
            await asyncio.sleep(0.001)
            self.longest_seconds = max(
                self.longest_seconds, min(time.perf_counter() - wall, time.process_time() - cpu)
            )


@contextmanager
def ticking() -> Iterator[Ticker]:
    ticker = Ticker()
    task = asyncio.create_task(ticker.run())
    gc.collect()
    gc.freeze()  # a full collection walks through what all tests before this one have imported
    try:
        yield ticker
    finally:
        gc.unfreeze()
        task.cancel()


def wrapped(number: int, data: bytes) -> bytes:
    """A length-delimited field (protobuf's encoding)."""
    out = bytearray()
    for value in (number << 3 | 2, len(data)):
        rest = value
        while rest > 0x7F:
            out.append(rest & 0x7F | 0x80)
            rest >>= 7
        out.append(rest)
    return bytes(out) + data


def hostile(size: int, blob: str) -> dict[str, bytes]:
    """Requests of about this size, by method and shape."""

    def job(inner: bytes) -> bytes:
        return wrapped(1, inner * (size // len(inner)))

    def step(inner: bytes) -> bytes:
        return wrapped(1, wrapped(2, blob.encode()) + wrapped(3, inner * (size // len(inner))))

    text = "x" * size
    labels = b"".join(
        wrapped(4, wrapped(1, f"{number:06}".encode())) for number in range(size // 10)
    )
    submits = {
        "inputs": job(wrapped(2, b"")),
        "bad inputs": job(wrapped(2, b"blobs/nope")),
        "steps": job(wrapped(3, b"")),
        "steps in part": job(wrapped(3, wrapped(1, b"a") + wrapped(10, b""))),
        "labels": wrapped(1, labels),
        "after": step(wrapped(2, b"a")),
        "tasks": step(wrapped(33, b"")),
        "attempts": step(wrapped(33, wrapped(5, b""))),
        "formats": step(wrapped(13, wrapped(1, b"\x01" * (size - 20)))),
        "instances": step(wrapped(40, wrapped(1, b""))),
        "operations": step(wrapped(10, b"") + wrapped(11, b"")),
        "unknown fields": job(b"\xc0\x3e\x00"),
        "a number without end": b"\xff" * size,
        "one label": SubmitJobRequest(
            job=job_pb2.Job(inputs=[blob], labels={"a": text[:-200]})
        ).SerializeToString(),
        "one input": wrapped(1, wrapped(2, b"blobs/" + text[:-200].encode()) + wrapped(3, b"")),
        "a title": wrapped(
            1, wrapped(2, blob.encode()) + wrapped(3, wrapped(13, wrapped(2, text[:-200].encode())))
        ),
        "a request_id": wrapped(2, text[:-200].encode())
        + wrapped(1, wrapped(2, blob.encode()) + wrapped(3, b"")),
    }
    others = {
        "JobService/ListJobs": [
            ListJobsRequest(states=[1] * (size - 20)).SerializeToString(),
            ListJobsRequest(page_token=text[:-20]).SerializeToString(),
            ListJobsRequest(labels={"a": text[:-20]}).SerializeToString(),
        ],
        "JobService/WatchJobs": [WatchJobsRequest(start_cursor=text[:-20]).SerializeToString()],
        "JobService/GetJob": [GetJobRequest(name=f"jobs/{text[:-20]}").SerializeToString()],
        "BlobService/UploadBlob": [
            wrapped(1, b"") * (size // 2),
            wrapped(2, b"") * (size // 2),
            b"\xff" * size,
        ],
    }
    found = {f"JobService/SubmitJob~{shape}": data for shape, data in submits.items()}
    return found | {
        f"{method}~{number}": data
        for method, several in others.items()
        for number, data in enumerate(several)
    }


def large_jobs(blob: str) -> dict[str, bytes]:
    """Jobs at their limits: two that are stored, the others refused late."""

    def job(names: list[str], steps: int, **fields: Any) -> bytes:
        parts = [
            job_pb2.Step(name=f"s{number}", inspect_dicom={}, **fields) for number in range(steps)
        ]
        return SubmitJobRequest(job=job_pb2.Job(inputs=names, steps=parts)).SerializeToString()

    return {
        "JobService/SubmitJob~few tasks": job([blob] * INPUTS, 1),
        "JobService/SubmitJob~all tasks": job([blob] * INPUTS, 10, max_inputs_per_task=100),
        "JobService/SubmitJob~a million tasks": job([blob] * INPUTS, 100, max_inputs_per_task=1),
        "JobService/SubmitJob~nothing there": job([f"blobs/{new_id()}" for _ in range(INPUTS)], 1),
        "JobService/SubmitJob~bad names": job(["blobs/" + "z" * 36] * INPUTS, 1),
    }


def write(folder: Path, requests: dict[str, bytes]) -> None:
    """A file for each request; its name says in which order, and to which method, it is sent."""
    folder.mkdir()
    for number, (name, data) in enumerate(requests.items()):
        method, shape = name.split("~")
        (folder / f"{number:03}~+fluoro.v1.{method.replace('/', '+')}~{shape}").write_bytes(data)


async def send(port: int, folder: Path, requests: dict[str, bytes]) -> tuple[float, dict[str, str]]:
    """The longest stall while another process sends these, and how they ended."""
    write(folder, requests)
    command = [sys.executable, "-c", SENDER, f"127.0.0.1:{port}", str(folder)]
    with ticking() as ticker:
        sender = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        output, _ = await sender.communicate()
    return ticker.longest_seconds, dict(zip(requests, output.decode().split(), strict=True))


async def uploaded(client: Client) -> str:
    parts = [UploadBlobRequest(header=UploadBlobHeader()), UploadBlobRequest(chunk=b"x")]
    return str((await client.blobs.UploadBlob(iter(parts))).blob.name)


@pytest.mark.parametrize("size", [64_000, 400_000, 4_000_000])
async def test_hostile_requests_do_not_hold_the_event_loop_up(
    size: int,
    database_url: str,
    redis_url: str,
    blob_url: str,
    tmp_path: Path,
    unused_tcp_port: int,
) -> None:
    async with serving(database_url, redis_url, blob_url, grpc_port=unused_tcp_port) as client:
        requests = hostile(size, await uploaded(client))
        longest, codes = await send(unused_tcp_port, tmp_path / "requests", requests)
    assert set(codes.values()) <= {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "OK"}
    assert longest <= LONGEST_SECONDS


async def test_the_largest_jobs_do_not_hold_the_event_loop_up_on_their_way_in_and_out(
    database_url: str, redis_url: str, blob_url: str, tmp_path: Path, unused_tcp_port: int
) -> None:
    async with serving(database_url, redis_url, blob_url, grpc_port=unused_tcp_port) as client:
        requests = large_jobs(await uploaded(client))
        longest, codes = await send(unused_tcp_port, tmp_path / "in", requests)
        assert list(codes.values()) == [
            "OK",
            "OK",
            "INVALID_ARGUMENT",
            "NOT_FOUND",
            "INVALID_ARGUMENT",
        ]
        assert longest <= LONGEST_SECONDS
        with psycopg.connect(database_url) as connection:
            (name,) = connection.execute(RESULTS, (INPUTS,)).fetchone() or ("",)
        job = f"jobs/{name}"
        reads = {
            "JobService/GetJob~all": GetJobRequest(name=job).SerializeToString(),
            "JobService/ListInputs~": ListInputsRequest(
                job=job, page_size=1000
            ).SerializeToString(),
            "JobService/ListTasks~": ListTasksRequest(job=job, page_size=1000).SerializeToString(),
            "JobService/ListItems~": ListItemsRequest(job=job, page_size=1000).SerializeToString(),
            "JobService/ListArtifacts~": ListArtifactsRequest(
                job=job, page_size=1000
            ).SerializeToString(),
        }
        longest, codes = await send(unused_tcp_port, tmp_path / "out", reads)
    assert set(codes.values()) == {"OK"}
    assert longest <= LONGEST_SECONDS


async def test_lists_of_the_largest_jobs_come_in_short_pages_that_do_not_hold_the_event_loop_up(
    database_url: str, redis_url: str, blob_url: str, tmp_path: Path, unused_tcp_port: int
) -> None:
    async with serving(database_url, redis_url, blob_url, grpc_port=unused_tcp_port) as client:
        job = job_pb2.Job(
            inputs=[await uploaded(client)] * INPUTS,
            steps=[job_pb2.Step(name="a", inspect_dicom={})],
        )
        await client.jobs.SubmitJob(SubmitJobRequest(job=job))
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.cursor().executemany(COPY, [(new_id(),) for _ in range(COPIES)])
        request = ListJobsRequest(page_size=1000)
        reads = {
            "JobService/ListJobs~all": request.SerializeToString(),
            "JobService/WatchJobs~all": WatchJobsRequest().SerializeToString(),
        }
        longest, codes = await send(unused_tcp_port, tmp_path / "lists", reads)
        names: list[str] = []
        while page := await client.jobs.ListJobs(request):
            names += [job.name for job in page.jobs]
            request.page_token = page.next_page_token
            if not request.page_token:
                break
    assert set(codes.values()) == {"OK"}
    assert longest <= LONGEST_SECONDS
    assert len(names) == len(set(names)) == COPIES + 1
