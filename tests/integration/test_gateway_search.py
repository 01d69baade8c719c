"""Lists of jobs by filter and in order, through a gateway."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import grpc
import pytest
from fluoro.v1.job_pb2 import Job
from fluoro.v1.job_service_pb2 import CancelJobRequest, ListJobsRequest
from fluoro_jobs.ledger.paging import write_token
from gateway.testing import refused
from gateway.testing_jobs import Stage, staged

ADA = (("fluoro-owner", "ada"),)


@pytest.fixture
async def stage(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Stage]:
    async with staged(database_url, redis_url, blob_url) as made:
        yield made


@pytest.fixture
async def jobs(stage: Stage) -> dict[str, Job]:
    """Ada's jobs by their label `n`, in the order of their submits; they end in another one."""
    names = [await stage.submit(n=str(n), kind="odd" if n % 2 else "even") for n in range(5)]
    names.append(await stage.submit(n="5", **{"a b.c": "1.2.840"}))
    await stage.submit("bob", n="6", kind="odd")
    await stage.run(names[3])
    await stage.run(names[1])
    await stage.client.jobs.CancelJob(CancelJobRequest(name=names[2]), metadata=ADA)
    await stage.start(names[4])
    page = await stage.client.jobs.ListJobs(ListJobsRequest(), metadata=ADA)
    return {job.labels["n"]: job for job in page.jobs}


async def listed(stage: Stage, filtered: str = "", order: str = "", size: int = 2) -> str:
    """The label `n` of what a list finds, page by page."""
    request = ListJobsRequest(filter=filtered, order_by=order, page_size=size)
    found = ""
    while True:
        page = await stage.client.jobs.ListJobs(request, metadata=ADA)
        found += "".join(job.labels["n"] for job in page.jobs)
        request.page_token = page.next_page_token
        if not request.page_token:
            return found


async def test_a_filter_lists_the_jobs_that_pass_it(stage: Stage, jobs: dict[str, Job]) -> None:
    def at(number: str, field: str = "create_time") -> str:
        return f'"{getattr(jobs[number], field).ToJsonString()}"'

    expected = {
        "": "543210",
        "state = SUCCEEDED": "31",
        "state != SUCCEEDED AND state != CANCELLED": "540",
        "state = PENDING OR state = RUNNING": "540",
        "reason = JOB_CANCELLED": "2",
        "labels.kind = odd": "31",
        "labels.kind != odd": "5420",
        "NOT labels.kind = odd": "5420",
        "-labels.kind:*": "5",
        "labels:kind state=SUCCEEDED": "31",
        """labels."a b.c" = 1.2.840""": "5",
        "state = CANCELLED OR state = SUCCEEDED AND labels.kind = odd": "31",
        "(state = CANCELLED) OR (state = SUCCEEDED AND labels.kind = odd)": "321",
        f"create_time >= {at('3')}": "543",
        f"create_time > {at('1')} AND create_time <= {at('4')}": "432",
        f"create_time = {at('1')}": "1",
        f"NOT create_time > {at('1')}": "10",
        f"end_time > {at('3', 'end_time')}": "21",
        f"NOT end_time > {at('3', 'end_time')}": "5430",
        "end_time:*": "321",
        "state = FAILED": "",
        "state = FAILED state = PENDING": "",
        'create_time < "1969-01-01T00:00:00Z" OR create_time > "9999-12-31T00:00:00Z"': "",
    }
    found = {filtered: await listed(stage, filtered) for filtered in expected}
    assert found == expected


async def test_jobs_are_listed_in_the_order_that_was_asked_for(
    stage: Stage, jobs: dict[str, Job]
) -> None:
    expected = {
        "create_time": "012345",
        "create_time desc": "543210",
        " end_time": "312",
        "end_time  desc": "213",
    }
    assert {order: await listed(stage, "", order, 1) for order in expected} == expected
    since = f'end_time > "{jobs["3"].end_time.ToJsonString()}"'
    assert await listed(stage, since, "end_time", 1) == "12"
    assert await listed(stage, f"NOT {since} end_time:*", "end_time desc", 1) == "3"


async def test_a_page_token_is_good_for_its_own_filter_and_order_alone(
    stage: Stage, jobs: dict[str, Job]
) -> None:
    assert jobs
    asked = ListJobsRequest(page_size=1, filter="labels:kind", order_by="end_time")
    page = await stage.client.jobs.ListJobs(asked, metadata=ADA)
    others: list[dict[str, Any]] = [
        {"filter": "labels:n"},
        {"order_by": "end_time desc"},
        {"order_by": ""},
        {"labels": {"kind": "odd"}},
        {"read_mask": {"paths": ["name"]}},
    ]
    for other in others:
        request = ListJobsRequest(page_token=page.next_page_token)
        request.MergeFrom(asked)
        for field in other:
            request.ClearField(field)
        request.MergeFrom(ListJobsRequest(**other))
        how = await refused(stage.client.jobs.ListJobs(request, metadata=ADA))
        assert (how.code, list(how.violations)) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            ["page_token"],
        ), other
    asked.page_token, asked.page_size = page.next_page_token, 7
    following = await stage.client.jobs.ListJobs(asked, metadata=ADA)
    assert [job.labels["n"] for job in following.jobs] == ["1", "2"]


async def test_a_mask_leaves_out_what_nobody_reads(stage: Stage, jobs: dict[str, Job]) -> None:
    for paths, field in ((["name", "state"], {"name", "state"}), (["*"], None), ([], None)):
        request = ListJobsRequest(read_mask={"paths": paths})
        page = await stage.client.jobs.ListJobs(request, metadata=ADA)
        assert [job.name for job in page.jobs] == [jobs[n].name for n in "543210"]
        told = {field.name for field, _ in page.jobs[0].ListFields()}
        assert told == field if field else {"labels", "create_time"} <= told


async def test_a_list_that_cannot_be_made_is_refused_and_says_why(stage: Stage) -> None:
    calls: list[tuple[dict[str, Any], str, str]] = [
        ({"filter": "state = FAILED AND nope = 1"}, "FILTER_INVALID", "filter"),
        ({"order_by": "name"}, "INVALID_ARGUMENT", "order_by"),
        ({"order_by": "create_time, end_time"}, "INVALID_ARGUMENT", "order_by"),
        ({"read_mask": {"paths": ["owner", "nope"]}}, "INVALID_ARGUMENT", "read_mask"),
        ({"read_mask": {"paths": ["labels.kind"]}}, "INVALID_ARGUMENT", "read_mask"),
    ]
    answers = await asyncio.gather(
        *(
            refused(stage.client.jobs.ListJobs(ListJobsRequest(**fields), metadata=ADA))
            for fields, _, _ in calls
        )
    )
    assert [(how.reason, list(how.violations)) for how in answers] == [
        (reason, [field]) for _, reason, field in calls
    ]
    assert answers[0].metadata == {"position": "20"}


async def test_a_page_token_that_a_caller_wrote_is_refused_or_read_but_breaks_nothing(
    stage: Stage,
) -> None:
    request = ListJobsRequest(order_by="end_time")
    for time, refusal in (
        ("2026-W01-1", None),  # Python reads it, PostgreSQL does not
        ("2026-01-01T00:00:00+00:00:01.5", None),
        ("0001-01-01T00:00:00+23:59", "page_token"),
        ("infinity", "page_token"),
    ):
        request.page_token = write_token(request, [time, str(UUID(int=0))])
        calling = stage.client.jobs.ListJobs(request, metadata=ADA)
        if refusal is None:
            await calling
        else:
            assert list((await refused(calling)).violations) == [refusal], time
