"""A large result lies in the blob store, and whoever reads it notices no difference."""

from pathlib import Path
from typing import Final
from uuid import UUID

import pytest
from fluoro.v1 import job_pb2
from fluoro.v1.job_service_pb2 import ListResultsRequest
from fluoro_client import Client
from fluoro_jobs.errors import FluoroError
from fluoro_jobs.ledger import blobs, control, lists, read
from fluoro_jobs.testing.rig import OWNER, Rig, until
from fluoro_jobs.worker.results import INLINE_BYTES
from fluoro_local.folders import free_port

LARGE: Final = INLINE_BYTES + 1
OVERHEAD: Final = 32
"""Bytes around the text of an instance, at most."""


def parts_of(rig: Rig, job: job_pb2.Job, step: str = "step") -> list[str | None]:
    """Of each task of the step whether its result lies in the ledger or in the blob store."""
    with rig.connection() as connection:
        request = ListResultsRequest(job=job.name, step=step)
        found = lists.list_results(connection, OWNER, UUID(job.name[5:]), request)
    return [part.WhichOneof("content") for part in found.parts]


def stored(rig: Rig) -> list[UUID]:
    """Every blob in the store."""
    folder = Path(rig.blob_url.removeprefix("file://")) / "blobs"
    return [
        UUID(path.name) for path in folder.rglob("*") if path.is_file() and "#" not in path.name
    ]


def test_a_large_result_is_read_like_any_other_by_clients_and_by_the_steps_that_come_after(
    rig: Rig, tmp_path: Path
) -> None:
    port = free_port()
    rig.served("gateway", free_port(), grpc_host="127.0.0.1", grpc_port=port)
    rig.worker(pool="threads")
    rig.worker("export", pool="threads")
    sizes = [LARGE, 10, 2 * LARGE]
    job = rig.job_of({"do": "return", "bytes": sizes[0]})
    job.inputs.extend(rig.job_of({"do": "return", "bytes": size}).inputs[0] for size in sizes[1:])
    job.steps[0].max_inputs_per_task = 1
    measured = tmp_path / "measured"
    after = rig.job_of({"do": "measure", "path": str(measured)}, operation="export_report")
    report = job.steps.add(name="report", after=["step"])
    report.export_report.CopyFrom(after.steps[0].export_report)
    done = rig.finished(rig.submit(job))
    assert done.state == job_pb2.Job.STATE_SUCCEEDED
    assert parts_of(rig, done) == ["blob", "message", "blob"]
    assert parts_of(rig, done, "report") == ["message"]
    assert sum(sizes) < int(measured.read_text()) < sum(sizes) + 3 * OVERHEAD
    first, second = done.steps
    assert (first.large_result, first.WhichOneof("result")) == (True, None)
    assert (second.large_result, second.WhichOneof("result")) == (False, "export_report_result")
    with Client(f"127.0.0.1:{port}", owner=OWNER) as client:
        result = client.result(done.name, "step")
        with Client(f"127.0.0.1:{port}", owner="eve") as eve, rig.connection() as connection:
            rows = connection.execute("SELECT result_blob FROM tasks WHERE result_blob IS NOT NULL")
            for (blob,) in rows.fetchall():
                assert client.get_blob(f"blobs/{blob}").media_type == "application/x-protobuf"
                with pytest.raises(Exception, match="BLOB_NOT_FOUND"):
                    eve.get_blob(f"blobs/{blob}")
    assert [len(instance.modality) for instance in result.instances] == sizes


def test_a_result_over_the_limit_of_its_operation_fails_at_once_and_leaves_nothing(
    rig: Rig,
) -> None:
    rig.worker(pool="threads")
    job = rig.job_of({"do": "return", "bytes": 17 * 2**20})
    before = set(stored(rig))
    done = rig.finished(rig.submit(job))
    assert (done.state, done.steps[0].reason) == (job_pb2.Job.STATE_FAILED, "RESULT_TOO_LARGE")
    assert "max_inputs_per_task" in done.steps[0].message
    assert len(done.steps[0].tasks[0].attempts) == 1
    assert set(stored(rig)) == before


def test_a_large_result_that_was_not_committed_has_no_record_and_one_that_was_has_one(
    rig: Rig, tmp_path: Path
) -> None:
    rig.worker(pool="threads")
    go, running = tmp_path / "go", tmp_path / "running"
    job = rig.job_of(
        {"do": "touch", "path": str(running)},
        {"do": "wait", "path": str(go)},
        {"do": "return", "bytes": LARGE},
    )
    before = set(stored(rig))
    submitted = rig.submit(job)
    until(running.exists)
    with rig.connection() as connection:
        # The bytes are there, and their commit fails.
        connection.execute("ALTER TABLE blobs RENAME TO blobs_away")
        go.touch()
        until(lambda: set(stored(rig)) - before)
        (orphan,) = set(stored(rig)) - before
        until(
            lambda: connection.execute("SELECT FROM attempts WHERE outcome = 'FAILED'").fetchall()
        )
        connection.execute("ALTER TABLE blobs_away RENAME TO blobs")
        assert rig.finished(submitted).state == job_pb2.Job.STATE_SUCCEEDED
        _, unrecorded = blobs.unrecorded(connection, stored(rig))
    assert unrecorded == {orphan}
    assert len(set(stored(rig)) - before) == 2


def test_a_large_result_stays_while_the_tasks_beside_it_are_retried(
    rig: Rig, tmp_path: Path
) -> None:
    rig.worker(pool="threads")
    mended = tmp_path / "mended"
    job = rig.job_of({"do": "return", "bytes": LARGE})
    commands = [
        {"do": "fail", "reason": "NOT_DICOM", "unless": str(mended)},
        {"do": "return", "bytes": 10},
    ]
    job.inputs.append(rig.job_of(*commands).inputs[0])
    job.steps[0].max_inputs_per_task = 1
    submitted = rig.submit(job)
    done = rig.finished(submitted)
    assert (done.state, done.steps[0].counts.failed_tasks) == (job_pb2.Job.STATE_FAILED, 1)
    assert parts_of(rig, done) == [], "a failed step has no result"
    mended.touch()
    with rig.connection() as connection:
        control.retry_job(connection, OWNER, submitted)
    rig.dispatcher.dispatch()
    done = rig.finished(submitted)
    assert done.state == job_pb2.Job.STATE_SUCCEEDED
    assert parts_of(rig, done) == ["blob", "message"]


def test_results_of_earlier_steps_over_what_one_task_may_read_are_refused_unread(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.worker(pool="threads")
    # One lies in the blob store, one in the ledger.
    job = rig.job_of({"do": "return", "bytes": LARGE})
    job.inputs.append(rig.job_of({"do": "return", "bytes": 1_000}).inputs[0])
    job.steps[0].max_inputs_per_task = 1
    report = job.steps.add(name="report", after=["step"])
    report.export_report.title = rig.blob(b"[]")
    job_id = rig.submit(job)
    until(lambda: rig.job(job_id).steps[1].tasks)
    with rig.connection() as connection:
        monkeypatch.setattr(read, "MAX_EARLIER_BYTES", LARGE + 1_000 + 2 * OVERHEAD)
        ((stored, _, _),) = read.upstream_of(connection, job_id, [0])
        assert len(stored.parts) == 2
        monkeypatch.setattr(read, "MAX_EARLIER_BYTES", LARGE + 1_000)
        with pytest.raises(FluoroError, match="Set a smaller max_inputs_per_task") as refused:
            read.upstream_of(connection, job_id, [0])
        assert refused.value.reason == "RESULT_TOO_LARGE"
