"""A server that does wrong costs an item or an attempt, with a reason, and never the worker."""

import io
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pydicom
import pytest
from dicom_worker.dicomweb import testing
from dicom_worker.dicomweb.testing import (
    Handler,
    Pacs,
    Reply,
    cut_off,
    endless,
    match,
    silent,
    trickling,
)
from dicom_worker.operations.fetch import fetch_dicomweb
from dicom_worker.operations.store import store_dicomweb
from fluoro.v1.dicomweb_pb2 import FetchDicomweb, StoreDicomweb
from fluoro.v1.job_pb2 import Item
from fluoro_jobs.errors import FluoroError
from fluoro_jobs.testing import Attempt
from fluoro_jobs.testing.context import operate
from pydicom.data import get_testdata_file

STUDY = FetchDicomweb(references=["dicomweb://pacs/studies/1.2"])
STORE = StoreDicomweb(server="pacs")
UIDS = ("1.2.3.1", "1.2.3.2", "1.2.3.3")
MIB = 2**20
MANY = json.dumps([match(f"1.{number}") for number in range(10**5)]).encode()


@cache
def instance(uid: str, comment: str = "") -> bytes:
    data = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid
    data.PatientComments = comment
    written = io.BytesIO()
    data.save_as(written)
    return written.getvalue()


def mixed_up(uid: str) -> bytes:
    """The data set of another instance, under this one's meta information."""
    data = instance("1.2.3.9")
    before, _, after = data.partition(b"1.2.3.9")
    return before + uid.encode() + after


@pytest.fixture
def pacs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pacs]:
    """A server with nothing yet."""
    with testing.pacs() as server:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("FLUORO_DICOMWEB_MAX_INSTANCE_BYTES", str(4 * MIB))
        monkeypatch.setattr("dicom_worker.operations.fetch.PAUSE_SECONDS", 0.01)
        yield server


@pytest.fixture
def says(pacs: Pacs, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Reply], None]:
    """Has it answer so. It is not waited for long if it will not."""

    def say(path: str, reply: Reply) -> None:
        if reply in {silent, trickling}:
            monkeypatch.setenv("FLUORO_DICOMWEB_ANSWER_SECONDS", "1")
        pacs.says(path, reply)

    return say


def serve(pacs: Pacs, *uids: str) -> None:
    """Has it give these instances as it should."""
    for uid in uids:
        pacs.says(f"/.*/instances/{uid}$", lambda handler, uid=uid: handler.file(instance(uid)))


def outcomes(attempt: Attempt) -> list[str]:
    states = [
        item.reason or Item.State.Name(item.state).removeprefix("STATE_")
        for item in attempt.context.items.values()
    ]
    assert len(attempt.context.artifacts) == states.count("SUCCEEDED"), "or they store"
    return states


def failure(folder: Path, operation: Any, request: Any, *inputs: bytes) -> FluoroError:
    with pytest.raises(FluoroError) as caught:
        operate(operation, request, folder, inputs)
    assert "1.2.3" not in caught.value.message, "UIDs are the patient's"
    return caught.value


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (cut_off, "PACS_UNAVAILABLE"),
        (silent, "PACS_UNAVAILABLE"),
        (trickling, "PACS_UNAVAILABLE"),
        (endless, "BLOB_TOO_LARGE"),
        (lambda handler: handler.send(b"", status=500), "PACS_UNAVAILABLE"),
        (lambda handler: handler.send(b"", status=404), "PACS_NOT_FOUND"),
        (lambda handler: handler.send(b"", status=403), "PACS_REFUSED"),
        (
            lambda handler: handler.send(b"", 302, location="http://169.254.169.254/"),
            "PACS_REFUSED",
        ),
        (
            lambda handler: handler.send(b"<html>", content_type="text/html"),
            "PACS_ANSWER_INVALID",
        ),
        (lambda handler: handler.file(instance(UIDS[1]), said="other"), "PACS_ANSWER_INVALID"),
        (lambda handler: handler.file(instance("9.9")), "PACS_ANSWER_INVALID"),
        (lambda handler: handler.file(mixed_up(UIDS[1])), "PACS_ANSWER_INVALID"),
        (
            lambda handler: handler.send(b"x", content_encoding="gzip"),
            "PACS_ANSWER_INVALID",
        ),
        (lambda handler: handler.file(b"no DICOM"), "NOT_DICOM"),
        (lambda handler: handler.file(bytes(128) + b"DICM"), "NOT_DICOM"),
        (lambda handler: handler.file(b""), "NOT_DICOM"),
    ],
)
def test_an_instance_that_a_server_gives_wrongly_fails_alone(
    tmp_path: Path, pacs: Pacs, says: Callable[[str, Reply], None], reply: Reply, reason: str
) -> None:
    pacs.lists(*UIDS)
    says(f"/.*/instances/{UIDS[1]}$", reply)
    serve(pacs, UIDS[0], UIDS[2])
    _, attempt = operate(fetch_dicomweb, STUDY, tmp_path)
    assert outcomes(attempt) == ["SUCCEEDED", reason, "SUCCEEDED"]
    tries = pacs.asked[f"/studies/1.2/series/1.2.3/instances/{UIDS[1]}"]
    assert tries == (3 if reason == "PACS_UNAVAILABLE" else 1)


