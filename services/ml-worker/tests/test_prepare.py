"""From certified pixels to the tensor that a manifest describes."""

from typing import Any

import numpy as np
import pytest
from fluoro.v1 import dicom_pb2
from fluoro_jobs.errors import FluoroError, Reason
from ml_worker.classifying import probabilities
from ml_worker.manifest import Input
from ml_worker.outputs import Classes
from ml_worker.prepare import NotForThisImageError, prepare, size_in_space
from numpy.typing import NDArray
from PIL import Image


def tensor(layout: str = "NCHW", shape: Any = ("n", 1, "h", "w"), **image: Any) -> Input:
    dtype = image.pop("dtype", "float32")
    return Input.model_validate(
        {"name": "x", "dtype": dtype, "layout": layout, "shape": shape, "image": image}
    )


def image(**fields: Any) -> dicom_pb2.RenderedImage:
    return dicom_pb2.RenderedImage(**fields)


def grid(*shape: int) -> NDArray[Any]:
    return np.arange(np.prod(shape), dtype="<i2").reshape(shape)


def test_a_window_of_dicom_becomes_0_to_1_and_cuts_off_what_is_outside() -> None:
    how = tensor(values={"from": [-160, 240], "to": [0, 1]})
    found = prepare(np.array([[[-1000, -160, 40, 240, 3000]]], "<i2"), image(), how)
    assert found.tolist() == [[[[0, 0, 0.5, 1, 1]]]]


@pytest.mark.parametrize(("dtype", "bits", "white"), [("|u1", 0, 255), ("<u2", 12, 4095)])
def test_full_range_is_what_bits_stored_can_hold(dtype: str, bits: int, white: int) -> None:
    how = tensor(values={"from": "full", "to": [-1, 1]})
    one = image(certificate={"bits_stored": bits})
    assert prepare(np.array([[[0, white]]], dtype), one, how).tolist() == [[[[-1, 1]]]]
    with pytest.raises(NotForThisImageError, match="unsigned integers"):
        prepare(grid(1, 2, 2), one, how)


def test_colours_are_taken_in_the_order_that_the_model_wants() -> None:
    pixel = np.array([[[[10, 20, 30]]]], "|u1")
    rgb = tensor("NHWC", ("n", "h", "w", 3), colour="rgb")
    bgr = tensor("NCHW", ("n", 3, "h", "w"), colour="bgr")
    assert prepare(pixel, image(), rgb).tolist() == [[[[10, 20, 30]]]]
    assert prepare(pixel, image(), bgr).ravel().tolist() == [30, 20, 10]
    assert prepare(pixel, image(), tensor()).item() == pytest.approx(18.15)
    assert prepare(np.array([[[7]]], "|u1"), image(), rgb).tolist() == [[[[7, 7, 7]]]]


def test_tiles_that_are_what_the_tensor_holds_are_not_copied() -> None:
    tiles = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    holds = {"dtype": "uint8", "colour": "rgb", "resize": "stretch"}
    as_they_are = tensor("NHWC", ("n", 4, 5, 3), **holds)
    assert np.shares_memory(prepare(tiles, image(), as_they_are), tiles)
    turned = prepare(tiles, image(), tensor("NCHW", ("n", 3, 4, 5), **holds))
    assert np.array_equal(turned.transpose(0, 2, 3, 1), tiles)


def test_mean_and_deviation_are_per_channel_and_come_last() -> None:
    how = tensor(
        "NCHW",
        ("n", 3, "h", "w"),
        colour="rgb",
        values={"from": "full", "to": [0, 1]},
        mean=[0, 0.5, 1],
        std=[1, 0.5, 2],
    )
    assert prepare(np.full((1, 1, 1, 3), 255, "|u1"), image(), how).ravel().tolist() == [1, 1, 0]


