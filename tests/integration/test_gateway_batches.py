"""Calls about many jobs at once, through a gateway."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import psycopg
import pytest
from fluoro.v1.job_pb2 import Job, Step
from fluoro.v1.job_service_pb2 import (
    BatchCancelJobsRequest,
    BatchRetryJobsRequest,
    BatchSubmitJobsRequest,
    CancelJobRequest,
    GetJobRequest,
    ListJobsRequest,
    SubmitJobRequest,
)
from fluoro_jobs.ledger import batches
from gateway.testing import refused
from gateway.testing_jobs import Stage, staged

ADA, BOB = (("fluoro-owner", "ada"),), (("fluoro-owner", "bob"),)
NOBODY = "blobs/00000000-0000-7000-8000-000000000000"


@pytest.fixture
async def stage(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Stage]:
    async with staged(database_url, redis_url, blob_url) as made:
        yield made


@pytest.fixture
async def blob(stage: Stage) -> str:
    """One of Ada's."""
    name = await stage.submit("ada", made="first")
    await stage.client.jobs.CancelJob(CancelJobRequest(name=name), metadata=ADA)
    job = (await stage.client.jobs.GetJob(GetJobRequest(name=name), metadata=ADA)).job
    return str(job.inputs[0])


def entry(blob: str, request_id: str = "", **fields: Any) -> SubmitJobRequest:
    steps = [Step(name="a", inspect_dicom={})]
    return SubmitJobRequest(
        job=Job(inputs=[blob], steps=fields.pop("steps", steps), **fields), request_id=request_id
    )


async def every(call: Any, request: Any) -> list[int]:
    """The counts of each call, until there is no more to do."""
    counts = []
    while True:
        answer = await call(request, metadata=ADA)
        counts.append(answer.count)
        request.page_token = answer.next_page_token
        if not request.page_token:
            return counts


async def test_each_job_of_a_batch_has_an_outcome_of_its_own(stage: Stage, blob: str) -> None:
    entries = [
        entry(blob, "one", labels={"n": "1"}),
        entry(NOBODY, "two"),
        entry(blob, "three", steps=[Step(name="A"), Step(name="A"), Step(name="A")]),
        entry(blob, "one", labels={"n": "1"}),
        entry(blob, "one", labels={"n": "2"}),
        SubmitJobRequest(job=Job(inputs=[blob])),
        entry(blob, "four", priority=3),
    ]
    request = BatchSubmitJobsRequest(requests=entries)
    answer = await stage.client.jobs.BatchSubmitJobs(request, metadata=ADA)
    told = [outcome.refusal.reason or "stored" for outcome in answer.outcomes]
    assert told == [
        "stored",
        "BLOB_NOT_FOUND",
        "INVALID_ARGUMENT",
        "stored",
        "REQUEST_ID_REUSED",
        "JOB_EMPTY",
        "stored",
    ]
    first, missing, bad, again, reused, _, last = answer.outcomes
    assert first.job.name == again.job.name != last.job.name
    assert list(missing.refusal.fields) == ["job.inputs[0]"]
    assert len(bad.refusal.fields) == 3
    assert reused.refusal.code == grpc.StatusCode.ALREADY_EXISTS.value[0]
    repeated = await stage.client.jobs.BatchSubmitJobs(request, metadata=ADA)
    assert [one.job.name for one in repeated.outcomes] == [one.job.name for one in answer.outcomes]
    got = (await stage.client.jobs.GetJob(GetJobRequest(name=last.job.name), metadata=ADA)).job
    assert (got.priority, got.state) == (3, Job.STATE_PENDING)


async def test_a_batch_is_only_checked_if_asked_to(stage: Stage, blob: str) -> None:
    entries = [entry(blob), entry(blob, steps=[Step(name="A")])]
    request = BatchSubmitJobsRequest(requests=entries, validate_only=True)
    ok, bad = (await stage.client.jobs.BatchSubmitJobs(request, metadata=ADA)).outcomes
    assert (ok.job.state, ok.job.name) == (Job.STATE_PENDING, "")
    assert bad.refusal.reason == "INVALID_ARGUMENT"
    page = await stage.client.jobs.ListJobs(ListJobsRequest(filter="-labels:made"), metadata=ADA)
    assert not page.jobs


async def test_a_thousand_jobs_are_one_transaction_and_others_are_served_meanwhile(
    stage: Stage, blob: str, database_url: str
) -> None:
    request = BatchSubmitJobsRequest(requests=[entry(blob, f"{n}") for n in range(1000)])
    batch = asyncio.ensure_future(stage.client.jobs.BatchSubmitJobs(request, metadata=ADA))
    slowest = 0.0
    while not batch.done():
        started = time.monotonic()
        await stage.submit("bob")
        slowest = max(slowest, time.monotonic() - started)
    answer = batch.result()
    assert len({outcome.job.name for outcome in answer.outcomes}) == 1000
    assert slowest < 3  # this machine may be busy; a batch alone takes as long as a second
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            "SELECT count(*) FROM jobs WHERE owner = 'ada' GROUP BY xmin::text"
        )
        assert max(rows.fetchall()) == (1000,)
    request.requests.append(entry(blob))
    how = await refused(stage.client.jobs.BatchSubmitJobs(request, metadata=ADA))
    assert list(how.violations) == ["requests"]


