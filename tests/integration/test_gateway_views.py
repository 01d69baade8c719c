"""Answers stay small, however large the job: views of it, and its parts in pages.

The client takes 4 MiB, as gRPC's clients do unless told otherwise.
"""

from collections.abc import AsyncIterator
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest
from fluoro.v1 import job_pb2
from fluoro.v1.dicom_pb2 import InspectDicomResult
from fluoro.v1.job_service_pb2 import (
    JOB_VIEW_BASIC,
    JOB_VIEW_FULL,
    CancelJobRequest,
    GetJobRequest,
    ListArtifactsRequest,
    ListInputsRequest,
    ListItemsRequest,
    ListJobsRequest,
    ListResultsRequest,
    ListTasksRequest,
    RetryJobRequest,
    SubmitJobRequest,
    WaitJobRequest,
    WatchJobRequest,
    WatchJobsRequest,
)
from gateway.testing import Client, refused
from gateway.testing_jobs import Stage, staged

INPUTS: Final = 10_000
PATIENCE_SECONDS: Final = 20
SMALL_BYTES: Final = 16 * 2**10
LARGEST_BYTES: Final = 4 * 2**20
ADA: Final = (("fluoro-owner", "ada"),)

RESULT: Final = InspectDicomResult(
    instances=[{"input": 7, "modality": "x" * 300}]
).SerializeToString()

DONE: Final = """
WITH job AS (SELECT id FROM jobs WHERE id = %(job)s), tasks_ AS (
  UPDATE tasks SET state = 'SUCCEEDED', result = %(result)s, item_counts = ARRAY[1, 1, 0, 0]
    FROM job WHERE job_id = job.id
), open_ AS (DELETE FROM open_tasks o USING job WHERE o.job_id = job.id
), attempts_ AS (
  INSERT INTO attempts (task_id, number, worker) SELECT t.id, n, 'host:1'
    FROM tasks t, job, generate_series(1, 3) n WHERE t.job_id = job.id
), items_ AS (
  INSERT INTO items (job_id, step, shard, number, key, input, state, reason, message)
  SELECT job.id, 0, n, n, n, n, CASE n %% 10 WHEN 3 THEN 3 ELSE 1 END, CASE n %% 10
    WHEN 3 THEN 'NOT_DICOM' ELSE '' END, ''
  FROM job, generate_series(0, 9999) n
), artifacts_ AS (
  INSERT INTO artifacts (job_id, step, shard, position, name, role, key, input, blob_id)
  SELECT job.id, 0, n, 0, 'preview-' || n || '.png', CASE n %% 100 WHEN 7 THEN 'pixels'
    ELSE 'preview' END, n, n, b.id
  FROM job, (SELECT id FROM blobs LIMIT 1) b, generate_series(0, 9999) n
) UPDATE steps SET state = 'PARTIALLY_SUCCEEDED', ended_tasks = 10000, items_total = 10000,
  items_succeeded = 9000, items_failed = 1000 FROM job WHERE job_id = job.id
"""
"""What a step leaves that worked on each input, one in a task."""


@pytest.fixture
async def stage(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Stage]:
    async with staged(database_url, redis_url, blob_url) as made:
        yield made


@pytest.fixture
async def large(stage: Stage, database_url: str) -> str:
    """A job of ten thousand inputs, tasks, items and artifacts; it waits to end."""
    one = await stage.client.jobs.GetJob(GetJobRequest(name=await stage.submit()), metadata=ADA)
    job = job_pb2.Job(
        inputs=list(one.job.inputs) * INPUTS,
        steps=[job_pb2.Step(name="a", inspect_dicom={}, max_inputs_per_task=1)],
        labels={"kind": "large"},
    )
    request = SubmitJobRequest(job=job, request_id="once")
    for _ in range(2):
        answer = await stage.client.jobs.SubmitJob(request, metadata=ADA)
        assert answer.job.input_count == INPUTS
        assert answer.ByteSize() <= SMALL_BYTES
    name = str(answer.job.name)
    with psycopg.connect(database_url) as connection:
        connection.execute(DONE, {"job": UUID(name[5:]), "result": RESULT})
    return name


async def first_of(call: Any) -> Any:
    message = await call.read()
    call.cancel()
    return message


async def every(call: Any, request: Any, field: str) -> list[Any]:
    """All that a list has, and no page of it is too large."""
    found: list[Any] = []
    while True:
        page = await call(request, metadata=ADA)
        assert page.ByteSize() <= LARGEST_BYTES
        found += getattr(page, field)
        request.page_token = page.next_page_token
        if not request.page_token:
            return found


async def answers(client: Client, name: str) -> dict[str, Any]:
    """All that tells of the job in few bytes."""
    jobs, view = client.jobs, JOB_VIEW_BASIC
    watch = jobs.WatchJob(WatchJobRequest(name=name, view=view), metadata=ADA)
    wait = WaitJobRequest(name=name, view=view, timeout={"nanos": 1})
    listed = await jobs.ListJobs(ListJobsRequest(labels={"kind": "large"}), metadata=ADA)
    of_all = jobs.WatchJobs(WatchJobsRequest(labels={"kind": "large"}), metadata=ADA)
    return {
        "GetJob": (await jobs.GetJob(GetJobRequest(name=name, view=view), metadata=ADA)).job,
        "WaitJob": (await jobs.WaitJob(wait, metadata=ADA)).job,
        "WatchJob": (await first_of(watch)).snapshot,
        "ListJobs": listed.jobs[0],
        "WatchJobs": (await first_of(of_all)).job,
        "CancelJob": (await jobs.CancelJob(CancelJobRequest(name=name), metadata=ADA)).job,
        "RetryJob": (
            await jobs.RetryJob(RetryJobRequest(name=name), metadata=ADA, timeout=PATIENCE_SECONDS)
        ).job,
    }


