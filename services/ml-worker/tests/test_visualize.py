"""VisualizeImages on a model of which it is known where it looks."""

import io
from collections.abc import Callable
from threading import Thread
from typing import Any

import numpy as np
import pytest
from fluoro.v1 import dicom_pb2
from fluoro.v1.visualize_pb2 import VisualizeImages
from fluoro_jobs.errors import CancelledAttempt, FluoroError, Reason
from fluoro_jobs.testing import Attempt
from fluoro_jobs.worker.context import Upstream
from ml_worker.heat_map import draw_heat_map
from ml_worker.manifest import Input, Prepare
from ml_worker.occlusion import Occluded, edges
from ml_worker.operations.visualize import visualize
from ml_worker.prepare import prepare, visible
from ml_worker.registry import Registry
from ml_worker.seeing import SIDE, write_seeing
from numpy.typing import NDArray
from PIL import Image

Render = Callable[..., Upstream]
After = Callable[..., Attempt]
SEEING = VisualizeImages(model="seeing", cells=4)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return write_seeing(tmp_path_factory.mktemp("seeing"))


def lit(frames: int = 1, rows: int = 80, columns: int = 120) -> NDArray[Any]:
    """Dark photographs, bright in the upper left quarter, which the model looks at."""
    pixels = np.full((frames, rows, columns, 3), 40, "|u1")
    pixels[:, : rows // 2, : columns // 2] = 200
    return pixels


def picture_of(run: Attempt, name: str) -> NDArray[Any]:
    picture = Image.open(io.BytesIO(run.read(name)))
    assert (picture.format, picture.mode) == ("PNG", "RGB")
    return np.asarray(picture).astype(int)


def test_only_cells_that_the_model_looks_at_matter_and_are_red(
    seeing: Registry, render: Render, attempt: After
) -> None:
    run = attempt(render(lit(2, SIDE, SIDE), unit="1", modality="XC"))
    result = visualize(SEEING, run.context, seeing)
    (found,) = result.maps
    assert (found.explained.display_name, found.explained.frame) == ("bright", 1)
    # 10 times the mean of the quarter, against 5.
    whole = 1 / (1 + np.exp(5 - 10 * 200 / 255))
    assert found.explained.probability == pytest.approx(whole, abs=1e-4)
    drops = np.array(found.drops).reshape(found.rows, found.columns)
    # One of its four cells shows the mean of the image instead.
    quarter = (3 * 200 + (200 + 3 * 40) / 4) / 4
    expected = np.zeros((4, 4))
    expected[:2, :2] = whole - 1 / (1 + np.exp(5 - 10 * quarter / 255))
    assert drops == pytest.approx(expected, abs=1e-3)
    assert (found.top, found.left, found.height, found.width) == (0, 0, SIDE, SIDE)
    assert (found.heat_map, len(result.model.manifest_sha256)) == ("heat-map-0000.png", 32)
    assert run.context.artifacts["heat-map-0000.png"].role == "heat-map"
    picture = picture_of(run, "heat-map-0000.png")
    assert picture.shape == (SIDE, SIDE, 3)
    redder = picture[..., 0] > picture[..., 2] + 50
    assert redder[:4, :4].all()
    assert redder.sum() == 16


def test_what_speaks_against_a_class_is_blue(
    seeing: Registry, render: Render, attempt: After
) -> None:
    run = attempt(render(lit(), unit="1"))
    request = VisualizeImages(model="seeing", cells=2, label=0)
    (found,) = visualize(request, run.context, seeing).maps
    assert found.explained.display_name == "dark"
    assert found.drops[0] < -0.5
    assert list(found.drops[1:]) == pytest.approx([0, 0, 0], abs=1e-6)
    picture = picture_of(run, found.heat_map)
    assert (picture[:39, :59, 2] > picture[:39, :59, 0] + 50).all()


def test_the_same_image_gives_the_same_bytes(
    seeing: Registry, render: Render, attempt: After
) -> None:
    upstream = render(lit(), unit="1")
    first, second = attempt(upstream), attempt(upstream)
    results = [visualize(SEEING, run.context, seeing) for run in (first, second)]
    assert results[0].SerializeToString() == results[1].SerializeToString()
    assert first.read("heat-map-0000.png") == second.read("heat-map-0000.png")


def test_images_of_any_size_give_a_small_picture_and_bad_ones_fail_alone(
    seeing: Registry, render: Render, attempt: After
) -> None:
    arrays = [
        np.full((1, 1, 1), 9, "|u1"),
        np.full((1, 3, 30_000, 3), 90, "|u1"),
        np.arange(12, dtype="<u2").reshape(1, 3, 4) * 5000,
        np.full((1, 2, 2, 3), 255, "|u1"),
        np.zeros((1, 2, 2), "<i2"),
        lit(),
    ]
    upstream = render(*arrays, unit="1", modality="XC")
    upstream.result.images[5].certificate.sha256 = bytes(32)  # type: ignore[attr-defined]
    run = attempt(upstream)
    result = visualize(VisualizeImages(model="seeing"), run.context, seeing)
    assert [run.context.items[number].reason for number in range(6)] == [
        "",
        "",
        "",
        Reason.MODEL_OUTPUT_INVALID,
        Reason.MODEL_NOT_APPLICABLE,
        Reason.PIXELS_NOT_CERTIFIED,
    ]
    shapes = [picture_of(run, found.heat_map).shape for found in result.maps]
    assert shapes == [(1, 1, 3), (1, 1024, 3), (3, 4, 3)]
    assert [(found.rows, found.columns) for found in result.maps] == [(SIDE, SIDE)] * 3


@pytest.mark.parametrize(
    ("request_", "reason", "words"),
    [
        (VisualizeImages(model="ct-tissue"), Reason.MODEL_NOT_APPLICABLE, "that gives classes"),
        (VisualizeImages(model="unseen"), Reason.MODEL_UNKNOWN, "seeing 1.0.0"),
        (VisualizeImages(model="seeing", label=2), Reason.CHOICE_UNAVAILABLE, "are 0 to 1"),
    ],
    ids=["another kind", "no such model", "no such class"],
)
def test_what_cannot_be_explained_is_refused_in_words(
    seeing: Registry,
    render: Render,
    attempt: After,
    request_: VisualizeImages,
    reason: Reason,
    words: str,
) -> None:
    run = attempt(render(lit(), unit="1"))
    with pytest.raises(FluoroError, match=words) as caught:
        visualize(request_, run.context, seeing)
    assert caught.value.reason == reason


def test_a_cancel_stops_it_between_two_batches(
    seeing: Registry, render: Render, attempt: After, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = attempt(render(lit(), unit="1"))
    model = seeing.find("seeing")
    submitted = []
    submit = type(model).submit

    def counted(self: Any, inputs: Any, caller: Any) -> Any:
        submitted.append(len(inputs["x"]))
        if len(submitted) == 2:
            run.context.cancelled.set()
        return submit(self, inputs, caller)

    monkeypatch.setattr(type(model), "submit", counted)
    outcome: list[BaseException] = []

    def work() -> None:
        try:
            visualize(VisualizeImages(model="seeing", cells=16), run.context, seeing)
        except CancelledAttempt as cancelled:
            outcome.append(cancelled)

    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert isinstance(outcome[0], CancelledAttempt)
    assert submitted == [4, 4], "batches are as large as the manifest allows"
    assert not run.context.artifacts


def a_tensor(resize: str) -> Input:
    how = Prepare(colour="grey", resize=resize, pad=-7)  # type: ignore[arg-type]
    return Input(name="x", dtype="float32", layout="NHW", shape=("n", 6, 6), image=how)


@pytest.mark.parametrize(
    ("resize", "in_tensor", "in_frame"),
    [
        ("stretch", (0, 6, 0, 6), (0, 4, 0, 12)),
        ("fit", (2, 4, 0, 6), (0, 4, 0, 12)),
        ("cover", (0, 6, 0, 6), (0, 4, 4, 8)),
    ],
)
def test_cells_lie_where_the_model_sees_the_image(
    resize: str, in_tensor: tuple[int, ...], in_frame: tuple[int, ...]
) -> None:
    tensor, image = a_tensor(resize), dicom_pb2.RenderedImage()
    seen, area = visible((4, 12), image, tensor)
    assert tuple(place for side in seen for place in (side.start, side.stop)) == in_tensor
    assert tuple(place for side in area for place in (side.start, side.stop)) == in_frame
    frame = np.ones((1, 4, 12), "|u1")
    shown = prepare(frame, image, tensor)[0]
    assert (shown[seen] == 1).all()
    assert (shown == 1).sum() == shown[seen].size


def test_the_edges_of_cells_are_where_the_image_is_and_leave_no_pixel_out() -> None:
    assert edges(slice(2, 12), 4) == [2, 4, 7, 9, 12]
    assert edges(slice(0, 3), 8) == [0, 1, 2, 3]


def test_a_picture_of_what_changes_nothing_has_no_colours() -> None:
    found = Occluded(0, 0.5, np.full((2, 2), 1e-5), (slice(0, 4), slice(0, 4)))
    frame = np.full((4, 4), np.nan, "<f4")
    picture = np.asarray(Image.open(io.BytesIO(draw_heat_map(frame, found))))
    assert (picture == picture[..., :1]).all()
