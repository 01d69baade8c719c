"""InspectDicom's metadata: DICOM JSON in UTF-8 without bulk data, and what reports rely on."""

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from dicom_worker.limits import MIB
from dicom_worker.metadata import dicom_json
from dicom_worker.reading import open_dicom
from dicom_worker.testing import WHEEL, Inspect, edited, saved, wheel_file
from fluoro.v1.dicom_pb2 import DicomInstance
from pydicom import dcmread
from pydicom.dataset import Dataset


def model(attempt: Any, number: int = 0) -> dict[str, Any]:
    parsed = json.loads(attempt.read(f"metadata-{number:04}.json").decode("utf-8"))
    assert isinstance(parsed, dict)
    return parsed


def test_the_instance_of_a_ct_has_its_fields(inspect: Inspect) -> None:
    result, attempt = inspect(wheel_file("CT_small"))
    assert list(result.instances) == [
        DicomInstance(
            input=0,
            item="0",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            sop_instance_uid="1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322",
            study_instance_uid="1.3.6.1.4.1.5962.1.2.1.20040119072730.12322",
            series_instance_uid="1.3.6.1.4.1.5962.1.3.1.1.20040119072730.12322",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            modality="CT",
            rows=128,
            columns=128,
            number_of_frames=1,
            samples_per_pixel=1,
            photometric_interpretation="MONOCHROME2",
            bits_stored=16,
            sha256=hashlib.sha256(wheel_file("CT_small").read_bytes()).digest(),
        )
    ]
    artifact = attempt.context.artifacts["metadata-0000.json"]
    assert (artifact.role, artifact.media_type, artifact.input, artifact.key) == (
        "metadata",
        "application/dicom+json",
        0,
        "0",
    )


def test_the_instance_of_a_report_has_no_image(inspect: Inspect) -> None:
    result, _ = inspect(wheel_file("test-SR"))
    assert (
        result.instances[0].rows,
        result.instances[0].number_of_frames,
        result.instances[0].modality,
    ) == (0, 0, "SR")


@pytest.mark.parametrize(
    "name",
    ["CT_small", "MR_small_implicit", "examples_palette", "waveform_ecg", "liver_1frame", "rtplan"],
)
def test_the_metadata_is_what_pydicom_reads_without_bulk_data(name: str, inspect: Inspect) -> None:
    _, attempt = inspect(wheel_file(name))
    read_back = Dataset.from_json(model(attempt))
    original = dcmread(wheel_file(name), stop_before_pixels=True)
    for element in original:
        if element.tag in read_back and element.VR != "SQ":
            assert read_back[element.tag].value == element.value, element.keyword
        elif element.VR not in {"SQ", "OW", "OB", "UN"}:
            assert element.tag in read_back, element.keyword
    assert "7FE00010" not in model(attempt)
    assert len(attempt.read("metadata-0000.json")) < 200_000


def test_large_binary_values_are_left_out_at_any_depth(inspect: Inspect) -> None:
    _, attempt = inspect(wheel_file("waveform_ecg"), wheel_file("examples_palette"))
    assert not [
        value
        for value in binaries(model(attempt, 0)) + binaries(model(attempt, 1))
        if len(value) > 1400
    ]
    assert "54001010" not in model(attempt, 0)["54000100"]["Value"][0]


def binaries(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["InlineBinary"]] if "InlineBinary" in value else []
        return own + [each for child in value.values() for each in binaries(child)]
    return [each for child in value for each in binaries(child)] if isinstance(value, list) else []


def test_large_binary_values_do_not_pass_through_memory(tmp_path: Path) -> None:
    document = dcmread(wheel_file("test-SR"))
    document.add_new("EncapsulatedDocument", "OB", bytes(16 * MIB))
    source = tmp_path / "source.dcm"
    source.write_bytes(saved(document))
    tracemalloc.start()
    json_bytes = dicom_json(open_dicom(source, tmp_path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "00420011" not in json.loads(json_bytes)
    assert peak < 4 * MIB


NAMES = {
    "chrArab": {"Alphabetic": "قباني^لنزار"},
    "chrFren": {"Alphabetic": "Buc^Jérôme"},
    "chrHbrw": {"Alphabetic": "שרון^דבורה"},
    "chrX2": {"Alphabetic": "Wang^XiaoDong", "Ideographic": "王^小东"},
    "chrH31": {
        "Alphabetic": "Yamada^Tarou",
        "Ideographic": "山田^太郎",
        "Phonetic": "やまだ^たろう",
    },
}


@pytest.mark.parametrize("name", NAMES)
def test_text_of_any_character_set_becomes_utf_8(name: str, inspect: Inspect) -> None:
    _, attempt = inspect(WHEEL / "charset_files" / f"{name}.dcm")
    found = model(attempt)["00100010"]["Value"][0]
    assert {part: text for part, text in found.items() if text in NAMES[name].values()} == NAMES[
        name
    ]


def test_values_that_json_has_no_numbers_for_are_strings(inspect: Inspect) -> None:
    _, attempt = inspect(
        edited("MR_small", RecommendedDisplayFrameRateInFloat=[float("nan"), float("-inf"), 1.5])
    )
    assert model(attempt)["00089459"]["Value"] == ["nan", "-inf", 1.5]


def test_one_unreadable_value_does_not_hide_the_rest(inspect: Inspect) -> None:
    data = wheel_file("CT_small").read_bytes()
    at = data.index(b"\x18\x00\x50\x00DS")  # Slice Thickness
    _, attempt = inspect(data[: at + 8] + b"?" + data[at + 9 :])
    assert "00180050" not in model(attempt)
    assert model(attempt)["00080060"]["Value"] == ["CT"]
