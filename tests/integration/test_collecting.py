"""Bytes without a record do not stay for ever; bytes with one do."""

import os
import time
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from fluoro.v1 import job_pb2
from fluoro_client import Client
from fluoro_client.errors import FluoroApiError
from fluoro_jobs.ids import new_id
from fluoro_jobs.testing.rig import OWNER, Rig, until
from fluoro_local.folders import free_port

SEEN_SECONDS = 3
"""Longer than two rounds of a collector that looks every 2 ms."""
DAY_SECONDS = timedelta(days=1).total_seconds()


def lie(rig: Rig) -> dict[str, Path]:
    """Every blob and unfinished file in the store."""
    folder = Path(rig.blob_url.removeprefix("file://")) / "blobs"
    return {path.name: path for path in folder.rglob("*") if path.is_file()}


def make_old(path: Path) -> None:
    then = time.time() - 2 * DAY_SECONDS
    os.utime(path, (then, then))


def beside(blob: str) -> str:
    """A name whose blob lies in the same folder."""
    return f"blobs/{UUID(int=new_id().int & ~0xFF | UUID(blob.removeprefix('blobs/')).int & 0xFF)}"


def test_bytes_of_a_failed_attempt_and_of_a_broken_upload_are_collected_and_no_others(
    rig: Rig,
) -> None:
    port = free_port()
    rig.served(
        "gateway",
        free_port(),
        grpc_host="127.0.0.1",
        grpc_port=port,
        collect_interval_seconds=0.005,
        collect_seen_seconds=0,
    )
    rig.worker(pool="threads")
    commands = {"do": "artifact", "name": "a", "text": "x"}, {"do": "fail", "reason": "NOT_DICOM"}
    job = rig.finished(rig.submit(rig.job_of(*commands, max_attempts=1)))
    assert job.state == job_pb2.Job.STATE_FAILED
    assert not job.steps[0].artifacts
    with Client(f"127.0.0.1:{port}", owner=OWNER) as client, rig.connection() as connection:
        recorded = client.upload(b"recorded").name
        connection.execute("ALTER TABLE blobs RENAME TO blobs_away")
        with pytest.raises(FluoroApiError):
            client.upload(b"broken off between bytes and record")
        connection.execute("ALTER TABLE blobs_away RENAME TO blobs")
    with rig.connection() as connection:
        kept = {str(row[0]) for row in connection.execute("SELECT id FROM blobs")}
    garbage = lie(rig).keys() - kept
    assert len(garbage) == 2, "one of the attempt, one of the upload"
    rig.blobs.put(young := beside(recorded), b"its record may be on its way")
    for name, path in lie(rig).items():
        if name != young.removeprefix("blobs/"):
            make_old(path)
    unfinished = lie(rig)[recorded.removeprefix("blobs/")].with_name(f"{new_id()}#1")
    unfinished.write_bytes(b"x")
    make_old(unfinished)
    rig.blobs.put(beside_both := beside(recorded), b"seen with the recorded one")
    make_old(lie(rig)[beside_both.removeprefix("blobs/")])
    expected = {*kept, young.removeprefix("blobs/")}
    until(lambda: lie(rig).keys() <= expected, 30, "the end of bytes without a record")
    assert lie(rig).keys() == expected


def test_bytes_that_a_wrong_clock_made_old_have_time_to_get_their_record(rig: Rig) -> None:
    rig.served(
        "gateway",
        free_port(),
        grpc_host="127.0.0.1",
        grpc_port=0,
        collect_interval_seconds=0.002,
        collect_seen_seconds=SEEN_SECONDS,
    )
    with rig.connection() as connection:
        until(
            lambda: Path(rig.blob_url.removeprefix("file://"), "ledger").exists(),
            30,
            "the first look of the collector",
        )
        young = f"blobs/{new_id()}"
        rig.blobs.put(young, b"written by a machine whose clock is two days behind")
        make_old(lie(rig)[young.removeprefix("blobs/")])
        written = time.monotonic()
        until(lambda: not rig.blobs.exists(young), 30, "the end of what got no record")
        assert time.monotonic() - written >= SEEN_SECONDS
        assert connection.execute("SELECT count(*) FROM blobs").fetchone() == (0,)


def test_a_gateway_with_the_wrong_ledger_deletes_nothing(rig: Rig) -> None:
    blob = f"blobs/{new_id()}"
    rig.blobs.put(blob, b"of another ledger")
    make_old(lie(rig)[blob.removeprefix("blobs/")])
    assert rig.blobs.claim("another ledger")
    rig.served(
        "gateway", free_port(), grpc_host="127.0.0.1", grpc_port=0, collect_interval_seconds=0.005
    )
    until(lambda: "blob_store_of_another_ledger" in rig.logs(), 30, "word of it in the log")
    assert rig.blobs.exists(blob)
