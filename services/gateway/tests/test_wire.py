"""Bytes and messages: counted before they are parsed, and the same at once or in pieces."""

from typing import Final

import pytest
from fluoro.v1 import job_pb2
from fluoro.v1.blob_service_pb2 import UploadBlobRequest
from fluoro.v1.job_service_pb2 import GetJobResponse, ListJobsRequest, SubmitJobRequest
from gateway.wire import MAX_FIELDS, has_too_many_fields, is_large, lone_bytes, serialized_in_pieces
from google.protobuf.message import Message


def nested(**fields: object) -> SubmitJobRequest:
    return SubmitJobRequest(job=job_pb2.Job(steps=[job_pb2.Step(**fields)]))  # type: ignore[arg-type]  # keywords of the test


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (SubmitJobRequest(job=job_pb2.Job(inputs=[""] * 7, priority=3)), 1 + 7 + 1),
        (SubmitJobRequest(job=job_pb2.Job(labels={"a": "b", "c": "d"})), 1 + 2 * 3),
        (nested(name="a", after=["b"] * 5), 2 + 1 + 5),
        (nested(render_dicom={"window": {"center": 1, "width": 2}}), 2 + 1 + 1 + 2),
        (
            nested(tasks=[job_pb2.Task(attempts=[job_pb2.Attempt(number=1)] * 3)] * 2),
            2 + 2 * (1 + 3 * 2),
        ),
        (ListJobsRequest(states=[job_pb2.Job.STATE_PENDING] * 9), 1 + 9),
        (UploadBlobRequest(chunk=bytes(2**20)), 1),
    ],
    ids=str,
)
def test_fields_are_counted_wherever_they_are(message: Message, fields: int) -> None:
    data = message.SerializeToString()
    assert not has_too_many_fields(data, message.DESCRIPTOR, fields)
    assert has_too_many_fields(data, message.DESCRIPTOR, fields - 1)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"\xff" * 64, b"\x0a", b"\x0a\xff\xff\xff\xff\x7f", b"\x0d\x01", b"\x0b\x0c"],
)
def test_bytes_that_are_no_message_are_left_to_the_parser(data: bytes) -> None:
    assert not has_too_many_fields(data, SubmitJobRequest.DESCRIPTOR, MAX_FIELDS)


CHUNK: Final = UploadBlobRequest.DESCRIPTOR.fields_by_name["chunk"]


@pytest.mark.parametrize("size", [0, 1, 127, 128, 2**20])
def test_a_message_that_is_only_a_chunk_is_read_in_place(size: int) -> None:
    data = UploadBlobRequest(chunk=bytes(size)).SerializeToString()
    chunk = lone_bytes(data, CHUNK)
    assert chunk is not None
    assert (chunk, chunk.obj) == (bytes(size), data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x12",
        b"\x12\xff",
        b"\x12\x02a",
        b"\x12\x01ab",
        b"\x12\x01a\x12\x01b",
        b"\x0a\x02\x10\x01",
        b"\x12" + b"\xff" * 2**20,
        b"\x10\x01",
    ],
)
def test_a_message_that_is_more_or_less_than_a_chunk_is_left_to_the_parser(data: bytes) -> None:
    assert lone_bytes(data, CHUNK) is None


def a_job(items: int) -> GetJobResponse:
    response = GetJobResponse()
    response.job.name, response.job.last_sequence = "jobs/1", 2**40
    response.job.inputs.extend(f"blobs/{number}" for number in range(items))
    response.job.labels.update({"a": "b", "c": ""})
    response.job.create_time.FromSeconds(5)
    for name in ("one", "two"):
        step = response.job.steps.add(name=name, after=["x"], state=job_pb2.Step.STATE_SUCCEEDED)
        step.inspect_dicom.SetInParent()
        step.retry_policy.max_attempts = 3
        for number in range(items):
            step.items.add(input=number, state=job_pb2.Item.STATE_SUCCEEDED)
            step.artifacts.add(name=f"{number}.png", input=0, sha256=bytes(32))
            step.inspect_dicom_result.instances.add(input=number, modality="CT")
        step.tasks.add(shard=1).attempts.add(number=1, worker="host:1")
    response.job.steps.add(name="three").render_dicom.window.width = 1
    return response


@pytest.mark.parametrize("items", [0, 1, 1201])
def test_a_message_in_pieces_is_the_same_message(items: int) -> None:
    response = a_job(items)
    assert is_large(response) == (items > 1000)
    assert GetJobResponse.FromString(serialized_in_pieces(response)) == response
