"""RunJob: a submit and a watch in one stream."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fluoro.v1.blob_service_pb2 import UploadBlobHeader, UploadBlobRequest
from fluoro.v1.job_pb2 import Job, Step
from fluoro.v1.job_service_pb2 import (
    JOB_VIEW_BASIC,
    ListJobsRequest,
    RunJobRequest,
    SubmitJobRequest,
    WatchJobRequest,
)
from gateway.testing import refused
from gateway.testing_jobs import Stage, staged

SECONDS = 20


@pytest.fixture
async def stage(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Stage]:
    async with staged(database_url, redis_url, blob_url, single_owner="ada") as made:
        yield made


async def asking(stage: Stage, **fields: Any) -> RunJobRequest:
    """A run of one step."""
    parts = [
        UploadBlobRequest(header=UploadBlobHeader(size_bytes=1)),
        UploadBlobRequest(chunk=b"x"),
    ]
    blob = (await stage.client.blobs.UploadBlob(iter(parts))).blob.name
    job = Job(inputs=[blob], steps=[Step(name="a", inspect_dicom={})])
    return RunJobRequest(submit=SubmitJobRequest(job=job, **fields))


async def rest(call: Any) -> list[Any]:
    """What else the call says, to its end, without bookmarks."""
    async with asyncio.timeout(SECONDS):
        return [one async for one in call if one.WhichOneof("update") != "bookmark"]


async def test_a_run_tells_the_job_first_and_then_what_a_watch_of_it_tells(stage: Stage) -> None:
    run = aiter(stage.client.jobs.RunJob(await asking(stage)))
    first = await anext(run)
    assert (first.snapshot.state, first.snapshot.last_sequence) == (Job.STATE_PENDING, 1)
    assert [step.name for step in first.snapshot.steps] == ["a"]
    told = asyncio.create_task(rest(run))
    await stage.run(first.snapshot.name)
    told_to_run = await told
    watch = stage.client.jobs.WatchJob(
        WatchJobRequest(name=first.snapshot.name, start_cursor=first.cursor)
    )
    assert [(one.cursor, one.event) for one in told_to_run] == [
        (one.cursor, one.event) for one in await rest(watch)
    ]
    assert told_to_run[-1].event.job_changed.state == Job.STATE_SUCCEEDED
    assert [one.event.sequence for one in told_to_run] == list(range(2, 8))


async def test_a_run_that_breaks_goes_on_as_a_watch_from_its_cursor(stage: Stage) -> None:
    run = stage.client.jobs.RunJob(await asking(stage))
    first = await run.read()
    await stage.start(first.snapshot.name)
    second = await run.read()
    # A bookmark is a sign of life, which a busy machine may need first.
    while second.HasField("bookmark"):
        second = await run.read()
    assert second.event.sequence == 2
    run.cancel()
    await stage.succeed(first.snapshot.name)
    watch = WatchJobRequest(name=first.snapshot.name, start_cursor=second.cursor)
    told = await rest(stage.client.jobs.WatchJob(watch))
    assert [one.event.sequence for one in told] == list(range(3, 8))


async def test_a_run_that_is_repeated_streams_the_first_job(stage: Stage) -> None:
    request = await asking(stage, request_id="once")
    request.view = JOB_VIEW_BASIC
    first = await stage.client.jobs.RunJob(request).read()
    await stage.run(first.snapshot.name)
    [again] = await rest(stage.client.jobs.RunJob(request))
    assert again.snapshot.name == first.snapshot.name
    assert again.snapshot.state == Job.STATE_SUCCEEDED
    assert not again.snapshot.inputs
    assert len((await stage.client.jobs.ListJobs(ListJobsRequest())).jobs) == 1


async def test_a_run_of_what_cannot_be_submitted_is_refused_with_the_field(stage: Stage) -> None:
    no_steps = await asking(stage)
    no_steps.submit.job.ClearField("steps")
    no_pipeline = await asking(stage, pipeline="pipelines/no")
    only_checked = await asking(stage, validate_only=True)
    no_view = await asking(stage)
    no_view.view = 7  # type: ignore[assignment]  # that is the point
    for request, reason, field in (
        (no_steps, "JOB_EMPTY", "submit.job.steps"),
        (no_pipeline, "PIPELINE_NOT_FOUND", "submit.pipeline"),
        (only_checked, "INVALID_ARGUMENT", "submit.validate_only"),
        (no_view, "INVALID_ARGUMENT", "view"),
    ):
        told = await refused(stage.client.jobs.RunJob(request).read())
        assert (told.reason, list(told.violations)) == (reason, [field])
    assert not (await stage.client.jobs.ListJobs(ListJobsRequest())).jobs
