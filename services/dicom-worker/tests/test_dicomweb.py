"""Instances go to a real PACS and come back the same."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_worker.operations.deidentify import deidentify_dicom
from dicom_worker.operations.fetch import fetch_dicomweb
from dicom_worker.operations.inspect import inspect_dicom
from dicom_worker.operations.store import store_dicomweb
from fluoro.v1.deidentify_pb2 import DeidentifyDicom
from fluoro.v1.dicom_pb2 import InspectDicom
from fluoro.v1.dicomweb_pb2 import FetchDicomweb, FetchDicomwebResult, StoreDicomweb
from fluoro.v1.job_pb2 import Item
from fluoro_jobs.errors import FluoroError
from fluoro_jobs.testing import Attempt, step_context
from fluoro_jobs.testing.context import operate
from fluoro_local.orthanc import PASSWORD, USER, Orthanc, orthanc
from pydicom.data import get_testdata_file

NAMES = ("CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "SC_rgb_rle.dcm", "examples_palette.dcm")
STUDY, SERIES = "2.25.1000", "2.25.1000.1"


def file_of(name: str) -> bytes:
    return Path(str(get_testdata_file(name))).read_bytes()


def slice_of(series: int, number: int, **changes: object) -> bytes:
    """A CT slice of our study."""
    data = pydicom.dcmread(io.BytesIO(file_of("CT_small.dcm")))
    data.StudyInstanceUID, data.SeriesInstanceUID = STUDY, f"{STUDY}.{series}"
    data.SOPInstanceUID = f"{STUDY}.{series}.{number}"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.InstanceNumber = number
    data.PatientID, data.AccessionNumber, data.StudyDate = "P/1:x", "A/1", "20200229"
    for keyword, value in changes.items():
        setattr(data, keyword, value)
    written = io.BytesIO()
    data.save_as(written)
    return written.getvalue()


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("pacs")) as running:
        for number in (10, 2, 1):
            running.add(slice_of(1, number))
        running.add(slice_of(2, 1, Modality="MR"))
        yield running


@pytest.fixture(autouse=True)
def allowed(pacs: Orthanc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The worker knows the PACS. The folder with the credentials."""
    for name, value in pacs.variables.items():
        monkeypatch.setenv(name, value)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "pacs").write_text(f"Basic {USER}:{PASSWORD}\n")
    monkeypatch.setenv("FLUORO_DICOMWEB_CREDENTIALS_FOLDER", str(secrets))
    return secrets


def fetch(folder: Path, request: FetchDicomweb) -> tuple[FetchDicomwebResult, Attempt]:
    return operate(fetch_dicomweb, request, folder)


def fetched(folder: Path, *references: str) -> tuple[FetchDicomwebResult, Attempt]:
    return fetch(folder, FetchDicomweb(references=[f"dicomweb://pacs/{one}" for one in references]))


def outcomes(attempt: Attempt) -> dict[str, str]:
    return {
        item.key: item.reason or Item.State.Name(item.state).removeprefix("STATE_")
        for item in attempt.context.items.values()
    }


def failure(folder: Path, request: FetchDicomweb | StoreDicomweb, *inputs: bytes) -> FluoroError:
    operation: Any = fetch_dicomweb if isinstance(request, FetchDicomweb) else store_dicomweb
    with pytest.raises(FluoroError) as caught:
        operate(operation, request, folder, inputs)
    return caught.value


def test_what_is_stored_comes_back_with_equal_pixels(tmp_path: Path) -> None:
    files = [file_of(name) for name in NAMES]
    result, attempt = operate(store_dicomweb, StoreDicomweb(server="pacs"), tmp_path, files)
    assert outcomes(attempt) == {str(number): "SUCCEEDED" for number in range(len(files))}
    assert not any(one.was_there for one in result.instances)
    for data, stored in zip(files, result.instances, strict=True):
        sent = pydicom.dcmread(io.BytesIO(data))
        assert stored.sop_instance_uid == sent.SOPInstanceUID
        place = f"studies/{sent.StudyInstanceUID}/series/{sent.SeriesInstanceUID}/instances/"
        back, again = fetched(tmp_path, place + sent.SOPInstanceUID)
        assert outcomes(again) == {"series-1/0000": "SUCCEEDED"}
        got = pydicom.dcmread(io.BytesIO(again.read(back.instances[0].instance)))
        assert back.instances[0].transfer_syntax_uid == sent.file_meta.TransferSyntaxUID
        assert np.array_equal(got.pixel_array, sent.pixel_array)


