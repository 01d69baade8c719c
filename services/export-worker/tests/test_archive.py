"""ExportArchive: everything that steps left, in one file."""

import csv
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from arro3.io import read_parquet
from export_worker.operations.archive import export_archive
from export_worker.operations.dicom import export_dicom
from export_worker.testing import JOB, Study, ct_slices
from export_worker.wording import job_time
from export_worker.zipped import Member, zipped
from fluoro.v1.export_pb2 import ExportArchive, ExportArchiveResult, ExportDicom
from fluoro_jobs.errors import CancelledAttempt, FluoroError, Reason
from fluoro_jobs.testing import Attempt, step_context
from fluoro_jobs.worker.context import Upstream
from pydicom import dcmread


def packed(
    folder: Path, *upstream: Upstream, **request: Any
) -> tuple[ExportArchiveResult, Attempt]:
    attempt = step_context(folder, (), upstream, step="pack")
    attempt.context.job = JOB
    return export_archive(ExportArchive(**request), attempt.context), attempt


def opened(attempt: Attempt) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(attempt.read("archive.zip")))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study.of_slices(tmp_path, ct_slices(3))


def test_it_holds_every_file_with_its_sums_and_a_manifest(study: Study, tmp_path: Path) -> None:
    render, analyze = study.render(), study.analyze()
    result, attempt = packed(tmp_path, analyze, render)
    archive = opened(attempt)
    assert archive.testzip() is None
    left = {f"{step.step}/{one.name}": one for step in (render, analyze) for one in step.artifacts}
    own = {"manifest.json", "SHA256SUMS", "items.csv", "items.parquet"}
    assert set(archive.namelist()) == set(left) | own
    assert result.files == len(left) + 4
    assert result.size_bytes == sum(entry.file_size for entry in archive.infolist())
    for path, artifact in left.items():
        assert hashlib.sha256(archive.read(path)).digest() == artifact.sha256
    manifest = json.loads(archive.read("manifest.json"))
    assert manifest["job"] == JOB
    came = manifest["provenance"]
    assert [run["step"] for run in came["runs"]] == ["analyze", "render"]
    assert came["models"] == [
        {"name": "ct-tissue", "version": "1.0.0", "sha256": study.model.sha256.hex()}
    ]
    entries = {entry["path"]: entry for entry in manifest["files"]}
    assert entries["analyze/label-map-0001.npy"] == {
        "path": "analyze/label-map-0001.npy",
        "mediaType": "application/x-npy",
        "sizeBytes": left["analyze/label-map-0001.npy"].size_bytes,
        "sha256": left["analyze/label-map-0001.npy"].sha256.hex(),
        "step": "analyze",
        "name": "label-map-0001.npy",
        "role": "label-map",
        "item": "1",
        "input": 1,
    }
    archive.extractall(tmp_path / "out")
    check = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"],
        cwd=tmp_path / "out",
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert check.returncode == 0, check.stdout
    assert set(entries) | {"manifest.json", "SHA256SUMS"} == set(archive.namelist())


def test_pictures_are_stored_and_text_is_deflated(study: Study, tmp_path: Path) -> None:
    archive = opened(packed(tmp_path, study.render())[1])
    assert archive.getinfo("render/preview-0000.png").compress_type == zipfile.ZIP_STORED
    assert archive.getinfo("manifest.json").compress_type == zipfile.ZIP_DEFLATED


def test_another_attempt_gives_the_same_bytes(study: Study, tmp_path: Path) -> None:
    render = study.render()
    first, again = (packed(tmp_path, render)[1].context.artifacts for _ in range(2))
    assert {n: a.sha256 for n, a in first.items()} == {n: a.sha256 for n, a in again.items()}


def test_only_the_roles_asked_for_are_packed(study: Study, tmp_path: Path) -> None:
    archive = opened(packed(tmp_path, study.render(), study.analyze(), roles=["overlay"])[1])
    assert [name for name in archive.namelist() if "/" in name] == [
        f"analyze/overlay-{number:04}.png" for number in range(3)
    ]