async def test_a_job_of_ten_thousand_inputs_is_told_in_few_bytes(stage: Stage, large: str) -> None:
    told = await answers(stage.client, large)
    assert {call: job.ByteSize() <= SMALL_BYTES for call, job in told.items()} == dict.fromkeys(
        told, True
    )
    assert {(job.name, job.input_count, len(job.inputs)) for job in told.values()} == {
        (large, INPUTS, 0)
    }
    assert told["GetJob"].steps[0].counts == job_pb2.StepCounts(
        tasks=INPUTS, ended_tasks=INPUTS, items=10_000, succeeded_items=9_000, failed_items=1_000
    )


async def test_all_of_a_job_that_does_not_fit_into_an_answer_is_refused_and_says_what_to_do(
    stage: Stage, large: str
) -> None:
    jobs, view = stage.client.jobs, JOB_VIEW_FULL
    wait = WaitJobRequest(name=large, view=view, timeout={"nanos": 1})
    for call in (
        lambda: jobs.GetJob(GetJobRequest(name=large), metadata=ADA),
        lambda: jobs.GetJob(GetJobRequest(name=large, view=view), metadata=ADA),
        lambda: jobs.WaitJob(wait, metadata=ADA),
        lambda: first_of(jobs.WatchJob(WatchJobRequest(name=large), metadata=ADA)),
    ):
        how = await refused(call())
        assert (how.code.name, how.reason) == ("RESOURCE_EXHAUSTED", "ANSWER_TOO_LARGE")
        assert "BASIC" in how.message


async def test_the_parts_of_a_large_job_come_in_pages(stage: Stage, large: str) -> None:
    jobs = stage.client.jobs
    inputs = await every(jobs.ListInputs, ListInputsRequest(job=large, page_size=1000), "inputs")
    assert len(inputs) == INPUTS
    tasks = await every(jobs.ListTasks, ListTasksRequest(job=large, page_size=1000), "tasks")
    assert [(one.step, one.task.shard) for one in tasks] == [("a", n) for n in range(INPUTS)]
    assert {len(one.task.attempts) for one in tasks} == {3}
    items = await every(jobs.ListItems, ListItemsRequest(job=large, page_size=1000), "items")
    assert [one.item.input for one in items] == list(range(INPUTS))
    failed = ListItemsRequest(
        job=large, step="a", states=[job_pb2.Item.STATE_FAILED], page_size=300
    )
    bad = await every(jobs.ListItems, failed, "items")
    assert [one.item.input for one in bad] == list(range(3, INPUTS, 10))
    request = ListArtifactsRequest(job=large, roles=["pixels"], page_size=7)
    pixels = await every(jobs.ListArtifacts, request, "artifacts")
    assert sorted(one.artifact.input for one in pixels) == list(range(7, INPUTS, 100))
    previews = ListArtifactsRequest(job=large, roles=["pixels", "preview"], page_size=1000)
    names = [one.artifact.name for one in await every(jobs.ListArtifacts, previews, "artifacts")]
    assert names == sorted(f"preview-{number}.png" for number in range(INPUTS))
    parts = await every(jobs.ListResults, ListResultsRequest(job=large, step="a"), "parts")
    assert [part.shard for part in parts] == list(range(INPUTS))
    whole = InspectDicomResult.FromString(b"".join(part.message for part in parts))
    assert len(whole.instances) == INPUTS


@pytest.mark.parametrize("size", [200_000, 3_000_000])
async def test_a_page_of_large_things_is_shorter_than_was_asked_for(
    stage: Stage, large: str, database_url: str, size: int
) -> None:
    jobs = stage.client.jobs
    with psycopg.connect(database_url) as connection:
        text = "x" * (size // 100)
        connection.execute("UPDATE items SET message = %s WHERE number < 1000", (text,))
        connection.execute("UPDATE tasks SET result = %s WHERE shard < 10", (bytes(size),))
    items = await jobs.ListItems(ListItemsRequest(job=large, page_size=1000), metadata=ADA)
    assert 0 < len(items.items) < 1000
    assert items.ByteSize() <= LARGEST_BYTES
    results = await every(jobs.ListResults, ListResultsRequest(job=large, step="a"), "parts")
    assert len(results) == INPUTS


async def test_a_token_is_good_for_its_own_list_alone(stage: Stage, large: str) -> None:
    jobs = stage.client.jobs
    page = await jobs.ListItems(ListItemsRequest(job=large, page_size=1), metadata=ADA)
    token = page.next_page_token
    for call, request in (
        (jobs.ListItems, ListItemsRequest(job=large, step="a", page_token=token)),
        (jobs.ListTasks, ListTasksRequest(job=large, page_token=token)),
        (jobs.ListItems, ListItemsRequest(job=large, page_token="x")),
        (jobs.ListItems, ListItemsRequest(job=large, page_size=-1)),
    ):
        assert (await refused(call(request, metadata=ADA))).reason == "INVALID_ARGUMENT"
    how = await refused(jobs.ListResults(ListResultsRequest(job=large), metadata=ADA))
    assert (how.reason, list(how.violations)) == ("STEP_UNKNOWN", ["step"])
