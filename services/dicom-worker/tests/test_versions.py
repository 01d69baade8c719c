"""One SOP Instance UID twice: with the same bytes a copy, with others a conflict.

What looks at a file tells; what writes under its UID refuses. ConvertDicom's tests are in
`test_convert.py`, those of models of volumes and of ExportDicom in their workers.
"""

import hashlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from dicom_worker.dicomweb import testing
from dicom_worker.dicomweb.testing import Handler, Pacs
from dicom_worker.operations.deidentify import deidentify_dicom
from dicom_worker.operations.store import store_dicomweb
from dicom_worker.testing import Convert, Inspect, Render, edited, outcome, saved
from fluoro.v1.deidentify_pb2 import DeidentifyDicom, DeidentifyDicomResult
from fluoro.v1.dicomweb_pb2 import StoreDicomweb
from fluoro_jobs.testing import Attempt, operate
from pydicom import dcmread

Clean = Callable[..., tuple[DeidentifyDicomResult, Attempt]]

FIRST = edited("CT_small", SOPInstanceUID="1.2.3.4.1")
CORRECTED = edited("CT_small", SOPInstanceUID="1.2.3.4.1", SliceThickness=7)
RENAMED = edited("CT_small", SOPInstanceUID="1.2.3.4.1", ReferringPhysicianName="Quackenbush^Al")
OTHER = edited("CT_small", SOPInstanceUID="1.2.3.4.2")


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clean:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "trial").write_bytes(b"0123456789abcdef0123456789abcdef")
    monkeypatch.setenv("FLUORO_DEIDENTIFY_KEYS_FOLDER", str(keys))

    def run(*inputs: bytes) -> tuple[DeidentifyDicomResult, Attempt]:
        return operate(deidentify_dicom, DeidentifyDicom(project="trial"), tmp_path, inputs)

    return run


def outcomes(attempt: Attempt) -> list[str]:
    return [outcome(attempt, number) for number in attempt.context.items]


def test_what_looks_at_versions_tells_them_apart_and_refuses_none(
    inspect: Inspect, render: Render
) -> None:
    files = (FIRST, CORRECTED, OTHER, FIRST)
    inspected, attempt = inspect(*files)
    assert outcomes(attempt) == ["SUCCEEDED"] * 4
    assert [each.sha256 for each in inspected.instances] == [
        hashlib.sha256(file).digest() for file in files
    ]
    assert len({each.sop_instance_uid for each in inspected.instances}) == 2
    _, attempt = render(*files)
    assert outcomes(attempt) == ["SUCCEEDED"] * 4


def test_two_clean_files_under_one_uid_are_refused_and_leave_nothing(clean: Clean) -> None:
    result, attempt = clean(FIRST, OTHER, CORRECTED)
    conflict = "FAILED SOP_INSTANCE_CONFLICT"
    assert outcomes(attempt) == [conflict, "SUCCEEDED", conflict]
    [kept] = result.instances
    assert kept.item == "1"
    assert set(attempt.context.artifacts) == {kept.instance, kept.report}
    assert attempt.progress[-1].items == attempt.context.item_counts()
    assert attempt.progress[-1].items.failed == 2


def test_copies_are_cleaned_to_the_same_bytes(clean: Clean) -> None:
    result, attempt = clean(FIRST, FIRST)
    assert outcomes(attempt) == ["SUCCEEDED"] * 2
    one, same = (attempt.read(each.instance) for each in result.instances)
    assert one == same


def test_versions_that_differ_in_what_is_removed_are_copies_once_clean(clean: Clean) -> None:
    result, attempt = clean(FIRST, RENAMED)
    assert outcomes(attempt) == ["SUCCEEDED"] * 2
    one, same = (attempt.read(each.instance) for each in result.instances)
    assert one == same


def test_two_files_in_another_syntax_under_one_uid_are_refused(convert: Convert) -> None:
    target = {"transfer_syntax": "TARGET_TRANSFER_SYNTAX_RLE_LOSSLESS"}
    result, attempt = convert(FIRST, OTHER, CORRECTED, OTHER, group=False, dicom=target)
    conflict = "FAILED SOP_INSTANCE_CONFLICT"
    assert outcomes(attempt) == [conflict, "SUCCEEDED", conflict, "SUCCEEDED"]
    assert [one.item for one in result.instances] == ["1", "3"]
    assert len(attempt.context.artifacts) == 2
    assert attempt.progress[-1].items.failed == 2


@pytest.fixture
def pacs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pacs]:
    """A server that has nothing yet."""
    with testing.pacs() as server:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        yield server


def takes_all(handler: Handler) -> None:
    """Says of each instance that it is stored."""
    found = [uid for uid in ("1.2.3.4.1", "1.2.3.4.2") if uid.encode() in handler.server.bodies[-1]]
    stored = [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in found]
    handler.json({"00081199": {"vr": "SQ", "Value": stored}})


@pytest.mark.parametrize("batch_bytes", [1, 2**24])
def test_of_versions_the_first_one_is_stored_and_the_others_are_not_sent(
    tmp_path: Path, pacs: Pacs, monkeypatch: pytest.MonkeyPatch, batch_bytes: int
) -> None:
    monkeypatch.setenv("FLUORO_DICOMWEB_BATCH_BYTES", str(max(batch_bytes, len(FIRST) + 1024)))
    pacs.says("/studies$", takes_all)
    files = [FIRST, CORRECTED, OTHER, FIRST]
    result, attempt = operate(store_dicomweb, StoreDicomweb(server="pacs"), tmp_path, files)
    conflict = "FAILED SOP_INSTANCE_CONFLICT"
    assert outcomes(attempt) == ["SUCCEEDED", conflict, "SUCCEEDED", "SUCCEEDED"]
    assert [one.item for one in result.instances] == ["0", "2", "3"]
    sent = b"".join(pacs.bodies)
    assert (sent.count(FIRST), sent.count(CORRECTED), sent.count(OTHER)) == (2, 0, 1)


def test_files_that_differ_before_the_data_set_are_one_version_when_stored(
    tmp_path: Path, pacs: Pacs
) -> None:
    dataset = dcmread(BytesIO(FIRST))
    dataset.file_meta.SourceApplicationEntityTitle = "ARCHIVE"
    files = [FIRST, saved(dataset), b"x" * 128 + FIRST[128:]]
    pacs.says("/studies$", takes_all)
    result, attempt = operate(store_dicomweb, StoreDicomweb(server="pacs"), tmp_path, files)
    assert outcomes(attempt) == ["SUCCEEDED"] * 3
    assert [one.item for one in result.instances] == ["0", "1", "2"]
