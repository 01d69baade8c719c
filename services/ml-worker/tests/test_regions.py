"""DetectObjects on a model that gives the image back as a map of probabilities."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fluoro.v1 import job_pb2
from fluoro.v1.detect_pb2 import DetectObjects
from fluoro_jobs.errors import Reason
from fluoro_jobs.testing import Attempt
from fluoro_jobs.worker.context import Upstream
from ml_worker.manifest import ModelRefusedError
from ml_worker.operations.detect import detect
from ml_worker.registry import Registry
from ml_worker.repository import read_model
from ml_worker.settings import ModelSettings
from ml_worker.testing import write_model
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Render = Callable[..., Upstream]
After = Callable[..., Attempt]
MANIFEST = """
name = "mapper"
version = "1.0.0"
summary = "Gives an image as a map of probabilities."
intended_use = "demonstration"
license = "Apache-2.0"
source = "A test."
training_data = "None."
applies_to = { modalities = [], unit = "1", photometric = ["grey"] }
labels = [{ value = 0, display_name = "spot" }]
batch = { max = 4, bytes_per_voxel = 16 }
[[inputs]]
name = "x"
dtype = "float32"
layout = "NHW"
shape = ["n", "rows", "columns"]
image = {}
[[outputs]]
kind = "regions"
name = "map"
dtype = "float32"
shape = ["n", 1, "rows", "columns"]
least_side = 2
unclip = 1
"""


def graph(step: int) -> bytes:
    """The image as it is, or with every other row and column left out."""
    nodes = [
        helper.make_node("Slice", ["x", "low", "high", "axes", "steps"], ["part"]),
        helper.make_node("Unsqueeze", ["part", "one"], ["map"]),
    ]
    constants = {
        "low": [0, 0],
        "high": [2**31, 2**31],
        "axes": [1, 2],
        "steps": [step, step],
        "one": [1],
    }
    weights = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    number = TensorProto.FLOAT
    made = helper.make_graph(
        nodes,
        "mapper",
        [helper.make_tensor_value_info("x", number, ["n", "rows", "columns"])],
        [helper.make_tensor_value_info("map", number, ["n", 1, None, None])],
        weights,
    )
    model = helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    return bytes(model.SerializeToString())


def write_mapper(folder: Path, manifest: str = MANIFEST, step: int = 1) -> Path:
    x = np.random.default_rng(7).uniform(0, 1, (1, 8, 8)).astype(np.float32)
    sample = {"x": x, "map": x[:, np.newaxis, ::step, ::step]}
    return write_model(folder, manifest, graph(step), sample)


def opened(folder: Path, step: int = 1) -> Registry:
    write_mapper(folder, step=step)
    models = Registry(ModelSettings(models_folder=folder))
    models.open()
    return models


def spots(*boxes: tuple[int, int, int, int, float]) -> NDArray[np.float32]:
    """Frames of 40 rows and 60 columns. boxes: left, top, right, bottom and probability."""
    frame = np.zeros((1, 40, 60), np.float32)
    for left, top, right, bottom, probability in boxes:
        frame[0, top:bottom, left:right] = probability
    return frame


def test_regions_of_a_map_are_objects_grown_by_what_the_map_shrank(
    tmp_path: Path, render: Render, attempt: After
) -> None:
    models = opened(tmp_path / "models")
    several = spots(
        (10, 10, 20, 14, 0.6),  # grows by 10 * 4 / 28
        (40, 20, 44, 30, 1.0),
        (44, 30, 48, 34, 0.9),  # touches it at a corner: one region
        (30, 4, 50, 5, 1.0),  # one row: too thin
        (0, 36, 4, 40, 0.4),  # too unlikely
        (56, 0, 60, 8, 0.75),  # cut off at the edges
    )
    turned = spots()
    for place in range(30):
        turned[0, 5 + place, 10 + place : 14 + place] = 0.8
    run = attempt(render(several, turned, spots(), unit="1", modality="XC"))
    result = detect(DetectObjects(model="mapper"), run.context, models)
    first, second, third = ([*image.objects] for image in result.images)
    assert [(each.display_name, round(each.score, 3)) for each in first] == [
        ("spot", 0.971),
        ("spot", 0.75),
        ("spot", 0.6),
    ]
    margin = 10 * 4 / 28
    spot = first[2]
    sides = (spot.left, spot.top, spot.width, spot.height)
    expected = (10 - margin, 10 - margin, 10 + 2 * margin, 4 + 2 * margin)
    assert sides == pytest.approx(expected, abs=0.01)
    assert (first[1].left + first[1].width, first[1].top) == (60, 0)
    # A slanted bar grows by its own thickness, not by that of the upright box around it.
    (bar,) = second
    long, thick = 63 / 2**0.5, 5 / 2**0.5  # outer corners from x + y = 15 to 78, x - y = 4 to 9
    margin = long * thick / (2 * (long + thick)) * 2**0.5
    assert (bar.left, bar.top) == pytest.approx((9.5 - margin, 3 - margin), abs=0.01)
    assert third == []

    likelier = DetectObjects(model="mapper", threshold=0.7, max_objects=1)
    run = attempt(render(several, unit="1"))
    (image,) = detect(likelier, run.context, models).images
    assert [round(each.score, 3) for each in image.objects] == [0.971]


def test_maps_that_cannot_be_fail_their_image_alone(
    tmp_path: Path, render: Render, attempt: After
) -> None:
    models = opened(tmp_path / "models")
    many = np.zeros((1, 420, 420), np.float32)
    many[0, ::4, ::4] = many[0, 1::4, ::4] = 1  # 11,025 spots of two pixels
    bad = {
        "probabilities below 0 or above 1": spots((0, 0, 9, 9, 1.5)),
        "below 0": spots((0, 0, 9, 9, -0.5)),
        "not numbers": spots((0, 0, 9, 9, np.nan)),
        "more than 10,000 regions": many,
    }
    good = spots((10, 10, 20, 14, 0.6))
    run = attempt(render(good, *bad.values(), good, unit="1"))
    result = detect(DetectObjects(model="mapper"), run.context, models)
    assert [(each.input, len(each.objects)) for each in result.images] == [(0, 1), (5, 1)]
    for number, words in enumerate(bad, 1):
        item = run.context.items[number]
        assert (item.state, item.reason) == (
            job_pb2.Item.STATE_FAILED,
            Reason.MODEL_OUTPUT_INVALID,
        ), words
        assert words in item.message


def test_a_map_of_another_size_than_the_manifest_says_fails_its_image(
    tmp_path: Path, render: Render, attempt: After
) -> None:
    models = opened(tmp_path / "models", step=2)
    run = attempt(render(spots((10, 10, 20, 14, 0.6)), unit="1"))
    assert not detect(DetectObjects(model="mapper"), run.context, models).images
    (item,) = run.context.items.values()
    assert item.reason == Reason.MODEL_OUTPUT_INVALID
    assert "another size" in item.message


BOXES = '[[outputs]]\nkind = "boxes"\nname = "b"\ndtype = "float32"\nshape = ["n", 5, 4]\n'


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"n", 1, "rows", "columns"', '"n", "rows", "columns"', "must have 4 axes"),
        ('"n", 1, "rows", "columns"', '"n", 2, "rows", "columns"', "one per label"),
        ('"n", 1, "rows", "columns"', '"n", 1, "r", "c"', "the rows and columns of the image"),
        ('labels = [{ value = 0, display_name = "spot" }]', "", "one per label"),
        ("least_side = 2", "least_side = 0", "least_side"),
        ("unclip = 1", "unclip = -1", "unclip"),
        ("unclip = 1", "threshold = 2", "threshold"),
        ("unclip = 1", "pixel_threshold = 1", "pixel_threshold"),
        ("unclip = 1", "overlap = 0.5", "overlap"),
        ("unclip = 1\n", f"unclip = 1\n{BOXES}", "boxes or regions, not both"),
    ],
    ids=[
        "axes",
        "labels",
        "size",
        "no labels",
        "least side",
        "unclip",
        "threshold",
        "pixels",
        "unknown",
        "boxes",
    ],
)
def test_a_manifest_whose_regions_cannot_be_is_refused(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert old in MANIFEST
    place = write_mapper(tmp_path, MANIFEST.replace(old, new))
    with pytest.raises(ModelRefusedError, match=words):
        read_model(place)
