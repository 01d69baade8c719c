"""ConvertDicom to NIfTI and NPY; nibabel and dcm2niix give their opinion of what it made."""

import gzip
import io
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from dicom_worker import limits
from dicom_worker.studies.testing import (
    AXIAL,
    CORONAL,
    OBLIQUE,
    SAGITTAL,
    STUDY,
    ct_series,
    ct_slice,
    values,
)
from dicom_worker.testing import Convert, outcome, saved, wheel_file
from fluoro_jobs.errors import CancelledAttempt
from fluoro_jobs.testing import Attempt
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

DCM2NIIX = Path(sys.executable).parent / "dcm2niix"
SIX = np.stack([values(number) for number in range(6)])
"""The stored values of six slices: (slices, rows, columns)."""


@pytest.fixture
def nifti(tmp_path: Path) -> Callable[..., Any]:
    """An artifact as nibabel reads it."""

    def load(attempt: Attempt, name: str) -> Any:
        path = tmp_path / name
        path.write_bytes(attempt.read(name))
        return nibabel.load(path)

    return load


def by_dcm2niix(folder: Path, files: list[bytes]) -> Any:
    """The same series by dcm2niix, of which the sources come in any order."""
    for number, data in enumerate(files):
        (folder / f"{number}.dcm").write_bytes(data)
    out = folder / "out"
    out.mkdir()
    command = [DCM2NIIX, "-z", "y", "-m", "n", "-f", "%s", "-o", out, folder]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    [made] = out.glob("*.nii.gz")
    return nibabel.load(made)


def npy(attempt: Attempt, name: str) -> Any:
    return np.load(io.BytesIO(attempt.read(name)), allow_pickle=False)


@pytest.mark.parametrize(
    ("orientation", "reverse"),
    [(AXIAL, False), (SAGITTAL, False), (CORONAL, True), (OBLIQUE, True)],
    ids=["axial", "sagittal", "coronal, numbered in reverse", "oblique, numbered in reverse"],
)
def test_dcm2niix_puts_every_voxel_in_the_same_place(
    orientation: tuple[float, ...],
    reverse: bool,
    convert: Convert,
    nifti: Callable[..., Any],
    tmp_path: Path,
) -> None:
    files = ct_series(6, orientation=orientation)
    if reverse:
        files = [
            saved(ct_slice(at, orientation=orientation, InstanceNumber=9 - at)) for at in range(6)
        ]
    result, attempt = convert(*files[::2], *files[1::2])
    ours = nifti(attempt, result.volumes[0].volume)
    folder = tmp_path / "by-dcm2niix"
    folder.mkdir()
    theirs = by_dcm2niix(folder, files)
    # The two store rows the other way round, so both are turned to the axes of the patient.
    mine, other = nibabel.as_closest_canonical(ours), nibabel.as_closest_canonical(theirs)
    assert np.allclose(mine.affine, other.affine, atol=1e-4)
    assert np.array_equal(mine.get_fdata(), other.get_fdata())
    assert ours.get_data_dtype() == np.int16


def test_nibabel_reads_values_affine_and_units(convert: Convert, nifti: Callable[..., Any]) -> None:
    result, attempt = convert(*ct_series(6, orientation=OBLIQUE))
    [volume] = result.volumes
    image = nifti(attempt, volume.volume)
    assert np.array_equal(np.asarray(image.dataobj), SIX.transpose(2, 1, 0) - 1024)
    assert np.allclose(image.affine, np.reshape(volume.affine, (4, 4)), atol=1e-4)
    assert np.allclose(image.get_qform(), image.affine, atol=1e-4)
    assert (image.header["qform_code"], image.header["sform_code"]) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert np.allclose(image.header.get_zooms(), volume.spacing_mm)
    assert list(volume.spacing_mm) == pytest.approx([0.75, 0.5, 2.5])
    assert (volume.certificate.unit, volume.certificate.dtype) == ("HU", "<i2")
    assert len(volume.certificate.frames) == 6


