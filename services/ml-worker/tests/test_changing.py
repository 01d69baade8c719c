"""VisualizeImages with a model that gives images: the negative, twice as fine."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fluoro.v1.visualize_pb2 import VisualizeImages
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.testing import Attempt
from fluoro_jobs.worker.context import Upstream
from ml_worker.operations.visualize import visualize
from ml_worker.registry import Registry
from ml_worker.settings import ModelSettings
from ml_worker.side_by_side import GAP, MAX_SIDE
from ml_worker.testing import write_model
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

Render = Callable[..., Upstream]
After = Callable[..., Attempt]
NEGATIVE = VisualizeImages(model="negative")
SIDE = 8
MANIFEST = f"""
name = "negative"
version = "1.0.0"
summary = "Makes the negative of an image, twice as fine."
intended_use = "demonstration"
license = "Apache-2.0"
source = "A test."
training_data = "None."
applies_to = {{ modalities = [], unit = "1", photometric = ["grey", "colour"] }}
batch = {{ max = 4, bytes_per_voxel = 64 }}
[[inputs]]
name = "x"
dtype = "float32"
layout = "NCHW"
shape = ["n", 3, {SIDE}, {SIDE}]
image = {{ colour = "rgb", values = {{ from = "full", to = [0, 1] }}, resize = "fit", pad = 1 }}
[[outputs]]
kind = "image"
name = "y"
dtype = "float32"
shape = ["n", 3, {2 * SIDE}, {2 * SIDE}]
values = [0, 1]
"""


@pytest.fixture(scope="module")
def negative(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("negative")
    constants = {"one": np.array(1, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
    nodes = [
        helper.make_node("Sub", ["one", "x"], ["negative"]),
        helper.make_node("Resize", ["negative", "", "scales"], ["y"], mode="nearest"),
    ]
    sides = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, size, size])
        for name, size in (("x", SIDE), ("y", 2 * SIDE))
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "negative", sides[:1], sides[1:], weights)
    graph = helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    x = np.random.default_rng(3).uniform(size=(2, 3, SIDE, SIDE)).astype(np.float32)
    sample = {"x": x, "y": (1 - x).repeat(2, axis=2).repeat(2, axis=3)}
    write_model(folder, MANIFEST, graph.SerializeToString(), sample)
    models = Registry(ModelSettings(models_folder=folder))
    models.open()
    return models


def picture_of(run: Attempt, name: str) -> NDArray[Any]:
    picture = Image.open(io.BytesIO(run.read(name)))
    assert (picture.format, picture.mode) == ("PNG", "RGB")
    return np.asarray(picture).astype(int)


def test_what_a_model_makes_of_an_image_stands_beside_it_without_padding(
    negative: Registry, render: Render, attempt: After
) -> None:
    photo = np.full((2, 4, 8, 3), 40, "|u1")
    photo[0, :, :4] = 200, 100, 0
    run = attempt(render(photo, np.full((1, 2, 2), 3000, "<u2"), unit="1", modality="XC"))
    result = visualize(NEGATIVE, run.context, negative)
    assert not result.maps
    assert [(one.input, one.item) for one in result.changed] == [(0, "0"), (1, "1")]
    name = result.changed[0].before_after
    assert run.context.artifacts[name].role == "before-after"
    picture = picture_of(run, name)
    # Four of the tensor's eight rows show the image, and the model makes it twice as fine.
    assert picture.shape == (8, 16 + GAP + 16, 3)
    before, after = picture[:, :16], picture[:, 16 + GAP :]
    assert np.abs(before[:, :5] - (200, 100, 0)).max() <= 1
    assert np.abs(after[:, :5] - (55, 155, 255)).max() <= 1
    assert np.abs(after[:, 11:] - 215).max() <= 1
    again = attempt(render(photo, unit="1"))
    visualize(NEGATIVE, again.context, negative)
    assert run.read(name) == again.read("before-after-0000.png")


def test_large_images_give_small_pictures_and_bad_ones_fail_alone(
    negative: Registry, render: Render, attempt: After
) -> None:
    upstream = render(
        np.full((1, 3, 30_000, 3), 90, "|u1"),
        np.zeros((1, 2, 2), "<i2"),
        np.full((1, 1, 1), 9, "|u1"),
        np.full((1, 1, 1), 9, "|u1"),
        unit="1",
    )
    upstream.result.images[3].certificate.sha256 = bytes(32)  # type: ignore[attr-defined]
    run = attempt(upstream)
    result = visualize(NEGATIVE, run.context, negative)
    assert [run.context.items[number].reason for number in range(4)] == [
        "",
        Reason.MODEL_NOT_APPLICABLE,
        "",
        Reason.PIXELS_NOT_CERTIFIED,
    ]
    shapes = [picture_of(run, one.before_after).shape for one in result.changed]
    assert shapes == [(1, 2 * MAX_SIDE + GAP, 3), (16, 32 + GAP, 3)]


@pytest.mark.parametrize("fields", [{"label": 0}, {"cells": 3}])
def test_what_only_classes_have_is_refused_for_a_model_without(
    negative: Registry, render: Render, attempt: After, fields: dict[str, int]
) -> None:
    run = attempt(render(np.zeros((1, 2, 2), "|u1"), unit="1"))
    request = VisualizeImages(model="negative", **fields)  # type: ignore[arg-type]
    with pytest.raises(FluoroError, match="gives no classes") as caught:
        visualize(request, run.context, negative)
    assert caught.value.reason == Reason.CHOICE_UNAVAILABLE
