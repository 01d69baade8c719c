"""No space left: a clear answer, nothing half-written, and work goes on once there is room.

A limit on the size of one file stands for the end of the disk, where a real small one is not
needed.
"""

import io
import json
import resource
import subprocess
from collections.abc import Iterator
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from uuid import UUID
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
from fluoro.v1 import job_pb2
from fluoro_client import Client
from fluoro_client.errors import ResourceExhaustedError
from fluoro_jobs.testing.rig import OWNER, Rig, until
from fluoro_local.folders import free_port

MIB = 2**20
ROOM = 2 * MIB
TOO_MUCH = bytes(3 * MIB)
"""Less than the uploads that stay for a day so that they may go on."""


def leave_room(process: "subprocess.Popen[bytes]", size_bytes: int) -> None:
    _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size_bytes, most))


def status(http_port: int) -> tuple[int, str]:
    """Status of /readyz, and what the check of the blob store says."""
    with closing(HTTPConnection("127.0.0.1", http_port, timeout=30)) as connection:
        connection.request("GET", "/readyz")
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())["checks"]["blobs"]["message"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 48 MiB. Mounting takes root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", folder],
        capture_output=True,
        check=False,
    ).returncode:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_gateway_is_not_ready_while_the_disk_of_the_blobs_is_full_or_read_only(
    rig: Rig, disk: Path
) -> None:
    http_port = free_port()
    rig.served("gateway", http_port, grpc_host="127.0.0.1", grpc_port=0, blob_url=f"file://{disk}")
    filler = disk / "filler"
    filler.write_bytes(bytes(20 * MIB))
    until(lambda: status(http_port)[0] == HTTPStatus.SERVICE_UNAVAILABLE, 30, "503 on a full disk")
    assert status(http_port)[1] == "BlobStoreFullError: the blob store has no space left"
    filler.unlink()
    until(lambda: status(http_port) == (HTTPStatus.OK, ""), 30, "200 with room again")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    until(
        lambda: status(http_port)[0] == HTTPStatus.SERVICE_UNAVAILABLE,
        30,
        "503 on a read-only disk",
    )
    assert (
        status(http_port)[1]
        == "BlobStoreReadOnlyError: the blob store is read-only or denies access"
    )
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    until(lambda: status(http_port) == (HTTPStatus.OK, ""), 30, "200 once it can be written to")
    assert list(disk.iterdir()) == []


def stored(rig: Rig) -> list[str]:
    """Without what a look at the store's health writes and removes."""
    folder = Path(rig.blob_url.removeprefix("file://"))
    names = (path.name for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if not name.startswith("check-"))


@pytest.fixture
def gateway(rig: Rig) -> Iterator[tuple["subprocess.Popen[bytes]", Client]]:
    port = free_port()
    process = rig.served("gateway", free_port(), grpc_host="127.0.0.1", grpc_port=port)
    with Client(f"127.0.0.1:{port}", owner=OWNER) as client:
        yield process, client


def test_an_upload_that_does_not_fit_is_refused_and_leaves_nothing(
    rig: Rig, gateway: tuple["subprocess.Popen[bytes]", Client]
) -> None:
    process, client = gateway
    small = client.upload(b"small")
    leave_room(process, ROOM)
    with pytest.raises(ResourceExhaustedError) as caught:
        client.upload(TOO_MUCH)
    assert caught.value.reason == "BLOB_STORE_FULL"
    assert client.upload(b"also small").name != small.name, "what fits is taken"
    assert len(stored(rig)) == 2
    leave_room(process, resource.RLIM_INFINITY)
    assert client.upload(TOO_MUCH).size_bytes == len(TOO_MUCH)


def returns(rig: Rig, job_id: UUID) -> list[str]:
    attempts = rig.job(job_id).steps[0].tasks[0].attempts
    return [
        attempt.reason
        for attempt in attempts
        if attempt.outcome == job_pb2.Attempt.OUTCOME_RELEASED
    ]


def test_a_step_that_cannot_store_its_artifact_says_so_and_waits_for_room(rig: Rig) -> None:
    worker = rig.worker(pool="threads")
    rig.start("scheduler")
    leave_room(worker, ROOM)
    job_id = rig.submit(
        rig.job_of(
            {"do": "artifact", "name": "a", "text": "x" * 1024, "times": 6 * 1024}, max_attempts=1
        )
    )
    before = stored(rig)
    assert (
        until(lambda: returns(rig, job_id), what="an attempt that was handed back")[0]
        == "BLOB_STORE_FULL"
    )
    assert not rig.job(job_id).steps[0].artifacts
    assert stored(rig) == before
    leave_room(worker, resource.RLIM_INFINITY)
    job = rig.finished(job_id)
    assert (job.state, job.steps[0].artifacts[0].size_bytes) == (
        job_pb2.Job.STATE_SUCCEEDED,
        6 * MIB,
    ), rig.logs()


def test_a_worker_without_room_for_temporary_files_says_so(rig: Rig) -> None:
    job = rig.job_of(max_attempts=1)
    job.inputs[0] = rig.blob(
        json.dumps([{"do": "fail", "reason": "INTERNAL", "padding": "x" * 3 * ROOM}]).encode()
    )
    worker = rig.worker(pool="threads")
    leave_room(worker, ROOM)
    job_id = rig.submit(job)
    assert (
        until(lambda: returns(rig, job_id), what="an attempt that was handed back")[0]
        == "SCRATCH_FULL"
    )
    assert rig.job(job_id).state == job_pb2.Job.STATE_RUNNING, "another worker may have room"


def test_a_disk_that_fills_while_an_archive_is_unpacked_costs_no_attempt_and_leaves_nothing(
    rig: Rig, disk: Path
) -> None:
    rig.start("dicom_worker", scratch_folder=disk, slots=1)
    packed = io.BytesIO()
    with ZipFile(packed, "w", ZIP_DEFLATED) as archive:
        archive.writestr("large", bytes(60 * MIB))
    unpack = job_pb2.Step(name="unpack", unpack_archive={})
    unpack.retry_policy.max_attempts = 1
    job_id = rig.submit(job_pb2.Job(inputs=[rig.blob(packed.getvalue())], steps=[unpack]))
    rig.start("scheduler")
    before = stored(rig)
    returned = until(lambda: returns(rig, job_id), 60, "an attempt that was handed back")
    assert returned[0] == "SCRATCH_FULL", rig.logs()
    assert stored(rig) == before
    subprocess.run(["mount", "-o", "remount,size=96m", disk], check=True)
    job = rig.finished(job_id, 60)
    assert (job.state, job.steps[0].items[0].state) == (
        job_pb2.Job.STATE_SUCCEEDED,
        job_pb2.Item.STATE_SUCCEEDED,
    ), rig.logs()
    assert not [path for path in disk.rglob("*") if path.is_file()]
