"""Watches that begin together: each gets its own job, and the ledger is read once for many."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
from fluoro.v1.dicom_pb2 import InspectDicom
from fluoro.v1.job_pb2 import Job, Step
from fluoro.v1.job_service_pb2 import GetJobRequest, SubmitJobRequest, WatchJobRequest
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.read import BASIC, FULL, SMALL_JOB_PARTS, get_jobs
from gateway.ledger_calls import LedgerCalls
from gateway.testing import refused
from gateway.testing_jobs import Stage, staged
from gateway.together import AT_ONCE, MOST_TOGETHER, Together

PATIENCE_SECONDS = 20


@pytest.fixture
async def rig(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Stage]:
    async with staged(database_url, redis_url, blob_url) as made:
        yield made


def of(owner: str) -> Any:
    return (("fluoro-owner", owner),)


async def get(rig: Stage, name: str, owner: str) -> Job:
    answer = await rig.client.jobs.GetJob(GetJobRequest(name=name), metadata=of(owner))
    return Job.FromString(answer.job.SerializeToString())


async def snapshot(rig: Stage, name: str, owner: str) -> Job:
    call = rig.client.jobs.WatchJob(WatchJobRequest(name=name), metadata=of(owner))
    first = await call.read()
    call.cancel()
    return Job.FromString(first.snapshot.SerializeToString())


async def submit_large(rig: Stage) -> str:
    """Of ada, with more inputs than are read together with other jobs."""
    blob = (await get(rig, await rig.submit(), "ada")).inputs[0]
    steps = [Step(name=name, inspect_dicom=InspectDicom(), max_inputs_per_task=9) for name in "abc"]
    job = Job(inputs=[blob] * (SMALL_JOB_PARTS + 1), steps=steps)
    request = SubmitJobRequest(job=job)
    return str((await rig.client.jobs.SubmitJob(request, metadata=of("ada"))).job.name)


async def test_each_watch_that_begins_with_others_starts_with_its_own_job(rig: Stage) -> None:
    jobs = [
        (await rig.submit(owner, number=str(number)), owner)
        for number in range(12)
        for owner in ("ada", "eve")
    ]
    for name, _ in jobs[::3]:
        await rig.run(name)
    await rig.fail_often(jobs[1][0], 2, "no")
    jobs.append((await submit_large(rig), "ada"))
    async with asyncio.timeout(PATIENCE_SECONDS):
        snapshots = await asyncio.gather(*(snapshot(rig, *job) for job in jobs * 2))
    assert snapshots == [await get(rig, *job) for job in jobs] * 2


async def test_among_others_a_job_of_somebody_else_is_not_found(rig: Stage) -> None:
    mine, large = await rig.submit("ada"), await submit_large(rig)
    answers = await asyncio.gather(
        snapshot(rig, mine, "ada"),
        refused(snapshot(rig, mine, "eve")),
        refused(snapshot(rig, large, "eve")),
        refused(snapshot(rig, f"jobs/{uuid4()}", "ada")),
    )
    assert answers[0].name == mine
    assert {answer.reason for answer in answers[1:]} == {"JOB_NOT_FOUND"}


async def test_a_read_of_many_jobs_fills_no_answer_with_a_job_of_somebody_else(rig: Stage) -> None:
    mine, others = await rig.submit("ada"), await rig.submit("bob")
    await rig.run(others)
    wanted = [
        (owner, (UUID(name.removeprefix("jobs/")), view))
        for owner, name, view in [
            ("ada", others, FULL),
            ("ada", others, BASIC),
            ("ada", mine, FULL),
            ("bob", others, BASIC),
        ]
    ]

    def read_together() -> tuple[list[Job | FluoroError | None], int]:
        with rig.ledger.connection() as connection:
            read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE relname = 'job_inputs'"
            flush = "SELECT pg_stat_force_next_flush()"
            connection.execute(flush)
            ((before,),) = connection.execute(f"{read} AND indexrelname LIKE '%pkey'").fetchall()
            answers = get_jobs(connection, wanted)
            connection.execute(flush)
            ((after,),) = connection.execute(f"{read} AND indexrelname LIKE '%pkey'").fetchall()
            return answers, after - before

    (full, basic, own, theirs), inputs_read = await asyncio.to_thread(read_together)
    for refusal in full, basic:
        assert isinstance(refusal, FluoroError)
        assert refusal.reason is Reason.JOB_NOT_FOUND
    assert own == await get(rig, mine, "ada")
    # What ada asked for in the view FULL does not show up where bob asked for BASIC.
    assert isinstance(theirs, Job)
    assert (theirs.name, theirs.owner) == (others, "bob")
    assert not theirs.inputs
    assert not any(step.tasks or step.items or step.artifacts for step in theirs.steps)
    assert inputs_read == 1, "that of ada's job alone"


async def test_a_job_of_heavy_results_attempts_or_artifacts_is_not_read_with_others(
    rig: Stage,
) -> None:
    names = [await rig.submit() for _ in range(4)]
    light, result, attempts, artifacts = ids = [UUID(name.removeprefix("jobs/")) for name in names]
    await rig.run(names[1])
    await rig.fail_often(names[2], 40, "x" * 1000)

    def read_together() -> list[Job | FluoroError | None]:
        with rig.ledger.connection() as connection:
            connection.execute(
                "UPDATE tasks SET result = %s WHERE job_id = %s", (bytes(2**18), result)
            )
            connection.execute(
                "INSERT INTO artifacts (job_id, step, shard, position, name, blob_id, role, key)"
                " SELECT %s, 0, 0, n, 'page ' || n, blob_id, 'page', '' "
                "FROM generate_series(1, 500) n, job_inputs WHERE job_id = %s",
                (artifacts, artifacts),
            )
            return get_jobs(connection, [("ada", (job_id, FULL)) for job_id in ids])

    answers = await asyncio.to_thread(read_together)
    assert isinstance(answers[0], Job)
    assert answers[0].name == f"jobs/{light}"
    assert answers[1:] == [None, None, None], f"of {result}, {attempts} and {artifacts}"


async def test_those_who_wait_share_the_next_read_and_owners_take_turns_in_it(rig: Stage) -> None:
    under_way, go = threading.Semaphore(0), threading.Event()
    reads: list[list[tuple[str, int]]] = []

    def answer(_: LedgerConnection, wanted: Sequence[tuple[str, int]]) -> Sequence[int]:
        under_way.release()
        assert go.wait(PATIENCE_SECONDS)
        reads.append(list(wanted))
        return [number for _, number in wanted]

    calls = LedgerCalls(rig.ledger, threads=AT_ONCE)
    together = Together(calls, answer, max_waiting=MOST_TOGETHER)
    try:
        first = []
        for _ in range(AT_ONCE):
            first.append(asyncio.create_task(together.of("ada", 0)))
            assert await asyncio.to_thread(under_way.acquire, timeout=PATIENCE_SECONDS)
        many = [asyncio.create_task(together.of("ada", n)) for n in range(MOST_TOGETHER)]
        other = asyncio.create_task(together.of("eve", 7))
        await asyncio.sleep(0)
        with pytest.raises(FluoroError) as busy:
            await together.of("ada", 0)
        assert busy.value.reason is Reason.GATEWAY_BUSY
        many.pop().cancel()
        go.set()
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await asyncio.gather(*many) == list(range(MOST_TOGETHER - 1))
            assert await other == 7
            await asyncio.gather(*first)
    finally:
        go.set()
        calls.close()
    assert sorted(map(len, reads)) == [1] * AT_ONCE + [MOST_TOGETHER]
    assert [owner for owner, _ in max(reads, key=len)[:2]] == ["ada", "eve"]


async def test_what_a_shared_read_raises_reaches_all_who_share_it(rig: Stage) -> None:
    def fail(_: LedgerConnection, wanted: Sequence[tuple[str, int]]) -> Sequence[int]:
        raise FluoroError(Reason.LEDGER_BUSY, f"{len(wanted)} asked")

    calls = LedgerCalls(rig.ledger, threads=1)
    together = Together(calls, fail, max_waiting=MOST_TOGETHER)
    try:
        asked = [together.of(owner, 1) for owner in ("ada", "eve", "ada")]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [str(answer) for answer in answers] == ["LEDGER_BUSY: 3 asked"] * 3
        assert await asyncio.gather(together.of("ada", 1), return_exceptions=True)
    finally:
        calls.close()