def test_tables_tell_the_outcome_of_every_item(clinic: Any, tmp_path: Path) -> None:
    clinic.inputs = 2
    clinic.failing["1"] = (Reason.NOT_DICOM, 'Not DICOM, "really".')
    _, attempt = packed(tmp_path, clinic.inspect(), clinic.render())
    rows = list(csv.DictReader(io.StringIO(attempt.read("items.csv").decode())))
    assert rows[1] == {
        "step": "inspect",
        "item": "1",
        "input": "1",
        "state": "failed",
        "reason": "NOT_DICOM",
        "message": 'Not DICOM, "really".',
    }
    table = read_parquet(io.BytesIO(attempt.read("items.parquet"))).read_all()
    columns = {name: table[name].to_pylist() for name in table.column_names}
    assert columns["state"] == [row["state"] for row in rows]
    assert columns["input"] == [0, 1, 0, 1]


def test_a_dicomdir_lists_the_dicom_files(study: Study, tmp_path: Path) -> None:
    attempt = study.attempt(study.render(), study.analyze())
    dicom = attempt.as_upstream(
        export_dicom(
            ExportDicom(kinds=[kind for kind in ExportDicom.Kind.values() if kind]),
            attempt.context,
        )
    )
    result, attempt = packed(tmp_path, dicom, dicomdir=True)
    assert (result.dicomdir_instances, result.dicomdir_left_out) == (9, 0)
    opened(attempt).extractall(tmp_path / "disc")
    directory = dcmread(tmp_path / "disc" / "DICOMDIR")
    listed = [one for one in directory.DirectoryRecordSequence if "ReferencedFileID" in one]
    assert len(listed) == 9
    for record in listed:
        data = dcmread((tmp_path / "disc").joinpath(*record.ReferencedFileID))
        assert data.SOPInstanceUID == record.ReferencedSOPInstanceUIDInFile
    program = Path(sys.executable).with_name("dciodvfy")
    told = subprocess.run(
        [program, tmp_path / "disc" / "DICOMDIR"], capture_output=True, check=False, timeout=60
    ).stderr.decode()
    assert not [line for line in told.splitlines() if line.startswith("Error")]
    again = packed(tmp_path, dicom, dicomdir=True)[1]
    assert again.read("archive.zip") == attempt.read("archive.zip")


def test_a_file_that_changed_in_the_store_fails_the_archive(study: Study, tmp_path: Path) -> None:
    render = study.render()
    render.artifacts[1].sha256 = bytes(32)
    with pytest.raises(FluoroError, match="other bytes than its step left"):
        packed(tmp_path, render)


def test_a_file_that_is_gone_is_named_as_such(study: Study, tmp_path: Path) -> None:
    render = study.render()
    study.attempt().context.blobs.delete(render.artifacts[1].blob)
    attempt = step_context(tmp_path, (), [render], step="pack")
    with pytest.raises(FluoroError) as gone:
        export_archive(ExportArchive(), attempt.context)
    assert gone.value.reason == Reason.BLOB_NOT_FOUND
    assert not attempt.context.artifacts


def test_a_cancelled_attempt_leaves_nothing(study: Study, tmp_path: Path) -> None:
    attempt = step_context(tmp_path, (), [study.render()], step="pack")
    attempt.context.send_progress = lambda _: attempt.context.cancelled.set()
    with pytest.raises(CancelledAttempt):
        export_archive(ExportArchive(), attempt.context)
    assert not attempt.context.artifacts


def test_after_nothing_there_is_nothing_to_pack(study: Study, tmp_path: Path) -> None:
    with pytest.raises(FluoroError, match="Name one in `after`"):
        packed(tmp_path, study.render(), roles=["report"])


def test_more_files_than_zip_counts_are_a_zip64() -> None:
    members = (Member(f"step/{n:06}", "image/png", 1, (b"x",)) for n in range(66_000))
    data = b"".join(zipped(members, job_time(JOB)))
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert len(archive.namelist()) == 66_000
    assert archive.read("step/065999") == b"x"
