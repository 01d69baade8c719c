"""libjpeg warns of damage, and the library around it drops the warning: such frames are refused."""

from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from dicom_worker.pixels.certificate import StoredFrame
from dicom_worker.pixels.codestream import parse_jpeg
from dicom_worker.pixels.decoders import CODECS, compressed_frame
from dicom_worker.pixels.image import Image
from dicom_worker.pixels.lossless import fills_scan
from dicom_worker.public_files import files
from dicom_worker.testing import Render, outcome, saved, wheel_file
from fluoro_jobs.errors import FluoroError
from numpy.typing import NDArray
from PIL import Image as Pil
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames

CT: NDArray[np.uint16] = (dcmread(wheel_file("CT_small")).pixel_array & 0xFFF).astype(np.uint16)
COLOUR: NDArray[np.uint8] = dcmread(wheel_file("examples_rgb_color")).pixel_array
LOSSLESS = ("JPEG-LL", "JPGLosslessP14SV1_1s_1f_8b", "SC_rgb_jpeg_gdcm")
BASELINE = "1.2.840.10008.1.2.4.50"
SV1 = "1.2.840.10008.1.2.4.70"


def path_of(name: str) -> Path:
    return next(path for path in files() if path.stem == name)


def frame_of(name: str) -> bytes:
    return next(generate_frames(dcmread(path_of(name)).PixelData, number_of_frames=1))


def lossless(array: NDArray[Any], predictor: int, bits: int) -> bytes:
    colours = {"colorspace": "rgb", "outcolorspace": "rgb"} if array.ndim > 2 else {}
    return imagecodecs.jpeg8_encode(
        array, lossless=True, predictor=predictor, bitspersample=bits, **colours
    )


def with_restarts(array: NDArray[np.uint8]) -> tuple[bytes, list[int]]:
    """A JPEG with a restart interval for each row of blocks, and where its markers are."""
    file = BytesIO()
    Pil.fromarray(array).save(file, "JPEG", restart_marker_rows=1)
    data = file.getvalue()
    markers = [
        at
        for at in range(len(data))
        if data[at : at + 1] == b"\xff" and data[at + 1] & 0xF8 == 0xD0
    ]
    return data, markers


