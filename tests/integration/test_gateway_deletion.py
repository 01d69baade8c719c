"""Deleting and counting jobs through a gateway."""

from collections.abc import AsyncIterator
from uuid import UUID

import grpc
import grpc.aio
import psycopg
import pytest
from fluoro.v1.job_pb2 import Artifact, Job, Step
from fluoro.v1.job_service_pb2 import (
    CancelJobRequest,
    CountJobsRequest,
    DeleteJobRequest,
    GetJobRequest,
    ListJobsRequest,
    RetryJobRequest,
    SubmitJobRequest,
    WaitJobRequest,
    WatchJobRequest,
)
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import attempts, deletion
from fluoro_jobs.ledger.records import TaskResult
from gateway.testing import refused
from gateway.testing_jobs import Stage, claim, staged

ADA = (("fluoro-owner", "ada"),)
LEFT = """
SELECT 'jobs', count(*) FROM jobs WHERE id = %(job)s
UNION ALL SELECT 'steps', count(*) FROM steps WHERE job_id = %(job)s
UNION ALL SELECT 'tasks', count(*) FROM tasks WHERE job_id = %(job)s
UNION ALL SELECT 'attempts', count(*) FROM attempts
UNION ALL SELECT 'events', count(*) FROM events WHERE job_id = %(job)s
UNION ALL SELECT 'inputs', count(*) FROM job_inputs WHERE job_id = %(job)s
UNION ALL SELECT 'artifacts', count(*) FROM artifacts WHERE job_id = %(job)s
UNION ALL SELECT 'blobs', count(*) FROM blobs
"""


@pytest.fixture
async def stage(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Stage]:
    async with staged(database_url, redis_url, blob_url) as made:
        yield made


async def delete(stage: Stage, job: str, **fields: bool) -> None:
    await stage.client.jobs.DeleteJob(DeleteJobRequest(name=job, **fields), metadata=ADA)


async def finished(stage: Stage, blobs: list[UUID]) -> str:
    """A job that left these blobs as artifacts."""
    job = await stage.submit()
    artifacts = [
        Artifact(name=f"{n}", role="preview", blob=f"blobs/{blob}", sha256=bytes(32))
        for n, blob in enumerate(blobs)
    ]

    def run(connection: psycopg.Connection, job_id: UUID) -> None:
        attempts.commit(connection, claim(connection, job_id), TaskResult(b"", [], artifacts))

    await stage.act(job, run)
    return job


async def test_a_deleted_job_is_found_by_nobody_and_its_rows_go_and_uploads_stay(
    stage: Stage, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "CHUNK", 2)
    kept, gone = new_id(), [new_id() for _ in range(4)]
    job = await finished(stage, [kept, *gone])
    other = Job(inputs=[f"blobs/{kept}"], steps=[Step(name="a", inspect_dicom={})])
    await stage.client.jobs.SubmitJob(SubmitJobRequest(job=other), metadata=ADA)
    got = await stage.client.jobs.GetJob(GetJobRequest(name=job), metadata=ADA)
    await delete(stage, job)
    for call in (
        stage.client.jobs.GetJob(GetJobRequest(name=job), metadata=ADA),
        stage.client.jobs.RetryJob(RetryJobRequest(name=job), metadata=ADA),
        stage.client.jobs.CancelJob(CancelJobRequest(name=job), metadata=ADA),
        stage.client.jobs.WaitJob(WaitJobRequest(name=job), metadata=ADA),
        stage.client.jobs.WatchJob(WatchJobRequest(name=job), metadata=ADA).read(),
        delete(stage, job),
    ):
        assert (await refused(call)).reason == "JOB_NOT_FOUND"
    await delete(stage, job, allow_missing=True)
    page = await stage.client.jobs.ListJobs(ListJobsRequest(), metadata=ADA)
    assert [list(one.labels) for one in page.jobs] == [[]]
    rounds = []
    await stage.act(job, lambda connection, _: rounds.append(deletion.remove_deleted(connection)))
    assert rounds == [1]
    with psycopg.connect(database_url) as connection:
        left = dict(connection.execute(LEFT, {"job": job[5:]}).fetchall())
        blobs = {row[0] for row in connection.execute("SELECT id FROM blobs").fetchall()}
    assert left == {**dict.fromkeys(left, 0), "blobs": 2}
    assert blobs == {kept, UUID(got.job.inputs[0][6:])}


