"""Each Transfer Syntax has a pinned decoder, and wrong pixels are refused rather than passed on."""

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import imagecodecs
import numpy as np
import pytest
from dicom_worker.pixels import decoders
from dicom_worker.pixels.codecs import FrameSpec
from dicom_worker.pixels.decoders import CODECS, compressed_frame
from dicom_worker.pixels.image import Image
from dicom_worker.testing import Dcmtk, Render, array_of, edited, outcome, saved, wheel_file
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import UID

PREFIX = "1.2.840.10008.1.2."
CT = dcmread(wheel_file("CT_small"))
GREY: NDArray[np.uint16] = (CT.pixel_array & 0xFFF).astype(np.uint16)
COLOUR: NDArray[np.uint8] = dcmread(wheel_file("examples_rgb_color")).pixel_array

Encode = Callable[..., bytes]


def j2k(array: NDArray[Any], **options: Any) -> bytes:
    return imagecodecs.jpeg2k_encode(
        array, codecformat="j2k", reversible=True, level=0, mct=False, **options
    )


def jpeg_lossless(array: NDArray[Any], bits: int = 12) -> bytes:
    bits = 8 if array.dtype == np.uint8 else bits
    return imagecodecs.jpeg8_encode(array, lossless=True, bitspersample=bits)


def image(array: NDArray[Any], **changes: Any) -> Image:
    """What a header would say of it."""
    bits = array.dtype.itemsize * 8
    fields: dict[str, Any] = {
        "keyword": "PixelData",
        "rows": array.shape[0],
        "columns": array.shape[1],
        "frames": 1,
        "samples": 3 if array.ndim > 2 else 1,
        "photometric": "RGB" if array.ndim > 2 else "MONOCHROME2",
        "planar": 0,
        "bits_allocated": bits,
        "bits_stored": bits,
        "high_bit": bits - 1,
        "signed": array.dtype.kind == "i",
    }
    return Image(**fields | changes)


def encapsulated(array: NDArray[Any], frame: bytes, syntax: str, **changes: Any) -> Dataset:
    """CT_small with another image in it."""
    dataset = dcmread(wheel_file("CT_small"))
    described = image(array, **changes)
    dataset.Rows, dataset.Columns = described.rows, described.columns
    dataset.BitsAllocated, dataset.BitsStored = described.bits_allocated, described.bits_stored
    dataset.HighBit, dataset.PixelRepresentation = described.high_bit, int(described.signed)
    dataset.RescaleIntercept = "0"
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = UID(PREFIX + syntax)
    return dataset


@pytest.mark.parametrize("array", [GREY, COLOUR], ids=["grey of 12 bits", "colour of 8 bits"])
@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        ("4.57", jpeg_lossless),
        ("4.70", jpeg_lossless),
        ("4.80", imagecodecs.jpegls_encode),
        ("4.90", j2k),
        ("4.201", imagecodecs.htj2k_encode),
        ("4.202", imagecodecs.htj2k_encode),
    ],
)
def test_both_decoders_of_a_lossless_syntax_give_the_original(
    syntax: str, encode: Encode, array: NDArray[Any]
) -> None:
    codec = CODECS[PREFIX + syntax]
    assert codec.second
    assert codec.lossless
    for decoder in (codec.decoder, codec.second):
        only = decoders.Codec(decoder, codec.second, codec.parser)
        frame = compressed_frame(encode(array), PREFIX + syntax, image(array), only)
        assert np.array_equal(frame.values, array), decoder


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_segment_of_rle_is_its_plane_or_refused(size: int) -> None:
    array = (GREY.astype(np.uint64) << 8 * size >> 12).astype(f"u{size}")
    array[-1, 0], array[-1, 1:] = 256**size - 1, 0
    count = array.itemsize
    planes = array.astype(array.dtype.newbyteorder(">")).view(np.uint8).reshape(array.size, count)
    good = [imagecodecs.packbits_encode(planes[:, at].tobytes()) for at in range(count)]

    def values(last: bytes) -> NDArray[Any]:
        segments = [*good[:-1], last]
        starts = np.cumsum([64, *map(len, segments)])[:-1]
        offsets = np.array([count, *starts, *[0] * (15 - count)], "<u4")
        data = offsets.tobytes() + b"".join(segments)
        return compressed_frame(data, PREFIX + "5", image(array), CODECS[PREFIX + "5"]).values

    for behind in (b"", b"\0", b"\0" * 5, b"\x80" * 3):
        assert np.array_equal(values(good[-1] + behind), array)
    for bad in (good[-1][:-2], good[-1][:-1], good[-1] + b"\1ab", good[-1] + b"\0\0\0\1"):
        with pytest.raises(FluoroError, match="PIXELS_UNDECODABLE"):
            values(bad)