def test_a_study_comes_by_series_and_number(tmp_path: Path) -> None:
    result, attempt = fetched(tmp_path, f"studies/{STUDY}")
    assert [(one.item, one.sop_instance_uid.removeprefix(STUDY)) for one in result.instances] == [
        ("series-1/0000", ".1.1"),
        ("series-1/0001", ".1.2"),
        ("series-1/0002", ".1.10"),
        ("series-2/0000", ".2.1"),
    ]
    assert {one.size_bytes for one in result.instances} == {len(slice_of(1, 1))}
    left = attempt.context.artifacts
    assert sorted(left) == sorted(one.instance for one in result.instances)
    assert {(one.role, one.media_type) for one in left.values()} == {
        ("instance", "application/dicom")
    }
    assert attempt.read("instance-series-1~0001.dcm") == slice_of(1, 2)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"patient_id": "P/1:x"}, 4),
        ({"accession_number": "A/1", "modality": "MR"}, 1),
        ({"study_date": "20200101-20201231", "patient_id": "P/1:x"}, 4),
    ],
)
def test_a_query_finds_by_attributes(tmp_path: Path, query: dict[str, str], expected: int) -> None:
    result, _ = fetch(tmp_path, FetchDicomweb(query={"server": "pacs", **query}))
    assert len(result.instances) == expected


def test_what_several_references_name_is_fetched_once_and_what_is_not_there_fails_alone(
    tmp_path: Path,
) -> None:
    result, attempt = fetched(
        tmp_path, f"studies/{STUDY}/series/{SERIES}", "studies/2.25.404", f"studies/{STUDY}"
    )
    assert len(result.instances) == 4
    assert outcomes(attempt)["reference-1"] == "PACS_NOT_FOUND"
    assert list(outcomes(attempt).values()).count("SUCCEEDED") == 4


def test_an_instance_that_is_not_there_fails_alone(tmp_path: Path) -> None:
    series = f"studies/{STUDY}/series/{SERIES}"
    _, attempt = fetched(tmp_path, f"{series}/instances/{SERIES}.1", f"{series}/instances/2.25.9")
    assert sorted(outcomes(attempt).values()) == ["PACS_NOT_FOUND", "SUCCEEDED"]


def test_a_second_attempt_stores_the_same_and_what_differs_is_a_conflict(
    tmp_path: Path,
) -> None:
    first, other = slice_of(3, 1), slice_of(3, 1, PatientComments="another")
    request = StoreDicomweb(server="pacs", verify=True)
    for attempt in range(2):
        _, stored = operate(store_dicomweb, request, tmp_path / str(attempt), [first])
        assert outcomes(stored) == {"0": "SUCCEEDED"}
    _, stored = operate(store_dicomweb, request, tmp_path / "other", [other])
    assert outcomes(stored) == {"0": "PACS_CONFLICT"}
    back, again = fetched(tmp_path, f"studies/{STUDY}/series/{STUDY}.3")
    assert again.read(back.instances[0].instance) == first


def test_a_file_that_is_no_instance_is_not_sent_and_hides_no_other(tmp_path: Path) -> None:
    files = [b"no DICOM", slice_of(4, 1), slice_of(4, 2)[:-100], slice_of(4, 3)]
    _, attempt = operate(store_dicomweb, StoreDicomweb(server="pacs"), tmp_path, files)
    assert outcomes(attempt) == {
        "0": "NOT_DICOM",
        "1": "SUCCEEDED",
        "2": "DICOM_TRUNCATED",
        "3": "SUCCEEDED",
    }
    assert not [path for path in attempt.context.scratch.iterdir() if path.name != "blobs"]


