"""Several attempts of one task, or several tasks of one pool child, are told apart."""

import json
import math
from datetime import datetime
from pathlib import Path
from uuid import UUID

import pytest
import redis
from fluoro.v1 import dicom_pb2, job_pb2
from fluoro_jobs.celery import Sender
from fluoro_jobs.ledger import control, sweeps
from fluoro_jobs.ledger.sweeps import Backoff
from fluoro_jobs.testing.rig import OWNER, Rig, queue_tasks, until

SUCCEEDED = job_pb2.Job.STATE_SUCCEEDED


def outcomes(rig: Rig, job_id: UUID) -> list[str]:
    found = rig.job(job_id).steps[0].tasks[0].attempts
    return [
        job_pb2.Attempt.Outcome.Name(attempt.outcome).removeprefix("OUTCOME_") for attempt in found
    ]


def lease_of(rig: Rig, job_id: UUID) -> datetime | None:
    with rig.connection() as connection:
        row = connection.execute(
            "SELECT lease_expire_time FROM open_tasks WHERE job_id = %s", (job_id,)
        ).fetchone()
    assert row is not None
    return row[0]


def beat(rig: Rig, job_id: UUID) -> None:
    """Returns after two looks of the job's worker: the first one may have begun before."""
    for _ in range(2):
        before = lease_of(rig, job_id)
        rig.have_workers_look()
        until(lambda before=before: lease_of(rig, job_id) != before, what="a heartbeat")


def runs_again(rig: Rig, job_id: UUID, attempt: int) -> None:
    """Dispatches the task's next attempt once its back-off is over, and waits for its claim."""
    until(
        lambda: rig.dispatcher.dispatch() or len(outcomes(rig, job_id)) == attempt,
        what="the end of the back-off",
    )
    until(lambda: len(outcomes(rig, job_id)) == attempt, what=f"attempt {attempt}")


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_an_attempt_is_not_taken_for_the_one_that_failed_right_before_it_in_the_same_process(
    rig: Rig, tmp_path: Path, pool: str
) -> None:
    rig.worker(slots=1, pool=pool)
    rig.finished(
        rig.submit(rig.job_of({"do": "sleep", "seconds": 0.1}))
    )  # the end of the first one of all calls for a heartbeat
    first, mended, second = (str(tmp_path / name) for name in ("first", "mended", "second"))
    fails = {"do": "fail", "reason": "INTERNAL", "retryable": True, "unless": mended}
    job_id = rig.submit(
        rig.job_of(
            {"do": "wait", "path": first}, fails, {"do": "wait", "path": second}, max_attempts=2
        )
    )
    rig.running(job_id)
    beat(rig, job_id)
    Path(first).touch()
    until(lambda: outcomes(rig, job_id) == ["FAILED"], what="the end of the first attempt")
    Path(mended).touch()
    runs_again(rig, job_id, 2)
    beat(rig, job_id)
    Path(second).touch()
    assert rig.finished(job_id, seconds=10).state == SUCCEEDED, rig.logs()
    assert outcomes(rig, job_id) == ["FAILED", "SUCCEEDED"]


def test_two_attempts_of_one_task_in_one_process_are_told_apart(rig: Rig, tmp_path: Path) -> None:
    rig.worker(slots=2, pool="threads")
    finish = str(tmp_path / "finish")

    def two_attempts(name: str) -> UUID:
        """The first one lost its lease and does not look at cancellation; the second one waits."""
        stay = {
            "do": "stay_once",
            "path": str(tmp_path / name),
            "until": str(tmp_path / f"{name}-ends"),
        }
        put = {"do": "artifact", "name": "a", "text": "x"}
        job_id = rig.submit(rig.job_of(stay, {"do": "wait", "path": finish}, put, max_attempts=2))
        until((tmp_path / name).exists, what="the first attempt")
        beat(rig, job_id)
        with rig.connection() as connection:
            connection.execute(
                (
                    "UPDATE open_tasks SET lease_expire_time = now() - interval '1 s'"
                    " WHERE job_id = %s"
                ),
                (job_id,),
            )
            assert list(sweeps.expired_leases(connection, Backoff("test"))) == [job_id]
        runs_again(rig, job_id, 2)
        beat(rig, job_id)
        return job_id

    kept_id = two_attempts("kept")
    Path(finish).touch()
    job = rig.finished(kept_id, seconds=10)
    assert (job.state, outcomes(rig, kept_id)) == (SUCCEEDED, ["LOST", "SUCCEEDED"]), rig.logs()
    (
        tmp_path / "kept-ends"
    ).touch()  # its first attempt goes on, and ends for nobody; the next two need its slot
    Path(finish).unlink()

    cancelled_id = two_attempts("cancelled")
    with rig.connection() as connection:
        control.cancel_job(connection, OWNER, cancelled_id)
    rig.have_workers_look()
    assert rig.finished(rig.submit(rig.job_of()), seconds=10).state == SUCCEEDED, (
        "the second attempt's slot is free, the first one's is not"
    )
    assert rig.job(kept_id) == job


