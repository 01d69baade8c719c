"""ExportDicom: whose object it is, and what its UID says."""

import resource
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from export_worker.dicom import sources
from export_worker.operations.dicom import export_dicom
from export_worker.testing import Study, ct_slices, written
from fluoro.v1.export_pb2 import ExportDicom, ExportDicomResult
from fluoro_jobs.errors import FluoroError
from fluoro_jobs.testing import Attempt
from pydicom.dataset import Dataset

EVERY_KIND = [kind for kind in ExportDicom.Kind.values() if kind]


def exported(study: Study, *kinds: Any) -> tuple[ExportDicomResult, Attempt]:
    attempt = study.attempt(study.render(), study.analyze())
    return export_dicom(ExportDicom(kinds=kinds or EVERY_KIND), attempt.context), attempt


def opened(attempt: Attempt, name: str) -> Dataset:
    return pydicom.dcmread(attempt.context.fetch(attempt.context.artifacts[name].blob))


@pytest.fixture
def two_patients(tmp_path: Path) -> Study:
    """Four images whose UIDs are of one series, and whose patients are two."""
    slices = ct_slices(4)
    for data in slices[2:]:
        data.PatientID = "other"
    return Study.of_slices(tmp_path, slices)


def test_images_of_two_patients_in_one_series_make_no_object_together(two_patients: Study) -> None:
    result, attempt = exported(two_patients)
    series: dict[str, set[str]] = {}
    for one in result.objects:
        data = opened(attempt, one.artifact)
        series.setdefault(one.series_instance_uid, set()).add(data.PatientID)
        if one.kind == ExportDicom.KIND_SEGMENTATION:
            assert one.sources == 2
    assert all(len(patients) == 1 for patients in series.values())
    assert set().union(*series.values()) == {"1CT1", "other"}


def test_a_report_of_two_patients_is_no_document(two_patients: Study, clinic: Any) -> None:
    render = two_patients.render()
    report = clinic.report(render).as_upstream(ExportDicomResult())
    attempt = two_patients.attempt(render, report)
    with pytest.raises(FluoroError, match="several studies or patients"):
        export_dicom(ExportDicom(kinds=[ExportDicom.KIND_DOCUMENT]), attempt.context)


@pytest.mark.parametrize("what", ["voxels", "model"])
def test_other_content_has_other_uids(tmp_path: Path, what: str) -> None:
    study = Study.of_slices(tmp_path, ct_slices(2))
    before = exported(study)
    if what == "voxels":  # as many of each class, at other places
        study.maps = [np.ascontiguousarray(one[:, ::-1]) for one in study.maps if one is not None]
    else:
        study.model.version = "1.0.1"
    after = exported(study)
    bytes_by_uid = {
        one.sop_instance_uid: attempt.context.artifacts[one.artifact].sha256
        for result, attempt in (before, after)
        for one in result.objects
    }
    for result, attempt in (before, after):
        for one in result.objects:
            digest = attempt.context.artifacts[one.artifact].sha256
            assert bytes_by_uid[one.sop_instance_uid] == digest


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """Of which this process may have 40 more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_descriptors")
def test_a_series_may_have_more_images_than_a_process_may_have_files(tmp_path: Path) -> None:
    study = Study.of_slices(tmp_path, ct_slices(60, 8))
    result, _ = exported(study, ExportDicom.KIND_SEGMENTATION)
    assert [one.sources for one in result.objects] == [60]


def hostile(what: str) -> bytes:
    """A small file that takes much memory as a parsed header, or one with a large value."""
    file = written(ct_slices(1)[0])
    if what == "meta":
        value = b"\2\0\2\1OB\0\0" + (2**28).to_bytes(4, "little") + bytes(2**28)
        end = 144 + int.from_bytes(file[140:144], "little")
        return file[:end] + value + file[end:]
    items = b"\xfe\xff\x00\xe0\0\0\0\0" * (sources.ITEMS_LIMIT + 1)
    value = b"\x00\x52\x30\x92SQ\0\0" + len(items).to_bytes(4, "little") + items
    place = file.rfind(b"\xe0\x7f\x10\x00")
    return file[:place] + value + file[place:]


@pytest.mark.parametrize("what", ["items", "meta"])
def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "hostile.dcm"
    file = hostile(what)
    path.write_bytes(file)
    start = file[: sources.START_BYTES]
    tracemalloc.start()
    with pytest.raises(FluoroError) as refused:
        sources.read_source(start, lambda: path)
    assert tracemalloc.get_traced_memory()[1] < 2 * sources.HEADER_LIMIT_BYTES
    tracemalloc.stop()
    assert refused.value.reason == "IMAGE_TOO_LARGE"


def test_shares_that_ran_different_versions_make_no_object_together(tmp_path: Path) -> None:
    study = Study.of_slices(tmp_path, ct_slices(4))
    analyzed = study.analyze()
    for finding in analyzed.result.findings:
        finding.model.CopyFrom(study.model)
        finding.model.version = "2.0.0" if finding.input > 1 else "1.0.0"
    attempt = study.attempt(study.render(), analyzed)
    result = export_dicom(ExportDicom(kinds=EVERY_KIND), attempt.context)
    objects = [one for one in result.objects if one.kind != ExportDicom.KIND_PICTURES]
    versions: dict[Any, set[str]] = {}
    for one in objects:
        data = opened(attempt, one.artifact)
        [model] = (
            device.SoftwareVersions
            for device in data.ContributingEquipmentSequence
            if device.get("ManufacturerModelName") == "ct-tissue"
        )
        versions.setdefault(one.kind, set()).add(str(model))
        if one.kind == ExportDicom.KIND_SEGMENTATION:
            assert one.sources == 2
    assert set(map(frozenset, versions.values())) == {frozenset({"1.0.0", "2.0.0"})}
    assert len({one.sop_instance_uid for one in objects}) == len(objects)


def test_the_same_bytes_in_two_character_sets_are_two_names(tmp_path: Path) -> None:
    names = {"ISO_IR 100": "Müller", "ISO_IR 144": "Mќller"}  # 0xFC in Latin 1, and in Cyrillic
    known, found = sources.Known(), {}
    for characters in names:
        data = ct_slices(1, SpecificCharacterSet=characters)[0]
        file = written(data).replace(b"CompressedSamples^CT1", b"M\xfcller^".ljust(21, b"A"))
        header = sources.read_source(file, lambda: tmp_path, known).header
        found[characters] = str(header.PatientName).split("^")[0]
    assert found == names
