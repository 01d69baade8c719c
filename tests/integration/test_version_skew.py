"""Releases beside each other, as during a rolling upgrade: a service meets what it doesn't know.

An old release is a real process that does not know some of the operations.
"""

import json
import subprocess
from uuid import UUID

import grpc
from fluoro.v1 import job_pb2
from fluoro.v1.job_service_pb2 import GetJobRequest, SubmitJobRequest, WaitJobRequest
from fluoro.v1.job_service_pb2_grpc import JobServiceStub
from fluoro_jobs.ledger import backlog
from fluoro_jobs.testing.rig import OWNER, Rig, until
from fluoro_local.folders import free_port

UNKNOWN_FIELD = b"\xba\x3e\x01x"
"""Field 999 of a message of a later release."""


def old_worker(rig: Rig, forgets: str, queue: str = "dicom") -> subprocess.Popen[bytes]:
    """A worker of a release that did not know this operation, once the ledger lists it."""
    return rig.worker(queue, "threads", forgets=forgets)


def job_of(rig: Rig, operation: str) -> job_pb2.Job:
    return rig.job_of(operation=operation, max_attempts=1)


def attempts_of(rig: Rig, job_id: UUID) -> list[tuple[str, str]]:
    """Outcome and reason of each attempt of the job's last step."""
    return [
        (job_pb2.Attempt.Outcome.Name(one.outcome).removeprefix("OUTCOME_"), one.reason)
        for task in rig.job(job_id).steps[-1].tasks
        for one in task.attempts
    ]


def held(rig: Rig) -> int:
    with rig.connection() as connection:
        return next(one.held for one in backlog.by_queue(connection) if one.name == "dicom")


def test_a_task_that_no_worker_knows_waits_for_one_that_does_and_keeps_no_other_waiting(
    rig: Rig,
) -> None:
    rig.start("scheduler", sweep_interval_seconds=0.2)
    old_worker(rig, forgets="render_dicom")
    new = rig.submit(job_of(rig, "render_dicom"))
    known = [rig.submit(job_of(rig, "inspect_dicom")) for _ in range(3)]
    for job_id in known:
        assert rig.finished(job_id).state == job_pb2.Job.STATE_SUCCEEDED
    assert (attempts_of(rig, new), held(rig)) == ([], 1)
    rig.worker(pool="threads")
    assert rig.finished(new).state == job_pb2.Job.STATE_SUCCEEDED
    assert (attempts_of(rig, new), held(rig)) == ([("SUCCEEDED", "")], 0)


def test_tasks_that_some_workers_know_find_one_and_spend_no_attempt(rig: Rig) -> None:
    rig.start("scheduler", sweep_interval_seconds=0.2)
    old_worker(rig, forgets="render_dicom")
    rig.worker(pool="threads", slots=1)
    jobs = [rig.submit(job_of(rig, "render_dicom")) for _ in range(8)]
    for job_id in jobs:
        assert rig.finished(job_id).state == job_pb2.Job.STATE_SUCCEEDED
        assert attempts_of(rig, job_id) == [("SUCCEEDED", "")]
    assert "operation_unknown" in rig.logs(), "the old one got some of them"


def test_a_request_of_a_later_release_is_handed_back_uncounted(rig: Rig) -> None:
    rig.start("scheduler", sweep_interval_seconds=0.2)
    job_id = rig.submit(job_of(rig, "inspect_dicom"))
    with rig.connection() as connection:
        connection.execute("UPDATE steps SET request = %s", (UNKNOWN_FIELD,))
        rig.worker(pool="threads")
        until(lambda: attempts_of(rig, job_id), what="an attempt")
        until(lambda: attempts_of(rig, job_id)[0] == ("RELEASED", "OPERATION_UNKNOWN"), 30)
        connection.execute("UPDATE steps SET request = ''")
    assert rig.finished(job_id).state == job_pb2.Job.STATE_SUCCEEDED


def test_a_step_after_one_of_a_later_release_waits_for_a_worker_that_can_read_its_result(
    rig: Rig,
) -> None:
    rig.start("scheduler", sweep_interval_seconds=0.2)
    job = job_of(rig, "inspect_dicom")
    report = job.steps.add(name="report", after=["step"])
    report.export_report.title = rig.blob(json.dumps([{"do": "upstream"}]).encode())
    report.retry_policy.max_attempts = 1
    rig.worker(pool="threads")
    old = old_worker(rig, forgets="inspect_dicom", queue="export")
    job_id = rig.submit(job)
    until(lambda: ("RELEASED", "OPERATION_UNKNOWN") in attempts_of(rig, job_id), what="a return")
    old.terminate()
    rig.worker("export", "threads")
    done = rig.finished(job_id)
    assert done.state == job_pb2.Job.STATE_SUCCEEDED, rig.logs()


def test_an_old_gateway_shows_jobs_that_it_does_not_understand_and_works_with_newer_workers(
    rig: Rig,
) -> None:
    port = free_port()
    rig.start(
        "fluoro_jobs.testing.old_release",
        "gateway",
        forgets="render_dicom",
        grpc_host="127.0.0.1",
        grpc_port=port,
        single_owner=OWNER,
    )
    new = rig.submit(job_of(rig, "render_dicom"))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        gateway = JobServiceStub(channel)
        shown = gateway.GetJob(GetJobRequest(name=f"jobs/{new}"), wait_for_ready=True, timeout=30)
        assert [step.name for step in shown.job.steps] == ["step"]
        assert shown.job.steps[0].WhichOneof("operation") is None
        rig.worker(pool="threads")
        request = SubmitJobRequest(job=job_of(rig, "inspect_dicom"))
        names = [f"jobs/{new}", gateway.SubmitJob(request).job.name]
        for name in names:
            done = gateway.WaitJob(WaitJobRequest(name=name))
            assert done.job.state == job_pb2.Job.STATE_SUCCEEDED