@pytest.mark.parametrize("size", [{"rows": 120}, {"columns": 120}], ids=str)
def test_rle_of_a_larger_picture_than_the_header_says_is_refused(size: dict[str, int]) -> None:
    array, codec = (GREY >> 4).astype(np.uint8), CODECS[PREFIX + "5"]
    data = struct.pack("<16L", 1, 64, *[0] * 14) + imagecodecs.packbits_encode(array.tobytes())
    frame = compressed_frame(data, PREFIX + "5", image(array), codec)
    assert np.array_equal(frame.values, array)
    with pytest.raises(FluoroError, match="PIXELS_UNDECODABLE"):
        compressed_frame(data, PREFIX + "5", replace(image(array), **size), codec)


def test_frames_of_rle_of_other_sizes_after_each_other_keep_their_pixels() -> None:
    codec = CODECS[PREFIX + "5"]
    for array in (GREY, GREY[:7, :5], COLOUR.astype(np.uint8), GREY[::-1], GREY[:7, :5]):
        whole = np.ascontiguousarray(array)
        encoded = RLELosslessEncoder.encode(
            whole,
            encoding_plugin="pydicom",
            rows=whole.shape[0],
            columns=whole.shape[1],
            samples_per_pixel=1 if whole.ndim == 2 else 3,
            number_of_frames=1,
            bits_allocated=8 * whole.itemsize,
            bits_stored=8 * whole.itemsize,
            pixel_representation=0,
            photometric_interpretation="MONOCHROME2" if whole.ndim == 2 else "RGB",
            planar_configuration=0,
        )
        frame = compressed_frame(encoded, PREFIX + "5", image(whole), codec)
        assert np.array_equal(frame.values, whole)


@pytest.mark.parametrize("array", [GREY >> 4, COLOUR], ids=["grey", "colour"])
def test_both_decoders_of_lossy_jpeg_agree_to_a_few_grey_values(array: NDArray[Any]) -> None:
    array = array.astype(np.uint8)
    codec, data = CODECS[PREFIX + "4.50"], imagecodecs.jpeg8_encode(array, level=90)
    assert codec.second
    first, second = (
        compressed_frame(
            data, PREFIX + "4.50", image(array), decoders.Codec(each, codec.second, codec.parser)
        ).values.astype(int)
        for each in (codec.decoder, codec.second)
    )
    assert np.abs(first - second).max() <= decoders.LOSSY_TOLERANCE


@pytest.mark.parametrize("name", ["JPGExtended", "JPEG-lossy"])
def test_jpeg_of_12_bits_agrees_with_dcmtk(name: str, dcmtk: Dcmtk, render: Render) -> None:
    dataset = dcmread(dcmtk("dcmdjpeg", wheel_file(name)))
    _, attempt = render(wheel_file(name))
    assert outcome(attempt) == "SUCCEEDED"
    assert np.abs(array_of(attempt)[0].astype(int) - dataset.pixel_array).max() <= 2


def cut(name: str, share: float) -> bytes:
    """The file with part of its code stream left out, and the end marker in its place."""
    dataset = dcmread(wheel_file(name))
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    return edited(name, PixelData=encapsulate([frame[: int(len(frame) * share)] + b"\xff\xd9"]))


