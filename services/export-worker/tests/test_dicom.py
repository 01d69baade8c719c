"""ExportDicom: objects that a PACS takes."""

import hashlib
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from export_worker.operations import HANDLERS
from export_worker.operations.dicom import export_dicom
from export_worker.testing import JOB, Study, ct_slices, label_map, written
from fluoro.v1 import job_pb2
from fluoro.v1.export_pb2 import ExportDicom, ExportDicomResult
from fluoro.v1.model_pb2 import Model
from fluoro_jobs.errors import CancelledAttempt, FluoroError
from fluoro_jobs.ledger.origins import JobInput, Origins, StepRun
from fluoro_jobs.testing import Attempt
from pydicom.data import get_testdata_file

EVERY_KIND = [kind for kind in ExportDicom.Kind.values() if kind]
SEGMENTATION_TYPES = [name for name, kind in ExportDicom.SegmentationType.items() if kind]
STATES = job_pb2.Item.State


def exported(
    study: Study, kinds: list[Any] = EVERY_KIND, **request: Any
) -> tuple[ExportDicomResult, Attempt]:
    attempt = study.attempt(study.render(), study.analyze())
    return export_dicom(ExportDicom(kinds=kinds, **request), attempt.context), attempt


def opened(attempt: Attempt, name: str) -> pydicom.Dataset:
    return pydicom.dcmread(attempt.context.fetch(attempt.context.artifacts[name].blob))


def tool(name: str) -> str:
    """A program of the system, or of a wheel beside this Python."""
    beside = str(Path(sys.executable).parent)
    if (found := shutil.which(name) or shutil.which(name, path=beside)) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed")
    return found


def complaints(attempt: Attempt) -> dict[str, list[str]]:
    """Errors of dciodvfy, by artifact, of the first of each kind."""
    told = {}
    first = {name.partition("-")[0]: name for name in reversed(attempt.context.artifacts)}
    for name in first.values():
        path = attempt.context.fetch(attempt.context.artifacts[name].blob)
        # Debian's is of 2022 and does not know label maps; that of the wheel does.
        new = opened(attempt, name).get("SegmentationType") == "LABELMAP"
        program = Path(sys.executable).with_name("dciodvfy") if new else tool("dciodvfy")
        text = subprocess.run(
            [program, path], capture_output=True, check=False, timeout=60
        ).stderr.decode("utf-8", "replace")
        assert text.strip(), "dciodvfy says at least which IOD it is"
        errors = [line for line in text.splitlines() if line.startswith("Error")]
        if errors:
            told[name] = errors
    return told


def states(attempt: Attempt) -> list[tuple[Any, str]]:
    return [(item.state, item.reason) for item in attempt.context.items.values()]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study.of_slices(tmp_path, ct_slices(3))


def test_the_worker_offers_the_operation() -> None:
    assert "export.dicom" in [handler.operation.task_name for handler in HANDLERS]


@pytest.mark.parametrize("kind", SEGMENTATION_TYPES)
def test_dciodvfy_finds_no_error_in_any_object(study: Study, kind: str) -> None:
    result, attempt = exported(study, segmentation_type=kind)
    made = [ExportDicom.Kind.Name(one.kind) for one in result.objects]
    assert made.count("KIND_PICTURES") == 6
    assert made[-3:] == ["KIND_SEGMENTATION", "KIND_MEASUREMENTS", "KIND_KEY_IMAGES"]
    assert complaints(attempt) == {}


@pytest.mark.parametrize(
    "name",
    [
        "MR_small.dcm",
        "SC_rgb.dcm",
        "US1_J2KR.dcm",
        "eCT_Supplemental.dcm",
        "RG1_UNCI.dcm",
        "examples_rgb_color.dcm",
        "image_dfl.dcm",
        "JPEG2000.dcm",
    ],
)
def test_objects_of_all_kinds_of_images_are_valid(tmp_path: Path, name: str) -> None:
    data = pydicom.dcmread(str(get_testdata_file(name)))
    study = Study.of_slices(tmp_path, [data])
    result, attempt = exported(study)
    assert len(result.objects) == 5
    assert complaints(attempt) == {}
    assert states(attempt) == [(STATES.STATE_SUCCEEDED, "")]


