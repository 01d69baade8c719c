"""A bare grpc.aio server with the gateway's messages: what gRPC itself costs in Python.

SubmitJob answers with the job it was given, as the gateway's answer looks. UploadBlob counts bytes
and throws them away. DownloadBlob sends `offset` bytes out of memory.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import grpc
import grpc.aio
from fluoro.v1.blob_service_pb2 import (
    Blob,
    DownloadBlobRequest,
    DownloadBlobResponse,
    UploadBlobRequest,
    UploadBlobResponse,
)
from fluoro.v1.job_pb2 import Job
from fluoro.v1.job_service_pb2 import SubmitJobRequest, SubmitJobResponse

CHUNK: Final = bytes(2**20)
Context = grpc.aio.ServicerContext[Any, Any]


async def submit(request: SubmitJobRequest, _: Context) -> SubmitJobResponse:
    """The job, with a name and a time."""
    given = request.job
    job = Job(
        name=f"jobs/{uuid4()}",
        inputs=given.inputs,
        labels=given.labels,
        state=Job.STATE_PENDING,
        owner="default",
        last_sequence=1,
    )
    job.create_time.GetCurrentTime()
    return SubmitJobResponse(job=job)


async def upload(requests: AsyncIterator[UploadBlobRequest], _: Context) -> UploadBlobResponse:
    """Counts."""
    size = 0
    async for request in requests:
        size += len(request.chunk)
    return UploadBlobResponse(blob=Blob(size_bytes=size))


async def download(request: DownloadBlobRequest, _: Context) -> AsyncIterator[DownloadBlobResponse]:
    """Zeros."""
    for _number in range(request.offset // len(CHUNK)):
        yield DownloadBlobResponse(chunk=CHUNK)


def handlers() -> list[grpc.GenericRpcHandler]:
    """The three methods under the gateway's names."""
    jobs = {
        "SubmitJob": grpc.unary_unary_rpc_method_handler(
            submit, SubmitJobRequest.FromString, SubmitJobResponse.SerializeToString
        )
    }
    blobs: dict[str, Any] = {
        "UploadBlob": grpc.stream_unary_rpc_method_handler(
            upload, UploadBlobRequest.FromString, UploadBlobResponse.SerializeToString
        ),
        "DownloadBlob": grpc.unary_stream_rpc_method_handler(
            download, DownloadBlobRequest.FromString, DownloadBlobResponse.SerializeToString
        ),
    }
    return [
        grpc.method_handlers_generic_handler("fluoro.v1.JobService", jobs),
        grpc.method_handlers_generic_handler("fluoro.v1.BlobService", blobs),
    ]


async def main(port: int, certificate: bytes = b"", key: bytes = b"") -> None:
    """Serves until killed. certificate, key: for TLS, in PEM."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(handlers())
    address = f"127.0.0.1:{port}"
    if certificate:
        server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)]))
    else:
        server.add_insecure_port(address)
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), *(Path(name).read_bytes() for name in sys.argv[2:])))