def test_a_stop_that_comes_late_does_not_hit_the_next_task_of_the_pool_child(
    rig: Rig, tmp_path: Path
) -> None:
    rig.worker(slots=1)
    first, second = (str(tmp_path / name) for name in ("first", "second"))
    job_id = rig.submit(rig.job_of({"do": "wait", "path": first}))
    rig.running(job_id)
    waits = "SELECT FROM pg_locks WHERE relation = 'workers'::regclass AND NOT granted"
    with rig.connection() as connection, rig.connection() as other:
        with connection.transaction():
            connection.execute(
                "LOCK TABLE workers IN SHARE MODE"
            )  # a heartbeat waits for it, knowing what runs now
            rig.have_workers_look()
            until(lambda: other.execute(waits).fetchone() is not None, what="a heartbeat")
            control.cancel_job(other, OWNER, job_id)
            Path(first).touch()
            next_id = rig.submit(rig.job_of({"do": "wait", "path": second}, max_attempts=1))
            until(lambda: rig.dispatcher.dispatch() or outcomes(rig, next_id), what="the next task")
            until(lambda: outcomes(rig, next_id), what="the next task")
        beat(rig, next_id)
        Path(second).touch()
    assert rig.finished(next_id, seconds=10).state == SUCCEEDED, rig.logs()


def test_a_retry_comes_when_its_back_off_is_over(rig: Rig) -> None:
    rig.start("scheduler")
    rig.worker(slots=1)
    fails = {"do": "fail", "reason": "INTERNAL", "retryable": True}
    job = rig.job_of(fails, max_attempts=2)
    job.steps[0].retry_policy.initial_backoff.FromSeconds(1)
    first, second = rig.finished(rig.submit(job)).steps[0].tasks[0].attempts
    waited = second.start_time.ToDatetime() - first.end_time.ToDatetime()
    assert 0.5 < waited.total_seconds() < 4, rig.logs()


def test_a_message_for_an_earlier_attempt_is_dropped_and_one_of_the_previous_release_is_not(
    rig: Rig, tmp_path: Path
) -> None:
    rig.worker(slots=1)
    fails = {
        "do": "fail",
        "reason": "INTERNAL",
        "retryable": True,
        "unless": str(tmp_path / "mended"),
    }
    job = rig.job_of(fails, max_attempts=2)
    job.steps[0].retry_policy.initial_backoff.FromSeconds(3600)  # the messages below are the test's
    job_id = rig.submit(job)
    until(lambda: outcomes(rig, job_id) == ["FAILED"], what="the end of the first attempt")
    (tmp_path / "mended").touch()
    with rig.connection() as connection:
        (task,) = queue_tasks(connection, job_id)
    message = (task, "dicom.inspect", "dicom", 1)
    Sender(rig.redis_url).send([message])
    other_id = rig.submit(rig.job_of())
    assert rig.finished(other_id, seconds=10).state == SUCCEEDED, "taken after the stale message"
    assert outcomes(rig, job_id) == ["FAILED"]
    with redis.Redis.from_url(rig.redis_url) as client:
        Sender(rig.redis_url).send([(message[0], "dicom.inspect", "held", 1)])
        old = json.loads(client.rpop("held"))
        del old["headers"]["attempt"]
        client.lpush("dicom", json.dumps(old))
        assert rig.finished(job_id, seconds=10).state == SUCCEEDED, rig.logs()
        assert not client.llen("dicom")


def test_a_request_that_breaks_a_rule_of_the_protos_fails_on_the_worker_too_and_at_once(
    rig: Rig,
) -> None:
    job_id = rig.submit(rig.job_of(operation="render_dicom"))
    window = dicom_pb2.VoiWindow(center=math.nan, width=1)
    with rig.connection() as connection:  # as a gateway without the rule would have stored it
        connection.execute(
            "UPDATE steps SET request = %s WHERE job_id = %s",
            (dicom_pb2.RenderDicom(window=window).SerializeToString(), job_id),
        )
    rig.worker()
    [step] = rig.finished(job_id).steps
    assert (step.reason, step.message) == ("INVALID_ARGUMENT", "window.center: Must be finite.")
    assert outcomes(rig, job_id) == ["FAILED"]
