"""What is certified of an array, and of each frame, is true."""

import hashlib
from typing import Any

import numpy as np
import pytest
from dicom_worker.testing import Render, array_of, edited, preview_of, wheel_file
from numpy.typing import NDArray
from pydicom import dcmread


@pytest.mark.parametrize(
    "name",
    [
        "CT_small",
        "MR_small_RLE",
        "examples_ybr_color",
        "rtdose",
        "examples_palette",
        "liver_1frame",
        "693_J2KI",
        "SC_rgb_rle_16bit_2frame",
    ],
)
def test_the_certificate_is_true_of_the_array(name: str, render: Render) -> None:
    result, attempt = render(wheel_file(name))
    certificate, array = result.images[0].certificate, array_of(attempt)
    assert certificate.sha256 == hashlib.sha256(array.tobytes()).digest()
    assert (tuple(certificate.shape), certificate.dtype) == (array.shape, array.dtype.str)
    assert (certificate.minimum, certificate.maximum) == (array.min(), array.max())
    assert attempt.read("pixels-0000.npy")[:8] == b"\x93NUMPY\x01\x00"
    assert array.flags.c_contiguous
    artifact = attempt.context.artifacts["pixels-0000.npy"]
    assert (artifact.role, artifact.media_type, artifact.input) == (
        "pixels",
        "application/x-npy",
        0,
    )


def test_each_frame_has_a_certificate_of_its_stored_values(render: Render) -> None:
    result, _ = render(wheel_file("rtdose"), wheel_file("rtdose_expb"), wheel_file("rtdose_rle"))
    stored = dcmread(wheel_file("rtdose")).pixel_array
    for image in result.images:
        assert [
            (frame.sha256, frame.precision, frame.minimum, frame.maximum, frame.second_decoder)
            for frame in image.certificate.frames
        ] == [
            (hashlib.sha256(frame.astype("<u4").tobytes()).digest(), 32, *extremes(frame), "")
            for frame in stored
        ]
        assert image.certificate.bits_stored == 32
        for frame, values in zip(image.certificate.frames, stored, strict=True):
            assert frame.entropy_bits == pytest.approx(entropy_of(values), rel=1e-5)


def extremes(values: NDArray[Any]) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def entropy_of(values: NDArray[Any]) -> float:
    _, counts = np.unique(values, return_counts=True)
    return float(-(counts / values.size * np.log2(counts / values.size)).sum())


@pytest.mark.parametrize(
    ("name", "dtype"), [("SC_rgb_rle_16bit", "<u2"), ("SC_rgb_rle_32bit", "<u4")]
)
def test_colour_keeps_its_depth_in_the_array_and_only_the_picture_has_8_bits(
    name: str, dtype: str, render: Render
) -> None:
    result, attempt = render(wheel_file(name))
    stored, bits = dcmread(wheel_file(name)).pixel_array, 8 * int(dtype[-1])
    assert array_of(attempt).dtype.str == result.images[0].certificate.dtype == dtype
    assert np.array_equal(array_of(attempt)[0], stored)
    assert np.array_equal(preview_of(attempt), stored >> (bits - 8))
    assert result.images[0].certificate.bits_stored == bits


def test_a_rendered_image_tells_its_series_and_where_its_frames_lie(render: Render) -> None:
    result, _ = render(
        wheel_file("CT_small"),
        edited("CT_small", ImageOrientationPatient=[1, 0], ImagePositionPatient=None),
    )
    placed, unplaced = result.images
    header = dcmread(wheel_file("CT_small"))
    assert placed.series_instance_uid == header.SeriesInstanceUID
    assert list(placed.image_orientation) == list(header.ImageOrientationPatient)
    assert list(placed.image_positions_mm) == list(header.ImagePositionPatient)
    assert not unplaced.image_orientation
    assert not unplaced.image_positions_mm