async def test_a_job_that_has_not_ended_is_not_deleted(stage: Stage) -> None:
    job = await stage.submit()
    how = await refused(delete(stage, job))
    assert (how.code, how.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "JOB_NOT_ENDED")
    theirs = await stage.submit("bob")
    assert (await refused(delete(stage, theirs))).reason == "JOB_NOT_FOUND"
    await delete(stage, theirs, allow_missing=True)
    bob = (("fluoro-owner", "bob"),)
    assert await stage.client.jobs.GetJob(GetJobRequest(name=theirs), metadata=bob)


async def test_a_request_id_is_free_once_its_job_is_deleted(stage: Stage) -> None:
    seed = await stage.submit()
    inputs = (await stage.client.jobs.GetJob(GetJobRequest(name=seed), metadata=ADA)).job.inputs
    request = SubmitJobRequest(
        job=Job(inputs=inputs, steps=[Step(name="a", inspect_dicom={})]), request_id="once"
    )
    first = (await stage.client.jobs.SubmitJob(request, metadata=ADA)).job.name
    await stage.client.jobs.CancelJob(CancelJobRequest(name=first), metadata=ADA)
    await delete(stage, first)
    assert (await stage.client.jobs.SubmitJob(request, metadata=ADA)).job.name != first


async def test_a_watch_that_lags_ends_when_its_job_is_deleted(stage: Stage) -> None:
    job = await stage.submit()
    first = await stage.client.jobs.WatchJob(WatchJobRequest(name=job), metadata=ADA).read()
    await stage.run(job)
    request = WatchJobRequest(name=job, start_cursor=first.cursor)

    def forget(connection: psycopg.Connection, job_id: UUID) -> None:
        deletion.delete_job(connection, "ada", job_id)
        deletion.remove_deleted(connection)

    await stage.act(job, forget, wake=False)
    call = stage.client.jobs.WatchJob(request, metadata=ADA)
    assert (await refused(call.read())).reason == "JOB_NOT_FOUND"


async def test_jobs_are_counted_by_state_and_pipeline(stage: Stage, database_url: str) -> None:
    names = [await stage.submit(n=str(n)) for n in range(3)]
    await stage.run(names[0])
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "UPDATE jobs SET pipeline = 'ct-tissue', pipeline_version = 1 WHERE id = %s",
            (names[1][5:],),
        )

    async def counted(filtered: str = "") -> list[tuple[str, str, int]]:
        found = []
        request = CountJobsRequest(filter=filtered)
        while True:
            page = await stage.client.jobs.CountJobs(request, metadata=ADA)
            found += [
                (Job.State.Name(one.state).removeprefix("STATE_"), one.pipeline, one.count)
                for one in page.counts
            ]
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    pending = [("PENDING", "", 1), ("PENDING", "ct-tissue", 1)]
    assert await counted() == [*pending, ("SUCCEEDED", "", 1)]
    assert await counted("pipeline = ct-tissue") == [("PENDING", "ct-tissue", 1)]
    assert await counted("pipeline != ct-tissue AND end_time:*") == [("SUCCEEDED", "", 1)]
    assert (await refused(counted("nonsense"))).reason == "FILTER_INVALID"


async def test_what_a_deleted_job_left_goes_with_the_last_job_that_works_on_it(
    stage: Stage, database_url: str
) -> None:
    blob = new_id()
    first = await finished(stage, [blob])
    job = Job(inputs=[f"blobs/{blob}"], steps=[Step(name="a", inspect_dicom={})])
    request = SubmitJobRequest(job=job)
    second = (await stage.client.jobs.SubmitJob(request, metadata=ADA)).job.name
    await stage.run(second)
    with psycopg.connect(database_url, autocommit=True) as connection:
        for name, left in ((first, 1), (second, 0)):
            await delete(stage, name)
            assert deletion.remove_deleted(connection) == 1
            row = connection.execute("SELECT FROM blobs WHERE id = %s", (blob,))
            assert row.rowcount == left
