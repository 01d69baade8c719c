"""Deleting and counting jobs through a gateway."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar
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
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import attempts, deletion
from fluoro_jobs.ledger.accept import Submission, accept, validate
from fluoro_jobs.ledger.records import TaskResult
from fluoro_jobs.testing.rig import until
from gateway.testing import refused
from gateway.testing_jobs import Stage, claim, staged

ADA = (("fluoro-owner", "ada"),)
T = TypeVar("T")
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


WAITING = """
SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


def working_on(*blobs: UUID) -> Submission:
    job = Job(inputs=[f"blobs/{blob}" for blob in blobs], steps=[Step(name="a", inspect_dicom={})])
    return validate(SubmitJobRequest(job=job), "ada")


async def met(database_url: str, first: Callable[..., object], then: Callable[..., T]) -> T:
    """What `then` gives, begun while the transaction of `first` is open, and waiting for it."""
    with (
        psycopg.connect(database_url, autocommit=True) as one,
        psycopg.connect(database_url, autocommit=True) as other,
        psycopg.connect(database_url, autocommit=True) as watching,
    ):
        with one.transaction():
            first(one)
            second = asyncio.create_task(asyncio.to_thread(then, other))
            await asyncio.to_thread(
                until, lambda: second.done() or watching.execute(WAITING).rowcount
            )
        return await second


async def test_a_submit_that_comes_before_the_removal_of_its_input_keeps_it(
    stage: Stage, database_url: str
) -> None:
    blob = new_id()
    await delete(stage, await finished(stage, [blob]))
    submission = working_on(blob)
    removed = await met(
        database_url, lambda one: accept(one, [submission]), deletion.remove_deleted
    )
    assert removed == 1
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT FROM blobs WHERE id = %s", (blob,)).rowcount == 1


async def test_a_submit_that_comes_after_the_removal_of_its_input_is_refused(
    stage: Stage, database_url: str
) -> None:
    blob = new_id()
    await delete(stage, await finished(stage, [blob]))
    submission = working_on(blob)
    [answer] = await met(
        database_url, deletion.remove_deleted, lambda other: accept(other, [submission])
    )
    assert isinstance(answer, FluoroError)
    assert answer.reason is Reason.BLOB_NOT_FOUND


async def test_a_submit_locks_its_inputs_in_the_order_of_a_removal(
    stage: Stage, database_url: str
) -> None:
    blobs = sorted(new_id() for _ in range(3))
    await finished(stage, blobs)
    lock = "SELECT FROM blobs WHERE id = %s FOR UPDATE"
    submission = working_on(*reversed(blobs))
    with (
        psycopg.connect(database_url, autocommit=True) as one,
        psycopg.connect(database_url, autocommit=True) as other,
        psycopg.connect(database_url, autocommit=True) as watching,
    ):
        one.execute("SET deadlock_timeout = '10ms'")
        with one.transaction():
            one.execute(lock, (blobs[0],))
            second = asyncio.create_task(asyncio.to_thread(accept, other, [submission]))
            await asyncio.to_thread(until, lambda: watching.execute(WAITING).rowcount)
            for blob in blobs[1:]:
                one.execute(lock, (blob,))
        [answer] = await second
    assert isinstance(answer, Job)
