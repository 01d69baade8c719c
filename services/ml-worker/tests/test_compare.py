"""CompareImages: one picture of several images, and cosines that NumPy can work out."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fluoro.v1.compare_pb2 import CompareImages
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.testing import Attempt
from fluoro_jobs.worker.context import Upstream
from ml_worker.operations.compare import compare
from ml_worker.registry import Registry
from ml_worker.seeing import SIDE, weights, write_seeing
from ml_worker.side_by_side import GAP
from numpy.typing import NDArray
from PIL import Image

Render = Callable[..., Upstream]
After = Callable[..., Attempt]


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return write_seeing(tmp_path_factory.mktemp("seeing"))


def photograph(seed: int) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 200, (2, SIDE, SIDE, 3)).astype("|u1")


def picture_of(run: Attempt) -> NDArray[Any]:
    assert run.context.artifacts["comparison.png"].role == "comparison"
    picture = Image.open(io.BytesIO(run.read("comparison.png")))
    assert (picture.format, picture.mode) == ("PNG", "RGB")
    return np.asarray(picture).astype(int)


def test_images_lie_side_by_side_with_their_likeness_to_the_first(
    seeing: Registry, render: Render, attempt: After
) -> None:
    photos = [photograph(n) for n in range(3)]
    run = attempt(render(*photos, unit="1", modality="XC"))
    request = CompareImages(model="seeing", items=["2", "0", "1"])
    result = compare(request, run.context, seeing)
    assert (result.model.name, result.is_true_to_scale) == ("seeing", False)
    assert [(one.item, one.input) for one in result.images] == [("2", 2), ("0", 0), ("1", 1)]
    rows = [(photo[0].transpose(2, 0, 1).ravel() / 255) @ weights() for photo in photos]
    unit = [row / np.linalg.norm(row) for row in rows]
    assert not result.images[0].HasField("similarity")
    for entry in result.images[1:]:
        assert entry.similarity == pytest.approx(unit[2] @ unit[entry.input], abs=1e-5)
    picture = picture_of(run)
    assert picture.shape == (SIDE, 3 * SIDE + 2 * GAP, 3)
    for entry in result.images:
        there = picture[: entry.height, entry.left : entry.left + entry.width]
        assert (there == photos[entry.input][0]).all()


def test_equal_values_look_equal_and_a_millimetre_is_as_long_where_it_is_known(
    render: Render, attempt: After
) -> None:
    # Hounsfield units: the second image has twice the range and half the spacing.
    one, other = np.zeros((1, 40, 40), "<i2"), np.zeros((1, 40, 40), "<i2")
    one[0, :, 20:], other[0, :, 20:] = 1000, 2000
    upstream = render(one, other)
    for image, spacing in zip(upstream.result.images, (1, 0.5), strict=True):  # type: ignore[attr-defined]
        image.pixel_spacing_mm.extend([spacing, spacing])
    run = attempt(upstream)
    result = compare(CompareImages(), run.context, None)
    assert result.is_true_to_scale
    assert not result.HasField("model")
    assert [(entry.width, entry.height) for entry in result.images] == [(512, 512), (256, 256)]
    picture = picture_of(run)
    assert picture[100, 500].tolist() == pytest.approx([127] * 3, abs=1)
    assert picture[100, 512 + GAP + 250].tolist() == [255] * 3


def test_an_image_that_cannot_be_read_is_left_out_and_the_reference_may_not_be(
    seeing: Registry, render: Render, attempt: After
) -> None:
    arrays = [photograph(0), np.zeros((1, 2, 2, 3), "|u1"), np.full((1, 1, 30_000, 3), 9, "|u1")]
    upstream = render(*arrays, photograph(1), unit="1")
    upstream.result.images[3].certificate.sha256 = bytes(32)  # type: ignore[attr-defined]
    run = attempt(upstream)
    result = compare(CompareImages(model="seeing"), run.context, seeing)
    assert [entry.item for entry in result.images] == ["0", "2"]
    assert [run.context.items[number].reason for number in range(4)] == [
        "",
        Reason.MODEL_OUTPUT_INVALID,
        "",
        Reason.PIXELS_NOT_CERTIFIED,
    ]
    for items in (["3", "0"], ["0", "3"], ["0"]):
        run = attempt(upstream)
        with pytest.raises(FluoroError, match="needs the reference") as caught:
            compare(CompareImages(items=items), run.context, None)
        assert caught.value.reason == Reason.NO_APPLICABLE_INPUT


@pytest.mark.parametrize(
    ("request_", "reason", "words"),
    [
        (CompareImages(items=["0", "Doe^Jane"]), Reason.CHOICE_UNAVAILABLE, "the key of 1 of"),
        (CompareImages(), Reason.CHOICE_UNAVAILABLE, "17 images are too many"),
        (CompareImages(model="ct-tissue", items=["0"]), Reason.MODEL_NOT_APPLICABLE, "embedding"),
        (CompareImages(model="unseen", items=["0"]), Reason.MODEL_UNKNOWN, "seeing 1.0.0"),
    ],
    ids=["no such image", "too many", "another kind", "no such model"],
)
def test_what_cannot_be_compared_is_refused_in_words(
    seeing: Registry,
    render: Render,
    attempt: After,
    request_: CompareImages,
    reason: Reason,
    words: str,
) -> None:
    run = attempt(render(*[np.zeros((1, 2, 2), "|u1")] * 17, unit="1"))
    with pytest.raises(FluoroError, match=words) as caught:
        compare(request_, run.context, seeing if request_.model else None)
    assert caught.value.reason == reason
    assert "Doe" not in caught.value.message
