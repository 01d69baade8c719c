"""How far each identifier is searched for: neither a false proof, nor a noisy one."""

from datetime import timedelta
from pathlib import Path

import pytest
from dicom_worker.deidentify import proof
from dicom_worker.deidentify.elements import Span
from dicom_worker.deidentify.identifiers import Identifiers, Search
from dicom_worker.deidentify.proof import in_bytes
from dicom_worker.deidentify.pseudonyms import patient, read_key, shifted
from fluoro_jobs.errors import FluoroError


def search(
    *, names: tuple[str, ...] = (), number: str = "", place: str = "", born: str = ""
) -> Search:
    identifiers = Identifiers()
    for name in names:
        identifiers.add_name(name)
    identifiers.add_text("PatientID", number)
    identifiers.add_text("PatientAddress", place)
    identifiers.add_date(born)
    return identifiers.search()


@pytest.mark.parametrize(
    ("name", "text", "free", "found"),
    [
        ("Quackenbush^Otto", "seen by otto", True, True),
        ("Quackenbush^Otto", "ottoman", True, False),
        ("Quackenbush^Otto", "DrQuackenbushMD", True, True),
        ("Zhu^M", "ZHU", False, True),
        ("Zhu^M", "ZHUAN", True, False),
        ("Zhu^M", "M", True, False),
        ("Head^Chest", "CHEST", False, False),
        ("Head^Chest", "dr. head", True, True),
        ("山田^太郎", "山田さん", True, True),
    ],
)
def test_parts_of_names_are_found_as_the_rule_says(
    name: str, text: str, free: bool, found: bool
) -> None:
    assert search(names=(name,)).in_text(text, free=free) == found


@pytest.mark.parametrize(
    ("number", "text", "found"),
    [
        ("12", "12", False),
        ("4711", "no. 4711", True),
        ("4711", "147112", False),
        ("MRN-4711", "see mrn-4711.", True),
        ("030 12345678", "call (030) 1234-5678", True),
    ],
)
def test_numbers_are_found_alone_and_telephones_however_written(
    number: str, text: str, found: bool
) -> None:
    assert search(number=number).in_text(text) == found


@pytest.mark.parametrize(
    "text",
    [
        *("19670304", "1967-03-04", "04.03.1967", "3/4/1967", "03/04/1967", "4 Mar 1967"),
        *("19670304101500.00", "March 4, 1967", "4th Mar 1967", "1967-3-4", "04/03/67", "4-Mar-67"),
        *("67-03-04", "1967年3月4日", "4. März 1967"),
    ],
)
def test_a_day_is_found_however_it_is_written(text: str) -> None:
    assert search(born="19670304").in_text(f"on {text}")
    assert not search(born="19670305").in_text(f"on {text}".replace("4", "6"))


@pytest.mark.parametrize(
    ("part", "header", "found"),
    [
        (b"\0\0Otto\0", True, True),
        (b"\0\0xOtto\0", True, False),
        (b"\0\0Otto\0", False, False),
        (b"\x93quackenbush\x94", False, True),
        ("Quackenbush".encode("utf-16-le"), False, True),
        ("Quackenbush".encode("utf-16-be"), False, True),
        (b"QUACK enbush", True, False),
    ],
)
def test_bytes_are_searched_for_what_cannot_be_chance(
    part: bytes, header: bool, found: bool
) -> None:
    sought = search(names=("Quackenbush^Otto",))
    assert in_bytes(part, sought, (), header=header) == found


def test_what_lies_across_two_chunks_of_pixel_data_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proof, "CHUNK_BYTES", 16)
    data = bytes(11) + b"quackenbush" + bytes(11)
    sought = search(names=("Quackenbush",))
    parts = list(proof.chunks(data, Span(0, len(data))))
    assert len(parts) == 3
    assert any(in_bytes(part, sought, (), header=False) for part in parts)


@pytest.mark.parametrize("encoding", ["ascii", "utf-16-le", "utf-16-be"])
def test_zeros_in_pixel_data_hide_no_name(encoding: str) -> None:
    zeros = bytes(3001)
    name = "quackenbush".encode(encoding)
    sought = search(names=("Quackenbush",))

    def is_found(data: bytes) -> bool:
        return proof.in_bulk(data, Span(0, len(data)), sought, (), lambda: None)

    assert is_found(zeros + name + zeros)
    assert not is_found(name[:10] + zeros + name[10:])


def test_the_search_of_pixel_data_ends_once_nobody_wants_the_answer() -> None:
    calls = iter((None, None))
    data = b"\x7f\xe0\0\x10OW\0\0" + (2**23).to_bytes(4, "big") + bytes((7, 9)) * 2**22

    def check() -> None:
        if next(calls, 0) == 0:
            raise InterruptedError

    sought = search(names=("Quackenbush",))
    with pytest.raises(InterruptedError):
        proof.residual(data, 0, sought, check, explicit=True, little_endian=False)


def test_a_name_is_found_in_the_character_set_of_the_file() -> None:
    sought = search(names=("山田西^太郎彦",))
    raw = "\x1b$B" + "山田西".encode("iso2022_jp")[3:-3].decode() + "\x1b(B"
    assert in_bytes(raw.encode(), sought, ("iso2022_jp",), header=True)


@pytest.mark.parametrize(
    ("value", "moved"),
    [
        ("20040301", "20040229"),
        ("2004.03.01", "20040229"),
        ("20040301101500.5+0100", "20040229101500.5+0100"),
        ("200403", None),
        ("00010101", None),
        ("yesterday", None),
    ],
)
def test_whole_dates_are_shifted_and_others_are_not(value: str, moved: str | None) -> None:
    assert shifted(value, timedelta(-1)) == moved


def test_a_key_that_cannot_be_read_is_missing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "large").write_bytes(b"k" * 2**20)
    (tmp_path / "loop").symlink_to("loop")
    for project, why in (("folder", "read"), ("loop", "read"), ("large", "more than 65536 bytes")):
        with pytest.raises(FluoroError, match=f"DEIDENTIFICATION_KEY_MISSING.*{why}"):
            read_key(tmp_path, project)


def test_a_key_says_nothing_of_itself(tmp_path: Path) -> None:
    (tmp_path / "trial").write_bytes(b"k" * 40)
    key = read_key(tmp_path, "trial")
    assert "kkkk" not in repr(key) + str(key) + key.id
    assert patient(key, "1").pseudonym != patient(key, "2").pseudonym
    assert key.uid("1.2.3").startswith("2.25.")
    assert len(key.uid("1.2.3")) <= 64
