"""Every field of every request at the ends of its type: there is an answer, never INTERNAL."""

from collections.abc import Iterator
from typing import Any, Final

import grpc
import psycopg
import pytest
from fluoro.v1 import (
    blob_service_pb2,
    job_service_pb2,
    model_service_pb2,
    pipeline_service_pb2,
    token_service_pb2,
)
from fluoro.v1.blob_service_pb2 import UploadBlobHeader, UploadBlobRequest
from fluoro.v1.job_pb2 import Job, Step
from fluoro.v1.job_service_pb2 import GetJobRequest, ListJobsRequest, SubmitJobRequest
from gateway import cursor
from gateway.rpc import _snake
from gateway.testing import Client, serving
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

INT32: Final = (-(2**31), -1, 1, 2**31 - 1)
INT64: Final = (*INT32, -(2**63), 315_576_000_001, 2**62, 2**63 - 1)
EXTREMES: Final[dict[int, tuple[Any, ...]]] = {
    FieldDescriptor.TYPE_INT32: INT32,
    FieldDescriptor.TYPE_ENUM: INT32,
    FieldDescriptor.TYPE_INT64: INT64,
    FieldDescriptor.TYPE_DOUBLE: (float("nan"), float("inf"), -float("inf"), 5e-324, -1.7e308),
    FieldDescriptor.TYPE_FLOAT: (float("nan"), float("inf"), -float("inf"), 1e-45, -3.4e38),
    FieldDescriptor.TYPE_BOOL: (True, False),
    FieldDescriptor.TYPE_STRING: (
        "",
        "\0",
        "\U0010ffff",
        "x" * 10_000,
        "jobs/",
        "blobs/" + "0" * 32,
        "=" * 32,
    ),
    FieldDescriptor.TYPE_BYTES: (b"", b"\0", bytes(range(256)), bytes(32)),
}
SERVICES: Final = (
    job_service_pb2.DESCRIPTOR.services_by_name["JobService"],
    blob_service_pb2.DESCRIPTOR.services_by_name["BlobService"],
    pipeline_service_pb2.DESCRIPTOR.services_by_name["PipelineService"],
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"],
    token_service_pb2.DESCRIPTOR.services_by_name["TokenService"],
)
METHODS: Final = [method for service in SERVICES for method in service.methods]


def variants(message: Message, whole: Message) -> Iterator[Message]:
    """Copies of `whole` in which one field of `message`, a part of it, is at an end of its type.

    The part is put back.
    """
    for field in message.DESCRIPTOR.fields:
        before = type(message)()
        before.CopyFrom(message)
        value = getattr(message, field.name)
        if field.message_type and field.message_type.GetOptions().map_entry:
            for text in EXTREMES[FieldDescriptor.TYPE_STRING]:
                if field.message_type.fields_by_name["value"].message_type:
                    value[text].string_value = text
                else:
                    value[text] = text
                yield copy(whole)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            part = (value[0] if len(value) else value.add()) if field.is_repeated else value
            part.SetInParent()
            yield copy(whole)
            yield from variants(part, whole)
        else:
            for extreme in EXTREMES[field.type]:
                if field.is_repeated:
                    value[:] = [extreme]
                else:
                    setattr(message, field.name, extreme)
                yield copy(whole)
        message.CopyFrom(before)


def copy(message: Message) -> Message:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied


def seed(method: MethodDescriptor, job: str, blob: str) -> Message:
    """A good request of the method, which ends soon."""
    request = GetMessageClass(method.input_type)()
    fields = request.DESCRIPTOR.fields_by_name
    if "name" in fields:
        request.name = blob if "Blob" in method.name else job
    if isinstance(request, job_service_pb2.SubmitJobRequest):
        request.job.CopyFrom(Job(inputs=[blob], steps=[Step(name="a", inspect_dicom={})]))
    if isinstance(request, token_service_pb2.CreateTokenRequest):
        request.token.owner = "ada"
        request.token.roles.append(token_service_pb2.ROLE_VIEWER)
        request.token.expire_time.GetCurrentTime()
        request.token.expire_time.seconds += 3600
    if "filter" in fields and "Batch" in method.name:
        request.filter = "*"
    if isinstance(request, job_service_pb2.RunJobRequest):
        request.submit.CopyFrom(seed(METHODS[0], job, blob))
    if isinstance(request, job_service_pb2.WaitJobRequest):
        request.timeout.FromNanoseconds(1)
    return request


async def code_of(client: Client, method: MethodDescriptor, request: Message) -> grpc.StatusCode:
    """How the call ends; a stream is read once."""
    stubs = {
        "BlobService": client.blobs,
        "PipelineService": client.pipelines,
        "ModelService": client.models,
        "TokenService": client.tokens,
        "DeploymentService": client.deployment,
    }
    function = getattr(stubs.get(method.containing_service.name, client.jobs), method.name)
    call = function(iter([request]) if method.client_streaming else request, timeout=20)
    try:
        if method.server_streaming:
            await call.read()
            call.cancel()
            return grpc.StatusCode.OK
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("method", METHODS, ids=[_snake(method.name) for method in METHODS])
async def test_no_value_of_any_field_is_internal(
    method: MethodDescriptor, database_url: str, redis_url: str, blob_url: str
) -> None:
    async with serving(database_url, redis_url, blob_url) as client:
        parts = [UploadBlobRequest(header=UploadBlobHeader()), UploadBlobRequest(chunk=b"x")]
        blob = (await client.blobs.UploadBlob(iter(parts))).blob.name
        job = (await client.jobs.SubmitJob(seed(METHODS[0], "", blob))).job.name
        request = seed(method, job, blob)
        requests = list(variants(request, request))
        if isinstance(request, job_service_pb2.SubmitJobRequest):
            by_name = SubmitJobRequest(job=Job(inputs=[blob]), pipeline="pipelines/ct-tissue")
            by_name.parameters.update({"window_center": 40, "window_width": 400})
            requests += variants(by_name, by_name)
        if isinstance(request, job_service_pb2.WatchJobsRequest):
            requests.append(
                job_service_pb2.WatchJobsRequest(
                    start_cursor=cursor.encode_horizon("default", {}, 2**64 - 1)
                )
            )
        bad = [
            (code, one) for one in requests if (code := await code_of(client, method, one)) in BUGS
        ]
        assert len(requests) >= 1
        assert bad == []


BUGS: Final = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED}


@pytest.mark.parametrize(
    ("zone", "seconds"), [("Asia/Tokyo", 253_402_300_799), ("America/New_York", -62_135_596_800)]
)
async def test_the_first_and_last_time_there_is_can_be_read_whatever_the_time_zone_of_the_ledger(
    database_url: str, redis_url: str, blob_url: str, zone: str, seconds: int
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            f"ALTER DATABASE \"{connection.info.dbname}\" SET timezone = '{zone}'".encode()
        )
    async with serving(database_url, redis_url, blob_url) as client:
        parts = [UploadBlobRequest(header=UploadBlobHeader()), UploadBlobRequest(chunk=b"x")]
        blob = (await client.blobs.UploadBlob(iter(parts))).blob.name
        job = Job(
            inputs=[blob],
            steps=[Step(name="a", inspect_dicom={})],
            schedule_time=Timestamp(seconds=seconds),
        )
        name = (await client.jobs.SubmitJob(SubmitJobRequest(job=job))).job.name
        (listed,) = (await client.jobs.ListJobs(ListJobsRequest())).jobs
        assert (
            listed.schedule_time.seconds
            == (await client.jobs.GetJob(GetJobRequest(name=name))).job.schedule_time.seconds
            == seconds
        )