def test_an_instance_comes_without_multipart_too(tmp_path: Path, pacs: Pacs) -> None:
    pacs.lists(UIDS[0])
    data = instance(UIDS[0])
    pacs.says(".*", lambda handler: handler.send(data, content_type="application/dicom"))
    _, attempt = operate(fetch_dicomweb, STUDY, tmp_path)
    assert attempt.read("instance-series-1~0000.dcm") == data


@pytest.mark.parametrize(
    ("reply", "uids"),
    [
        (cut_off, UIDS),
        (cut_off, UIDS[:1]),
        (silent, UIDS[:1]),
        (lambda handler: handler.send(b"", status=503), UIDS),
    ],
)
def test_a_server_that_gives_nothing_any_more_ends_the_attempt_which_may_be_repeated(
    tmp_path: Path,
    pacs: Pacs,
    says: Callable[[str, Reply], None],
    reply: Reply,
    uids: tuple[str, ...],
) -> None:
    pacs.lists(*uids)
    serve(pacs, *uids[:-2])
    says("/.*/instances/", reply)
    error = failure(tmp_path, fetch_dicomweb, STUDY)
    assert (error.reason, error.may_retry) == ("PACS_UNAVAILABLE", True)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (silent, "PACS_UNAVAILABLE"),
        (lambda handler: handler.send(b"", status=429), "PACS_UNAVAILABLE"),
        (lambda handler: handler.send(MANY, content_type="application/json"), "TOO_MANY_INPUTS"),
        (
            lambda handler: handler.send(b"[" + b" " * 9 * MIB, content_type="application/json"),
            "TOO_MANY_INPUTS",
        ),
    ],
)
def test_a_list_that_does_not_come_or_is_too_long_ends_the_attempt(
    tmp_path: Path, says: Callable[[str, Reply], None], reply: Reply, reason: str
) -> None:
    says("/studies/1.2/instances", reply)
    assert failure(tmp_path, fetch_dicomweb, STUDY).reason == reason


@pytest.mark.parametrize(
    "data",
    [
        b"<html>",
        b"{}",
        b"[1]",
        b"[{}]",
        b"[" * 10**5,
        b"[" + b"9" * 10**5 + b"]",
        json.dumps([match("../../../x")]).encode(),
        json.dumps([match("1.2\r\nX: y")]).encode(),
        json.dumps([match("1." + "2" * 63)]).encode(),
        json.dumps([{"00080018": {"Value": [1.2]}}]).encode(),
        json.dumps([{"00080018": {"Value": "1.2"}}]).encode(),
        json.dumps([{"00080018": ["1.2"]}]).encode(),
        json.dumps([match("1.2.3", series="..")]).encode(),
    ],
)
def test_a_list_that_is_none_fails_what_was_looked_for(
    tmp_path: Path, pacs: Pacs, data: bytes
) -> None:
    pacs.says(".*", lambda handler: handler.send(data, content_type="application/dicom+json"))
    _, attempt = operate(fetch_dicomweb, STUDY, tmp_path)
    assert outcomes(attempt) == ["PACS_ANSWER_INVALID"]


@pytest.mark.parametrize("most", [2, 1000])
@pytest.mark.parametrize("pages", [True, False])
def test_a_list_comes_whole_whatever_a_server_makes_of_pages(
    tmp_path: Path, pacs: Pacs, most: int, *, pages: bool
) -> None:
    uids = [f"1.2.3.{number}" for number in range(1, 6)]

    def reply(handler: Handler) -> None:
        offset = int(handler.path.partition("offset=")[2]) if pages else 0
        handler.json([match(uid) for uid in uids][offset : offset + (most if pages else 1000)])

    pacs.says("/studies/1.2/instances", reply)
    serve(pacs, *uids)
    _, attempt = operate(fetch_dicomweb, STUDY, tmp_path)
    assert outcomes(attempt) == ["SUCCEEDED"] * 5


