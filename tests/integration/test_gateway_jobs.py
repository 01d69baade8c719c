"""Submitting, reading and listing jobs through the gateway."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import psycopg
import pytest
from fluoro.v1.blob_service_pb2 import UploadBlobHeader, UploadBlobRequest
from fluoro.v1.job_pb2 import Job, Step
from fluoro.v1.job_service_pb2 import (
    CancelJobRequest,
    GetJobRequest,
    ListJobsRequest,
    RetryJobRequest,
    SubmitJobRequest,
    WatchJobRequest,
)
from fluoro_jobs import dispatch
from fluoro_local.folders import free_port
from fluoro_local.servers import PostgresServer
from gateway.testing import Client, connected, parse, refused, serving
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def client(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Client]:
    async with serving(
        database_url, redis_url, blob_url, health_check_interval_seconds=0.1
    ) as made:
        yield made


async def upload(client: Client, data: bytes = b"x", **kwargs: Any) -> str:
    parts = [
        UploadBlobRequest(header=UploadBlobHeader(size_bytes=len(data))),
        UploadBlobRequest(chunk=data),
    ]
    return str((await client.blobs.UploadBlob(iter(parts), **kwargs)).blob.name)


def a_job(blob: str, *, name: str = "inspect", **fields: Any) -> Job:
    return Job(inputs=[blob], steps=[Step(name=name, inspect_dicom={})], **fields)


async def test_an_accepted_job_is_in_the_ledger_when_the_answer_comes(
    client: Client, database_url: str
) -> None:
    blob = await upload(client)
    job = (
        await client.jobs.SubmitJob(
            SubmitJobRequest(job=a_job(blob, priority=3, labels={"ward": "7"}))
        )
    ).job
    with psycopg.connect(database_url) as connection:
        assert connection.execute(
            "SELECT state FROM jobs WHERE id = %s", (job.name[5:],)
        ).fetchone() == ("PENDING",)
    assert (job.state, job.owner, job.priority, dict(job.labels)) == (
        Job.STATE_PENDING,
        "default",
        3,
        {"ward": "7"},
    )
    got = (await client.jobs.GetJob(GetJobRequest(name=job.name))).job
    assert [(step.name, step.WhichOneof("operation")) for step in got.steps] == [
        ("inspect", "inspect_dicom")
    ]
    assert got.create_time == job.create_time


async def test_the_same_request_again_is_the_same_job(client: Client) -> None:
    request = SubmitJobRequest(job=a_job(await upload(client)), request_id="once")
    answers = await asyncio.gather(*(client.jobs.SubmitJob(request) for _ in range(20)))
    assert len({answer.job.name for answer in answers}) == 1
    assert len((await client.jobs.ListJobs(ListJobsRequest())).jobs) == 1


async def test_two_owners_may_use_the_same_request_id(client: Client) -> None:
    ann = (("fluoro-owner", "ann"),)
    first = await client.jobs.SubmitJob(
        SubmitJobRequest(job=a_job(await upload(client)), request_id="once")
    )
    second = await client.jobs.SubmitJob(
        SubmitJobRequest(job=a_job(await upload(client, metadata=ann)), request_id="once"),
        metadata=ann,
    )
    assert first.job.name != second.job.name


async def test_one_bad_submit_does_not_spoil_those_it_shares_a_transaction_with(
    client: Client,
) -> None:
    blob = await upload(client)
    bad = SubmitJobRequest(job=a_job("blobs/00000000-0000-7000-8000-000000000000"))
    calls = [
        client.jobs.SubmitJob(bad if number % 3 == 0 else SubmitJobRequest(job=a_job(blob)))
        for number in range(60)
    ]
    codes = [await call.code() for call in calls]
    assert [code.name for code in codes] == [
        "NOT_FOUND" if number % 3 == 0 else "OK" for number in range(60)
    ]


async def test_checking_only_stores_nothing_and_names_nothing(client: Client) -> None:
    job = (
        await client.jobs.SubmitJob(
            SubmitJobRequest(job=a_job(await upload(client)), validate_only=True)
        )
    ).job
    assert (job.name, job.state) == ("", Job.STATE_PENDING)
    assert (
        await refused(client.jobs.SubmitJob(SubmitJobRequest(job=Job(), validate_only=True)))
    ).reason == "JOB_EMPTY"
    assert list((await client.jobs.ListJobs(ListJobsRequest())).jobs) == []


async def test_listing_pages_through_the_callers_own_jobs_newest_first(client: Client) -> None:
    blob = await upload(client)
    names = [
        (
            await client.jobs.SubmitJob(SubmitJobRequest(job=a_job(blob, labels={"n": str(n % 2)})))
        ).job.name
        for n in range(5)
    ]
    page = await client.jobs.ListJobs(ListJobsRequest(page_size=3))
    rest = await client.jobs.ListJobs(ListJobsRequest(page_size=3, page_token=page.next_page_token))
    assert [job.name for job in (*page.jobs, *rest.jobs)] == names[::-1]
    assert rest.next_page_token == ""
    odd = await client.jobs.ListJobs(ListJobsRequest(labels={"n": "1"}, states=[Job.STATE_PENDING]))
    assert [job.name for job in odd.jobs] == [names[3], names[1]]
    assert (
        list(
            (
                await client.jobs.ListJobs(ListJobsRequest(), metadata=(("fluoro-owner", "ann"),))
            ).jobs
        )
        == []
    )


async def test_a_job_retried_before_its_schedule_time_still_waits_for_it(
    client: Client, database_url: str
) -> None:
    job = a_job(await upload(client))
    job.schedule_time.FromSeconds(int(time.time()) + 3600)
    name = (await client.jobs.SubmitJob(SubmitJobRequest(job=job))).job.name
    await client.jobs.CancelJob(CancelJobRequest(name=name))
    await client.jobs.RetryJob(RetryJobRequest(name=name))
    retried = (await client.jobs.GetJob(GetJobRequest(name=name))).job
    assert (retried.state, retried.steps[0].tasks[0].run_after_time) == (
        Job.STATE_PENDING,
        job.schedule_time,
    )
    with psycopg.connect(database_url, autocommit=True) as connection:
        assert dispatch.take(connection) == []


async def test_a_call_that_names_no_owner_is_told_what_to_do_and_health_needs_none(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    async with serving(database_url, redis_url, blob_url, single_owner="") as client:
        for call in (
            client.jobs.ListJobs(ListJobsRequest()),
            client.jobs.WatchJob(WatchJobRequest()).read(),
            upload(client),
        ):
            how = await refused(call)
            assert (how.code.name, how.reason) == ("UNAUTHENTICATED", "OWNER_MISSING")
            assert "fluoro-owner" in how.message
        await client.jobs.ListJobs(ListJobsRequest(), metadata=(("fluoro-owner", "ann"),))
        health: Any = health_pb2_grpc.HealthStub(client.channel)  # type: ignore[no-untyped-call]  # generated without types
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == SERVING


async def test_health_tells_the_process_and_the_ledger_apart(
    client: Client, postgres: PostgresServer
) -> None:
    health: Any = health_pb2_grpc.HealthStub(client.channel)  # type: ignore[no-untyped-call]  # generated without types

    async def status(service: str) -> int:
        return int((await health.Check(health_pb2.HealthCheckRequest(service=service))).status)

    async def becomes(expected: int) -> None:
        watch = health.Watch(health_pb2.HealthCheckRequest(service="fluoro.v1.JobService"))
        async with asyncio.timeout(30):
            while (await watch.read()).status != expected:
                continue
        watch.cancel()

    await becomes(SERVING)
    postgres.kill()
    try:
        await becomes(NOT_SERVING)
        assert await status("") == SERVING
        assert (
            await refused(client.jobs.ListJobs(ListJobsRequest()))
        ).reason == "LEDGER_UNAVAILABLE"
    finally:
        postgres.start()
    await becomes(SERVING)
    await client.jobs.ListJobs(ListJobsRequest())


async def test_the_server_tells_what_it_serves(client: Client) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(client.channel)  # type: ignore[no-untyped-call]  # generated without types
    call = stub.ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    )
    listed = {
        service.name
        async for response in call
        for service in response.list_services_response.service
    }
    assert {"fluoro.v1.JobService", "fluoro.v1.BlobService", "grpc.health.v1.Health"} <= listed


async def test_a_burst_of_two_thousand_streams_is_served(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    port = free_port()
    async with (
        asyncio.timeout(60),
        serving(database_url, redis_url, blob_url, grpc_port=port) as client,
        connected(port) as second,  # one carries 1024
    ):
        job = a_job(await upload(client))
        name = (await client.jobs.SubmitJob(SubmitJobRequest(job=job))).job.name
        calls = [
            each.jobs.WatchJob(WatchJobRequest(name=name))
            for each in (client, second)
            for _ in range(1000)
        ]
        try:
            first = [await call.read() for call in calls]
        except grpc.aio.AioRpcError as error:
            raise AssertionError(parse(error)) from error
        assert {response.snapshot.name for response in first} == {name}
        for call in calls:
            call.cancel()