def damaged(frame: bytes, how: str) -> bytes:
    middle = (frame.index(b"\xff\xda") + len(frame)) // 2
    lost = min(100, len(frame) // 20)
    return {
        "lost": frame[:middle] + frame[middle + lost :],
        "zeroed": frame[:middle] + bytes(lost) + frame[middle + lost :],
        "doubled": frame[: middle + lost] + frame[middle:],
        "cut": frame[: -lost - 2] + b"\xff\xd9",
    }[how]


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_jpeg_of_other_encoders_needs_no_second_opinion(name: str, render: Render) -> None:
    result, _ = render(path_of(name))
    (frame,) = result.images[0].certificate.frames
    assert not frame.second_decoder


@pytest.mark.parametrize(
    ("name", "how"),
    # In the middle of SC_rgb_jpeg_gdcm there are zeros already.
    [*product(LOSSLESS, ("lost", "doubled", "cut")), *product(LOSSLESS[:2], ("zeroed",))],
)
def test_a_damaged_lossless_jpeg_is_refused(name: str, how: str, render: Render) -> None:
    dataset = dcmread(path_of(name))
    dataset.PixelData = encapsulate([damaged(frame_of(name), how)])
    assert outcome(render(saved(dataset))[1]) == "FAILED PIXELS_UNDECODABLE"


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize(
    ("array", "bits"),
    [
        (CT, 12),
        (CT[:1], 12),
        (CT[:, :1], 12),
        ((CT >> 4).astype(np.uint8), 8),
        (np.random.default_rng(1).integers(0, 2**16, (77, 53), np.uint16), 16),
        (COLOUR, 8),
    ],
    ids=["12 bits", "a row", "a column", "8 bits", "16 bits of noise", "colour"],
)
def test_samples_fill_their_scan_and_others_do_not(
    array: NDArray[Any], bits: int, predictor: int
) -> None:
    array = np.ascontiguousarray(array)
    frame = lossless(array, predictor, bits)
    assert fills_scan(frame, array)
    changed = array.copy()
    changed.reshape(-1)[: array.size // 2] = 0
    assert not fills_scan(frame, changed)


def test_a_lossless_jpeg_that_nobody_can_count_is_confirmed_by_the_second_decoder() -> None:
    frame = lossless(CT, 1, 12)
    at = frame.index(b"\xff\xda")
    # 65,408 samples, which are whole rows, and more than there are: no restart comes.
    restarts = frame[:at] + b"\xff\xdd\0\4\xff\x80" + frame[at:]
    header = Image("PixelData", *CT.shape, 1, 1, "MONOCHROME2", 0, 16, 12, 11, signed=False)
    decoded = compressed_frame(restarts, SV1, header, CODECS[SV1])
    assert np.array_equal(decoded.values, CT)
    assert decoded.second_decoder.startswith("GDCM")


@pytest.mark.parametrize("lost", [1, 7, 9])
def test_a_jpeg_that_lacks_restart_intervals_is_refused(lost: int) -> None:
    data, markers = with_restarts((CT >> 4).astype(np.uint8))
    assert parse_jpeg(data).rows == len(CT)
    with pytest.raises(ValueError, match="out of order"):
        parse_jpeg(data[: markers[3]] + data[markers[3 + lost] :])


def decoded(data: bytes, picture: NDArray[np.uint8]) -> StoredFrame:
    samples, photometric = (1, "MONOCHROME2") if picture.ndim == 2 else (3, "YBR_FULL_422")
    sides = picture.shape[:2]
    header = Image("PixelData", *sides, 1, samples, photometric, 0, 8, 8, 7, signed=False)
    return compressed_frame(data, BASELINE, header, CODECS[BASELINE])


@pytest.mark.parametrize("picture", [(CT >> 4).astype(np.uint8), COLOUR], ids=["grey", "colour"])
def test_zeros_in_a_lossy_jpeg_are_a_flat_picture_or_refused(picture: NDArray[np.uint8]) -> None:
    whole, flat = BytesIO(), BytesIO()
    Pil.fromarray(picture).save(whole, "JPEG", quality=90)
    data = whole.getvalue()
    assert not decoded(data, picture).second_decoder
    middle = (data.index(b"\xff\xda") + len(data)) // 2
    with pytest.raises(FluoroError, match="PIXELS_UNDECODABLE"):
        decoded(data[:middle] + bytes(len(data) - middle - 2) + data[-2:], picture)
    large = np.pad(picture, ((0, 900), (0, 900), (0, 0))[: picture.ndim])
    Pil.fromarray(large).save(flat, "JPEG", quality=90, optimize=True)
    assert bytes(64) in flat.getvalue()
    assert decoded(flat.getvalue(), large).second_decoder.startswith("GDCM")


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_dcmtk", "JPGExtended", *LOSSLESS])
def test_a_jpeg_that_ends_long_before_its_frame_is_refused(name: str) -> None:
    frame = frame_of(name)
    parse_jpeg(frame + bytes(100))
    middle = (frame.index(b"\xff\xda") + len(frame)) // 2
    with pytest.raises(ValueError, match="ends before the frame"):
        parse_jpeg(frame[:middle] + b"\xff\xd9" + frame[middle:])


def test_a_jpeg_that_lacks_the_scan_of_a_colour_is_refused() -> None:
    frame = frame_of("SC_rgb_jpeg_dcmtk")
    scan = frame.index(b"\xff\xda")
    assert frame[scan + 4] == 3
    grey = frame[:scan] + b"\xff\xda\0\x08\1" + frame[scan + 5 : scan + 7] + frame[scan + 11 :]
    with pytest.raises(ValueError, match="no scan"):
        parse_jpeg(grey)