def test_what_is_fetched_is_cleaned_and_stored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").write_bytes(bytes(32))
    monkeypatch.setenv("FLUORO_DEIDENTIFY_KEYS_FOLDER", str(tmp_path))
    result, attempt = fetched(tmp_path, f"studies/{STUDY}/series/{SERIES}")
    clean = step_context(tmp_path, upstream=[attempt.as_upstream(result)], reads=["instance"])
    cleaned = deidentify_dicom(DeidentifyDicom(project="project"), clean.context)
    last = step_context(tmp_path, upstream=[clean.as_upstream(cleaned)], reads=["instance"])
    stored = store_dicomweb(StoreDicomweb(server="pacs", verify=True), last.context)
    assert [one.item for one in stored.instances] == [f"series-1/{n:04}" for n in range(3)]
    study = cleaned.instances[0].study_instance_uid
    assert study.startswith("2.25.")
    assert study != STUDY
    back, again = fetched(tmp_path, f"studies/{study}")
    for one in back.instances:
        data = pydicom.dcmread(io.BytesIO(again.read(one.instance)))
        assert data.PatientIdentityRemoved == "YES"
        assert b"P/1:x" not in again.read(one.instance)
    looked = step_context(tmp_path, upstream=[again.as_upstream(back)], reads=["instance"])
    assert len(inspect_dicom(InspectDicom(), looked.context).instances) == 3


def test_wrong_credentials_are_refused_and_a_file_that_is_none_is_told(
    tmp_path: Path, allowed: Path
) -> None:
    reference = FetchDicomweb(references=[f"dicomweb://pacs/studies/{STUDY}"])
    (allowed / "pacs").write_text("Bearer of-another")
    _, attempt = fetch(tmp_path, reference)
    assert outcomes(attempt) == {"reference-0": "PACS_REFUSED"}
    long = "Bearer " + "a" * 9999
    for text in ("", "fluoro:secret", "Basic secret", "Bearer a\nX-Header: b", long):
        (allowed / "pacs").write_text(text)
        error = failure(tmp_path, reference)
        assert error.reason == "PACS_NOT_ALLOWED"
        assert "secret" not in error.message


def test_a_server_that_is_not_listed_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = FetchDicomweb(references=["dicomweb://elsewhere/studies/1.2"])
    assert failure(tmp_path, request).reason == "PACS_NOT_ALLOWED"
    monkeypatch.setenv("FLUORO_DICOMWEB_DESTINATIONS", "")
    store = StoreDicomweb(server="pacs")
    assert failure(tmp_path, store, slice_of(1, 1)).reason == "PACS_NOT_ALLOWED"
    monkeypatch.setenv("FLUORO_DICOMWEB_NETWORKS", "")
    _, attempt = fetched(tmp_path, f"studies/{STUDY}")
    assert outcomes(attempt) == {"reference-0": "PACS_NOT_ALLOWED"}


@pytest.mark.parametrize(
    "request_",
    [
        FetchDicomweb(),
        FetchDicomweb(references=["dicomweb://pacs/studies/.."]),
        FetchDicomweb(references=["dicomweb://pacs/studies/1.2/series/1/../../x"]),
        FetchDicomweb(references=["dicomweb://pacs.example.org/studies/1.2"]),
        FetchDicomweb(references=["https://pacs/studies/1.2"]),
        FetchDicomweb(references=["dicomweb://pacs/studies/" + "1" * 65]),
        FetchDicomweb(query={"server": "pacs"}),
        FetchDicomweb(query={"server": "pacs", "modality": "CT"}),
        FetchDicomweb(query={"server": "pacs", "patient_id": "*"}),
        FetchDicomweb(query={"server": "pacs", "study_date": "-"}),
        StoreDicomweb(),
        StoreDicomweb(server="https://pacs"),
    ],
)
def test_a_request_that_names_no_one_thing_is_refused(
    tmp_path: Path, request_: FetchDicomweb | StoreDicomweb
) -> None:
    assert failure(tmp_path, request_).reason == "INVALID_ARGUMENT"
