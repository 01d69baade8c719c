"""What a frame says of itself is read without believing it."""

import struct
from pathlib import Path

import pytest
from dicom_worker.pixels.codestream import CodeStream, Parser, parse_j2k, parse_jpeg
from dicom_worker.testing import wheel_file
from pydicom import dcmread
from pydicom.encaps import generate_frames


def frame(path: Path) -> bytes:
    return next(generate_frames(dcmread(path).PixelData, number_of_frames=1))


J2K = frame(wheel_file("MR_small_jp2klossless"))
HTJ2K = frame(Path(__file__).parent / "data" / "MR_small_htj2k.dcm")
JPEG = frame(wheel_file("SC_rgb_jpeg_dcmtk"))


def test_the_headers_of_real_frames_are_read() -> None:
    assert parse_j2k(J2K) == CodeStream(64, 64, 1, 16, signed=True)
    assert parse_j2k(HTJ2K) == CodeStream(64, 64, 1, 16, signed=True)
    assert parse_jpeg(JPEG) == CodeStream(100, 100, 3, 8, dct=True, colour="YBR_FULL")
    assert parse_jpeg(frame(wheel_file("MR_small_jpeg_ls_lossless"))) == CodeStream(64, 64, 1, 16)
    assert parse_jpeg(frame(wheel_file("SC_rgb_jpeg_gdcm"))) == CodeStream(
        100, 100, 3, 8, colour="RGB"
    )


def test_a_cut_off_tile_is_found_though_the_end_marker_is_there() -> None:
    for whole in (J2K, HTJ2K):
        for share in (0.3, 0.6, 0.9):
            with pytest.raises(ValueError, match="tile-part"):
                parse_j2k(whole[: int(len(whole) * share)] + b"\xff\xd9")


def test_more_tiles_than_a_code_stream_may_have_are_refused() -> None:
    tiles_of_one_pixel = J2K[:8] + struct.pack(">8L", 4096, 4096, 0, 0, 1, 1, 0, 0) + J2K[40:]
    with pytest.raises(ValueError, match="too many tiles"):
        parse_j2k(tiles_of_one_pixel)


@pytest.mark.timeout(5)
@pytest.mark.parametrize("length", [0, 1, 7, 2**31])
def test_boxes_whose_length_leads_nowhere_are_refused(length: int) -> None:
    boxes = (
        struct.pack(">L4sL", 12, b"jP  ", 0x0D0A870A) + struct.pack(">L4s", length, b"ftyp") + J2K
    )
    with pytest.raises(ValueError, match="box leads nowhere"):
        parse_j2k(boxes)


def test_a_code_stream_in_a_jp2_file_is_found() -> None:
    boxes = struct.pack(">L4sL", 12, b"jP  ", 0x0D0A870A) + struct.pack(">L4s", 0, b"jp2c") + J2K
    assert parse_j2k(boxes) == parse_j2k(J2K)


@pytest.mark.parametrize("parse", [parse_j2k, parse_jpeg])
@pytest.mark.parametrize("size", [0, 1, 2, 4, 20, 41, 100])
def test_a_frame_without_its_end_is_refused(parse: Parser, size: int) -> None:
    data = J2K if parse is parse_j2k else JPEG
    with pytest.raises((ValueError, IndexError, struct.error)):
        parse(data[:size])
