"""AssessDermoscopy on painted lesions, outlined by a model that takes what is dark."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fluoro.v1.classify_pb2 import ModelChoice
from fluoro.v1.dermoscopy_pb2 import AssessDermoscopy, AssessedLesion
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.testing import Attempt
from fluoro_jobs.worker.context import Upstream
from ml_worker.dermoscopy import NACHBAR_1994
from ml_worker.operations.dermoscopy import assess_all
from ml_worker.phantoms import BLACK, DARK_BROWN, RED, round_lesion
from ml_worker.registry import Registry
from ml_worker.seeing import write_seeing
from ml_worker.settings import ModelSettings
from ml_worker.testing import write_model
from onnx import TensorProto, helper, numpy_helper

Render = Callable[..., Upstream]
After = Callable[..., Attempt]
MANIFEST = """
name = "dark"
version = "1.0.0"
summary = "Outlines what is dark."
intended_use = "demonstration"
license = "Apache-2.0"
source = "A test."
training_data = "None."
applies_to = { modalities = [], unit = "1", photometric = ["colour"] }
overlay = { window_center = 127, window_width = 256, opacity = 0.4 }
labels = [
    { value = 0, display_name = "skin" },
    { value = 1, display_name = "lesion", color = "#d55e00" },
]
batch = { max = 4, bytes_per_voxel = 32 }
[[inputs]]
name = "x"
dtype = "float32"
layout = "NCHW"
shape = ["n", 3, "rows", "columns"]
image = { colour = "rgb" }
[[outputs]]
kind = "label_map"
name = "label_map"
dtype = "uint8"
shape = ["n", "rows", "columns"]
"""
OUTLINE = AssessDermoscopy(outline=ModelChoice(model="dark"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("dark")
    constants = [
        numpy_helper.from_array(np.array([1]), "channels"),
        numpy_helper.from_array(np.float32(150), "bar"),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["x", "channels"], ["mean"], keepdims=0),
        helper.make_node("Less", ["mean", "bar"], ["is_dark"]),
        helper.make_node("Cast", ["is_dark"], ["label_map"], to=TensorProto.UINT8),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "rows", "columns"])
    y = helper.make_tensor_value_info("label_map", TensorProto.UINT8, ["n", "rows", "columns"])
    graph = helper.make_graph(nodes, "dark", [x], [y], constants)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    sample = np.array([100, 200], np.float32).reshape(1, 1, 1, 2).repeat(3, axis=1)
    arrays = {"x": sample, "label_map": np.array([[[1, 0]]], np.uint8)}
    write_model(folder, MANIFEST, model.SerializeToString(), arrays)
    write_seeing(folder)
    registry = Registry(ModelSettings(models_folder=folder))
    registry.open()
    return registry


def test_a_lesion_is_outlined_scored_and_measured(
    models: Registry, render: Render, attempt: After
) -> None:
    plain = round_lesion(DARK_BROWN)
    worse = round_lesion(DARK_BROWN)
    worse.paint(worse.ellipse(row=0.36, column=0.36, height=0.1, width=0.1), BLACK)
    worse.paint(worse.ellipse(row=0.5, column=0.66, height=0.11, width=0.11), RED)
    pixels = [plain.pixels[None], worse.pixels[None]]
    run = attempt(render(*pixels, unit="1", modality="XC", pixel_spacing_mm=[0.05, 0.05]))
    result = assess_all(OUTLINE, run.context, models)
    first, second = result.lesions
    assert (first.asymmetry, first.border) == (0, 8)
    assert list(first.colors) == ["dark brown"]
    rule = result.rule
    assert first.total == pytest.approx(
        first.border * rule.border_weight
        + len(first.colors) * rule.colors_weight
        + len(first.structures) * rule.structures_weight
    )
    assert first.verdict == AssessedLesion.VERDICT_BENIGN
    assert (rule.source, rule.counter_evidence) == (
        NACHBAR_1994.source,
        NACHBAR_1994.counter_evidence,
    )
    # A disc with a radius of 0.3 of 480 pixels.
    assert first.diameter_mm == pytest.approx(2 * 144 * 0.05, rel=0.02)
    assert first.area_mm2 == pytest.approx(np.pi * (144 * 0.05) ** 2, rel=0.02)
    assert first.fraction == pytest.approx(np.pi * 0.09, rel=0.02)
    assert (first.model.name, len(first.model.sha256)) == ("dark", 32)
    assert {run.context.artifacts[name].role for name in (first.label_map, first.overlay)} == {
        "label-map",
        "overlay",
    }
    assert second.total > first.total
    assert {"black", "red"} <= set(second.colors)


def test_without_a_scale_there_are_no_millimetres_and_a_request_may_bring_one(
    models: Registry, render: Render, attempt: After
) -> None:
    pixels = round_lesion().pixels[None]
    run = attempt(render(pixels, unit="1"))
    (lesion,) = assess_all(OUTLINE, run.context, models).lesions
    assert not lesion.HasField("diameter_mm")
    assert not lesion.HasField("area_mm2")
    request = AssessDermoscopy(outline=ModelChoice(model="dark"), mm_per_pixel=0.1)
    run = attempt(render(pixels, unit="1", pixel_spacing_mm=[0.05, 0.05]))
    (lesion,) = assess_all(request, run.context, models).lesions
    assert lesion.diameter_mm == pytest.approx(2 * 144 * 0.1, rel=0.02)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((1, 480, 480, 3), 200, "|u1"), "no lesion was found"),
        (np.full((1, 480, 480, 3), 20, "|u1"), "too little skin"),
        (np.full((1, 480, 480, 3), 200, "<u2"), "8 bits"),
        (np.full((1, 1, 1, 3), 20, "|u1"), "pixels long"),
    ],
)
def test_what_cannot_be_scored_is_skipped_and_leaves_nothing(
    models: Registry, render: Render, attempt: After, pixels: Any, message: str
) -> None:
    run = attempt(render(pixels, round_lesion().pixels[None], unit="1"))
    result = assess_all(OUTLINE, run.context, models)
    assert [lesion.item for lesion in result.lesions] == ["1"]
    skipped = run.context.items[0]
    assert (skipped.reason, message in skipped.message) == (Reason.MODEL_NOT_APPLICABLE, True)
    assert len(run.context.artifacts) == 2


def test_a_model_that_outlines_nothing_is_refused(
    models: Registry, render: Render, attempt: After
) -> None:
    run = attempt(render(round_lesion().pixels[None], unit="1"))
    request = AssessDermoscopy(outline=ModelChoice(model="seeing"))
    with pytest.raises(FluoroError) as refused:
        assess_all(request, run.context, models)
    assert refused.value.reason == Reason.MODEL_NOT_APPLICABLE