@pytest.mark.parametrize("share", [0.4, 0.8])
@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_jpeg_dcmtk",
        "SC_rgb_jpeg_gdcm",
        "JPGExtended",
        "MR_small_jpeg_ls_lossless",
        "MR_small_jp2klossless",
    ],
)
def test_a_frame_that_is_cut_before_its_end_marker_is_refused(
    name: str, share: float, render: Render
) -> None:
    _, attempt = render(cut(name, share))
    assert outcome(attempt) == "FAILED PIXELS_UNDECODABLE"


@pytest.mark.parametrize("name", ["SC_jpeg_no_color_transform", "SC_rgb_dcmtk_+eb+cr"])
def test_a_lossy_frame_that_lacks_its_last_blocks_only_is_refused(
    name: str, render: Render
) -> None:
    assert outcome(render(cut(name, 0.99))[1]) == "FAILED PIXELS_UNDECODABLE"


def test_lossless_jpeg_of_12_bits_that_came_out_as_zeros_is_refused() -> None:
    codec, data = CODECS[PREFIX + "4.70"], jpeg_lossless(GREY)
    zeros, described = np.zeros_like(GREY), image(GREY, bits_stored=12, high_bit=11)
    found = decoders.examine(data, described, codec)
    assert decoders.is_suspicious(zeros, len(data), found, codec)
    spec = FrameSpec(PREFIX + "4.70", 128, 128, 1, 16, 12, False, False, "MONOCHROME2")
    with pytest.raises(FluoroError) as caught:
        decoders.confirm(zeros, data, spec, found, described, codec)
    assert caught.value.reason == Reason.PIXELS_UNDECODABLE
    decoders.confirm(GREY, data, spec, found, described, codec)
    assert not decoders.is_suspicious(GREY, len(data), found, codec)


@pytest.mark.parametrize(
    ("value", "confirmed"), [(77, False), (128, True)], ids=["any grey", "libjpeg's own grey"]
)
def test_an_image_of_one_grey_passes_if_the_second_decoder_says_so_too(
    value: int, confirmed: bool
) -> None:
    flat = np.full((64, 64), value, np.uint8)
    data, codec = imagecodecs.jpeg8_encode(flat, level=90), CODECS[PREFIX + "4.50"]
    frame = compressed_frame(data, PREFIX + "4.50", image(flat), codec)
    assert bool(frame.second_decoder) == confirmed
    comment = b"\xff\xfe\xff\xff" + bytes(0xFFFF - 2)
    frame = compressed_frame(data[:2] + comment + data[2:], PREFIX + "4.50", image(flat), codec)
    assert frame.second_decoder == str(codec.second)
    assert np.array_equal(frame.values, flat)


def test_a_picture_with_an_empty_edge_is_no_reason_to_suspect_its_decoder() -> None:
    framed = np.zeros((1024, 1024), np.uint16)
    framed[:, 1:-1] = np.random.default_rng(3).normal(2000, 200, (1024, 1022))
    frame = compressed_frame(
        imagecodecs.jpegls_encode(framed), PREFIX + "4.80", image(framed), CODECS[PREFIX + "4.80"]
    )
    assert not frame.second_decoder
    assert np.array_equal(frame.values, framed)


SIGNED = np.arange(-128, 128, dtype=np.int16).reshape(8, 32).repeat(4, axis=0)
UNSIGNED = (SIGNED + 128).astype(np.uint16)


@pytest.mark.parametrize(
    ("array", "precision", "header"),
    [
        (SIGNED, 16, {"bits_stored": 12, "high_bit": 11}),
        (SIGNED, 9, {"bits_stored": 16, "high_bit": 15}),
        (UNSIGNED, 16, {"bits_stored": 8, "high_bit": 7}),
        (UNSIGNED, 9, {"bits_stored": 12, "high_bit": 11}),
        (UNSIGNED, 12, {"signed": True, "bits_stored": 12, "high_bit": 11}),
        (SIGNED & 0xFF, 12, {"signed": False, "bits_stored": 12, "high_bit": 11}),
    ],
    ids=["more bits", "fewer", "more, unsigned", "fewer, unsigned", "no sign", "a sign too many"],
)
def test_a_jpeg_2000_code_stream_is_read_by_its_own_sign_and_precision(
    array: NDArray[Any], precision: int, header: dict[str, Any]
) -> None:
    data = j2k(array, bitspersample=precision)
    frame = compressed_frame(data, PREFIX + "4.90", image(array, **header), CODECS[PREFIX + "4.90"])
    assert np.array_equal(frame.values, array)
    assert frame.precision == precision


