"""UnpackArchive: every file of a sound archive, nothing of a broken one, names only in the list."""

import io
import json
import logging
import re
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from dicom_worker.limits import MIB
from dicom_worker.operations import unpack
from dicom_worker.operations.unpack import unpack_archive
from dicom_worker.testing import added_to_peak, wheel_file
from fluoro.v1.archive_pb2 import UnpackArchive, UnpackArchiveResult, UnpackedArchive
from fluoro.v1.job_pb2 import Item
from fluoro_jobs.testing import Attempt, operate
from hypothesis import given, settings
from hypothesis import strategies as st

NAME = "Doe^Jane/1980-02-29.dcm"


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def run(folder: Path, *archives: bytes) -> tuple[UnpackArchiveResult, Attempt]:
    return operate(unpack_archive, UnpackArchive(), folder, archives)


def outcomes(attempt: Attempt) -> list[str]:
    return [item.reason for item in attempt.context.items.values()]


def test_each_file_becomes_a_member_under_the_number_of_its_place(tmp_path: Path) -> None:
    ct, text = wheel_file("CT_small").read_bytes(), b"read me"
    data = zipped({NAME: ct, "empty/": b"", "README": text})
    result, attempt = run(tmp_path, zipped({"a": b"1"}), data)
    assert result.archives[1] == UnpackedArchive(
        input=1, item="1", listing="members-0001.json", members=2, size_bytes=len(ct) + len(text)
    )
    left = list(attempt.context.artifacts.values())[2:]
    assert [(each.name, each.role, each.key, each.input) for each in left] == [
        ("member-1~0000", "member", "1/0000", 1),
        ("member-1~0001", "member", "1/0001", 1),
        ("members-0001.json", "members", "1", 1),
    ]
    assert (attempt.read("member-1~0000"), attempt.read("member-1~0001")) == (ct, text)
    assert json.loads(attempt.read("members-0001.json")) == [
        {"key": "1/0000", "name": NAME, "size_bytes": len(ct)},
        {"key": "1/0001", "name": "README", "size_bytes": len(text)},
    ]


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "C:\\x", "..", "Doe^Jane", "é" * 200]
)
def test_no_name_in_an_archive_names_anything_but_its_entry_in_the_list(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        result, attempt = run(tmp_path, zipped({name: b"x"}), zipped({name: b"x"})[:-30])
    assert list(attempt.context.artifacts) == ["member-0~0000", "members-0000.json"]
    told = f"{result}{attempt.context.items}{caplog.text}{attempt.progress}"
    assert name not in told
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "blobs") == [
        attempt.context.scratch.name
    ]


def test_links_are_left_out_and_archives_inside_are_left_as_they_are(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    inner = zipped({"a": b"1"})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("inner.zip", inner)
    _, attempt = run(tmp_path, buffer.getvalue())
    assert attempt.read("member-0~0000") == inner
    assert len(attempt.context.artifacts) == 2


def test_a_file_without_a_name_is_a_member_like_others(tmp_path: Path) -> None:
    header = struct.pack("<5H3I2H", 20, 0, 0, 0, 0, zlib.crc32(b"1"), 1, 1, 0, 0)
    local = b"PK\3\4" + header + b"1"
    entry = b"PK\1\2" + struct.pack("<H", 20) + header + bytes(14)
    end = b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 1, 1, len(entry), len(local), 0)
    _, attempt = run(tmp_path, local + entry + end)
    assert attempt.read("member-0~0000") == b"1"


def flagged(data: bytes, flag: int) -> bytes:
    """The archive with a general purpose flag set in its directory."""
    at = data.index(b"PK\1\2") + 8
    return data[:at] + struct.pack("<H", flag) + data[at + 2 :]


def without_checksum(data: bytes) -> bytes:
    at = data.index(b"PK\1\2") + 16
    return data[:at] + bytes(4) + data[at + 4 :]


def with_a_huge_directory(data: bytes) -> bytes:
    at = data.index(b"PK\5\6") + 12
    return data[:at] + struct.pack("<I", 2**31) + data[at + 4 :]