def test_a_multi_frame_image_without_places_is_measured_and_not_segmented(tmp_path: Path) -> None:
    data = pydicom.dcmread(str(get_testdata_file("emri_small.dcm")))
    study = Study.of_slices(tmp_path, [data])
    result, attempt = exported(study, [])
    assert [one.kind for one in result.objects] == [ExportDicom.KIND_MEASUREMENTS]
    assert complaints(attempt) == {}
    only = exported(study, [ExportDicom.KIND_SEGMENTATION])[1]
    assert states(only) == [(STATES.STATE_SKIPPED, "NO_APPLICABLE_INPUT")]


def by_hand(data: pydicom.Dataset, count: int) -> np.ndarray:
    """A label map of `count` slices from a segmentation, as PS3.3 C.8.20 says and without a reader.

    Frames without voxels are left out, so a frame's place is that of the image it refers to.
    """
    size = data.Rows * data.Columns
    labels = np.zeros((count, data.Rows, data.Columns), np.uint8)
    bits = np.frombuffer(data.PixelData, np.uint8)
    values = np.unpackbits(bits, bitorder="little") if data.BitsAllocated == 1 else bits
    for number, groups in enumerate(data.PerFrameFunctionalGroupsSequence):
        frame = values[number * size : (number + 1) * size].reshape(data.Rows, data.Columns)
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        place = int(source.ReferencedSOPInstanceUID.rpartition(".")[2]) - 1
        if data.SegmentationType == "LABELMAP":
            labels[place] = frame
        else:
            segment = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            labels[place][frame > 0] = segment
    return labels


