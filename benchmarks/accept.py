"""Submits per second that become durable through the gateway, and how long one takes.

64 callers in one process against, in turn: a bare grpc.aio server that answers the same messages
(what gRPC in Python costs), the gateway with its PostgreSQL, and the habit it replaces: FastAPI in
front of Celery's `.delay()`, where an answered job is in Redis and may be lost.
No workers run. Last line: `ratio` = gateway / FastAPI, `ratio_echo` = gateway / bare gRPC.
"""

import asyncio
import json
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Final
from uuid import uuid4

import grpc.aio
from fluoro.v1 import blob_service_pb2, job_pb2, job_service_pb2
from fluoro.v1.blob_service_pb2_grpc import BlobServiceStub
from fluoro.v1.job_service_pb2_grpc import JobServiceStub
from google.protobuf.json_format import MessageToDict
from rig.figures import quick, ratio, say
from rig.load import Call, Measured, round_of
from rig.servers import Servers, durability, servers

IN_FLIGHT: Final = 64


async def main(rounds: int, seconds: float) -> None:
    """Rounds in turn, figures at the end."""
    with (
        servers() as run,
        run.service("gateway", owner_calls_per_second=1e6, owner_jobs_per_second=1e6) as gateway,
        run.peer("peers.grpc_server") as echo,
        web(run) as fastapi,
    ):
        async with AsyncExitStack() as stack:
            ours, bare = [
                await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{p.port}"))
                for p in (gateway, echo)
            ]
            job = job_pb2.Job(inputs=[await upload(ours)], labels={"study": "benchmark"})
            job.steps.add(name="inspect").inspect_dicom.SetInParent()
            targets: dict[str, Sequence[Call]] = {
                "bare grpc.aio": [submitter(bare, job)] * IN_FLIGHT,
                "gateway": [submitter(ours, job)] * IN_FLIGHT,
                "fastapi+celery": [
                    await poster(stack, fastapi.port, "/jobs", job) for _ in range(IN_FLIGHT)
                ],
                "fastapi+celery async": [
                    await poster(stack, fastapi.port, "/jobs-async", job) for _ in range(IN_FLIGHT)
                ],
            }
            measured = {name: Measured() for name in targets}
            for callers in targets.values():
                await round_of(callers, seconds / 3, Measured())
            for _ in range(rounds):
                for name, callers in targets.items():
                    await round_of(callers, seconds, measured[name])
        report(measured, durability(run.database_url))


def report(measured: dict[str, Measured], durable: str) -> None:
    """Prints."""
    notes = {
        "gateway": f"PostgreSQL: {durable}",
        "fastapi+celery": "sync endpoint",
        "fastapi+celery async": "blocks its event loop",
    }
    for name, figures in measured.items():
        say(
            name,
            **figures.figures(),
            in_flight=IN_FLIGHT,
            calls=len(figures.seconds),
            note=notes.get(name, ""),
        )
    ours = measured["gateway"].rates
    say(
        "accept",
        ratio=ratio(ours, measured["fastapi+celery"].rates),
        ratio_echo=ratio(ours, measured["bare grpc.aio"].rates),
        ratio_fastapi_async=ratio(ours, measured["fastapi+celery async"].rates),
        per_second=measured["gateway"].figures()["per_second"],
        rounds=len(ours),
        cpus=os.cpu_count(),
    )


def web(run: Servers) -> Any:
    """FastAPI under uvicorn, one process."""
    quiet = ("--no-access-log", "--timeout-keep-alive", "600")
    return run.peer("uvicorn", "peers.web:app", "--port", "{port}", *quiet, ready="Uvicorn running")


async def upload(channel: grpc.aio.Channel) -> str:
    """A small input; its name."""
    parts = [
        blob_service_pb2.UploadBlobRequest(
            header=blob_service_pb2.UploadBlobHeader(media_type="application/dicom")
        ),
        blob_service_pb2.UploadBlobRequest(chunk=b"not looked at"),
    ]
    response: Any = await BlobServiceStub(channel).UploadBlob(iter(parts))
    return str(response.blob.name)


def submitter(channel: grpc.aio.Channel, job: job_pb2.Job) -> Call:
    """A caller of SubmitJob; every call is a new job."""
    submit: Any = JobServiceStub(channel).SubmitJob

    async def call() -> None:
        await submit(job_service_pb2.SubmitJobRequest(job=job, request_id=str(uuid4())))

    return call


async def poster(stack: AsyncExitStack, port: int, path: str, job: job_pb2.Job) -> Call:
    """A caller that posts the same as JSON over a connection of its own.

    Plain HTTP/1.1 on a stream, cheaper than any HTTP library.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    stack.callback(writer.close)
    as_json = MessageToDict(job)
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\n"
        "content-type: application/json\r\ncontent-length: "
    )

    async def call() -> None:
        body = json.dumps({"job": as_json, "requestId": str(uuid4())})
        writer.write(f"{head}{len(body)}\r\n\r\n{body}".encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"{path}: {answer.decode()}")
        length = answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))

    return call


if __name__ == "__main__":
    asyncio.run(main(1, 0.6) if quick(__doc__) else main(5, 3))
