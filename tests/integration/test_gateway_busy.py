"""A ledger that hangs, and one owner's haste: callers hear soon and wait for nobody else."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import grpc.aio
import psycopg
import pytest
from fluoro.v1.job_pb2 import Job
from fluoro.v1.job_service_pb2 import CancelJobRequest, GetJobRequest, WatchJobRequest
from fluoro_local.servers import PostgresServer
from fluoro_local.testing import standing_still
from gateway.testing import Refused, refused
from gateway.testing_jobs import Stage, staged

STATEMENT_SECONDS = 2
"""Instead of 10."""
URLS = tuple[str, str, str]


@pytest.fixture
def urls(database_url: str, redis_url: str, blob_url: str) -> URLS:
    return database_url, redis_url, blob_url


@asynccontextmanager
async def locked(database_url: str, table: str) -> AsyncIterator[None]:
    """Nobody can read the table in the block."""
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield
        await connection.rollback()


def owner(name: str) -> Any:
    return (("fluoro-owner", name),)


def look(rig: Stage, of: str = "ada") -> Any:
    """GetJob of a job that does not exist: what the ledger is asked for is in `jobs`."""
    return rig.client.jobs.GetJob(GetJobRequest(name=f"jobs/{uuid4()}"), metadata=owner(of))


async def looks(rig: Stage, count: int) -> list[Refused]:
    return await asyncio.gather(*(refused(look(rig)) for _ in range(count)))


async def test_callers_of_a_ledger_that_hangs_hear_of_it_soon_and_later_ones_at_once(
    urls: URLS, postgres: PostgresServer
) -> None:
    async with staged(*urls, ledger_statement_seconds=STATEMENT_SECONDS) as rig:
        assert {found.reason for found in await looks(rig, 50)} == {"JOB_NOT_FOUND"}
        with standing_still(postgres):
            began = time.monotonic()
            answers = await looks(rig, 200)
            assert time.monotonic() - began < STATEMENT_SECONDS + 3
            began = time.monotonic()
            answers += await looks(rig, 200)
            # Each waiting for a statement, they would take half a minute and more.
            assert time.monotonic() - began < 10, "nobody waits"
        assert {(found.code, found.reason) for found in answers} == {
            (grpc.StatusCode.UNAVAILABLE, "LEDGER_UNAVAILABLE")
        }
        began = time.monotonic()
        while (await refused(look(rig))).reason != "JOB_NOT_FOUND":
            assert time.monotonic() - began < 5, "PostgreSQL has been back for that long"


async def test_the_haste_of_one_owner_is_refused_and_not_the_delay_of_another(urls: URLS) -> None:
    order: list[str] = []

    async def call(rig: Stage, of: str) -> str:
        reason = (await refused(look(rig, of))).reason
        order.append(of)
        return reason

    async with staged(*urls, ledger_threads=1, ledger_waiting_calls=5) as rig:
        async with locked(urls[0], "jobs"):
            hasty = [asyncio.create_task(call(rig, "ada")) for _ in range(10)]
            done, waiting = await asyncio.wait(hasty, return_when=asyncio.FIRST_COMPLETED)
            while len(done) < 4:  # one is being run, five wait
                done, waiting = await asyncio.wait(hasty, timeout=0.1)
            assert {task.result() for task in done} == {"GATEWAY_BUSY"}
            order.clear()
            other = asyncio.create_task(call(rig, "eve"))
            await refused(
                rig.client.jobs.GetJob(GetJobRequest(name="bad"), metadata=owner("eve"))
            )  # hers has come in before this one
        assert await other == "JOB_NOT_FOUND"
        assert "eve" in order[:3], order
        assert {await task for task in waiting} == {"JOB_NOT_FOUND"}


async def test_a_call_whose_caller_has_gone_is_not_run(urls: URLS) -> None:
    async with staged(*urls, ledger_threads=1) as rig:
        name = await rig.submit()
        async with locked(urls[0], "jobs"):
            first = asyncio.create_task(refused(look(rig)))
            gone = await refused(
                rig.client.jobs.CancelJob(
                    CancelJobRequest(name=name), metadata=owner("ada"), timeout=0.5
                )
            )
            assert gone.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert (await first).reason == "JOB_NOT_FOUND"
        assert (
            await rig.client.jobs.GetJob(GetJobRequest(name=name), metadata=owner("ada"))
        ).job.state == Job.STATE_PENDING


async def test_events_come_while_every_thread_of_the_callers_is_taken(urls: URLS) -> None:
    async with staged(*urls, ledger_threads=1) as rig:
        name = await rig.submit()
        watch = rig.client.jobs.WatchJob(WatchJobRequest(name=name), metadata=owner("ada"))
        assert (await watch.read()).HasField("snapshot")
        async with locked(urls[0], "items"):
            stuck = [
                rig.client.jobs.GetJob(GetJobRequest(name=name), metadata=owner("ada"))
                for _ in range(3)
            ]
            await rig.start(name)
            while not (response := await asyncio.wait_for(watch.read(), 3)).HasField("event"):
                continue
            assert response.event.sequence == 2
            assert not any(call.done() for call in stuck)
        await asyncio.gather(*stuck)