def test_the_artifacts_of_one_volume_have_the_key_of_its_item(convert: Convert) -> None:
    result, attempt = convert(*ct_series(3))
    [volume] = result.volumes
    assert (volume.item, volume.key, volume.input) == ("all", "all", -1)
    assert (volume.volume, volume.geometry) == ("volume-all.nii.gz", "geometry-all.json")
    roles = {each.name: (each.role, each.key) for each in attempt.context.artifacts.values()}
    assert roles == {
        "volume-all.nii.gz": ("volume", "all"),
        "geometry-all.json": ("geometry", "all"),
    }


def test_an_array_says_beside_it_where_it_lies_and_nothing_of_the_patient(
    convert: Convert,
) -> None:
    files = [
        saved(ct_slice(at, PatientName="Mustermann", PatientID="4711", StudyDate="19700101"))
        for at in range(6)
    ]
    result, attempt = convert(*files, npy={})
    [volume] = result.volumes
    array, beside = npy(attempt, volume.volume), attempt.read(volume.geometry)
    facts = json.loads(beside)
    assert np.array_equal(array, SIX - 1024)
    assert (facts["axes"], facts["shape"]) == (["slice", "row", "column"], [6, 12, 10])
    assert (facts["dtype"], facts["unit"]) == ("<i2", "HU")
    assert facts["spacing_mm"] == pytest.approx([2.5, 0.5, 0.75])
    assert facts["origin_mm"] == [-20, 10, -100]
    assert np.allclose(facts["direction"], [[0, 0, 1], [0, 1, 0], [1, 0, 0]])
    last = np.array(facts["affine_lps"]) @ (9, 11, 5, 1)
    assert np.allclose(last[:3], (-20 + 9 * 0.75, 10 + 11 * 0.5, -100 + 5 * 2.5))
    for secret in (b"Mustermann", b"4711", b"1970", STUDY.encode()):
        assert secret not in beside


def test_a_slope_of_each_slice_is_applied_and_makes_floats(
    convert: Convert, nifti: Callable[..., Any]
) -> None:
    files = [
        saved(ct_slice(at, Modality="PT", RescaleSlope=0.5 + at, RescaleIntercept=0))
        for at in range(6)
    ]
    result, attempt = convert(*files)
    image = nifti(attempt, result.volumes[0].volume)
    expected = (SIX * (0.5 + np.arange(6))[:, None, None]).transpose(2, 1, 0)
    assert image.get_data_dtype() == np.float32
    assert np.allclose(np.asarray(image.dataobj), expected)


def test_signs_depths_and_transfer_syntaxes_may_differ_within_a_volume(convert: Convert) -> None:
    unsigned = values(1).astype(np.uint16)
    result, attempt = convert(
        saved(ct_slice(0)),
        saved(ct_slice(1, pixels=unsigned, BitsStored=12, HighBit=11)),
        saved(ct_slice(2, pixels=(values(2).astype(np.int32) + 40000).astype(np.uint16))),
        npy={},
    )
    [volume] = result.volumes
    assert volume.certificate.dtype == "<f4"
    assert np.array_equal(npy(attempt, volume.volume)[:2], SIX[:2] - 1024)
    assert npy(attempt, volume.volume)[2, 0, 0] == int(values(2)[0, 0]) + 40000 - 1024


def test_a_tilted_gantry_is_in_the_affine_and_refused_on_demand(
    convert: Convert, nifti: Callable[..., Any]
) -> None:
    files = ct_series(6, step=(0, 0.8, 2.5))
    result, attempt = convert(*files)
    [volume] = result.volumes
    assert volume.shear_degrees == pytest.approx(17.74, abs=0.01)
    image = nifti(attempt, volume.volume)
    assert np.allclose(image.affine[:3, 2], (0, -0.8, 2.5))
    assert image.header["qform_code"] == 0
    _, attempt = convert(*files, nifti={"shear": "SHEAR_REFUSE"})
    assert outcome(attempt) == "FAILED VOLUME_IRREGULAR"


def test_series_and_directions_are_volumes_with_keys_of_their_own(convert: Convert) -> None:
    result, attempt = convert(
        *ct_series(4, series="1"),
        *ct_series(3, series="2", orientation=CORONAL),
        saved(ct_slice(9, series="2", orientation=SAGITTAL)),
    )
    shapes = {each.key: list(each.certificate.shape) for each in result.volumes}
    assert shapes == {"all/0000": [4, 12, 10], "all/0001": [3, 12, 10], "all/0002": [1, 12, 10]}
    assert "volume-all~0002.nii.gz" in attempt.context.artifacts


