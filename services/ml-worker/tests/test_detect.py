"""DetectObjects on a model that gives as boxes what stands in the rows of the image."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fluoro.v1 import job_pb2
from fluoro.v1.detect_pb2 import DetectObjects
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.testing import Attempt
from fluoro_jobs.worker.context import Upstream
from ml_worker.detecting import Shown
from ml_worker.manifest import Input, ModelRefusedError, Prepare
from ml_worker.operations.detect import detect
from ml_worker.prepare import visible
from ml_worker.registry import Registry
from ml_worker.repository import read_model
from ml_worker.settings import ModelSettings
from ml_worker.testing import write_model
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

Render = Callable[..., Upstream]
After = Callable[..., Attempt]
COLUMNS = 8
"""Of an image: left, top, right, bottom, score, label, and a point."""
MANIFEST = """
name = "reader"
version = "1.0.0"
summary = "Gives as boxes what the rows of an image say."
intended_use = "demonstration"
license = "Apache-2.0"
source = "A test."
training_data = "None."
applies_to = { modalities = [], unit = "1", photometric = ["grey"] }
labels = [
    { value = 0, display_name = "cat" },
    { value = 1, display_name = "dog", codes = [
        { value = "448771007", scheme = "SCT", meaning = "Canis lupus subspecies familiaris" },
    ] },
]
batch = { max = 4, bytes_per_voxel = 16 }
[[inputs]]
name = "x"
dtype = "float32"
layout = "NHW"
shape = ["n", "rows", "columns"]
image = {}
[[outputs]]
kind = "boxes"
name = "boxes"
dtype = "float32"
shape = ["n", "rows", 4]
[[outputs]]
kind = "box_scores"
name = "scores"
dtype = "float32"
shape = ["n", "rows"]
threshold = 0.4
[[outputs]]
kind = "box_labels"
name = "labels"
dtype = "int64"
shape = ["n", "rows"]
[[outputs]]
kind = "box_landmarks"
name = "points"
dtype = "float32"
shape = ["n", "rows", 2]
names = ["nose"]
"""


def graph() -> bytes:
    constants = {
        **{str(place): np.array([place]) for place in (0, 2, 4, 5, 6, 8)},
        "score": np.array(4),
        "label": np.array(5),
    }
    nodes = [
        helper.make_node("Slice", ["x", "0", "4", "2"], ["boxes"]),
        helper.make_node("Gather", ["x", "score"], ["scores"], axis=2),
        helper.make_node("Gather", ["x", "label"], ["named"], axis=2),
        helper.make_node("Cast", ["named"], ["labels"], to=TensorProto.INT64),
        helper.make_node("Slice", ["x", "6", "8", "2"], ["points"]),
    ]
    shapes = {"x": ("columns",), "boxes": (4,), "scores": (), "labels": (), "points": (2,)}
    sides = [
        helper.make_tensor_value_info(
            name,
            TensorProto.INT64 if name == "labels" else TensorProto.FLOAT,
            ["n", "rows", *shape],
        )
        for name, shape in shapes.items()
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "reader", sides[:1], sides[1:], weights)
    model = helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    return bytes(model.SerializeToString())


def write_reader(folder: Path, manifest: str = MANIFEST) -> Path:
    x = np.array([[[1, 1, 3, 2, 0.9, 1, 2, 2]]], np.float32)
    sample = {
        "x": x,
        "boxes": x[..., :4],
        "scores": x[..., 4],
        "labels": x[..., 5].astype("<i8"),
        "points": x[..., 6:],
    }
    return write_model(folder, manifest, graph(), sample)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("reader")
    write_reader(folder)
    models = Registry(ModelSettings(models_folder=folder))
    models.open()
    return models


def saying(*rows: Sequence[float]) -> NDArray[Any]:
    """A frame with these rows, and one that says nothing."""
    return np.array([*(list(row) + [0] * (COLUMNS - len(row)) for row in rows), [0] * COLUMNS])


def image(*frames: NDArray[Any]) -> NDArray[Any]:
    return np.stack(frames).astype("<f4")


def test_objects_are_told_in_pixels_the_likeliest_of_those_that_overlap(
    reader: Registry, render: Render, attempt: After
) -> None:
    first = saying(
        (1, 1, 3, 3, 0.5, 0, 2, 2.5),
        (1, 1, 3.2, 3, 0.9, 0, 2.25, 2),  # the same cat, more surely
        (1, 1, 3, 3, 0.6, 1),  # a dog in the same place
        (-5, 4, 2, 99, 0.7, 1, -1, 5),  # cut off at the edges
        (0, 0, 8, 6, 0.39, 0),  # too unlikely
        (9, 9, 3, 3, -1, 77),  # filling
    )
    frames = [first, *(saying(*[(0, 0, 1, 1, 0.5, 0)] * n, *[()] * (6 - n)) for n in range(5))]
    run = attempt(render(image(*frames), image(saying()), unit="1", modality="XC"))
    result = detect(DetectObjects(model="reader"), run.context, reader)
    found, empty = result.images
    assert [(each.frame, each.display_name, round(each.score, 3)) for each in found.objects] == [
        (1, "cat", 0.9),
        (1, "dog", 0.7),
        (1, "dog", 0.6),
        *[(frame, "cat", 0.5) for frame in range(3, 7)],
    ]
    assert [code.value for each in found.objects[:2] for code in each.codes] == ["448771007"]
    sides = [(each.left, each.top, each.width, each.height) for each in found.objects]
    assert sides[:3] == [(1, 1, 2.2, 2), (0, 4, 2, 3), (1, 1, 2, 2)]
    (nose,) = found.objects[0].landmarks
    assert (nose.name, nose.x, nose.y) == ("nose", 2.25, 2)
    assert (empty.item, len(empty.objects), result.model.name) == ("1", 0, "reader")
    assert run.context.artifacts[found.picture].role == "detections"
    picture = np.asarray(Image.open(io.BytesIO(run.read(found.picture)))).astype(int)
    assert picture.shape == (7, COLUMNS, 3)
    colored = np.ptp(picture, axis=2) > 30
    assert colored[1, 1:3].all()
    assert not colored[0, 4:].any()

    request = DetectObjects(model="reader", threshold=0.3, max_objects=2)
    run = attempt(render(image(first), unit="1"))
    (again,) = detect(request, run.context, reader).images
    assert [round(each.score, 3) for each in again.objects] == [0.9, 0.7]


def test_boxes_that_cannot_be_fail_their_image_alone(
    reader: Registry, render: Render, attempt: After
) -> None:
    good = (1, 1, 2, 2, 0.9, 0)
    bad = {
        "not numbers": [(np.nan, 1, 2, 2, 0.9, 0)],
        "endless": [(0, 0, np.inf, 2, 0.9, 0)],
        "end before they begin": [good, (3, 1, 2, 2, 0.9, 0)],
        "outside of what": [(-4, 0, -1, 2, 0.9, 0)],
        "outside of": [(0, 99, 2, 100, 0.9, 0)],
        "scores above 1": [(0, 0, 1, 1, 17, 0)],
        "labels that it does not have": [(0, 0, 1, 1, 0.9, 2)],
        "more than 10,000 boxes": [good] * 10_001,
    }
    arrays = [image(saying(good)), *(image(saying(*rows)) for rows in bad.values())]
    run = attempt(render(*arrays, image(saying(*[good] * 10_000)), unit="1"))
    result = detect(DetectObjects(model="reader"), run.context, reader)
    assert [each.input for each in result.images] == [0, len(bad) + 1]
    assert [len(each.objects) for each in result.images] == [1, 1]
    for number, words in enumerate(bad, 1):
        item = run.context.items[number]
        assert (item.state, item.reason) == (
            job_pb2.Item.STATE_FAILED,
            Reason.MODEL_OUTPUT_INVALID,
        ), words
        if words != "endless":
            assert words in item.message
    assert len(run.context.artifacts) == 2


def test_a_model_that_gives_no_boxes_is_refused_in_words(
    models: Registry, render: Render, attempt: After
) -> None:
    run = attempt(render(image(saying()), unit="1"))
    with pytest.raises(FluoroError, match="that gives boxes or regions") as caught:
        detect(DetectObjects(model="ct-tissue"), run.context, models)
    assert caught.value.reason == Reason.MODEL_NOT_APPLICABLE


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('kind = "box_scores"', 'kind = "box_places"', "box_places"),
        ('shape = ["n", "rows", 4]', 'shape = ["n", "boxes", 4]', "the same second axis"),
        ('names = ["nose"]', 'names = ["nose", "tail"]', "must be 4, two per name"),
        ('shape = ["n", "rows"]\nthreshold', 'shape = ["n", "rows", 2]\nthreshold', "one number"),
        (MANIFEST[MANIFEST.index('[[outputs]]\nkind = "box_labels"') :], "", "several labels"),
        (MANIFEST[MANIFEST.index('[[outputs]]\nkind = "box_scores"') :], "", "need boxes"),
    ],
    ids=["unknown kind", "other boxes", "names", "labels twice", "no labels", "no scores"],
)
def test_a_manifest_whose_boxes_do_not_fit_together_is_refused(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert old in MANIFEST
    place = write_reader(tmp_path, MANIFEST.replace(old, new))
    with pytest.raises(ModelRefusedError, match=words):
        read_model(place)


@pytest.mark.parametrize(
    ("resize", "in_tensor", "in_frame"),
    [("stretch", (3, 3), (60, 20)), ("fit", (3, 3), (60, 20)), ("cover", (0, 6), (40, 40))],
)
def test_places_in_the_tensor_are_places_in_the_image(
    resize: str, in_tensor: tuple[int, int], in_frame: tuple[int, int]
) -> None:
    how = Prepare(resize=resize)  # type: ignore[arg-type]
    tensor = Input(name="x", dtype="float32", layout="NHW", shape=("n", 6, 6), image=how)
    seen, area = visible((40, 120), None, tensor)  # type: ignore[arg-type]
    shown = Shown((6, 6), seen, area)
    assert shown.in_frame(np.array(in_tensor, float)).tolist() == list(in_frame)
