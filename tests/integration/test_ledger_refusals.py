"""PostgreSQL answers and refuses: callers hear why, and work goes on once it is over."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from uuid import UUID

import grpc
import psycopg
import pytest
from fluoro.v1.job_pb2 import Job
from fluoro.v1.job_service_pb2 import CancelJobRequest, GetJobRequest
from fluoro_jobs.testing.rig import until
from fluoro_local.replication import read_only
from fluoro_local.servers import PostgresServer
from gateway.testing import Refused, parse, refused
from gateway.testing_jobs import Stage, staged
from psycopg import Connection, sql
from psycopg.rows import TupleRow

METADATA = (("fluoro-owner", "ada"),)
Code = grpc.StatusCode


@pytest.fixture
async def rig(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Stage]:
    async with staged(database_url, redis_url, blob_url) as rig:
        yield rig


def meaning(refusal: Refused) -> tuple[grpc.StatusCode, str]:
    return refusal.code, refusal.reason


async def state(rig: Stage, name: str) -> "Job.State.ValueType":
    answer = await rig.client.jobs.GetJob(GetJobRequest(name=name), metadata=METADATA)
    return Job.State.Name(answer.job.state)


# --- a statement that somebody else's locks hold up ---


def make_a_circle(mine: Connection[TupleRow], job_id: UUID, _pid: int) -> None:
    mine.execute("SELECT FROM jobs WHERE id = %s FOR UPDATE", (job_id,))


def cancel_the_backend(mine: Connection[TupleRow], _job_id: UUID, pid: int) -> None:
    mine.execute("SELECT pg_cancel_backend(%s)", (pid,))


def end_the_backend(mine: Connection[TupleRow], _job_id: UUID, pid: int) -> None:
    mine.execute("SELECT pg_terminate_backend(%s)", (pid,))


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (make_a_circle, "LEDGER_BUSY"),
        (cancel_the_backend, "LEDGER_BUSY"),
        (end_the_backend, "LEDGER_UNAVAILABLE"),
    ],
)
async def test_a_statement_that_postgresql_gave_up_wrote_nothing_and_the_caller_may_try_again(
    rig: Stage,
    database_url: str,
    end: Callable[[Connection[TupleRow], UUID, int], None],
    reason: str,
) -> None:
    name = await rig.submit()
    job_id = UUID(name.removeprefix("jobs/"))
    # pg_stat_activity shows one snapshot for as long as a transaction lasts; pg_locks is live.
    waiting = (
        "SELECT pid FROM pg_locks"
        " WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"
    )
    with psycopg.connect(database_url) as mine:
        mine.execute(
            "SET deadlock_timeout = '1h'"
        )  # it is the gateway's statement that PostgreSQL ends
        mine.execute("SELECT FROM tasks WHERE job_id = %s FOR UPDATE", (job_id,))
        call = asyncio.create_task(
            refused(rig.client.jobs.CancelJob(CancelJobRequest(name=name), metadata=METADATA))
        )
        (pid,) = await asyncio.to_thread(
            until, lambda: mine.execute(waiting).fetchone(), 30, "a statement that waits for ours"
        )
        await asyncio.to_thread(end, mine, job_id, pid)
        assert meaning(await call) == (Code.UNAVAILABLE, reason)
        assert await state(rig, name) == "STATE_PENDING"
    await rig.client.jobs.CancelJob(CancelJobRequest(name=name), metadata=METADATA)
    assert await state(rig, name) == "STATE_CANCELLED"


# --- no writes ---


async def test_a_ledger_that_takes_no_writes_is_named_to_each_writer_and_still_answers_readers(
    rig: Stage, postgres: PostgresServer
) -> None:
    name = await rig.submit()
    with read_only(postgres):
        for _ in range(3):
            refusal = await refused(
                rig.client.jobs.CancelJob(CancelJobRequest(name=name), metadata=METADATA)
            )
            assert meaning(refusal) == (Code.UNAVAILABLE, "LEDGER_READ_ONLY")
        assert await state(rig, name) == "STATE_PENDING"
    await rig.client.jobs.CancelJob(CancelJobRequest(name=name), metadata=METADATA)
    assert await state(rig, name) == "STATE_CANCELLED"


# --- no space ---


class SmallDisk:
    """A disk of the test's own, in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, how: str) -> None:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", how, "tmpfs", self.folder],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            pytest.skip(
                f"a disk that can be filled takes the right to mount one: {done.stderr.strip()}"
            )

    def fill(self) -> None:
        """Leaves some pages for what PostgreSQL has allocated and not written yet."""
        used = subprocess.run(
            ["df", "--output=used", self.folder], check=True, capture_output=True, text=True
        ).stdout.split()[1]
        self.mount(f"remount,size={int(used) + 64}k")

    def grow(self) -> None:
        self.mount("remount,size=256m")


@pytest.fixture
def small_disk(postgres: PostgresServer) -> Iterator[SmallDisk]:
    folder = postgres.folder / "small"
    folder.mkdir(exist_ok=True)
    disk = SmallDisk(folder)
    disk.mount(
        "size=256m,mode=0700,uid={0.st_uid},gid={0.st_gid}".format(
            (postgres.folder / "data").stat()
        )
    )
    yield disk
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def database_on_small_disk(
    postgres: PostgresServer, database_url: str, small_disk: SmallDisk
) -> Iterator[str]:
    """The tables are there; the write-ahead log, without which PostgreSQL ends itself, is not."""
    name = sql.Identifier(str(psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]))
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        location = sql.Literal(str(small_disk.folder))
        connection.execute(sql.SQL("CREATE TABLESPACE small LOCATION {}").format(location))
        # The disk is another file system, where nothing can be cloned.
        connection.execute("SET file_copy_method = copy")
        connection.execute(sql.SQL("ALTER DATABASE {} SET TABLESPACE small").format(name))
        yield database_url
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
        connection.execute(
            sql.SQL("CREATE DATABASE {}").format(name)
        )  # the fixture that made it drops it
        connection.execute("DROP TABLESPACE small")


async def submit_many(rig: Stage) -> None:
    for _ in range(200):
        await rig.submit(padding="x" * 60)


async def test_a_full_disk_of_postgresql_is_told_by_name_and_jobs_are_accepted_once_there_is_room(
    database_on_small_disk: str, redis_url: str, blob_url: str, small_disk: SmallDisk
) -> None:
    async with staged(database_on_small_disk, redis_url, blob_url) as rig:
        known = await rig.submit()
        small_disk.fill()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await submit_many(rig)
        assert meaning(parse(caught.value)) == (Code.RESOURCE_EXHAUSTED, "LEDGER_FULL")
        assert await state(rig, known) == "STATE_PENDING"
        small_disk.grow()
        assert await state(rig, await rig.submit()) == "STATE_PENDING"