def test_one_connection_is_enough_and_one_that_was_ended_is_made_anew(
    tmp_path: Path, pacs: Pacs
) -> None:
    pacs.lists(*UIDS)
    serve(pacs, *UIDS)
    operate(fetch_dicomweb, STUDY, tmp_path / "kept")
    assert pacs.connections == 1
    pacs.hangs_up = True
    _, attempt = operate(fetch_dicomweb, STUDY, tmp_path / "ended")
    assert outcomes(attempt) == ["SUCCEEDED"] * 3
    assert pacs.connections > 3


def failed(uid: str, reason: int) -> dict[str, Any]:
    return {"00081155": {"vr": "UI", "Value": [uid]}, "00081197": {"vr": "US", "Value": [reason]}}


def stored(uid: str, **more: Any) -> dict[str, Any]:
    return {"00081155": {"vr": "UI", "Value": [uid]}, **more}


def answer(good: list[Any], bad: list[Any]) -> dict[str, Any]:
    return {
        "00081199": {"vr": "SQ", "Value": good},
        "00081198": {"vr": "SQ", "Value": bad},
    }


def test_each_instance_has_the_outcome_that_the_server_tells(tmp_path: Path, pacs: Pacs) -> None:
    uids = [f"1.2.3.{number}" for number in range(1, 8)]
    warned = stored(uids[1], **{"00081196": {"vr": "US", "Value": [0xB000]}})
    told = answer(
        [stored(uids[0]), warned],
        [
            failed(uids[2], 0xA900),
            failed(uids[3], 0x0110),
            failed(uids[4], 0xC122),
            failed(uids[5], 0x0111),
        ],
    )
    pacs.says("/studies$", lambda handler: handler.json(told, 202))
    serve(pacs, uids[5])
    result, attempt = operate(store_dicomweb, STORE, tmp_path, [instance(uid) for uid in uids])
    items = attempt.context.items
    assert [item.reason for item in items.values()] == [
        "",
        "",
        "PACS_REFUSED",
        "PACS_REFUSED",
        "PACS_REFUSED",
        "",
        "PACS_ANSWER_INVALID",
    ]
    assert "A900H, the data set does not match its SOP Class" in items[2].message
    assert [(one.item, one.failure_reason) for one in result.refused] == [
        ("2", 0xA900),
        ("3", 0x0110),
        ("4", 0xC122),
    ]
    assert [(one.item, one.was_there, one.warning_reason) for one in result.instances] == [
        ("0", False, 0),
        ("1", False, 0xB000),
        ("5", True, 0),
    ]


@pytest.mark.parametrize("reason", [0x0111, 0xB00E])
def test_a_duplicate_with_other_content_is_a_conflict(
    tmp_path: Path, pacs: Pacs, reason: int
) -> None:
    told = answer([], [failed("1.2.3.1", reason)])
    pacs.says("/studies$", lambda handler: handler.json(told, 409))
    pacs.says("/studies/", lambda handler: handler.file(instance("1.2.3.1", "another")))
    _, attempt = operate(store_dicomweb, STORE, tmp_path, [instance("1.2.3.1")])
    assert [item.reason for item in attempt.context.items.values()] == ["PACS_CONFLICT"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (lambda handler: handler.send(b""), "PACS_ANSWER_INVALID"),
        (lambda handler: handler.send(b"", status=204), "PACS_ANSWER_INVALID"),
        (lambda handler: handler.json([]), "PACS_ANSWER_INVALID"),
        (lambda handler: handler.json("stored"), "PACS_ANSWER_INVALID"),
        (lambda handler: handler.json({"00081199": 5}), "PACS_ANSWER_INVALID"),
        (lambda handler: handler.json(answer([{}], [[]])), "PACS_ANSWER_INVALID"),
        (lambda handler: handler.send(b"<a/>", content_type="text/xml"), "PACS_ANSWER_INVALID"),
        (lambda handler: handler.send(b"", status=401), "PACS_REFUSED"),
        (lambda handler: handler.send(b"", status=413), "PACS_REFUSED"),
        (lambda handler: handler.send(b"", status=307, location="/rs"), "PACS_REFUSED"),
    ],
)
def test_an_instance_of_which_nothing_good_is_told_has_failed(
    tmp_path: Path, pacs: Pacs, reply: Reply, reason: str
) -> None:
    pacs.says("/studies$", reply)
    _, attempt = operate(store_dicomweb, STORE, tmp_path, [instance("1.2.3.1")])
    assert [item.reason for item in attempt.context.items.values()] == [reason]