def test_the_phases_of_a_series_are_volumes(convert: Convert) -> None:
    files = [
        saved(
            ct_slice(
                at,
                pixels=values(at + 10 * phase),
                SOPInstanceUID=f"{STUDY}.4.{phase}.{at + 1}",
                TemporalPositionIdentifier=phase + 1,
                TriggerTime=phase * 40,
            )
        )
        for phase in range(3)
        for at in range(4)
    ]
    result, attempt = convert(*files, npy={})
    assert [dict(each.phase) for each in result.volumes] == [
        {"temporal_position": str(phase + 1), "trigger_time_ms": str(phase * 40)}
        for phase in range(3)
    ]
    assert npy(attempt, result.volumes[2].volume)[3, 0, 0] == values(23)[0, 0] - 1024


def enhanced(places: list[tuple[float, int]]) -> Dataset:
    """One file with a frame at each of these (distance along the normal, temporal position)."""
    dataset = ct_slice(0)
    dataset.NumberOfFrames = len(places)
    dataset.PixelData = b"".join(values(at).tobytes() for at in range(len(places)))
    measures, direction = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.75], 2.5
    direction.ImageOrientationPatient = list(AXIAL)
    shared = Dataset()
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([direction])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for along, time in places:
        position, content, groups = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, along]
        content.TemporalPositionIndex = time
        groups.PlanePositionSequence = Sequence([position])
        groups.FrameContentSequence = Sequence([content])
        frames.append(groups)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(dataset, keyword)
    return dataset


def test_frames_of_an_enhanced_object_are_sorted_like_slices(convert: Convert) -> None:
    places = [(5.0, 1), (0.0, 1), (2.5, 1), (2.5, 2), (0.0, 2), (5.0, 2)]
    result, attempt = convert(saved(enhanced(places)), group=False, npy={})
    first, second = (npy(attempt, each.volume)[:, 0, 0] + 1024 for each in result.volumes)
    assert [each.key for each in result.volumes] == ["0/0000", "0/0001"]
    assert first.tolist() == [values(at)[0, 0] for at in (1, 2, 0)]
    assert second.tolist() == [values(at)[0, 0] for at in (4, 3, 5)]


def test_a_segment_that_leaves_out_slices_is_no_volume_with_another_spacing(
    convert: Convert,
) -> None:
    places = [(0.0, 1), (5.0, 1), (10.0, 1), *((2.5 * at, 2) for at in range(5))]
    dataset = enhanced(places)
    for groups, (_, segment) in zip(dataset.PerFrameFunctionalGroupsSequence, places, strict=True):
        identification = Dataset()
        identification.ReferencedSegmentNumber = segment
        groups.SegmentIdentificationSequence = Sequence([identification])
        groups.FrameContentSequence[0].pop("TemporalPositionIndex")
    result, attempt = convert(saved(dataset), group=False, npy={})
    (volume,), (left,) = result.volumes, result.left_out
    assert dict(volume.phase) == {"segment": "2"}
    assert json.loads(attempt.read(volume.geometry))["spacing_mm"][0] == 2.5
    assert (left.reason, left.count) == ("VOLUME_IRREGULAR", 3)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # of what the test writes
def test_what_may_be_a_name_is_in_no_result(convert: Convert) -> None:
    files = [
        saved(
            ct_slice(
                at,
                SOPInstanceUID=f"{STUDY}.5.{at}{kind}",
                ImageType=["ORIGINAL", "PRIMARY", kind],
                StackID=f"Mustermann {kind}",
                SeriesInstanceUID="Mustermann",
                Modality="Mustermann",
            )
        )
        for kind in "12"
        for at in range(3)
    ]
    result, attempt = convert(*files)
    assert result.volumes[0].phase["image_type"] == r"ORIGINAL\PRIMARY\1"
    assert len(result.volumes) == 2
    assert "Mustermann" not in str(result)
    assert b"Mustermann" not in attempt.read(result.volumes[0].geometry)


