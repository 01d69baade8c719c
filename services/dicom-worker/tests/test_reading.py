"""An incomplete DICOM instance is refused with the reason, and its claims allocate nothing."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from dicom_worker import limits
from dicom_worker.inflate import inflate
from dicom_worker.reading import find_data_set
from dicom_worker.testing import Inspect, Render, edited, outcome, saved, wheel_file
from fluoro_jobs.errors import FluoroError, Reason
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence

DICM = bytes(128) + b"DICM"


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"DICM",
        b"just text " * 40,
        b"%PDF-1.7\n" + bytes(500),
        png(),
        bytes(300),
        DICM,
        DICM + b"\x00" * 200,
        DICM + b"garbage" * 40,
        b"\x08\x00\x16\x00" + b"text" * 80,
        b"\x02\x00" * 200,
    ],
    ids=[
        "empty",
        "short",
        "text",
        "pdf",
        "png",
        "zeros",
        "preamble only",
        "preamble and zeros",
        "preamble and garbage",
        "group 0008 and text",
        "group 0002 and nothing else",
    ],
)
def test_what_is_no_dicom_at_all_is_refused(data: bytes, inspect: Inspect) -> None:
    _, attempt = inspect(data)
    assert outcome(attempt) == "FAILED NOT_DICOM"


@pytest.mark.parametrize("name", ["MR_small_implicit", "MR_small", "MR_small_bigendian"])
def test_a_file_without_preamble_or_without_meta_information_is_read_as_its_first_bytes_say(
    name: str, render: Render
) -> None:
    whole = wheel_file(name).read_bytes()
    length = 12 + int.from_bytes(whole[140:144], "little")
    result, attempt = render(whole, whole[132:], whole[132 + length :])
    assert [outcome(attempt, number) for number in range(3)] == ["SUCCEEDED"] * 3
    assert len({image.certificate.sha256 for image in result.images}) == 1
    assert len({image.certificate.transfer_syntax_uid for image in result.images}) == 1


def test_compressed_pixels_without_meta_information_are_refused(render: Render) -> None:
    whole = wheel_file("MR_small_RLE").read_bytes()
    length = 12 + int.from_bytes(whole[140:144], "little")
    _, attempt = render(whole[132 + length :])
    assert outcome(attempt) == "FAILED PIXELS_UNDECODABLE"


CUT = [
    "CT_small",
    "MR_small_RLE",
    "MR_small_jp2klossless",
    "SC_rgb_jpeg_dcmtk",
    "examples_ybr_color",
    "rtdose_rle",
    "image_dfl",
    "test-SR",
]


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("name", CUT)
def test_a_file_cut_anywhere_is_truncated_and_never_succeeds(
    name: str, share: float, inspect: Inspect, render: Render
) -> None:
    data = wheel_file(name).read_bytes()
    cut = data[: max(200, int(len(data) * share))]
    assert outcome(inspect(cut)[1]) == "FAILED DICOM_TRUNCATED"
    assert outcome(render(cut)[1]) == "FAILED DICOM_TRUNCATED"


@pytest.mark.parametrize(
    "name", ["CT_small", "MR_small_RLE", "SC_rgb_jpeg_dcmtk", "examples_rgb_color", "test-SR"]
)
def test_a_file_without_its_last_byte_is_truncated(name: str, inspect: Inspect) -> None:
    _, attempt = inspect(wheel_file(name).read_bytes()[:-1])
    assert outcome(attempt) == "FAILED DICOM_TRUNCATED"


def test_no_cut_of_an_image_gives_an_image(render: Render) -> None:
    data = wheel_file("SC_rgb_small_odd_jpeg").read_bytes()
    _, attempt = render(*(data[:size] for size in range(0, len(data), 3)))
    outcomes = [outcome(attempt, number) for number in attempt.context.items]
    # A cut between two elements of the header cannot be seen: it leaves a complete instance without
    # an image.
    assert set(outcomes) <= {
        "FAILED NOT_DICOM",
        "FAILED DICOM_TRUNCATED",
        "FAILED DICOM_INVALID",
        "SKIPPED NO_PIXEL_DATA",
    }
    assert outcomes.count("SKIPPED NO_PIXEL_DATA") < 20


def test_a_file_cut_right_before_its_pixel_data_is_truncated(inspect: Inspect) -> None:
    data = wheel_file("CT_small").read_bytes()
    _, attempt = inspect(data[: data.rindex(b"\xe0\x7f\x10\x00OW")])
    assert outcome(attempt) == "FAILED DICOM_TRUNCATED"


def test_native_pixels_shorter_than_the_header_says_are_truncated(render: Render) -> None:
    pixels = dcmread(wheel_file("CT_small")).PixelData
    _, attempt = render(edited("CT_small", PixelData=pixels[:-2]))
    assert outcome(attempt) == "FAILED DICOM_TRUNCATED"


def test_native_pixels_longer_by_a_frame_are_refused_and_by_padding_are_not(render: Render) -> None:
    pixels = dcmread(wheel_file("CT_small")).PixelData
    _, attempt = render(
        edited("CT_small", PixelData=pixels * 2), edited("CT_small", PixelData=pixels + bytes(64))
    )
    assert outcome(attempt, 0) == "FAILED PIXELS_UNDECODABLE"
    assert outcome(attempt, 1) == "SUCCEEDED"


@pytest.mark.parametrize(
    "lie", [{"Rows": 127}, {"Columns": 127}, {"Columns": 100}, {"Rows": 100, "Columns": 127}]
)
def test_an_image_with_more_rows_or_columns_than_the_header_says_is_refused(
    lie: dict[str, int], render: Render
) -> None:
    assert outcome(render(edited("CT_small", **lie))[1]) == "FAILED PIXELS_UNDECODABLE"


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_gdcm", "MR_small_jp2klossless"])
def test_two_frames_of_which_the_header_says_one_are_refused(name: str, render: Render) -> None:
    frame = next(generate_frames(dcmread(wheel_file(name)).PixelData, number_of_frames=1))
    two = edited(name, PixelData=encapsulate([frame, frame], has_bot=False))
    assert outcome(render(two)[1]) == "FAILED PIXELS_UNDECODABLE"


def test_more_frames_than_the_limit_are_refused_however_small(render: Render) -> None:
    tiny = {"Rows": 1, "Columns": 1, "NumberOfFrames": limits.FRAME_LIMIT + 1}
    file = edited("liver_1frame", **tiny, PixelData=bytes(limits.FRAME_LIMIT // 8 + 2))
    assert outcome(render(file)[1]) == "FAILED IMAGE_TOO_LARGE"


@pytest.mark.parametrize("first", [True, False])
def test_an_element_that_is_there_twice_is_refused(first: bool, inspect: Inspect) -> None:
    data = wheel_file("CT_small").read_bytes()
    rows = data.index(b"\x28\x00\x10\x00US\x02\x00")
    at = rows if first else rows + 10
    other = b"\x28\x00\x10\x00US\x02\x00\x40\x00"
    assert outcome(inspect(data[:at] + other + data[at:])[1]) == "FAILED DICOM_INVALID"


def test_pixel_data_that_is_there_twice_is_refused(inspect: Inspect) -> None:
    data = wheel_file("CT_small").read_bytes()
    pixels = data.index(b"\xe0\x7f\x10\x00OW")
    end = pixels + 12 + 128 * 128 * 2
    assert outcome(inspect(data[:end] + data[pixels:])[1]) == "FAILED DICOM_INVALID"


def test_ybr_full_422_that_is_not_subsampled_is_refused(render: Render) -> None:
    _, attempt = render(edited("SC_ybr_full_422_uncompressed", PixelData=bytes(100 * 100 * 3)))
    assert outcome(attempt) == "FAILED PIXELS_UNDECODABLE"


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "Rows", "BitsAllocated"])
def test_an_instance_without_what_the_standard_requires_is_invalid(
    keyword: str, inspect: Inspect
) -> None:
    _, attempt = inspect(edited("CT_small", **{keyword: None}))
    assert outcome(attempt) == "FAILED DICOM_INVALID"


def test_an_instance_without_transfer_syntax_is_invalid(inspect: Inspect) -> None:
    data = wheel_file("CT_small").read_bytes()
    assert data.count(b"\x02\x00\x10\x00UI") == 1
    _, attempt = inspect(data.replace(b"\x02\x00\x10\x00UI", b"\x02\x00\x11\x00UI"))
    assert outcome(attempt) == "FAILED DICOM_INVALID"


@pytest.mark.parametrize(
    ("rows", "columns", "frames"), [(65535, 65535, 1), (2048, 2048, 2_000_000)]
)
def test_a_header_that_claims_more_than_the_budget_is_refused_before_anything_is_allocated(
    rows: int, columns: int, frames: int, render: Render
) -> None:
    dataset = dcmread(wheel_file("MR_small_RLE"))
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = rows, columns, frames
    data = saved(dataset)
    tracemalloc.start()
    _, attempt = render(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert outcome(attempt) == "FAILED IMAGE_TOO_LARGE"
    assert peak < 16 * limits.MIB


def deflated(payload: bytes) -> bytes:
    """A deflated file: the header of a real one, then this data set."""
    data = wheel_file("image_dfl").read_bytes()
    _, start = find_data_set(io.BytesIO(data), len(data))
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return data[:start] + squeeze.compress(payload) + squeeze.flush()


def test_a_deflated_bomb_stops_at_the_limit_in_little_memory(tmp_path: Path) -> None:
    source, target = tmp_path / "bomb", tmp_path / "inflated"
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    with source.open("wb") as file:
        for _ in range(64):
            file.write(squeeze.compress(bytes(limits.MIB)))
        file.write(squeeze.flush())
    assert source.stat().st_size < limits.MIB
    tracemalloc.start()
    with pytest.raises(FluoroError) as caught:
        inflate(source, 0, target, limit=16 * limits.MIB)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.reason == Reason.IMAGE_TOO_LARGE
    assert peak < 8 * limits.MIB
    assert target.stat().st_size <= 16 * limits.MIB


def test_a_deflated_data_set_that_is_no_data_set_is_refused(inspect: Inspect) -> None:
    whole = deflated(b"no data set at all")
    _, attempt = inspect(whole, whole[:-9], whole[:400] + b"\xff" * 50)
    assert {outcome(attempt, number) for number in range(3)} <= {
        "FAILED DICOM_TRUNCATED",
        "FAILED DICOM_INVALID",
    }


def nested(depth: int, *, undefined: bool) -> bytes:
    dataset = dcmread(wheel_file("test-SR"))
    inner = Dataset()
    inner.CodeValue = "1"
    for _ in range(depth):
        outer = Dataset()
        outer.ContentSequence = Sequence([inner])
        outer["ContentSequence"].is_undefined_length = undefined
        inner.is_undefined_length_sequence_item = undefined
        inner = outer
    dataset.ContentSequence = inner.ContentSequence
    dataset["ContentSequence"].is_undefined_length = undefined
    return saved(dataset)


@pytest.mark.parametrize("undefined", [True, False], ids=["undefined length", "defined length"])
def test_sequences_nested_a_little_are_read(undefined: bool, inspect: Inspect) -> None:
    _, attempt = inspect(nested(20, undefined=undefined))
    assert outcome(attempt) == "SUCCEEDED"


def test_sequences_nested_without_end_are_refused(inspect: Inspect) -> None:
    data = nested(2, undefined=True)
    opening = data.index(b"\x40\x00\x30\xa7SQ") if b"\x40\x00\x30\xa7SQ" in data else len(data)
    bomb = (
        data[:opening]
        + (b"\x40\x00\x30\xa7SQ\x00\x00" + b"\xff" * 4 + b"\xfe\xff\x00\xe0" + b"\xff" * 4) * 5000
    )
    _, attempt = inspect(bomb)
    assert outcome(attempt) == "FAILED DICOM_INVALID"


def test_more_elements_than_the_limit_are_refused(
    inspect: Inspect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ELEMENT_LIMIT", 100)
    _, attempt = inspect(wheel_file("CT_small"))
    assert outcome(attempt) == "FAILED IMAGE_TOO_LARGE"


@pytest.mark.parametrize("defined", ["sequence", "item", "both"])
@pytest.mark.parametrize("vr", [b"SQ", b"UN"])
def test_elements_inside_of_sequences_count_whatever_their_lengths_say(
    inspect: Inspect, monkeypatch: pytest.MonkeyPatch, vr: bytes, defined: str
) -> None:
    monkeypatch.setattr(limits, "ELEMENT_LIMIT", 1000)
    header = b"\x08\x00\x80\x00" + (b"LO\0\0" if vr == b"SQ" else bytes(4))
    elements = header * 1100
    undefined, item, end = b"\xff" * 4, b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0" + bytes(4)
    if defined == "sequence":
        value = item + undefined + elements + end
    else:
        value = item + struct.pack("<L", len(elements)) + elements
    length = struct.pack("<L", len(value))
    if defined == "item":
        length, value = undefined, value + b"\xfe\xff\xdd\xe0" + bytes(4)
    sequence = b"\x09\x00\xfe\x10" + vr + b"\0\0" + length + value
    data = wheel_file("CT_small").read_bytes()
    place = data.index(b"\x10\x00\x10\x00PN")
    _, attempt = inspect(data)
    assert outcome(attempt) == "SUCCEEDED"
    _, attempt = inspect(data[:place] + sequence + data[place:])
    assert outcome(attempt) == "FAILED IMAGE_TOO_LARGE"


def test_a_value_that_begins_like_a_sequence_and_is_none_is_read(inspect: Inspect) -> None:
    value = b"\xfe\xff\x00\xe0" + b"\xff" * 4 + b"not a data set at all" + bytes(3)
    element = b"\x09\x00\xfe\x10UN\0\0" + struct.pack("<L", len(value)) + value
    data = wheel_file("CT_small").read_bytes()
    place = data.index(b"\x10\x00\x10\x00PN")
    _, attempt = inspect(data[:place] + element + data[place:])
    assert outcome(attempt) == "SUCCEEDED"


def test_a_header_over_the_limit_is_refused(
    inspect: Inspect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HEADER_LIMIT_BYTES", 1000)
    _, attempt = inspect(wheel_file("CT_small"))
    assert outcome(attempt) == "FAILED IMAGE_TOO_LARGE"


def test_a_compressed_file_that_says_it_is_native_is_refused(render: Render) -> None:
    dataset = dcmread(wheel_file("MR_small"))
    dataset.PixelData = encapsulate([dataset.PixelData])
    data = saved(dataset)
    at = data.rindex(b"\xe0\x7f\x10\x00")
    vr, length = data[at + 4 : at + 6], struct.pack("<L", 0xFFFFFFFF)
    _, attempt = render(
        data[: at + 4]
        + vr
        + b"\x00\x00"
        + length
        + data[at + 12 :]
        + b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    )
    assert outcome(attempt).startswith("FAILED ")


def test_messages_and_results_hold_no_text_of_the_file(
    inspect: Inspect, render: Render, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "SECRET^PATIENT"
    broken = [
        edited("CT_small", PatientName=secret, Rows=None),
        edited("MR_small_RLE", PatientName=secret, PixelData=encapsulate([b"SECRET^PATIENT" * 20])),
        edited("CT_small", PatientName=secret).replace(b"CT^CHEST", b"SECRET^P"),
        wheel_file("badVR").read_bytes(),
    ]
    for _, attempt in (inspect(*broken), render(*broken)):
        assert not any(
            "SECRET" in item.message or "1A" in item.message
            for item in attempt.context.items.values()
        )
    assert "SECRET" not in caplog.text