def test_stretching_is_pillows_and_averages_what_falls_into_a_pixel() -> None:
    values = np.random.default_rng(7).integers(0, 4096, (2, 40, 30)).astype("<u2")
    how = tensor("NHW", ("n", 10, 12), resize="stretch")
    found = prepare(values, image(), how)
    expected = Image.fromarray(values[1].astype(np.float32)).resize(
        (12, 10), Image.Resampling.BILINEAR
    )
    assert found.shape == (2, 10, 12)
    assert np.array_equal(found[1], np.asarray(expected))


def test_fit_keeps_the_proportions_and_pads_and_cover_crops() -> None:
    wide = np.ones((1, 2, 4), "<i2")
    fit = prepare(wide, image(), tensor("NHW", ("n", 4, 4), resize="fit", pad=-5))
    assert fit[0, :, 0].tolist() == [-5, 1, 1, -5]
    middle = np.array([[[0, 1, 1, 0], [0, 1, 1, 0]]], "<i2")
    cover = tensor("NHW", ("n", 2, 2), resize="cover", interpolation="nearest")
    assert prepare(middle, image(), cover).tolist() == [[[1, 1], [1, 1]]]


def test_spacing_is_that_of_the_manifest_whatever_the_image_has() -> None:
    how = tensor("NHW", ("n", "h", "w"), spacing_mm=[1, 1])
    one = image(pixel_spacing_mm=[0.5, 2])
    assert prepare(grid(1, 4, 4), one, how).shape == (1, 2, 8)
    assert size_in_space((4, 4), one, how) == (2, 8)
    for unknown in ([], [0, 1], [float("nan"), 1], [-1, 1]):
        with pytest.raises(NotForThisImageError, match="Pixel Spacing"):
            prepare(grid(1, 4, 4), image(pixel_spacing_mm=unknown), how)


def test_a_spacing_that_would_make_an_image_huge_is_refused_before_it_takes_memory() -> None:
    how = tensor("NHW", ("n", "h", "w"), spacing_mm=[1e-9, 1e-9])
    with pytest.raises(FluoroError) as caught:
        size_in_space((512, 512), image(pixel_spacing_mm=[1e300, 1e300]), how)
    assert caught.value.reason == Reason.IMAGE_TOO_LARGE


def test_a_volume_is_one_sample_resampled_along_its_planes_too() -> None:
    ramp = np.repeat(np.arange(4, dtype="<i2"), 4).reshape(4, 2, 2)
    how = tensor("NCDHW", (1, 1, "d", "h", "w"), spacing_mm=[1, 1, 1])
    thick = image(pixel_spacing_mm=[1, 1], slice_thickness_mm=2)
    found = prepare(ramp, thick, how)
    assert found.shape == (1, 1, 8, 2, 2)
    assert found[0, 0, :, 0, 0].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    with pytest.raises(NotForThisImageError, match="Slice Thickness"):
        prepare(ramp, image(pixel_spacing_mm=[1, 1]), how)
    fixed = tensor("NDHW", (1, 2, 2, 2), resize="stretch")
    assert prepare(ramp, image(), fixed)[0, :, 0, 0].tolist() == [0.5, 2.5]


def test_integers_are_rounded_and_do_not_wrap_around() -> None:
    how = tensor(dtype="uint8", values={"from": [0, 1], "to": [-10, 300]})
    found = prepare(np.array([[[0, 1]]], "<i2"), image(), how)
    assert (found.dtype, found.ravel().tolist()) == (np.uint8, [0, 255])


def test_logits_become_probabilities_without_overflow() -> None:
    logits = np.array([[1000, 0, -1000]], np.float32)
    shared = {"kind": "classes", "name": "y", "dtype": "float32", "shape": ["n", 3]}
    exclusive = Classes.model_validate({**shared, "scores": "logits"})
    each = Classes.model_validate({**shared, "scores": "logits", "exclusive": False})
    assert probabilities(exclusive, logits).tolist() == [[1, 0, 0]]
    assert probabilities(each, logits).tolist() == [[1, 0.5, 0]]