def test_an_instance_that_a_server_fails_on_hides_no_other(tmp_path: Path, pacs: Pacs) -> None:
    uids = [f"1.2.3.{number}" for number in range(10, 17)]

    def reply(handler: Handler) -> None:
        body = handler.server.bodies[-1]
        if uids[4].encode() in body:
            handler.send(b"", status=500)
        else:
            told = [stored(uid) for uid in uids if uid.encode() in body]
            handler.json(answer(told, []))

    pacs.says("/studies$", reply)
    _, attempt = operate(store_dicomweb, STORE, tmp_path, [instance(uid) for uid in uids])
    reasons = [item.reason for item in attempt.context.items.values()]
    assert reasons == ["", "", "", "", "PACS_UNAVAILABLE", "", ""]


def test_a_server_that_cannot_give_files_as_they_are_kept_gives_them_as_it_can(
    tmp_path: Path, pacs: Pacs
) -> None:
    def reply(handler: Handler) -> None:
        if "transfer-syntax" in handler.headers["Accept"]:
            handler.send(b"", status=406)
        else:
            handler.file(instance(UIDS[0]))

    pacs.lists(UIDS[0])
    pacs.says("/.*/instances/", reply)
    _, attempt = operate(fetch_dicomweb, STUDY, tmp_path)
    assert outcomes(attempt) == ["SUCCEEDED"]


def test_studies_of_a_query_fail_each_on_its_own(tmp_path: Path, pacs: Pacs) -> None:
    found = [{"0020000D": {"vr": "UI", "Value": [study]}} for study in ("1.2", "1.3")]

    def reply(handler: Handler) -> None:
        handler.json(found if "offset=0" in handler.path else [])

    pacs.says(r"/studies\?PatientID=P%201%26", reply)
    pacs.says("/studies/1.3/instances", lambda handler: handler.send(b"<html>"))
    pacs.lists(UIDS[0])
    serve(pacs, UIDS[0])
    query = FetchDicomweb(query={"server": "pacs", "patient_id": "P 1&"})
    _, attempt = operate(fetch_dicomweb, query, tmp_path)
    assert {item.key: item.reason for item in attempt.context.items.values()} == {
        "query/0001": "PACS_ANSWER_INVALID",
        "series-1/0000": "",
    }


@pytest.mark.parametrize(
    "reply",
    [
        silent,
        cut_off,
        lambda handler: handler.send(b"", status=503),
        lambda handler: handler.send(b"", status=500),
    ],
)
def test_a_server_that_cannot_store_now_ends_the_attempt_which_may_be_repeated(
    tmp_path: Path, says: Callable[[str, Reply], None], reply: Reply
) -> None:
    says("/studies$", reply)
    error = failure(tmp_path, store_dicomweb, STORE, instance("1.2.3.1"))
    assert (error.reason, error.may_retry) == ("PACS_UNAVAILABLE", True)


def test_batches_have_few_bytes_each_and_no_uid_twice_and_are_halved_for_small_servers(
    tmp_path: Path, pacs: Pacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = [3]

    def reply(handler: Handler) -> None:
        body = handler.server.bodies[-1]
        found = [uid for uid in uids if uid.encode() in body]
        if body.count(b"DICM") > most[0]:
            handler.send(b"", status=413)
        else:
            handler.json(answer([stored(uid) for uid in found], []))

    uids = [f"1.2.3.{number}" for number in range(10, 20)]
    pacs.says("/studies$", reply)
    files = [instance(uid) for uid in (*uids, uids[0])]
    monkeypatch.setenv("FLUORO_DICOMWEB_BATCH_BYTES", str(3 * len(files[0])))
    result, _ = operate(store_dicomweb, STORE, tmp_path / "batches", files)
    assert len(result.instances) == 11
    assert [body.count(b"DICM") for body in pacs.bodies] == [3, 3, 3, 2]
    pacs.bodies.clear()
    most[0] = 1
    result, _ = operate(store_dicomweb, STORE, tmp_path / "halves", files[:3])
    assert len(result.instances) == 3
    assert [body.count(b"DICM") for body in pacs.bodies] == [3, 1, 2, 1, 1]