async def test_a_batch_is_no_larger_than_the_largest_job(stage: Stage, blob: str) -> None:
    wide = entry(blob, steps=[Step(name="a", inspect_dicom={}, max_inputs_per_task=1)])
    wide.job.inputs[:] = [blob] * 6000
    request = BatchSubmitJobsRequest(requests=[wide, wide])
    how = await refused(stage.client.jobs.BatchSubmitJobs(request, metadata=ADA))
    assert (how.code, how.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
    page = await stage.client.jobs.ListJobs(ListJobsRequest(filter="-labels:made"), metadata=ADA)
    assert not page.jobs


async def test_jobs_are_cancelled_by_filter_in_pieces_and_others_stay(
    stage: Stage, blob: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [{"kind": "odd" if n % 2 else "even"} for n in range(250)]
    request = BatchSubmitJobsRequest(requests=[entry(blob, labels=one) for one in labels])
    await stage.client.jobs.BatchSubmitJobs(request, metadata=ADA)
    await stage.submit("bob", kind="odd")
    cancel = stage.client.jobs.BatchCancelJobs
    preview = BatchCancelJobsRequest(filter="labels.kind = odd", validate_only=True)
    assert await every(cancel, preview) == [125]
    # Each call stops after its first piece, as it does when its time is over.
    monkeypatch.setattr("gateway.batches.CALL_SECONDS", 0)
    monkeypatch.setattr(batches, "PIECE_JOBS", 50)
    request = BatchCancelJobsRequest(filter="labels.kind = odd")
    watch = stage.watch(kind="odd")
    await watch.read()
    pieces = await every(cancel, request)
    assert sum(pieces) == 125
    assert max(pieces) <= 50
    assert await every(cancel, BatchCancelJobsRequest(filter="labels.kind = odd")) == [0]
    found = ListJobsRequest(filter="state = CANCELLED labels.kind:*", page_size=1000)
    jobs = (await stage.client.jobs.ListJobs(found, metadata=ADA)).jobs
    assert [job.labels["kind"] for job in jobs] == ["odd"] * 125
    open_jobs = ListJobsRequest(filter="state = PENDING", page_size=1000)
    assert len((await stage.client.jobs.ListJobs(open_jobs, metadata=ADA)).jobs) == 125
    assert len((await stage.client.jobs.ListJobs(open_jobs, metadata=BOB)).jobs) == 1
    async with asyncio.timeout(30):
        while (await watch.read()).event.job_changed.state != Job.STATE_CANCELLED:
            pass
    watch.cancel()


async def test_jobs_are_retried_by_filter_once_each(stage: Stage, blob: str) -> None:
    request = BatchSubmitJobsRequest(requests=[entry(blob, labels={"n": "1"}) for _ in range(3)])
    await stage.client.jobs.BatchSubmitJobs(request, metadata=ADA)
    good = await stage.submit(n="1")
    await stage.run(good)
    await stage.client.jobs.BatchCancelJobs(BatchCancelJobsRequest(filter="labels:n"), metadata=ADA)
    retry = stage.client.jobs.BatchRetryJobs
    preview = BatchRetryJobsRequest(filter="reason = JOB_CANCELLED labels:n", validate_only=True)
    assert await every(retry, preview) == [3]
    assert await every(retry, BatchRetryJobsRequest(filter="labels:n")) == [3]
    assert await every(retry, BatchRetryJobsRequest(filter="labels:n")) == [0]
    page = await stage.client.jobs.ListJobs(ListJobsRequest(filter="labels:n"), metadata=ADA)
    states = [job.state for job in page.jobs]
    assert states == [Job.STATE_SUCCEEDED, *[Job.STATE_PENDING] * 3]


async def test_whoever_means_all_jobs_has_to_say_so(stage: Stage, blob: str) -> None:
    assert blob
    for text, reason in ((" ", "INVALID_ARGUMENT"), ("state =", "FILTER_INVALID")):
        for call, request in (
            (stage.client.jobs.BatchCancelJobs, BatchCancelJobsRequest(filter=text)),
            (stage.client.jobs.BatchRetryJobs, BatchRetryJobsRequest(filter=text)),
        ):
            how = await refused(call(request, metadata=ADA))
            assert (how.reason, list(how.violations)) == (reason, ["filter"])
    assert await every(stage.client.jobs.BatchRetryJobs, BatchRetryJobsRequest(filter="*")) == [1]
    request = BatchCancelJobsRequest(filter=" * ", page_token="x")
    how = await refused(stage.client.jobs.BatchCancelJobs(request, metadata=ADA))
    assert list(how.violations) == ["page_token"]


async def test_a_batch_that_comes_again_under_a_full_quota_gets_its_jobs(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    async with staged(database_url, redis_url, blob_url, owner_max_open_jobs=3) as stage:
        name = await stage.submit("ada")
        found = await stage.client.jobs.GetJob(GetJobRequest(name=name), metadata=ADA)
        [blob] = found.job.inputs

        async def submit(*request_ids: str) -> list[str]:
            request = BatchSubmitJobsRequest(requests=[entry(blob, one) for one in request_ids])
            answer = await stage.client.jobs.BatchSubmitJobs(request, metadata=ADA)
            return [outcome.refusal.reason or outcome.job.name for outcome in answer.outcomes]

        assert (await refused(submit("one", "two", "three"))).reason == "JOB_QUOTA_EXCEEDED"
        first = await submit("one", "two")
        assert await submit("one", "two") == first
        full = "JOB_QUOTA_EXCEEDED"
        assert await submit("three", "two", "", "one") == [full, first[1], full, first[0]]
        assert (await refused(submit("three"))).reason == full
        await stage.client.jobs.CancelJob(CancelJobRequest(name=name), metadata=ADA)
        async with asyncio.timeout(30):
            again = await submit("one", "three", "two")
            while again[1] == full:  # the quota is looked at once a second
                again = await submit("one", "three", "two")
        assert (again[0], again[2]) == (first[0], first[1])
        assert again[1].startswith("jobs/")
