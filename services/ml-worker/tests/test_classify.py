"""ClassifyImages on models that say what stands in an image."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fluoro.v1.classify_pb2 import ClassifiedFrame, ClassifyImages, ModelChoice
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.testing import Attempt
from fluoro_jobs.worker.context import Upstream
from ml_worker.operations.classify import classify_all
from ml_worker.registry import Registry
from ml_worker.settings import ModelSettings
from ml_worker.testing import write_model
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Render = Callable[..., Upstream]
After = Callable[..., Attempt]
LABELS = ("naevus", "melanoma", "keratosis")
MANIFEST = """
name = "NAME"
version = "1.0.0"
summary = "Says what three pixels of an image say."
intended_use = "demonstration"
license = "Apache-2.0"
source = "A test."
training_data = "None."
applies_to = { modalities = [], unit = "1", photometric = ["grey"] }
labels = LABELS
batch = { max = 4, bytes_per_voxel = 16 }
[[inputs]]
name = "x"
dtype = "float32"
layout = "NHW"
shape = ["n", "rows", "columns"]
image = {}
[[outputs]]
kind = "classes"
name = "classes"
dtype = "float32"
shape = ["n", 3]
calibrated = CALIBRATED
"""
NOVELTY = """
[[outputs]]
kind = "novelty"
name = "novelty"
dtype = "float32"
shape = ["n"]
threshold = 3.0
"""


def write(folder: Path, name: str, at: int, *, novelty: bool, labels: tuple[str, ...]) -> None:
    """A model whose classes are three columns from `at` on, and whose novelty is the next one."""
    constants = [
        numpy_helper.from_array(np.array([start]), key)
        for key, start in (("begin", at), ("middle", at + 3), ("end", at + 4), ("axis", 2))
    ]
    constants.append(numpy_helper.from_array(np.array([-1, 3]), "three"))
    constants.append(numpy_helper.from_array(np.array([-1]), "flat"))
    nodes = [
        helper.make_node("Slice", ["x", "begin", "middle", "axis"], ["seen"]),
        helper.make_node("Reshape", ["seen", "three"], ["classes"]),
    ]
    cube = ["n", "rows", "columns"]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, cube)
    sides = [helper.make_tensor_value_info("classes", TensorProto.FLOAT, ["n", 3])]
    sample = np.arange(8, dtype=np.float32).reshape(1, 1, 8) / 8
    arrays = {"x": sample, "classes": sample[:, 0, at : at + 3]}
    if novelty:
        nodes += [
            helper.make_node("Slice", ["x", "middle", "end", "axis"], ["new"]),
            helper.make_node("Reshape", ["new", "flat"], ["novelty"]),
        ]
        sides.append(helper.make_tensor_value_info("novelty", TensorProto.FLOAT, ["n"]))
        arrays["novelty"] = sample[:, 0, at + 3]
    graph = helper.make_graph(nodes, name, [x], sides, constants)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    told = ", ".join(
        f'{{ value = {place}, display_name = "{label}" }}' for place, label in enumerate(labels)
    )
    text = MANIFEST.replace("NAME", name).replace("LABELS", f"[{told}]")
    text = text.replace("CALIBRATED", str(novelty).lower()) + NOVELTY * novelty
    write_model(folder, text, model.SerializeToString(), arrays)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("readers")
    write(folder, "left", 0, novelty=True, labels=LABELS)
    write(folder, "right", 4, novelty=False, labels=LABELS)
    write(folder, "other", 4, novelty=False, labels=("naevus", "melanoma", "wart"))
    registry = Registry(ModelSettings(models_folder=folder))
    registry.open()
    return registry


def image(left: list[float], novelty: float, right: list[float]) -> NDArray[Any]:
    return np.array([[[*left, novelty, *right, 0]]], "<f4")


def ask(*names: str, **fields: Any) -> ClassifyImages:
    return ClassifyImages(models=[ModelChoice(model=name) for name in names], **fields)


def test_a_class_is_told_where_the_models_agree_and_abstained_from_elsewhere(
    readers: Registry, render: Render, attempt: After
) -> None:
    images = [
        image([0.1, 0.7, 0.2], 1, [0.2, 0.5, 0.3]),
        image([0.1, 0.7, 0.2], 3, [0.7, 0.2, 0.1]),
        image([0.1, 0.7, 0.2], 2.9, [0.7, 0.2, 0.1]),
        image([0.4, 0.3, 0.3], 0, [0.5, 0.3, 0.2]),
    ]
    run = attempt(render(*images, unit="1"))
    result = classify_all(ask("left", "right", top=2), run.context, readers)
    frames = [frame for each in result.images for frame in each.frames]
    assert [each.item for each in result.images] == ["0", "1", "2", "3"]
    assert [frame.verdict for frame in frames] == [
        ClassifiedFrame.VERDICT_CLASSIFIED,
        # Both strange and disputed: strange goes first.
        ClassifiedFrame.VERDICT_OUT_OF_DISTRIBUTION,
        ClassifiedFrame.VERDICT_MODELS_DISAGREE,
        ClassifiedFrame.VERDICT_UNCERTAIN,
    ]
    first = frames[0]
    assert (first.display_name, first.agreement) == ("melanoma", 1)
    assert first.mean_probability == pytest.approx(0.6)
    left, right = first.opinions
    assert [one.display_name for one in left.classes] == ["melanoma", "keratosis"]
    assert (left.model.name, left.calibrated, left.novelty, left.novelty_threshold) == (
        "left",
        True,
        1,
        3,
    )
    assert (right.model.name, right.calibrated, right.HasField("novelty")) == (
        "right",
        False,
        False,
    )
    assert frames[2].agreement == 0.5


def test_a_lower_bar_lets_an_unsure_class_through(
    readers: Registry, render: Render, attempt: After
) -> None:
    run = attempt(render(image([0.4, 0.3, 0.3], 0, [0, 0, 1]), unit="1"))
    (found,) = classify_all(ask("left", least_probability=0.4), run.context, readers).images
    assert found.frames[0].verdict == ClassifiedFrame.VERDICT_CLASSIFIED
    assert len(found.frames[0].opinions) == 1


def test_models_with_other_labels_cannot_vote_together(
    readers: Registry, render: Render, attempt: After
) -> None:
    run = attempt(render(image([1, 0, 0], 0, [1, 0, 0]), unit="1"))
    with pytest.raises(FluoroError) as refused:
        classify_all(ask("left", "other"), run.context, readers)
    assert refused.value.reason == Reason.MODEL_NOT_APPLICABLE
    assert "labels of left" in str(refused.value)


def test_an_image_that_one_of_the_models_is_not_made_for_is_skipped(
    readers: Registry, render: Render, attempt: After
) -> None:
    colour = np.zeros((1, 1, 8, 3), "<f4")
    run = attempt(render(colour, image([1, 0, 0], 0, [1, 0, 0]), unit="1"))
    result = classify_all(ask("left", "right"), run.context, readers)
    assert [each.item for each in result.images] == ["1"]
    assert run.context.items[0].reason == Reason.MODEL_NOT_APPLICABLE


def test_what_are_no_probabilities_fails_the_image_alone(
    readers: Registry, render: Render, attempt: After
) -> None:
    broken = image([np.nan, 0, 0], 0, [1, 0, 0])
    run = attempt(render(broken, image([1, 0, 0], 0, [1, 0, 0]), unit="1"))
    result = classify_all(ask("left", "right"), run.context, readers)
    assert [each.item for each in result.images] == ["1"]
    assert run.context.items[0].reason == Reason.MODEL_OUTPUT_INVALID