def test_the_same_instance_twice_counts_once(convert: Convert) -> None:
    files = ct_series(4)
    result, _ = convert(*files, files[2], files[0])
    [volume] = result.volumes
    assert (list(volume.certificate.shape), volume.repeated_files) == ([4, 12, 10], 2)


def test_two_versions_of_an_instance_are_a_conflict_of_their_series_alone(
    convert: Convert,
) -> None:
    other = saved(ct_slice(2, PatientComments="corrected"))
    result, attempt = convert(*ct_series(4), other, *ct_series(3, series="2"))
    assert outcome(attempt) == "SUCCEEDED"
    assert [each.series_instance_uid for each in result.volumes] == [f"{STUDY}.2"]
    [left] = result.left_out
    assert (left.series_instance_uid, left.reason) == (f"{STUDY}.1", "SOP_INSTANCE_CONFLICT")
    _, attempt = convert(*ct_series(4), other)
    assert outcome(attempt) == "FAILED SOP_INSTANCE_CONFLICT"


def edit(number: int, **changes: Any) -> list[bytes]:
    """Six slices, one of which is changed."""
    return [saved(ct_slice(at, **changes if at == number else {})) for at in range(6)]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (lambda: ct_series(6)[:2] + ct_series(6)[3:], "VOLUME_IRREGULAR"),
        (lambda: edit(3, ImagePositionPatient=[-20, 10, -93]), "VOLUME_IRREGULAR"),
        (
            lambda: [*ct_series(6), saved(ct_slice(3, SOPInstanceUID=f"{STUDY}.7"))],
            "VOLUME_IRREGULAR",
        ),
        (lambda: edit(3, ImagePositionPatient=None), "GEOMETRY_INVALID"),
        (lambda: edit(3, ImageOrientationPatient=[1, 0, 0, 0.1, 1, 0]), "GEOMETRY_INVALID"),
        (lambda: edit(3, PixelSpacing=[0, 0.5]), "GEOMETRY_INVALID"),
        (lambda: edit(3, PixelSpacing=[-0.5, 0.5]), "GEOMETRY_INVALID"),
        (lambda: edit(3, RescaleSlope=0), "DICOM_INVALID"),
        (lambda: edit(3, RescaleSlope=1e-320), "DICOM_INVALID"),
        (lambda: edit(3, RescaleSlope=1e-300, RescaleIntercept=0), "DICOM_INVALID"),
        (lambda: edit(3, RescaleSlope=None, RescaleIntercept=None), "VOLUME_IRREGULAR"),
        (lambda: edit(3, RescaleType="US"), "VOLUME_IRREGULAR"),
        (lambda: edit(3, Modality="PT"), "VOLUME_IRREGULAR"),
        (lambda: edit(3, PhotometricInterpretation="MONOCHROME1"), "VOLUME_IRREGULAR"),
        (lambda: ct_series(1, SliceThickness=None, SpacingBetweenSlices=None), "GEOMETRY_INVALID"),
        (lambda: [wheel_file("SC_rgb_rle")], "GEOMETRY_INVALID"),
        (lambda: [*ct_series(6), wheel_file("MR_truncated")], "DICOM_TRUNCATED"),
    ],
)
def test_what_makes_no_right_volume_is_refused(
    files: Callable[[], list[Any]], reason: str, convert: Convert
) -> None:
    result, attempt = convert(*files())
    assert outcome(attempt) == f"FAILED {reason}"
    assert (len(result.volumes), attempt.context.artifacts) == (0, {})


def test_a_position_that_is_no_number_is_refused(convert: Convert) -> None:
    data = ct_series(3)
    data[1] = data[1].replace(b"-97.5", b"nan  ")
    _, attempt = convert(*data)
    assert outcome(attempt) == "FAILED GEOMETRY_INVALID"


