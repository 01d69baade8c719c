"""What owners may take of a gateway: the rate of their calls and jobs, and how much at once."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from fluoro.v1.blob_service_pb2 import BeginUploadRequest, UploadBlobHeader, UploadBlobRequest
from fluoro.v1.dicom_pb2 import InspectDicom
from fluoro.v1.job_pb2 import Job, Step
from fluoro.v1.job_service_pb2 import (
    BatchSubmitJobsRequest,
    GetJobRequest,
    SubmitJobRequest,
    WatchJobsRequest,
)
from fluoro_client import AsyncClient
from fluoro_jobs.testing.rig import until
from fluoro_local.folders import free_port
from fluoro_local.servers import ValkeyServer
from fluoro_local.testing import standing_still
from gateway.testing import Client, Refused, parse, refused, serving
from gateway.testing_jobs import staged
from prometheus_client import REGISTRY

PATIENCE_SECONDS = 20
LIMITS = """
[hasty]
calls_per_second = 20
[steady]
jobs_per_second = 0.01
[busy]
max_streams = 2
"""
SAVED = 100
"""Calls that `hasty` may make at once."""


def of(owner: str) -> Any:
    return (("fluoro-owner", owner),)


@pytest.fixture
async def gateways(
    database_url: str, redis_url: str, blob_url: str, tmp_path: Path
) -> AsyncIterator[Sequence[Client]]:
    """Two, which share Redis."""
    (tmp_path / "limits.toml").write_text(LIMITS)
    settings: Any = {"owner_limits_file": str(tmp_path / "limits.toml")}
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(serving(database_url, redis_url, blob_url, **settings))
            for _ in range(2)
        ]


def look(client: Client, owner: str) -> Awaitable[Refused]:
    """GetJob of a job that does not exist."""
    return refused(client.jobs.GetJob(GetJobRequest(name=f"jobs/{uuid4()}"), metadata=of(owner)))


async def looks(client: Client, owner: str, count: int) -> list[Refused]:
    return list(await asyncio.gather(*(look(client, owner) for _ in range(count))))


def let_through(answers: Sequence[Refused]) -> int:
    return sum(answer.reason == "JOB_NOT_FOUND" for answer in answers)


def shared() -> float | None:
    return REGISTRY.get_sample_value("fluoro_rates_shared")


async def test_who_calls_faster_than_it_may_is_told_when_there_is_room(
    gateways: Sequence[Client],
) -> None:
    began = time.monotonic()
    answers = await looks(gateways[0], "hasty", SAVED + 100)
    most = SAVED + 20 * (time.monotonic() - began) + 1  # with what came in meanwhile
    assert SAVED <= let_through(answers) <= most
    late = [answer for answer in answers if answer.reason != "JOB_NOT_FOUND"]
    assert {(how.code, how.reason, how.quota) for how in late} == {
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", "calls_per_second")
    }
    assert all(how.retry_seconds is not None and 0 <= how.retry_seconds < 1 for how in late)
    assert let_through(await looks(gateways[0], "else", 200)) == 200, "others have no part in it"


async def test_a_rate_holds_over_all_gateways_also_when_redis_stood_still(
    gateways: Sequence[Client], valkey: ValkeyServer
) -> None:
    first, second = gateways
    emptied = time.monotonic()
    await looks(first, "hasty", SAVED)
    # Once the second gateway has heard of it: its own copy of the bucket was full.
    async with asyncio.timeout(PATIENCE_SECONDS):
        while let_through([await look(second, "hasty")]):
            pass
    with standing_still(valkey):
        began = time.monotonic()
        await looks(first, "else", 20)
        answers = await looks(first, "hasty", 300)
        # Calls do not wait for Redis, and the gateway goes on counting by itself.
        assert time.monotonic() - began < 5
        assert let_through(answers) <= 20 * (time.monotonic() - emptied) + 1
        async with asyncio.timeout(PATIENCE_SECONDS):
            while shared() != 0:
                await look(first, "hasty")
    began = time.monotonic()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while shared() != 1:
            await look(first, "hasty")
        # What was sent to a Redis that stood still is not a debt for long.
        while not let_through([await look(first, "hasty")]):
            pass
    assert time.monotonic() - began < 15


FLOOD = 200
"""Calls of an owner that are under way all the time: more than the places of both tests."""


async def test_calls_beyond_what_may_wait_are_refused_at_once_and_the_client_waits_them_out(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    port = free_port()
    settings: Any = {"max_pending_requests": 20, "grpc_port": port}
    async with serving(database_url, redis_url, blob_url, **settings) as client:
        await look(client, "ada")
        answers = await looks(client, "ada", 2 * FLOOD)
        late = [answer for answer in answers if answer.reason != "JOB_NOT_FOUND"]
        assert 20 <= let_through(answers) < 2 * FLOOD
        assert {(how.code, how.reason, how.quota, how.retry_seconds) for how in late} == {
            (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS", "max_pending_requests", 1)
        }
        async with AsyncClient(f"127.0.0.1:{port}", owner="ada") as patient:
            counts = await asyncio.gather(*(patient.count() for _ in range(FLOOD)))
        assert all(not found for found, _ in counts)


async def test_a_burst_of_one_owner_refuses_no_call_of_another(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    settings: Any = {"max_pending_requests": 20}
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            serving(database_url, redis_url, blob_url, **settings)
        )
        await asyncio.gather(look(client, "hasty"), look(client, "calm"))
        seen: list[Refused] = []

        async def hurry() -> None:
            while len(seen) < 1500:
                seen.append(await look(client, "hasty"))

        burst = [asyncio.create_task(hurry()) for _ in range(FLOOD)]
        calm: list[Refused] = []
        while not all(each.done() for each in burst):
            calm.append(await look(client, "calm"))
    assert {how.reason for how in calm} == {"JOB_NOT_FOUND"}
    assert {how.reason for how in seen} == {"JOB_NOT_FOUND", "TOO_MANY_CALLS"}


async def test_jobs_have_a_rate_of_their_own(gateways: Sequence[Client]) -> None:
    jobs, metadata = gateways[0].jobs, of("steady")
    request = SubmitJobRequest(
        job=Job(inputs=[f"blobs/{uuid4()}"], steps=[Step(name="a", inspect_dicom=InspectDicom())])
    )
    first = await refused(jobs.SubmitJob(request, metadata=metadata))
    then = await refused(jobs.SubmitJob(request, metadata=metadata))
    batch = BatchSubmitJobsRequest(requests=[request] * 3)
    together = await refused(jobs.BatchSubmitJobs(batch, metadata=metadata))
    assert first.reason == "BLOB_NOT_FOUND", "it was let through"
    assert [(how.reason, how.quota) for how in (then, together)] == [
        ("RATE_LIMITED", "jobs_per_second")
    ] * 2
    assert then.retry_seconds is not None
    assert 90 < then.retry_seconds <= 100
    request.validate_only = True
    await jobs.SubmitJob(request, metadata=metadata)


async def test_an_owner_has_so_many_watches_open_and_the_next_once_one_ends(
    gateways: Sequence[Client],
) -> None:
    jobs = gateways[0].jobs

    def watch() -> Any:
        return jobs.WatchJobs(WatchJobsRequest(), metadata=of("busy"))

    watches = [watch(), watch()]
    for each in watches:
        await each.read()
    how = await refused(watch().read())
    assert (how.code, how.reason, how.quota, how.retry_seconds) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "TOO_MANY_CALLS",
        "max_streams",
        1,
    )
    assert (await look(gateways[0], "busy")).reason == "JOB_NOT_FOUND", "other calls go on"
    watches.pop().cancel()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            third = watch()
            with suppress(grpc.aio.AioRpcError):
                await third.read()
                break
    for each in (*watches, third):
        each.cancel()


async def test_an_owner_has_so_many_open_jobs_and_the_next_once_one_ends(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    async with staged(database_url, redis_url, blob_url, owner_max_open_jobs=2) as rig:
        jobs, first = rig.client.jobs, await rig.submit()
        found = await jobs.GetJob(GetJobRequest(name=first), metadata=of("ada"))
        steps = [Step(name="a", inspect_dicom=InspectDicom())]
        again = SubmitJobRequest(job=Job(inputs=found.job.inputs, steps=steps), request_id="again")
        second = await jobs.SubmitJob(again, metadata=of("ada"))
        assert await jobs.SubmitJob(again, metadata=of("ada")) == second, "it is there already"
        full = await refused(rig.submit())
        assert (full.code, full.reason, full.quota, full.retry_seconds) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "JOB_QUOTA_EXCEEDED",
            "max_open_jobs",
            2,
        )
        await rig.submit("eve")
        await rig.run(first)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                with suppress(grpc.aio.AioRpcError):
                    await rig.submit()
                    break
        assert (await refused(rig.submit())).reason == "JOB_QUOTA_EXCEEDED"
        request = SubmitJobRequest(
            job=Job(
                inputs=[f"blobs/{uuid4()}"], steps=[Step(name="a", inspect_dicom=InspectDicom())]
            )
        )
        batch = BatchSubmitJobsRequest(requests=[request] * 3)
        assert (
            await refused(rig.client.jobs.BatchSubmitJobs(batch, metadata=of("ada")))
        ).reason == "JOB_QUOTA_EXCEEDED"


async def test_an_owner_stores_so_many_bytes_and_what_is_announced_counts(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    settings: Any = {"owner_max_stored_bytes": 1000}
    async with serving(database_url, redis_url, blob_url, **settings) as client:

        async def send(data: bytes, owner: str = "ada", *, told: bool = True) -> str:
            header = UploadBlobHeader()
            if told:
                header = UploadBlobHeader(size_bytes=len(data), sha256=sha256(data).digest())
            parts = [UploadBlobRequest(header=header), UploadBlobRequest(chunk=data)]
            answer = await client.blobs.UploadBlob(iter(parts), metadata=of(owner))
            return str(answer.blob.name)

        async def begin(upload_id: str, data: bytes) -> None:
            header = UploadBlobHeader(size_bytes=len(data), sha256=sha256(data).digest())
            request = BeginUploadRequest(upload_id=upload_id, header=header)
            await client.blobs.BeginUpload(request, metadata=of("ada"))

        first, upload_id = await send(bytes(600)), str(uuid4())
        for told in (True, False):
            how = await refused(send(b"a" * 401, told=told))
            assert (how.code, how.reason, how.quota, how.retry_seconds) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "BYTE_QUOTA_EXCEEDED",
                "max_stored_bytes",
                None,
            )
        await send(b"a" * 401, "eve")
        assert await send(bytes(600)) == first, "the same bytes take no room"
        await begin(upload_id, b"b" * 300)
        assert (await refused(send(b"c" * 101, told=False))).reason == "BYTE_QUOTA_EXCEEDED"
        await send(b"c" * 100)
        assert (await refused(send(b"d"))).reason == "BYTE_QUOTA_EXCEEDED"
        assert (await refused(begin(str(uuid4()), b"d"))).reason == "BYTE_QUOTA_EXCEEDED"
        # What has begun is gone on with, and is counted once when it is there.
        await begin(upload_id, b"b" * 300)
        parts = [
            UploadBlobRequest(header=UploadBlobHeader(upload_id=upload_id)),
            UploadBlobRequest(chunk=b"b" * 300),
        ]
        await client.blobs.UploadBlob(iter(parts), metadata=of("ada"))
        assert await send(b"b" * 300)


async def test_uploads_at_the_same_time_do_not_share_room(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    settings: Any = {"owner_max_stored_bytes": 1000, "max_uploads": 100}
    async with serving(database_url, redis_url, blob_url, **settings) as client:

        async def send(number: int) -> str:
            chunk = bytes([number]) * 100
            parts = [UploadBlobRequest(header=UploadBlobHeader()), UploadBlobRequest(chunk=chunk)]
            try:
                await client.blobs.UploadBlob(iter(parts), metadata=of("ada"))
            except grpc.aio.AioRpcError as error:
                return parse(error).reason
            return ""

        answers = await asyncio.gather(*(send(number) for number in range(30)))
    assert sorted(answers) == [""] * 10 + ["BYTE_QUOTA_EXCEEDED"] * 20


async def test_an_upload_sees_what_has_landed_and_what_has_gone_since_it_began(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    async with serving(database_url, redis_url, blob_url, owner_max_stored_bytes=1000) as client:

        async def begun() -> Any:
            upload = client.blobs.UploadBlob(metadata=of("ada"))
            await upload.write(UploadBlobRequest(header=UploadBlobHeader()))
            await upload.write(UploadBlobRequest(chunk=b"a" * 100))
            return upload

        async def grow(upload: Any, chunk: bytes) -> None:
            await upload.write(UploadBlobRequest(chunk=chunk))
            await upload.done_writing()
            await upload

        first, second = await begun(), await begun()
        parts = [UploadBlobRequest(header=UploadBlobHeader()), UploadBlobRequest(chunk=b"b" * 400)]
        for _ in range(3):  # the same bytes land three times and are stored once
            await client.blobs.UploadBlob(iter(parts), metadata=of("ada"))
        assert (await refused(grow(first, b"c" * 401))).reason == "BYTE_QUOTA_EXCEEDED"
        await grow(second, b"d" * 400)


@pytest.mark.parametrize("told", [True, False])
async def test_uploads_that_fill_a_quota_together_all_fit(
    database_url: str, redis_url: str, blob_url: str, told: bool
) -> None:
    settings: Any = {"owner_max_stored_bytes": 60_000, "max_uploads": 200, "upload_owner_share": 1}
    async with serving(database_url, redis_url, blob_url, **settings) as client:

        async def send(number: int) -> None:
            content = number.to_bytes(4, "big") * 250
            header = UploadBlobHeader(size_bytes=len(content) if told else 0)
            parts = [UploadBlobRequest(header=header), UploadBlobRequest(chunk=content)]
            await client.blobs.UploadBlob(iter(parts), metadata=of("ada"))

        await asyncio.gather(*(send(number) for number in range(60)))


async def test_uploads_that_are_cancelled_while_they_are_recorded_count(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND query ILIKE '%INTO blobs%' AND datname = current_database()"
    )
    async with serving(database_url, redis_url, blob_url, owner_max_stored_bytes=1000) as client:

        def send(number: int) -> Any:
            parts = [
                UploadBlobRequest(header=UploadBlobHeader(size_bytes=1000)),
                UploadBlobRequest(chunk=bytes([number]) * 1000),
            ]
            return client.blobs.UploadBlob(iter(parts), metadata=of("ada"))

        with (
            psycopg.connect(database_url) as lock,
            psycopg.connect(database_url, autocommit=True) as looking,
        ):

            def recorded(count: int) -> bool:
                return looking.execute(waiting).fetchone() == (count,)

            lock.execute("LOCK TABLE blobs IN SHARE MODE")  # reads go on, writes wait
            first = send(1)
            await asyncio.to_thread(until, lambda: recorded(1))
            first.cancel()
            second = asyncio.create_task(refused(send(2)))
            with pytest.raises(AssertionError):  # it is not let in meanwhile
                await asyncio.to_thread(until, lambda: second.done() or recorded(2), 1)
            lock.rollback()
            assert (await second).reason == "BYTE_QUOTA_EXCEEDED"
