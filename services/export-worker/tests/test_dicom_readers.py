"""ExportDicom: what a PACS and programs of others make of its objects."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from export_worker.operations.dicom import export_dicom
from export_worker.testing import CLASSES, Study, ct_slices, verdicts
from fluoro.v1.export_pb2 import ExportDicom, ExportDicomResult
from fluoro_jobs.testing import Attempt
from fluoro_local.orthanc import PLUGIN, Orthanc, orthanc
from numpy.typing import NDArray

EVERY_KIND = [kind for kind in ExportDicom.Kind.values() if kind]
TYPES = [kind for kind in ExportDicom.SegmentationType.values() if kind]
SLICES = 4


def tool(name: str) -> str:
    """A program of the system, or of a wheel beside this Python."""
    beside = str(Path(sys.executable).parent)
    if (found := shutil.which(name) or shutil.which(name, path=beside)) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed")
    return found


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    if shutil.which("Orthanc") is None or not Path(PLUGIN).exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("Orthanc is not installed")
    with orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study.of_slices(tmp_path, ct_slices(SLICES))


def files(attempt: Attempt) -> dict[str, Path]:
    """The objects, by name of the artifact."""
    return {
        name: attempt.context.fetch(artifact.blob)
        for name, artifact in attempt.context.artifacts.items()
    }


@pytest.mark.parametrize("kind", TYPES, ids=ExportDicom.SegmentationType.Name)
def test_a_pacs_takes_every_object_and_gives_it_back(
    study: Study,
    clinic: Any,
    pacs: Orthanc,
    kind: "ExportDicom.SegmentationType.ValueType",
) -> None:
    render, analyze = study.render(), study.analyze()
    report = clinic.report(render, analyze).as_upstream(ExportDicomResult())
    attempt = study.attempt(render, analyze, report, verdicts(study.folder)[1])
    export_dicom(ExportDicom(kinds=EVERY_KIND, segmentation_type=kind), attempt.context)
    assert "measurements-0001.dcm" in attempt.context.artifacts, "of verdicts"
    for file in study.files:
        pacs.add(file)
    for path in files(attempt).values():
        identity = pacs.add(path.read_bytes())
        back, sent = path.with_suffix(".back"), pydicom.dcmread(path)
        back.write_bytes(pacs.ask(f"/instances/{identity}/file"))
        assert pydicom.dcmread(back) == sent
        parent = json.loads(pacs.ask(f"/instances/{identity}/study"))
        assert parent["MainDicomTags"]["StudyInstanceUID"] == sent.StudyInstanceUID
        assert parent["PatientMainDicomTags"]["PatientID"] == "1CT1"


def labels_by_dcmqi(path: Path, folder: Path) -> NDArray[np.uint8]:
    """The label map (frames, rows, columns) that dcmqi makes: one file, or one per segment."""
    folder.mkdir()
    command = [tool("segimage2itkimage"), "--inputDICOM", path, "--outputDirectory", folder]
    subprocess.run([*command, "--outputType", "nii"], check=True, capture_output=True, timeout=60)
    found = {
        int(file.name.partition(".")[0]): np.asarray(nibabel.load(file).dataobj).T
        for file in folder.glob("*.nii.gz")
    }
    if len(found) == 1:
        return found[1].astype(np.uint8)
    labels = np.zeros((SLICES, 64, 64), np.uint8)
    for number, segment in found.items():
        labels[segment > 0] = number
    return labels


@pytest.mark.parametrize("kind", TYPES, ids=ExportDicom.SegmentationType.Name)
def test_dcmqi_gets_back_every_voxel(
    study: Study, tmp_path: Path, kind: "ExportDicom.SegmentationType.ValueType"
) -> None:
    attempt = study.attempt(study.analyze())
    request = ExportDicom(kinds=[ExportDicom.KIND_SEGMENTATION], segmentation_type=kind)
    export_dicom(request, attempt.context)
    (path,) = files(attempt).values()
    truth = np.concatenate([one for one in study.maps if one is not None])
    assert np.array_equal(labels_by_dcmqi(path, tmp_path / "dcmqi"), truth)


def groups_by_dcmqi(path: Path, told: Path) -> list[dict[str, Any]]:
    """What dcmqi reads of a measurement report."""
    command = [tool("tid1500reader"), "--inputDICOM", path, "--outputMetadata", told]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    groups: list[dict[str, Any]] = json.loads(told.read_text())["Measurements"]
    return groups


def test_tid1500reader_reads_verdicts(study: Study, tmp_path: Path) -> None:
    attempt = study.attempt(verdicts(study.folder)[1])
    export_dicom(ExportDicom(), attempt.context)
    groups = groups_by_dcmqi(files(attempt)["measurements-0000.dcm"], tmp_path / "told.json")
    assert len(groups) == 3 * SLICES, "of each image a verdict, and two opinions"
    assert all(group["measurementItems"] for group in groups)


def test_dsrdump_and_tid1500reader_read_the_report(study: Study, tmp_path: Path) -> None:
    attempt = study.attempt(study.render(), study.analyze())
    export_dicom(ExportDicom(), attempt.context)
    path = files(attempt)["measurements-0000.dcm"]
    dumped = subprocess.run(
        [tool("dsrdump"), "+Pl", path], check=True, capture_output=True, text=True, timeout=60
    )
    assert not [line for line in dumped.stderr.splitlines() if not line.startswith("W:")]
    for name, _ in CLASSES[1:]:
        assert name.lower() in dumped.stdout.lower()
    assert "Made by a demonstration model. Not for diagnosis." in dumped.stdout
    groups = groups_by_dcmqi(path, tmp_path / "told.json")
    assert len(groups) == len(CLASSES) - 1
    assert all(group["measurementItems"] for group in groups)
