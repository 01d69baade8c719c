"""A body of one part is read in pieces of any size, or refused."""

import io
from pathlib import Path

import pytest
from dicom_worker.dicomweb.multipart import MAX_HEAD_BYTES, body_of, media_type, only_part
from fluoro_jobs.errors import FluoroError
from hypothesis import given
from hypothesis import strategies as st

CONTENT = b"\r\n--b\r\r\n-\r\n--" + bytes(range(256)) + b"\r\n--bounda" + b"\r\n" * 40
HEADERS = b"Content-Type: application/dicom\r\nContent-Length: 4\r\n"
WHOLE = b"--boundary\r\n" + HEADERS + b"\r\n" + CONTENT + b"\r\n--boundary--"


def content(body: bytes, boundary: str = "boundary", piece: int = 7) -> bytes:
    stream = io.BytesIO(body)
    return b"".join(only_part(lambda most: stream.read(min(piece, most)), boundary))


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 11, 64, 10**6])
@pytest.mark.parametrize(
    "body",
    [
        WHOLE,
        b"\r\n" + WHOLE + b"\r\n",
        b"a preamble\r\n" + WHOLE + b"\r\nan epilogue",
        WHOLE.replace(HEADERS, b""),
        WHOLE.replace(b"--boundary\r\n", b"--boundary  \r\n", 1),
    ],
)
def test_a_part_is_read_whatever_the_pieces_are(body: bytes, piece: int) -> None:
    assert content(body, piece=piece) == CONTENT


def test_a_part_may_be_empty() -> None:
    assert content(b"--boundary\r\n\r\n\r\n--boundary--") == b""


@pytest.mark.parametrize("end", range(11, len(WHOLE) - 1, 7))
def test_a_body_that_is_cut_off_is_no_part(end: int) -> None:
    with pytest.raises(FluoroError) as caught:
        content(WHOLE[:end])
    assert caught.value.reason == "PACS_UNAVAILABLE"


@pytest.mark.parametrize(
    ("body", "boundary"),
    [
        (WHOLE, "another"),
        (WHOLE, ""),
        (WHOLE, "b" * 71),
        (b"", "boundary"),
        (b"--boundary--", "boundary"),
        (WHOLE[: -len(b"--")] + b"\r\n\r\nsecond\r\n--boundary--", "boundary"),
        (b"--boundary" + b"x" * (MAX_HEAD_BYTES + 99), "boundary"),
        (b"--boundary\r\n" + b"X: y\r\n" * MAX_HEAD_BYTES, "boundary"),
        (b"x" * 10**6, "boundary"),
    ],
)
def test_a_body_without_its_one_part_is_refused(body: bytes, boundary: str) -> None:
    with pytest.raises(FluoroError) as caught:
        content(body, boundary, piece=4096)
    assert caught.value.reason == "PACS_ANSWER_INVALID"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('multipart/related; type="a/b"; boundary="a b"', ("multipart/related", "a b")),
        ("Multipart/Related;boundary=x-1;type=application/dicom", ("multipart/related", "x-1")),
        ("application/dicom", ("application/dicom", "")),
        ("", ("text/plain", "")),
        ("multipart/related; boundary*=utf-8''x", ("multipart/related", "")),
        ("multipart/related; boundary*" + "9" * 5000 + "=x", ("", "")),
    ],
)
def test_a_content_type_is_read_as_servers_write_it(header: str, expected: tuple[str, str]) -> None:
    assert media_type(header) == expected


@given(st.text(max_size=80).map(lambda text: "multipart/related; boundary" + text))
def test_any_content_type_can_be_read(header: str) -> None:
    media_type(header)


def test_a_body_of_files_has_the_size_that_it_says(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    files[0].write_bytes(CONTENT)
    files[1].write_bytes(bytes(10**6))
    size, pieces = body_of(files, "boundary")
    body = b"".join(pieces)
    assert len(body) == size
    assert body.count(b"\r\n--boundary\r\nContent-Type: application/dicom\r\n\r\n") == 2
    _, pieces = body_of(files[:1], "boundary")
    assert content(b"".join(pieces)) == CONTENT
