"""Submits per second that become durable through the gateway, and how long one takes.

64 callers in one process against, in turn: a bare grpc.aio server that answers the same messages
(what gRPC in Python costs), the gateway with its PostgreSQL, and the habit it replaces: FastAPI in
front of Celery's `.delay()`, where an answered job is in Redis and may be lost.
All are as deployed: with TLS, and a bearer JWT that gateway and FastAPI check. The gateway has its
limits and its audit on. It and the bare server run once more with neither TLS nor tokens.
No workers run. Last line: `ratio` = gateway / FastAPI, `ratio_echo` = gateway / bare gRPC, both
with TLS; `ratio_bare` = gateway with / bare gRPC without; `ratio_plain` = gateway without / with.
"""

import asyncio
import json
import os
import ssl
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Final
from uuid import uuid4

import grpc
import grpc.aio
from fluoro.v1 import blob_service_pb2, job_pb2, job_service_pb2
from fluoro.v1.blob_service_pb2_grpc import BlobServiceStub
from fluoro.v1.job_service_pb2_grpc import JobServiceStub
from google.protobuf.json_format import MessageToDict
from rig.figures import quick, ratio, say
from rig.load import Call, Measured, round_of
from rig.secured import Secured
from rig.servers import Process, Servers, durability, servers

IN_FLIGHT: Final = 64
RATES: Final = {"owner_calls_per_second": 1e6, "owner_jobs_per_second": 1e6}
"""Limits of the owner that are looked at and never met."""
PLAIN = " without TLS and tokens"


async def main(rounds: int, seconds: float) -> None:
    """Rounds in turn, figures at the end."""
    with servers() as run:
        secured = Secured(run.folder)
        files = (str(secured.certificate), str(secured.key))
        with (
            run.service("gateway", **RATES, **secured.settings()) as gateway,
            run.service("gateway", **RATES) as plain,
            run.peer("peers.grpc_server", "{port}", *files) as echo,
            run.peer("peers.grpc_server") as plain_echo,
            web(run, secured) as fastapi,
        ):
            async with AsyncExitStack() as stack:
                targets = await callers(stack, secured, (gateway, plain, echo, plain_echo, fastapi))
                measured = {name: Measured() for name in targets}
                for each in targets.values():
                    await round_of(each, seconds / 3, Measured())
                for _ in range(rounds):
                    for name, each in targets.items():
                        await round_of(each, seconds, measured[name])
            report(measured, durability(run.database_url))


async def callers(
    stack: AsyncExitStack, secured: Secured, processes: Sequence[Process]
) -> dict[str, Sequence[Call]]:
    """Those of each target. processes: in the order of `main`."""
    gateway, plain, echo, plain_echo, fastapi = processes
    encrypted = grpc.ssl_channel_credentials(secured.ca.read_bytes())

    async def channel(process: Process, *, is_plain: bool) -> grpc.aio.Channel:
        address = f"127.0.0.1:{process.port}"
        return await stack.enter_async_context(
            grpc.aio.insecure_channel(address)
            if is_plain
            else grpc.aio.secure_channel(address, encrypted)
        )

    metadata = (("authorization", f"Bearer {secured.token}"),)
    ours = await channel(gateway, is_plain=False)
    job = job_pb2.Job(inputs=[await upload(ours, metadata)], labels={"study": "benchmark"})
    job.steps.add(name="inspect").inspect_dicom.SetInParent()
    return {
        "bare grpc.aio": [
            submitter(await channel(echo, is_plain=False), job, metadata),
        ]
        * IN_FLIGHT,
        f"bare grpc.aio{PLAIN}": [submitter(await channel(plain_echo, is_plain=True), job)]
        * IN_FLIGHT,
        "gateway": [submitter(ours, job, metadata)] * IN_FLIGHT,
        f"gateway{PLAIN}": [submitter(await channel(plain, is_plain=True), job)] * IN_FLIGHT,
        "fastapi+celery": [
            await poster(stack, fastapi.port, "/jobs", job, secured) for _ in range(IN_FLIGHT)
        ],
        "fastapi+celery async": [
            await poster(stack, fastapi.port, "/jobs-async", job, secured) for _ in range(IN_FLIGHT)
        ],
    }


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
        ratio_bare=ratio(ours, measured[f"bare grpc.aio{PLAIN}"].rates),
        ratio_plain=ratio(measured[f"gateway{PLAIN}"].rates, ours),
        ratio_fastapi_async=ratio(ours, measured["fastapi+celery async"].rates),
        per_second=measured["gateway"].figures()["per_second"],
        rounds=len(ours),
        cpus=os.cpu_count(),
    )


def web(run: Servers, secured: Secured) -> Any:
    """FastAPI under uvicorn, one process."""
    quiet = ("--no-access-log", "--timeout-keep-alive", "600")
    files = ("--ssl-certfile", str(secured.certificate), "--ssl-keyfile", str(secured.key))
    return run.peer(
        "uvicorn", "peers.web:app", "--port", "{port}", *quiet, *files, ready="Uvicorn running"
    )


Metadata = Sequence[tuple[str, str]]


async def upload(channel: grpc.aio.Channel, metadata: Metadata = ()) -> str:
    """A small input; its name."""
    parts = [
        blob_service_pb2.UploadBlobRequest(
            header=blob_service_pb2.UploadBlobHeader(media_type="application/dicom")
        ),
        blob_service_pb2.UploadBlobRequest(chunk=b"not looked at"),
    ]
    sending: Any = BlobServiceStub(channel).UploadBlob(iter(parts), metadata=metadata)
    response = await sending
    return str(response.blob.name)


def submitter(channel: grpc.aio.Channel, job: job_pb2.Job, metadata: Metadata = ()) -> Call:
    """A caller of SubmitJob; every call is a new job."""
    submit: Any = JobServiceStub(channel).SubmitJob

    async def call() -> None:
        request = job_service_pb2.SubmitJobRequest(job=job, request_id=str(uuid4()))
        await submit(request, metadata=metadata)

    return call


async def poster(
    stack: AsyncExitStack, port: int, path: str, job: job_pb2.Job, secured: Secured
) -> Call:
    """A caller that posts the same as JSON over a connection of its own.

    Plain HTTP/1.1 on a stream, cheaper than any HTTP library.
    """
    trust = ssl.create_default_context(cafile=str(secured.ca))
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
    stack.callback(writer.close)
    as_json = MessageToDict(job)
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {secured.token}\r\n"
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
    asyncio.run(main(1, 0.6) if quick(__doc__) else main(5, 2))