@pytest.mark.parametrize(
    ("array", "header"),
    [
        (SIGNED, {"signed": False}),
        (UNSIGNED, {"bits_stored": 7, "high_bit": 6}),
        (UNSIGNED, {"signed": True, "bits_stored": 8, "high_bit": 7}),
    ],
    ids=["negative in an unsigned image", "too large", "too large for a sign"],
)
def test_a_jpeg_2000_value_that_the_header_cannot_hold_is_refused(
    array: NDArray[Any], header: dict[str, Any]
) -> None:
    with pytest.raises(FluoroError) as caught:
        compressed_frame(
            j2k(array), PREFIX + "4.90", image(array, **header), CODECS[PREFIX + "4.90"]
        )
    assert caught.value.reason == Reason.PIXELS_UNDECODABLE


def test_signed_values_in_a_format_without_a_sign_are_twos_complement_of_its_precision() -> None:
    header = {"bits_stored": 12, "high_bit": 11}
    for precision, stored in ((12, SIGNED & 0xFFF), (16, SIGNED)):
        data = jpeg_lossless(stored.view(np.uint16), precision)
        frame = compressed_frame(
            data, PREFIX + "4.70", image(SIGNED, **header), CODECS[PREFIX + "4.70"]
        )
        assert np.array_equal(frame.values, SIGNED)
    with pytest.raises(FluoroError):  # 8 of 12 bits: is 255 a 255, or a -1?
        compressed_frame(
            jpeg_lossless((SIGNED & 0xFF).astype(np.uint8)),
            PREFIX + "4.70",
            image(SIGNED, **header),
            CODECS[PREFIX + "4.70"],
        )


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [("4.70", jpeg_lossless), ("4.80", imagecodecs.jpegls_encode), ("4.90", j2k)],
)
def test_a_compressed_image_of_1_bit_is_refused(
    syntax: str, encode: Encode, render: Render
) -> None:
    bits = (GREY > 900).astype(np.uint8)
    header = {"bits_allocated": 1, "bits_stored": 1, "high_bit": 0}
    _, attempt = render(saved(encapsulated(bits, encode(bits), syntax, **header)))
    assert outcome(attempt) == "FAILED PIXELS_UNDECODABLE"


def test_compressed_floats_are_refused(render: Render) -> None:
    cells = GREY.astype(np.float32).view(np.uint32)
    planes = cells.astype(">u4").view(np.uint8).reshape(-1, 4).T
    segments = [imagecodecs.packbits_encode(plane.tobytes()) for plane in planes]
    starts = np.cumsum([64, *map(len, segments)])[:-1]
    data = struct.pack("<16L", 4, *starts, *[0] * 11) + b"".join(segments)
    dataset = encapsulated(cells, data, "5")
    dataset["PixelData"].VR = "OB"
    _, attempt = render(saved(dataset).replace(b"\xe0\x7f\x10\0OB", b"\xe0\x7f\x08\0OB"))
    assert outcome(attempt) == "FAILED PIXELS_UNDECODABLE"


@pytest.mark.parametrize("syntax", ["4.100", "4.102.1", "4.103", "4.107"])
def test_video_and_hevc_are_refused_with_a_type(syntax: str, render: Render) -> None:
    _, attempt = render(saved(encapsulated(GREY, b"\x00\x00\x01\xba", syntax)))
    assert outcome(attempt) == "FAILED TRANSFER_SYNTAX_UNSUPPORTED"