def test_files_without_an_image_are_left_out_and_counted(convert: Convert) -> None:
    result, attempt = convert(*ct_series(3), wheel_file("rtplan"), b"a file of notes")
    assert outcome(attempt) == "SUCCEEDED"
    assert {(each.reason, each.count) for each in result.left_out} == {
        ("NO_PIXEL_DATA", 1),
        ("NOT_DICOM", 1),
    }
    _, attempt = convert(wheel_file("rtplan"), wheel_file("test-SR"))
    assert outcome(attempt) == "SKIPPED NO_PIXEL_DATA"


def test_the_same_series_gives_the_same_bytes(convert: Convert) -> None:
    files = ct_series(6)
    result, attempt = convert(*files)
    once = attempt.read(result.volumes[0].volume)
    result, attempt = convert(*reversed(files))
    assert attempt.read(result.volumes[0].volume) == once
    assert gzip.decompress(once)[344:348] == b"n+1\0"


def test_a_volume_over_the_limit_is_refused_before_it_is_decoded(
    convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ARRAY_LIMIT_BYTES", 6 * 120 * 4 - 1)
    _, attempt = convert(*ct_series(6))
    assert outcome(attempt) == "FAILED IMAGE_TOO_LARGE"
    monkeypatch.setattr(limits, "SLICE_LIMIT", 5)
    _, attempt = convert(*ct_series(6))
    assert attempt.context.items[0].message == "There are more than 5 slices in one item."
    monkeypatch.setattr(limits, "ITEM_LIMIT_BYTES", 1000)
    _, attempt = convert(*ct_series(6))
    assert attempt.context.items[0].message.startswith("The files of one item have more than")


def test_memory_does_not_grow_with_the_number_of_slices(convert: Convert) -> None:
    cells = np.zeros((512, 512), np.int16)
    few, many = ct_series(2, pixels=cells), ct_series(24, pixels=cells)
    peaks = []
    for files in (few, few, many):
        tracemalloc.start()
        convert(*files)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 4 * cells.nbytes  # of 24


def test_a_cancelled_attempt_stops_between_slices(
    convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def check(_context: Any) -> None:
        nonlocal asked
        asked += 1
        if asked > 20:
            raise CancelledAttempt

    monkeypatch.setattr("fluoro_jobs.worker.context.StepContext.check", check)
    with pytest.raises(CancelledAttempt):
        convert(*ct_series(30))
    assert asked == 21


@pytest.mark.parametrize("start", [0, -761.87], ids=["relative", "positions"])
@pytest.mark.parametrize("upright", [1, -1], ids=["upwards", "downwards"])
def test_a_dose_lies_by_its_offsets_and_is_in_gray(
    start: float, upright: int, convert: Convert, nifti: Callable[..., Any]
) -> None:
    dose = dcmread(wheel_file("rtdose"))
    up = [5 * frame if not start else 5 * upright * frame for frame in range(15)]
    dose.GridFrameOffsetVector = [start + each for each in up]
    dose.ImageOrientationPatient = [1, 0, 0, 0, upright, 0]
    dose.DoseUnits, dose.DoseGridScaling = "GY", "0.0005"
    result, attempt = convert(saved(dose))
    [volume] = result.volumes
    assert volume.certificate.unit == "Gy"
    image = nifti(attempt, volume.volume)
    stored = dose.pixel_array.transpose(2, 1, 0)
    np.testing.assert_allclose(image.get_fdata(), stored * 0.0005, rtol=1e-6)
    x, y, z = map(float, dose.ImagePositionPatient)
    for column, row, frame in ((0, 0, 0), (9, 0, 0), (0, 9, 0), (3, 4, 14)):
        lps = (x + 10 * column, y + upright * 10 * row, z + upright * 5 * frame)
        place = image.affine @ (column, row, frame, 1)
        np.testing.assert_allclose(place[:3], np.array(lps) * (-1, -1, 1), atol=1e-3)


@pytest.mark.parametrize("offsets", [[0, 5], [7 + 5 * frame for frame in range(15)]])
def test_a_dose_whose_offsets_do_not_fit_makes_no_volume(
    offsets: list[float], convert: Convert
) -> None:
    dose = dcmread(wheel_file("rtdose"))
    dose.GridFrameOffsetVector = offsets
    _, attempt = convert(saved(dose))
    assert outcome(attempt) == "FAILED GEOMETRY_INVALID"
