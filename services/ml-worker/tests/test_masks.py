"""AnalyzeImages with models that give masks in a size of their own."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fluoro.v1 import job_pb2
from fluoro.v1.classify_pb2 import ModelChoice
from fluoro.v1.dermoscopy_pb2 import AssessDermoscopy
from fluoro.v1.ml_pb2 import AnalyzeImages, ImageFinding
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.testing import Attempt
from fluoro_jobs.worker.context import Upstream
from ml_worker.operations.analyze import analyze
from ml_worker.operations.dermoscopy import assess_all
from ml_worker.phantoms import round_lesion
from ml_worker.registry import Registry
from ml_worker.settings import ModelSettings
from ml_worker.testing import write_model
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

Render = Callable[..., Upstream]
After = Callable[..., Attempt]
Open = Callable[..., Registry]
SIDE = 16
MANIFEST = """
name = "mask"
version = "1.0.0"
summary = "Outlines what is bright."
intended_use = "demonstration"
license = "Apache-2.0"
source = "A test."
training_data = "None."
applies_to = {{ modalities = [], unit = "1", photometric = ["grey", "colour"] }}
{overlay}
labels = [{labels}]
batch = {{ max = 4, bytes_per_voxel = 64 }}
[[inputs]]
name = "x"
dtype = "float32"
layout = "NHW"
shape = ["n", {side}, {side}]
image = {{ colour = "grey", values = {{ from = "full", to = [0, 1] }}, resize = "{resize}" }}
[[outputs]]
kind = "mask"
name = "mask"
dtype = "float32"
shape = ["n", {channels}, {side_of_mask}, {side_of_mask}]
{scores}
"""
OVERLAY = "overlay = { window_center = 127, window_width = 256, opacity = 0.5 }"
ANALYZE = AnalyzeImages(model="mask")


def graph_of(
    side: int, factors: tuple[float, ...], terms: tuple[float, ...], coarser: int
) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """The graph, and what it multiplies by and adds."""
    channels = len(factors)
    as_column = (1, channels, 1, 1)
    constants: dict[str, NDArray[Any]] = {
        "axis": np.array([1]),
        "factors": np.array(factors, np.float32).reshape(as_column),
        "terms": np.array(terms, np.float32).reshape(as_column),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axis"], ["plane"]),
        helper.make_node(
            "AveragePool",
            ["plane"],
            ["pooled"],
            kernel_shape=[coarser] * 2,
            strides=[coarser] * 2,
        ),
        helper.make_node("Mul", ["pooled", "factors"], ["scaled"]),
        helper.make_node("Add", ["scaled", "terms"], ["mask"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", side, side])
    y = helper.make_tensor_value_info(
        "mask", TensorProto.FLOAT, ["n", channels, side // coarser, side // coarser]
    )
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "mask", [x], [y], weights)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    return model.SerializeToString(), constants


@pytest.fixture
def open_mask(tmp_path: Path) -> Open:
    """A model whose mask is its image times these factors plus these terms, one per channel.

    coarser: how many pixels of the image one of the mask covers, each way.
    """

    def opening(
        factors: tuple[float, ...] = (1,),
        terms: tuple[float, ...] = (0,),
        coarser: int = 1,
        **manifest: Any,
    ) -> Registry:
        channels = len(factors)
        given: dict[str, Any] = {
            "overlay": OVERLAY,
            "resize": "fit",
            "scores": "",
            "names": ["dark", "bright", "third"][: max(2, channels)],
            "side": SIDE,
        } | manifest
        labels = ", ".join(
            f'{{value = {place}, display_name = "{name}", color = "#0000{place * 80:02x}"}}'
            for place, name in enumerate(given["names"])
        )
        side = given["side"]
        text = MANIFEST.format(
            labels=labels, channels=channels, side_of_mask=side // coarser, **given
        )
        graph, constants = graph_of(side, factors, terms, coarser)
        sample = np.full((2, side, side), 0.25, np.float32)
        sample[1] = 0.4
        pooled = sample[:, np.newaxis, ::coarser, ::coarser]
        promised = pooled * constants["factors"] + constants["terms"]
        write_model(
            tmp_path / "models",
            text,
            graph,
            {"x": sample, "mask": promised.astype(np.float32)},
        )
        models = Registry(ModelSettings(models_folder=tmp_path / "models"))
        models.open()
        return models

    return opening


def analyzed(
    models: Registry, render: Render, attempt: After, *frames: NDArray[Any]
) -> tuple[Attempt, list[ImageFinding]]:
    run = attempt(render(*frames, unit="1", modality="XC"))
    return run, list(analyze(ANALYZE, run.context, models).findings)


def label_map(run: Attempt, finding: ImageFinding) -> NDArray[Any]:
    found: NDArray[Any] = np.load(io.BytesIO(run.read(finding.label_map)), allow_pickle=False)
    return found


def boxes(*boxes: tuple[slice, slice], size: tuple[int, int] = (64, 160)) -> NDArray[np.uint8]:
    """A dark picture with bright boxes, as one frame."""
    frame = np.full((1, *size), 20, np.uint8)
    for box in boxes:
        frame[0][box] = 240
    return frame


@pytest.mark.parametrize(
    ("resize", "coarser", "scores", "factor", "term"),
    [
        ("stretch", 1, "", 1, 0),
        ("fit", 1, "", 1, 0),
        ("fit", 2, "threshold = 0.4", 1, 0),
        ("fit", 1, 'scores = "logits"', 20, -10),
    ],
)
def test_a_mask_in_the_size_of_the_model_lies_where_its_object_is_in_the_image(
    open_mask: Open,
    render: Render,
    attempt: After,
    resize: str,
    coarser: int,
    scores: str,
    factor: float,
    term: float,
) -> None:
    models = open_mask((factor,), (term,), coarser, resize=resize, scores=scores)
    box = slice(20, 60), slice(40, 120)
    frame = boxes(box)
    run, (finding,) = analyzed(models, render, attempt, frame)
    labels = label_map(run, finding)
    assert labels.shape == frame.shape
    there = frame > 100
    found = labels == 1
    assert (there & found).sum() / (there | found).sum() > 0.8, "within a pixel of the model"
    assert finding.measurements[1].voxels == found.sum()
    assert sum(each.voxels for each in finding.measurements) == frame.size
    assert finding.measurements[1].mean_value == pytest.approx(frame[found].mean())
    assert Image.open(io.BytesIO(run.read(finding.overlay))).size == (160, 64)


def test_with_a_score_for_each_label_a_pixel_gets_the_most_probable_one(
    open_mask: Open, render: Render, attempt: After
) -> None:
    models = open_mask((-1, 0, 1), (1, 0.6, 0), names=["dark", "middle", "bright"])
    frame = np.repeat(np.array([10, 128, 250], np.uint8), 64)[np.newaxis, np.newaxis]
    run, (finding,) = analyzed(models, render, attempt, frame.repeat(192, axis=1))
    labels = label_map(run, finding)[0]
    assert [int(labels[96, column]) for column in (20, 96, 170)] == [0, 1, 2]
    assert [each.display_name for each in finding.measurements] == ["dark", "middle", "bright"]


def test_every_frame_has_its_own_mask(open_mask: Open, render: Render, attempt: After) -> None:
    models = open_mask()
    left, right = (slice(0, 64), slice(0, 80)), (slice(0, 64), slice(80, 160))
    film = np.concatenate([boxes(left), boxes(right), boxes(), boxes(left), boxes(right)])
    run, (finding,) = analyzed(models, render, attempt, film)
    assert label_map(run, finding).mean(axis=(1, 2)) == pytest.approx(
        [0.5, 0.5, 0, 0.5, 0.5], abs=0.04
    )
    assert label_map(run, finding)[4, :, 100:].all()


def test_a_mask_that_is_not_of_probabilities_fails_its_image_alone(
    open_mask: Open, render: Render, attempt: After
) -> None:
    models = open_mask((2,), (0,))
    run, findings = analyzed(models, render, attempt, boxes(), boxes((slice(0, 64), slice(0, 160))))
    assert [finding.item for finding in findings] == ["0"]
    assert run.context.items[1].state == job_pb2.Item.STATE_FAILED
    assert run.context.items[1].reason == Reason.MODEL_OUTPUT_INVALID


@pytest.mark.parametrize(
    "manifest",
    [{"resize": "cover"}, {"overlay": ""}, {"names": ["dark", "bright", "third"]}],
    ids=["it does not see the whole image", "no overlay", "a label without a score"],
)
def test_a_mask_that_leaves_pixels_or_labels_out_is_not_taken(
    open_mask: Open, render: Render, attempt: After, manifest: dict[str, Any]
) -> None:
    models = open_mask(**manifest)
    with pytest.raises(FluoroError) as refused:
        analyzed(models, render, attempt, boxes())
    assert refused.value.reason == Reason.MODEL_NOT_APPLICABLE


def test_a_mask_outlines_a_lesion_for_the_abcd_rule(
    open_mask: Open, render: Render, attempt: After
) -> None:
    models = open_mask((-1,), (1,), names=["skin", "lesion"], side=64)
    phantom = round_lesion()
    picture = phantom.image.round().clip(0, 255).astype(np.uint8)[np.newaxis]
    run = attempt(render(picture, unit="1", modality="XC"))
    request = AssessDermoscopy(outline=ModelChoice(model="mask"))
    (lesion,) = assess_all(request, run.context, models).lesions
    assert lesion.fraction == pytest.approx(phantom.mask.mean(), rel=0.15)