SOUND = zipped({NAME: b"some text, " * 100, "b": b"2"})
ZIP64 = SOUND[:-22] + b"PK\6\7" + bytes(16) + SOUND[-22:]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"", "ARCHIVE_INVALID"),
        (b"no archive" * 9, "ARCHIVE_INVALID"),
        (SOUND[:-30], "ARCHIVE_INVALID"),
        (SOUND[:40] + b"????" + SOUND[44:], "ARCHIVE_INVALID"),
        (without_checksum(SOUND), "ARCHIVE_INVALID"),
        (zipped({"a": b"1"}, zipfile.ZIP_LZMA), "ARCHIVE_INVALID"),
        (flagged(SOUND, 1), "ARCHIVE_ENCRYPTED"),
        (flagged(SOUND, 1 | 1 << 6), "ARCHIVE_ENCRYPTED"),
        (ZIP64, "ARCHIVE_TOO_LARGE"),
        (with_a_huge_directory(SOUND), "ARCHIVE_TOO_LARGE"),
        (zipped({"zeros": bytes(66 * MIB)}), "ARCHIVE_TOO_LARGE"),
        (zipped(dict.fromkeys(map(str, range(unpack.MEMBER_LIMIT + 1)), b"")), "ARCHIVE_TOO_LARGE"),
    ],
    ids=[
        "nothing",
        "something else",
        "cut off",
        "damaged",
        "wrong checksum",
        "LZMA",
        "encrypted",
        "strongly encrypted",
        "ZIP64",
        "a huge directory",
        "a bomb",
        "too many files",
    ],
)
def test_an_archive_that_is_not_sound_fails_alone_and_leaves_nothing(
    bad: bytes, reason: str, tmp_path: Path
) -> None:
    result, attempt = run(tmp_path, bad, SOUND)
    assert outcomes(attempt) == [reason, ""]
    assert [archive.item for archive in result.archives] == ["1"]
    assert {artifact.key for artifact in attempt.context.artifacts.values()} == {
        "1/0000",
        "1/0001",
        "1",
    }
    assert not re.search("Jane|Doe", attempt.context.items[0].message)


def test_an_archive_may_say_what_it_wants_about_the_sizes_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "RATIO_FREE_BYTES", MIB)
    data = zipped({"zeros": bytes(2 * MIB)})
    at = data.index(b"PK\1\2") + 24
    _, attempt = run(tmp_path, data[:at] + struct.pack("<I", 10) + data[at + 4 :], data)
    assert outcomes(attempt) == ["ARCHIVE_INVALID", "ARCHIVE_TOO_LARGE"]


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_no_damage_to_an_archive_is_an_untyped_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    damaged = bytearray(SOUND)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(SOUND) - 1))] = data.draw(st.integers(0, 255))
    _, attempt = run(tmp_path_factory.mktemp("run"), bytes(damaged))
    item = attempt.context.items[0]
    assert item.state == Item.STATE_SUCCEEDED or item.reason.startswith("ARCHIVE_")


def test_what_macos_and_windows_pack_by_themselves_is_left_out(tmp_path: Path) -> None:
    ours = {"a/1.jpg": b"1", "DS_Store": b"2", "x/__MACOSX": b"3"}
    theirs = ["__MACOSX/a/._1.jpg", "a/.DS_Store", "Thumbs.db", "a/b/desktop.ini"]
    result, attempt = run(tmp_path, zipped({**dict.fromkeys(theirs, b"0"), **ours}))
    assert result.archives[0].members == 3
    assert [attempt.read(f"member-0~{number:04}") for number in range(3)] == [b"1", b"2", b"3"]


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    good, bomb = tmp_path / "good.zip", tmp_path / "bomb.zip"
    for path, size in ((good, 1), (bomb, 128 * MIB)):
        path.write_bytes(zipped({"a": bytes(size)}))
    reason, extra = added_to_peak(unpack_archive, UnpackArchive, good, bomb, tmp_path / "scratch")
    assert reason == "ARCHIVE_TOO_LARGE"
    assert extra < 64 * MIB