@pytest.mark.parametrize("kind", SEGMENTATION_TYPES)
def test_two_readers_get_back_every_voxel(study: Study, kind: str) -> None:
    study.files = study.files[::-1]  # submitted from head to foot
    truth = np.concatenate([one for one in study.maps if one is not None])[::-1]
    _, attempt = exported(study, [ExportDicom.KIND_SEGMENTATION], segmentation_type=kind)
    path = attempt.context.fetch(attempt.context.artifacts["segmentation-0000.dcm"].blob)
    segmentation = highdicom.seg.segread(path)
    read = segmentation.get_pixels_by_source_instance(
        [f"1.2.3.4.{number}" for number in range(1, 4)],
        combine_segments=True,
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    assert np.array_equal(read, truth)
    assert np.array_equal(by_hand(pydicom.dcmread(path), 3), truth)


def test_label_maps_may_lie_in_any_order_of_memory(study: Study) -> None:
    kinds = [ExportDicom.KIND_SEGMENTATION]
    before = opened(exported(study, kinds)[1], "segmentation-0000.dcm")
    study.maps = [np.asfortranarray(one) for one in study.maps if one is not None]
    assert not study.maps[0].flags.c_contiguous  # type: ignore[union-attr]
    assert opened(exported(study, kinds)[1], "segmentation-0000.dcm") == before


@pytest.mark.parametrize("kind", SEGMENTATION_TYPES)
def test_frames_are_encoded_as_pydicom_does(study: Study, kind: str) -> None:
    _, attempt = exported(study, [ExportDicom.KIND_SEGMENTATION], segmentation_type=kind)
    path = attempt.context.fetch(attempt.context.artifacts["segmentation-0000.dcm"].blob)
    data = pydicom.dcmread(path)
    data.set_original_encoding(None, None)  # so that nothing is copied as it is
    for _ in data.iterall():
        pass
    file = BytesIO()
    data.save_as(file, enforce_file_format=True)
    assert file.getvalue() == path.read_bytes()


def test_slices_are_as_far_apart_as_their_places_say(tmp_path: Path) -> None:
    kinds = [ExportDicom.KIND_SEGMENTATION]
    slices = ct_slices(3, SpacingBetweenSlices=5)  # they are 2.5 mm apart
    told = opened(exported(Study.of_slices(tmp_path, slices), kinds)[1], "segmentation-0000.dcm")
    measures = told.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == 2.5
    slices[2].ImagePositionPatient = [-100, -100, 40]
    told = opened(exported(Study.of_slices(tmp_path, slices), kinds)[1], "segmentation-0000.dcm")
    measures = told.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert "SpacingBetweenSlices" not in measures


def test_dsrdump_reads_the_measurements(study: Study) -> None:
    _, attempt = exported(study, [])
    path = attempt.context.fetch(attempt.context.artifacts["measurements-0000.dcm"].blob)
    text = subprocess.run(
        [tool("dsrdump"), "+Pl", path], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    voxels = sum(int((labels == 2).sum()) for labels in study.maps if labels is not None)
    for line in (
        'CODE:(,,"Finding")=(39607008,SCT,"Lung")',
        f'NUM:(,,"Number of voxels")="{voxels}.0" (1,UCUM,"no units")',
        'NUM:(,,"Attenuation Coefficient")="-20.0" ([hnsf\'U],UCUM,"Hounsfield unit")',
        'CODE:(,,"Derivation")=(373098007,SCT,"Mean")',
        'TEXT:(,,"Algorithm Name")="ct-tissue, demonstration"',
        'TEXT:(,,"Comment")="Made by a demonstration model. Not for diagnosis."',
        'IMAGE:(,,"Referenced Segment")=(SG image,,2)',
    ):
        assert line in text, line


def test_every_object_says_that_a_demonstration_model_made_it(study: Study) -> None:
    result, attempt = exported(study)
    for one in result.objects:
        data = opened(attempt, one.artifact)
        assert bool(one.intended_use) == (one.step != "render")
        if one.intended_use:
            assert "DEMONSTRATION" in data.SeriesDescription
            assert "demonstration model. Not for diagnosis." in data.to_json(), one.artifact


def test_what_is_said_of_a_model_follows_its_intended_use(study: Study) -> None:
    kinds = [ExportDicom.KIND_MEASUREMENTS]
    study.model.intended_use = Model.INTENDED_USE_RESEARCH
    told = opened(exported(study, kinds)[1], "measurements-0000.dcm")
    assert told.SeriesDescription == "Measurements, ct-tissue 1.0.0, RESEARCH"
    assert "Made by a research model. Not for diagnosis." in told.to_json()
    study.model.intended_use = Model.INTENDED_USE_CLINICAL
    told = opened(exported(study, kinds)[1], "measurements-0000.dcm")
    assert told.SeriesDescription == "Measurements, ct-tissue 1.0.0"
    assert "diagnosis" not in told.to_json()


def test_the_model_and_the_worker_contributed(study: Study) -> None:
    _, attempt = exported(study)
    for name in attempt.context.artifacts:
        devices = opened(attempt, name).ContributingEquipmentSequence
        told = {device.get("ManufacturerModelName"): device for device in devices}
        assert "Fluoro export-worker" in told
        if not name.startswith("preview"):
            assert study.model.sha256.hex() in told["ct-tissue"].ContributionDescription


def test_every_object_says_when_its_step_ran_and_on_what(study: Study, clinic: Any) -> None:
    render, analyze = study.render(), study.analyze()
    report = clinic.report(render, analyze).as_upstream(ExportDicomResult())
    uids, began = [], datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    inputs = [JobInput(n, 1, hashlib.sha256(bytes([n])).digest()) for n in range(2)]
    for attempts in (2, 3):
        attempt = study.attempt(render, analyze, report)
        run = StepRun("analyze", began, began + timedelta(seconds=attempts), attempts)
        attempt.context.origins = Origins(inputs, [run])
        result = export_dicom(ExportDicom(kinds=EVERY_KIND), attempt.context)
        assert complaints(attempt) == {}
        uids.append({one.sop_instance_uid for one in result.objects if one.intended_use})
        for one in result.objects:
            devices = opened(attempt, one.artifact).ContributingEquipmentSequence
            told = {device.get("ManufacturerModelName"): device for device in devices}
            wrote = told["Fluoro export-worker"].ContributionDescription
            whole = hashlib.sha256(b"".join(each.sha256 for each in inputs)).hexdigest()
            assert f"in step export of {JOB}. The job has 2 inputs" in wrote
            assert whole in wrote
            if one.intended_use:
                device = told["ct-tissue"]
                assert f"step analyze, attempts: {attempts}." in device.ContributionDescription
                assert device.ContributionDateTime == f"2026010203040{5 + attempts}.000000+0000"
    assert not uids[0] & uids[1]


def test_another_attempt_writes_the_same_bytes(study: Study) -> None:
    first, again = exported(study), exported(study)
    assert first[0] == again[0]
    assert {name: one.sha256 for name, one in first[1].context.artifacts.items()} == {
        name: one.sha256 for name, one in again[1].context.artifacts.items()
    }


def test_other_findings_are_another_instance_of_the_same_series(study: Study) -> None:
    before = exported(study)[0].objects
    study.maps = [np.zeros_like(labels) + number for number, labels in enumerate(study.maps, 1)]
    after = exported(study)[0].objects
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        assert one.series_instance_uid == other.series_instance_uid
        assert one.sop_instance_uid != other.sop_instance_uid


def test_the_report_becomes_a_document_of_the_study(study: Study, clinic: Any) -> None:
    render, analyze = study.render(), study.analyze()
    report = clinic.report(render, analyze)
    upstream = report.as_upstream(ExportDicomResult())
    attempt = study.attempt(render, analyze, upstream)
    export_dicom(ExportDicom(kinds=[ExportDicom.KIND_DOCUMENT]), attempt.context)
    data = opened(attempt, "document-0000.dcm")
    assert data.EncapsulatedDocument[: data.EncapsulatedDocumentLength] == report.read("report.pdf")
    assert "demonstration model. Not for diagnosis." in data.DocumentTitle
    assert len(data.SourceInstanceSequence) == 3
    assert complaints(attempt) == {}


def test_a_report_of_two_studies_is_no_document(study: Study, clinic: Any, tmp_path: Path) -> None:
    other = ct_slices(1, StudyInstanceUID="1.2.9", SeriesInstanceUID="1.2.9.1")
    other[0].SOPInstanceUID = other[0].file_meta.MediaStorageSOPInstanceUID = "1.2.9.2"
    study = Study.of_slices(tmp_path, [*ct_slices(1), *other])
    render = study.render()
    report = clinic.report(render).as_upstream(ExportDicomResult())
    attempt = study.attempt(render, report)
    with pytest.raises(FluoroError, match="several studies") as refused:
        export_dicom(ExportDicom(kinds=[ExportDicom.KIND_DOCUMENT]), attempt.context)
    assert refused.value.reason == "CHOICE_UNAVAILABLE"
    assert not attempt.context.artifacts


def test_key_images_are_those_with_most_of_each_class(tmp_path: Path) -> None:
    study = Study.of_slices(tmp_path, ct_slices(3))
    shape = (1, 64, 64)
    bones = np.eye(64, dtype=np.uint8)[np.newaxis] * 5
    study.maps = [np.zeros(shape, np.uint8), np.full(shape, 2, np.uint8), bones]
    _, attempt = exported(study, [ExportDicom.KIND_KEY_IMAGES])
    data = opened(attempt, "key-images-0000.dcm")
    named = [
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in data.ContentSequence
        if item.ValueType == "IMAGE"
    ]
    assert named == ["1.2.3.4.2", "1.2.3.4.3"]
    assert "Instance 3: most bone." in data.to_json()


def test_names_of_every_script_are_kept(tmp_path: Path) -> None:
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    slices = ct_slices(2, SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=name)
    _, attempt = exported(Study.of_slices(tmp_path, slices))
    for artifact in attempt.context.artifacts:
        assert str(opened(attempt, artifact).PatientName) == name
    assert complaints(attempt) == {}


def test_an_invalid_value_of_a_file_is_not_repeated(tmp_path: Path) -> None:
    with pydicom.config.disable_value_validation():
        slices = ct_slices(
            2,
            PatientSex="unknown",
            PatientBirthDate="19700231",
            PatientAge="44",
            PatientID="x" * 80,
            PatientName="a=b=c=d=e",
            StudyTime="late",
            TimezoneOffsetFromUTC="soon",
        )
        study = Study.of_slices(tmp_path, slices)
    result, attempt = exported(study)
    assert len(result.objects) == 7
    assert complaints(attempt) == {}


def broken(study: Study, what: str) -> None:
    """Makes the second file, or what steps left of it, unfit."""
    files, maps = list(study.files), list(study.maps)
    if what == "no DICOM":
        files[1] = b"GIF89a" * 100
    elif what == "nothing":
        files[1] = b""
    elif what == "no image":
        data = ct_slices(2)[1]
        del data.Rows, data.PixelData
        files[1] = written(data)
    elif what == "no series":
        data = ct_slices(2)[1]
        del data.SeriesInstanceUID
        files[1] = written(data)
    elif what == "other shape":
        maps[1] = label_map(1, (1, 64, 65))
    elif what == "other type":
        maps[1] = label_map(1, (1, 64, 64)).astype(np.int16)
    elif what == "other classes":
        maps[1] = label_map(1, (1, 64, 64)) * 40
    elif what == "no labels":
        maps[1] = None
    elif what == "the first again":
        files[1] = files[0]
    study.files, study.maps = files, maps


@pytest.mark.parametrize(
    ("what", "state", "reason"),
    [
        ("no DICOM", STATES.STATE_FAILED, "NOT_DICOM"),
        ("nothing", STATES.STATE_FAILED, "NOT_DICOM"),
        ("no image", STATES.STATE_FAILED, "NO_PIXEL_DATA"),
        ("no series", STATES.STATE_FAILED, "DICOM_INVALID"),
        ("other shape", STATES.STATE_FAILED, "LABEL_MAP_MISMATCH"),
        ("other type", STATES.STATE_FAILED, "LABEL_MAP_MISMATCH"),
        ("other classes", STATES.STATE_FAILED, "LABEL_MAP_MISMATCH"),
        ("no labels", STATES.STATE_SKIPPED, "NO_APPLICABLE_INPUT"),
        ("the first again", STATES.STATE_SKIPPED, "NO_APPLICABLE_INPUT"),
    ],
)
def test_what_is_unfit_fails_alone(study: Study, what: str, state: Any, reason: str) -> None:
    broken(study, what)
    result, attempt = exported(study, [])
    good = (STATES.STATE_SUCCEEDED, "")
    assert states(attempt) == [good, (state, reason), good]
    assert [one.sources for one in result.objects] == [2, 2]
    assert complaints(attempt) == {}


def test_two_versions_of_an_instance_are_in_no_object(study: Study) -> None:
    files = list(study.files)
    other = ct_slices(1, SeriesDescription="corrected")[0]
    study.files = [files[0], written(other), *files[2:]]
    result, attempt = exported(study, [])
    failed = (STATES.STATE_FAILED, "SOP_INSTANCE_CONFLICT")
    assert states(attempt) == [failed, failed, (STATES.STATE_SUCCEEDED, "")]
    assert [one.sources for one in result.objects] == [1, 1]


def test_images_whose_headers_do_not_go_together_fail_alone(tmp_path: Path) -> None:
    bad = ct_slices(1, SeriesInstanceUID="1.2.7")[0]
    bad.SOPInstanceUID = bad.file_meta.MediaStorageSOPInstanceUID = "1.2.7.1"
    bad.SOPClassUID = bad.file_meta.MediaStorageSOPClassUID = "1.2.7.2"  # nobody knows its modules
    study = Study.of_slices(tmp_path, [*ct_slices(2), bad])
    result, attempt = exported(study)
    assert [state for state, _ in states(attempt)] == [
        STATES.STATE_SUCCEEDED,
        STATES.STATE_SUCCEEDED,
        STATES.STATE_FAILED,
    ]
    assert {one.artifact for one in result.objects} == set(attempt.context.artifacts)
    assert complaints(attempt) == {}


def test_series_are_objects_of_their_own(tmp_path: Path) -> None:
    tilted = ct_slices(2, ImageOrientationPatient=[1, 0, 0, 0, 0.8, 0.6])
    for number, data in enumerate(tilted):
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.8.{number}"
    study = Study.of_slices(tmp_path, [*ct_slices(3), *tilted])
    result, attempt = exported(study, [ExportDicom.KIND_SEGMENTATION])
    assert [one.sources for one in result.objects] == [3, 2]
    assert complaints(attempt) == {}


def test_without_files_an_item_says_what_to_name(study: Study) -> None:
    attempt = study.attempt(study.render(), study.analyze())
    for input_ in attempt.context.inputs:
        input_.parts[:] = [part for part in input_.parts if part.role != "input"]  # type: ignore[index]
    export_dicom(ExportDicom(), attempt.context)
    assert {reason for _, reason in states(attempt)} == {"NO_APPLICABLE_INPUT"}


def test_a_cancelled_attempt_leaves_nothing(study: Study) -> None:
    attempt = study.attempt(study.render(), study.analyze())
    attempt.context.cancelled.set()
    with pytest.raises(CancelledAttempt):
        export_dicom(ExportDicom(), attempt.context)
    assert not attempt.context.artifacts
