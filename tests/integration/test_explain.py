"""ExplainJob names what keeps a job from ending, for each thing that can."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from fluoro.v1.explanation_pb2 import Cause, JobExplanation
from fluoro.v1.job_pb2 import Step
from fluoro.v1.job_service_pb2 import ExplainJobRequest
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import limits, standing
from fluoro_jobs.testing.rig import OWNER, Rig
from gateway.testing import Client, refused, serving

MINE = (("fluoro-owner", OWNER),)
QUEUED = 100_000
ENDED = 30_000
MOST_ROWS = 10_000
STATEMENTS = (
    "_HEAD",
    "_STEPS",
    "_OPEN",
    "_ATTEMPTS",
    "_WORKERS",
    "_IN_FLIGHT",
    "_LIMIT",
    "_AHEAD",
    "_MEASURED_SECONDS",
)


@pytest.fixture
async def client(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Client]:
    async with serving(database_url, redis_url, blob_url) as client:
        yield client


async def explained(client: Client, job: UUID) -> JobExplanation:
    answer = await client.jobs.ExplainJob(ExplainJobRequest(name=f"jobs/{job}"), metadata=MINE)
    found: JobExplanation = answer.explanation
    return found


def causes(found: JobExplanation, step: str = "step") -> dict[str, Cause]:
    (one,) = [each for each in found.steps if each.step == step]
    return {Cause.Kind.Name(cause.kind).removeprefix("KIND_"): cause for cause in one.causes}


async def settled(
    client: Client, job: UUID, is_so: Callable[[JobExplanation], object]
) -> JobExplanation:
    """The explanation once it is so."""
    async with asyncio.timeout(30):
        while not is_so(found := await explained(client, job)):  # noqa: ASYNC110 - the ledger sets no Event
            await asyncio.sleep(0.05)
    return found


async def test_a_job_without_a_worker_is_told_so_and_how_many_come_before_it(
    client: Client, rig: Rig
) -> None:
    first, second = (rig.submit(rig.job_of()) for _ in range(2))
    found = await explained(client, second)
    told = causes(found)
    assert set(told) == {"QUEUED", "NO_WORKER"}
    assert (told["QUEUED"].tasks_ahead, told["QUEUED"].queue) == (1, "dicom")
    assert told["QUEUED"].operation == "dicom.inspect"
    assert told["NO_WORKER"].message == "No worker of the queue dicom is alive. Start one."
    assert found.message == "Step step: No worker of the queue dicom is alive. Start one."
    assert not found.HasField("finish")
    assert causes(await explained(client, first))["QUEUED"].tasks_ahead == 0


async def test_a_job_whose_operation_no_worker_knows_is_told_so(client: Client, rig: Rig) -> None:
    job = rig.submit(rig.job_of())
    with rig.connection() as connection:
        connection.execute(
            "INSERT INTO workers (id, name, queue, slots, version, operations, expire_time)"
            " VALUES (%s, 'old:1', 'dicom', 2, '0', '{dicom.render}', now() + interval '1 min')",
            (new_id(),),
        )
    told = causes(await explained(client, job))["NO_WORKER"]
    assert (told.workers, told.slots) == (1, 2)
    assert told.message.startswith("None of the 1 live workers of the queue dicom knows dicom.insp")


async def test_a_running_task_a_full_queue_and_a_waiting_step_are_told_with_what_is_expected(
    client: Client, rig: Rig
) -> None:
    rig.worker(pool="threads", slots=1)
    for _ in range(3):
        rig.finished(rig.submit(rig.job_of({"do": "sleep", "seconds": 0.1})))
    gate = rig.folder / "gate"
    job = rig.job_of({"do": "wait", "path": str(gate)})
    job.steps.append(Step(name="report", export_report={}, after=["step"]))
    running = rig.submit(job)
    attempt = rig.running(running)
    behind = rig.submit(rig.job_of())
    found = await explained(client, running)
    told = causes(found)["RUNNING"]
    assert (told.worker, told.task_count, told.shard) == (attempt.worker, 1, 0)
    assert told.start_time == attempt.start_time
    waiting = causes(found, "report")["WAITING_FOR_STEP"]
    assert (list(waiting.steps), waiting.message) == (["step"], "Waits for the step step to end.")
    assert [record.attempt.number for record in found.attempts] == [1]

    late = await settled(client, behind, lambda found: "CAPACITY" in causes(found))
    told = causes(late)["CAPACITY"]
    assert (told.in_use, told.slots, told.workers) == (1, 1, 1)
    assert late.finish.sample_count >= 3
    earliest, expected, latest = (
        time.ToDatetime(UTC)
        for time in (late.finish.earliest_time, late.finish.expected_time, late.finish.latest_time)
    )
    now = late.time.ToDatetime(UTC)
    assert now < earliest <= expected <= latest < now + timedelta(seconds=60)
    assert late.start.expected_time.ToDatetime(UTC) < expected
    gate.touch()
    rig.finished(behind)


async def test_a_back_off_is_told_with_its_end_the_error_before_and_the_attempts(
    client: Client, rig: Rig
) -> None:
    rig.worker(pool="threads")
    job = rig.job_of({"do": "fail", "reason": "ATTEMPT_TIMEOUT", "retryable": True})
    job.steps[0].retry_policy.initial_backoff.FromSeconds(600)
    job.steps[0].retry_policy.max_backoff.FromSeconds(600)
    found = await settled(client, rig.submit(job), lambda found: "BACKOFF" in causes(found))
    told = causes(found)["BACKOFF"]
    assert told.reason == "ATTEMPT_TIMEOUT"
    assert "ATTEMPT_TIMEOUT. Raise `attempt_timeout`" in told.message
    assert told.until_time.ToDatetime(UTC) > datetime.now(UTC) + timedelta(seconds=100)
    (record,) = found.attempts
    assert (record.step, record.attempt.reason) == ("step", "ATTEMPT_TIMEOUT")


async def test_a_start_time_and_an_end_time_are_told(client: Client, rig: Rig) -> None:
    job = rig.job_of()
    job.schedule_time.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
    job.expire_time.FromDatetime(datetime.now(UTC) + timedelta(hours=2))
    found = await explained(client, rig.submit(job))
    told = causes(found)
    assert set(told) == {"SCHEDULED"}
    assert told["SCHEDULED"].until_time.seconds == job.schedule_time.seconds
    (expires,) = found.causes
    assert (expires.kind, expires.until_time.seconds) == (
        Cause.KIND_EXPIRES,
        job.expire_time.seconds,
    )


async def test_an_owner_at_its_limit_is_told_so(client: Client, rig: Rig) -> None:
    with rig.connection() as connection:
        limits.set_limit(connection, OWNER, 1)
    rig.worker(pool="threads", slots=2)
    gate = rig.folder / "gate"
    rig.running(rig.submit(rig.job_of({"do": "wait", "path": str(gate)})))
    behind = rig.submit(rig.job_of())
    told = causes(await explained(client, behind))["OWNER_LIMIT"]
    assert (told.limit, told.in_use) == (1, 1)
    assert told.message.startswith("1 task of this owner queued or running, of at most 1.")
    gate.touch()
    rig.finished(behind)


async def test_an_ended_job_has_a_verdict_and_its_attempts(client: Client, rig: Rig) -> None:
    rig.worker(pool="threads")
    job = rig.submit(rig.job_of({"do": "fail", "reason": "WORKER_LOST", "retryable": True}))
    rig.finished(job)
    found = await explained(client, job)
    assert found.message.startswith("The job has ended: FAILED.")
    assert list(found.steps) == []
    assert [record.attempt.number for record in found.attempts] == [1, 2, 3]
    assert not found.attempts_truncated


async def test_a_job_of_another_owner_is_not_explained(client: Client, rig: Rig) -> None:
    job = rig.submit(rig.job_of())
    call = client.jobs.ExplainJob(
        ExplainJobRequest(name=f"jobs/{job}"), metadata=(("fluoro-owner", "other"),)
    )
    assert (await refused(call)).reason == "JOB_NOT_FOUND"


QUEUE = """
INSERT INTO open_tasks (task_id, job_id, queue, owner, task_name, state, priority, due_time,
  order_time, dispatch_order)
