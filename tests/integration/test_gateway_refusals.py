"""What the gateway says to requests it does not take: the code, the reason, and the fields."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from fluoro.v1.blob_service_pb2 import (
    DownloadBlobRequest,
    GetBlobRequest,
    UploadBlobHeader,
    UploadBlobRequest,
)
from fluoro.v1.job_pb2 import Job, Step
from fluoro.v1.job_service_pb2 import (
    CancelJobRequest,
    GetJobRequest,
    ListJobsRequest,
    SubmitJobRequest,
    WaitJobRequest,
    WatchJobRequest,
)
from fluoro_jobs.ids import new_id
from gateway import cursor
from gateway.testing import Client, refused, serving

STRANGER = (("fluoro-owner", "stranger"),)


def step(name: str, *after: str) -> Step:
    return Step(name=name, after=after, inspect_dicom={})


async def upload(client: Client, *parts: UploadBlobRequest) -> str:
    response = await client.blobs.UploadBlob(iter(parts))
    return str(response.blob.name)


def chunk(size: int) -> UploadBlobRequest:
    return UploadBlobRequest(chunk=bytes(size))


HEADER = UploadBlobRequest(header=UploadBlobHeader(size_bytes=3))


class Scene:
    """A gateway with a blob and a job of the owner `default`."""

    def __init__(self, client: Client, blob: str, job: str) -> None:
        self.client, self.blob, self.job = client, blob, job

    def submit(self, *steps: Step, **fields: Any) -> Awaitable[object]:
        job = Job(
            inputs=fields.pop("inputs", [self.blob]),
            steps=steps,
            **{k: fields.pop(k) for k in ("priority", "labels") if k in fields},
        )
        return self.client.jobs.SubmitJob(SubmitJobRequest(job=job, **fields))  # type: ignore[no-any-return]

    def watch(self, **fields: str) -> Awaitable[object]:
        return self.client.jobs.WatchJob(WatchJobRequest(**fields)).read()  # type: ignore[no-any-return]

    def download(self, **fields: Any) -> Awaitable[object]:
        return self.client.blobs.DownloadBlob(DownloadBlobRequest(**fields)).read()  # type: ignore[no-any-return]


@pytest.fixture
async def scene(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Scene]:
    async with serving(database_url, redis_url, blob_url) as client:
        blob = await upload(client, HEADER, chunk(3))
        request = SubmitJobRequest(
            job=Job(inputs=[blob], steps=[step("inspect")]), request_id="taken"
        )
        yield Scene(client, blob, (await client.jobs.SubmitJob(request)).job.name)


NOBODY = f"jobs/{new_id()}"
NOTHING = f"blobs/{new_id()}"

Call = Callable[[Scene], Awaitable[object]]

CASES: dict[str, tuple[Call, str, str, list[str]]] = {
    "a job without steps": (lambda s: s.submit(), "INVALID_ARGUMENT", "JOB_EMPTY", ["job.steps"]),
    "a job without inputs": (
        lambda s: s.submit(step("a"), inputs=[]),
        "INVALID_ARGUMENT",
        "JOB_EMPTY",
        ["job.inputs"],
    ),
    "no job at all": (
        lambda s: s.client.jobs.SubmitJob(SubmitJobRequest()),
        "INVALID_ARGUMENT",
        "JOB_EMPTY",
        ["job.steps"],
    ),
    "steps in a circle": (
        lambda s: s.submit(step("a", "b"), step("b", "a")),
        "INVALID_ARGUMENT",
        "STEP_GRAPH_CYCLE",
        ["job.steps[0].after"],
    ),
    "a step after one that is not there": (
        lambda s: s.submit(step("a", "z")),
        "INVALID_ARGUMENT",
        "STEP_UNKNOWN",
        ["job.steps[0].after[0]"],
    ),
    "a step that does nothing": (
        lambda s: s.submit(Step(name="a")),
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        ["job.steps[0].operation"],
    ),
    "a bad priority": (
        lambda s: s.submit(step("a"), priority=10),
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        ["job.priority"],
    ),
    "a bad name among the inputs": (
        lambda s: s.submit(step("a"), inputs=["x"]),
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        ["job.inputs[0]"],
    ),
    "an input that does not exist": (
        lambda s: s.submit(step("a"), inputs=[s.blob, NOTHING]),
        "NOT_FOUND",
        "BLOB_NOT_FOUND",
        ["job.inputs[1]"],
    ),
    "a request_id used for another body": (
        lambda s: s.submit(step("other"), request_id="taken"),
        "ALREADY_EXISTS",
        "REQUEST_ID_REUSED",
        ["request_id"],
    ),
    "a job over the message limit": (
        lambda s: s.submit(step("a"), labels={"x": "y" * (4 * 2**20)}),
        "RESOURCE_EXHAUSTED",
        "MESSAGE_TOO_LARGE",
        [],
    ),
    "a job far over the message limit": (
        lambda s: s.submit(step("a"), labels={"x": "y" * (9 * 2**20)}),
        "RESOURCE_EXHAUSTED",
        "",
        [],
    ),
    "another's blob as input": (
        lambda s: s.client.jobs.SubmitJob(
            SubmitJobRequest(job=Job(inputs=[s.blob], steps=[step("a")])), metadata=STRANGER
        ),
        "NOT_FOUND",
        "BLOB_NOT_FOUND",
        ["job.inputs[0]"],
    ),
    "get: no such job": (
        lambda s: s.client.jobs.GetJob(GetJobRequest(name=NOBODY)),
        "NOT_FOUND",
        "JOB_NOT_FOUND",
        [],
    ),
    "get: another's job": (
        lambda s: s.client.jobs.GetJob(GetJobRequest(name=s.job), metadata=STRANGER),
        "NOT_FOUND",
        "JOB_NOT_FOUND",
        [],
    ),
    "get: not a name": (
        lambda s: s.client.jobs.GetJob(GetJobRequest(name="7")),
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        ["name"],
    ),
    "cancel: another's job": (
        lambda s: s.client.jobs.CancelJob(CancelJobRequest(name=s.job), metadata=STRANGER),
        "NOT_FOUND",
        "JOB_NOT_FOUND",
        [],
    ),
    "wait: no such job": (
        lambda s: s.client.jobs.WaitJob(WaitJobRequest(name=NOBODY)),
        "NOT_FOUND",
        "JOB_NOT_FOUND",
        [],
    ),
    "wait: too long": (
        lambda s: s.client.jobs.WaitJob(WaitJobRequest(name=s.job, timeout={"seconds": 601})),
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        ["timeout"],
    ),
    "wait: a negative time": (
        lambda s: s.client.jobs.WaitJob(WaitJobRequest(name=s.job, timeout={"seconds": -1})),
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        ["timeout"],
    ),
    "wait: longer than any time": (
        lambda s: s.client.jobs.WaitJob(WaitJobRequest(name=s.job, timeout={"seconds": 2**62})),
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        ["timeout"],
    ),
    "wait: a second that goes back": (
        lambda s: s.client.jobs.WaitJob(
            WaitJobRequest(name=s.job, timeout={"seconds": 1, "nanos": -1})
        ),
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        ["timeout"],
    ),
    "list: a negative page": (
        lambda s: s.client.jobs.ListJobs(ListJobsRequest(page_size=-1)),
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        ["page_size"],
    ),
    "list: a made-up token": (
        lambda s: s.client.jobs.ListJobs(ListJobsRequest(page_token="x")),
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        ["page_token"],
    ),
    "list: a state there is not": (
        lambda s: s.client.jobs.ListJobs(ListJobsRequest(states=[99])),
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        ["states"],
    ),
    "list: a label no job can have": (
        lambda s: s.client.jobs.ListJobs(ListJobsRequest(labels={"a": "\0"})),
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        ["labels"],
    ),
    "watch: no such job": (lambda s: s.watch(name=NOBODY), "NOT_FOUND", "JOB_NOT_FOUND", []),
    "watch: a made-up cursor": (
        lambda s: s.watch(name=s.job, start_cursor="x"),
        "INVALID_ARGUMENT",
        "CURSOR_INVALID",
        [],
    ),
    "watch: another job's cursor": (
        lambda s: s.watch(name=s.job, start_cursor=cursor.encode(new_id(), 1)),
        "INVALID_ARGUMENT",
        "CURSOR_INVALID",
        [],
    ),
    "watch: a cursor of the future": (
        lambda s: s.watch(name=s.job, start_cursor=cursor.encode(UUID(s.job[5:]), 2)),
        "INVALID_ARGUMENT",
        "CURSOR_INVALID",
        [],
    ),
    "an owner with a space": (
        lambda s: s.client.jobs.GetJob(
            GetJobRequest(name=s.job), metadata=(("fluoro-owner", "a b"),)
        ),
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        [],
    ),
    "blob: another's": (
        lambda s: s.client.blobs.GetBlob(GetBlobRequest(name=s.blob), metadata=STRANGER),
        "NOT_FOUND",
        "BLOB_NOT_FOUND",
        [],
    ),
    "blob: no such": (
        lambda s: s.client.blobs.GetBlob(GetBlobRequest(name=NOTHING)),
        "NOT_FOUND",
        "BLOB_NOT_FOUND",
        [],
    ),
    "download: no such": (lambda s: s.download(name=NOTHING), "NOT_FOUND", "BLOB_NOT_FOUND", []),
    "download: past the end": (
        lambda s: s.download(name=s.blob, offset=4),
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        ["offset"],
    ),
    "download: before the start": (
        lambda s: s.download(name=s.blob, offset=-1),
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        ["offset"],
    ),
    "upload: nothing": (
        lambda s: upload(s.client),
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        ["header"],
    ),
    "upload: no header": (
        lambda s: upload(s.client, chunk(3)),
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        ["header"],
    ),
    "upload: two headers": (
        lambda s: upload(s.client, HEADER, HEADER),
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        ["chunk"],
    ),
    "upload: too little": (
        lambda s: upload(s.client, HEADER, chunk(2)),
        "INVALID_ARGUMENT",
        "UPLOAD_MISMATCH",
        [],
    ),
    "upload: too much": (
        lambda s: upload(s.client, HEADER, chunk(2), chunk(2)),
        "INVALID_ARGUMENT",
        "UPLOAD_MISMATCH",
        [],
    ),
    "upload: other bytes than announced": (
        lambda s: upload(
            s.client, UploadBlobRequest(header=UploadBlobHeader(sha256=bytes(32))), chunk(3)
        ),
        "INVALID_ARGUMENT",
        "UPLOAD_MISMATCH",
        [],
    ),
    "upload: half a digest": (
        lambda s: upload(
            s.client, UploadBlobRequest(header=UploadBlobHeader(sha256=bytes(16))), chunk(3)
        ),
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        ["header.sha256"],
    ),
    "upload: a chunk over 1 MiB": (
        lambda s: upload(s.client, UploadBlobRequest(header=UploadBlobHeader()), chunk(2**20 + 1)),
        "RESOURCE_EXHAUSTED",
        "MESSAGE_TOO_LARGE",
        [],
    ),
}


@pytest.mark.parametrize(("call", "code", "reason", "fields"), CASES.values(), ids=list(CASES))
async def test_a_bad_request_is_refused_with_code_reason_and_fields(
    scene: Scene, call: Call, code: str, reason: str, fields: list[str]
) -> None:
    how = await refused(call(scene))
    assert (how.code.name, how.reason, list(how.violations)) == (code, reason, fields)
    assert how.domain == ("fluoro" if reason else "")
    assert how.message


async def test_an_unreachable_ledger_is_unavailable_and_says_when_to_try_again(
    redis_url: str, blob_url: str
) -> None:
    async with serving(
        "postgresql://nobody@127.0.0.1:1/none?connect_timeout=1", redis_url, blob_url
    ) as client:
        request = SubmitJobRequest(job=Job(inputs=[NOTHING], steps=[step("a")]))
        for call in (
            client.jobs.SubmitJob(request),
            client.jobs.GetJob(GetJobRequest(name=NOBODY)),
        ):
            how = await refused(call)
            assert (how.code.name, how.reason, how.retry_seconds) == (
                "UNAVAILABLE",
                "LEDGER_UNAVAILABLE",
                1,
            )