SELECT gen_random_uuid(), gen_random_uuid(), 'dicom', 'owner' || n %% 50, 'dicom.inspect', 'READY',
  0, now(), now() - interval '1 h', now() - interval '1 h'
FROM generate_series(1, %(count)s) n
"""
PAST = """
WITH made AS (
  INSERT INTO jobs (id, owner, input_count, state, last_sequence, end_time)
  SELECT gen_random_uuid(), %(owner)s, 1, 'SUCCEEDED', 7, now() - n * interval '1 s'
  FROM generate_series(1, %(count)s) n RETURNING id
), planned AS (
  INSERT INTO steps (job_id, ordinal, name, operation, queue, task_name, request, after,
    max_attempts, initial_backoff_seconds, max_backoff_seconds, timeout_seconds, inputs_per_task,
    requires_all, state)
  SELECT id, 0, 'step', 'inspect_dicom', 'dicom', 'dicom.inspect', '', '{}', 3, 1, 1, 60, 0, false,
    'SUCCEEDED' FROM made RETURNING job_id
), done AS (
  INSERT INTO tasks (id, job_id, step, shard, first_input, input_count, state, allowed)
  SELECT gen_random_uuid(), job_id, 0, 0, 0, 1, 'SUCCEEDED', 3 FROM planned RETURNING id
)
INSERT INTO attempts (task_id, number, worker, start_time, end_time, outcome)
SELECT id, 1, 'host:1', now() - interval '1 s', now(), 'SUCCEEDED' FROM done
"""


async def test_a_long_queue_is_counted_no_further_than_a_thousand_and_in_bounded_time(
    client: Client, rig: Rig
) -> None:
    with rig.connection() as connection:
        connection.execute(QUEUE, {"count": QUEUED})
        connection.execute("SET session_replication_role = replica")  # without foreign keys' checks
        connection.execute(PAST, {"count": ENDED, "owner": OWNER})
        connection.execute("ANALYZE")
    jobs = [rig.submit(rig.job_of()) for _ in range(60)]
    found = await explained(client, jobs[-1])
    told = causes(found)["QUEUED"]
    assert (told.tasks_ahead, told.tasks_ahead_truncated) == (1000, True)
    assert "more than 1000 before the first of them" in told.message
    with rig.connection() as connection:
        task = connection.execute("SELECT id FROM tasks WHERE job_id = %s", (jobs[-1],)).fetchone()
        assert task is not None
        given = {
            "job": jobs[-1],
            "owner": OWNER,
            "queue": "dicom",
            "queues": ["dicom"],
            "naming": [],
            "names": ["dicom.inspect"],
            "task": task[0],
        }
        for name in STATEMENTS:
            explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {getattr(standing, name)}"
            plan = connection.execute(explain, given).fetchone()
            assert plan is not None
            assert rows_read(plan[0][0]["Plan"]) < MOST_ROWS, name


def rows_read(plan: dict[str, Any]) -> float:
    """Rows that the scans of tables gave or left out."""
    own = 0.0
    if "Relation Name" in plan:
        passed = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
        own = passed * plan["Actual Loops"]
    return own + sum(rows_read(inner) for inner in plan.get("Plans", ()))
