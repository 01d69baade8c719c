"""AnalyzeImages on a model of volumes that finds what is bright in the upper half of a patient."""

import io
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fluoro.v1.ml_pb2 import AnalyzeImages, AnalyzeImagesResult
from fluoro_jobs.testing import Attempt
from fluoro_jobs.worker.context import Upstream
from ml_worker.manifest import Manifest
from ml_worker.operations.analyze import analyze
from ml_worker.registry import Registry
from ml_worker.settings import ModelSettings
from ml_worker.testing import write_model
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

After = Callable[..., Attempt]
Render = Callable[..., Upstream]
SIDE = 8
STEP_MM = 5.0
AXIAL = (1, 0, 0, 0, 1, 0)
SAGITTAL = (0, 1, 0, 0, 0, -1)
CORONAL = (1, 0, 0, 0, 0, -1)
SLANTED = (1, 0, 0, 0, 0.8, 0.6)
MANIFEST = """
name = "upper"
version = "1.0.0"
summary = "Finds what is bright in the upper half."
intended_use = "demonstration"
license = "Apache-2.0"
source = "A test."
training_data = "None."
overlay = { opacity = 0.5 }
labels = [{ value = 0, display_name = "rest" }, { value = 1, display_name = "top" }]
batch = { max = 1, bytes_per_voxel = 16 }
[applies_to]
modalities = ["MR"]
unit = "1"
[applies_to.volume]
planes = 6
spacing_mm = [1, 6]
anisotropy = 3
extent_mm = [20, 100]
tilt_degrees = 20
[[inputs]]
name = "x"
dtype = "float32"
layout = "NCWHD"
shape = ["n", 1, 8, 8, 8]
image = { resize = "stretch" }
[[outputs]]
kind = "mask"
name = "mask"
dtype = "float32"
shape = ["n", 1, 8, 8, 8]
[[outputs]]
kind = "novelty"
name = "novelty"
dtype = "float32"
shape = ["n"]
threshold = 2
"""


THREE = '{ value = 1, display_name = "bottom" }, { value = 2, display_name = "top" }'
SCORES = 'scores = "SCORES"\n'


def opened(folder: Path, manifest: str, mask: NDArray[np.float32]) -> Registry:
    """A model whose mask is the volume times this one. Its novelty is the largest value.

    mask: (1, labels or 1, columns, rows, planes); planes run to the head.
    """
    size = [SIDE, SIDE, SIDE]
    shapes = {"x": ["n", 1, *size], "mask": ["n", mask.shape[1], *size], "novelty": ["n"]}
    x, y, novelty = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    )
    nodes = [
        helper.make_node("Mul", ["x", "factors"], ["mask"]),
        helper.make_node("ReduceMax", ["x", "axes"], ["novelty"], keepdims=0),
    ]
    constants = [
        numpy_helper.from_array(mask, "factors"),
        numpy_helper.from_array(np.array([1, 2, 3, 4]), "axes"),
    ]
    graph = helper.make_model(
        helper.make_graph(nodes, "upper", [x], [y, novelty], constants),
        ir_version=10,
        opset_imports=[helper.make_opsetid("", 21)],
    )
    sample = {
        "x": np.ones((1, 1, *size), np.float32),
        "mask": mask,
        "novelty": np.ones(1, np.float32),
    }
    write_model(folder, manifest, graph.SerializeToString(), sample)
    registry = Registry(ModelSettings(models_folder=folder))
    registry.open()
    return registry


@pytest.fixture
def upper(tmp_path: Path) -> Registry:
    """A model that finds the half at the head."""
    half = np.zeros((1, 1, SIDE, SIDE, SIDE), np.float32)
    half[..., SIDE // 2 :] = 1
    return opened(tmp_path / "models", MANIFEST, half)


def series(
    render: Render,
    count: int = SIDE,
    orientation: Sequence[float] = AXIAL,
    step_mm: float = STEP_MM,
    spacing_mm: float = STEP_MM,
    order: Sequence[int] = (),
    **fields: Any,
) -> Upstream:
    """Slices of ones, `order` in space by number of the input."""
    slices = [np.ones((1, SIDE, SIDE), np.uint16) for _ in range(count)]
    given = {"unit": "1", "modality": "MR", "series_instance_uid": "1.2", **fields}
    upstream = render(*slices, pixel_spacing_mm=[spacing_mm] * 2, slice_thickness_mm=2, **given)
    normal = np.cross(orientation[:3], orientation[3:])
    for image, place in zip(upstream.result.images, order or range(count), strict=True):
        image.image_orientation.extend(orientation)
        image.image_positions_mm.extend((normal * place * step_mm).tolist())
    return upstream


def maps(run: Attempt, result: AnalyzeImagesResult) -> list[NDArray[np.uint8]]:
    return [np.load(io.BytesIO(run.read(found.label_map))) for found in result.findings]


def skipped(run: Attempt) -> set[str]:
    assert {item.reason for item in run.context.items.values()} == {"MODEL_NOT_APPLICABLE"}
    return {item.message for item in run.context.items.values()}


def test_each_slice_of_a_shuffled_series_gets_its_own_part_of_the_mask(
    upper: Registry, render: Render, attempt: After
) -> None:
    order = [3, 0, 7, 1, 6, 2, 5, 4]
    run = attempt(series(render, order=order))
    result = analyze(AnalyzeImages(model="upper"), run.context, upper)
    found = maps(run, result)
    assert [labels.shape for labels in found] == [(1, SIDE, SIDE)] * SIDE
    assert [bool(labels.all()) for labels in found] == [place >= SIDE // 2 for place in order]
    assert [bool(labels.any()) for labels in found] == [place >= SIDE // 2 for place in order]
    (volume,) = result.volumes
    assert list(volume.items) == [str(order.index(place)) for place in range(SIDE)]
    assert (volume.slices, list(volume.spacing_mm)) == (SIDE, [STEP_MM] * 3)
    top = volume.measurements[1]
    assert (top.display_name, top.voxels, top.fraction, top.mean_value) == ("top", 256, 0.5, 1)
    # Of the volume by its positions, of an image by Slice Thickness.
    assert top.volume_ml == pytest.approx(256 * 0.125)
    assert result.findings[2].measurements[1].volume_ml == pytest.approx(64 * 0.05)


@pytest.mark.parametrize("scores", ["probabilities", "logits"])
def test_of_several_labels_each_voxel_gets_the_one_with_the_highest_score(
    render: Render, attempt: After, tmp_path: Path, scores: str
) -> None:
    mask = np.full((1, 3, SIDE, SIDE, SIDE), 0.1, np.float32)
    mask[0, 1, ..., :3] = 0.8
    mask[0, 2, ..., 5:] = 0.3
    text = (
        MANIFEST.replace('display_name = "rest" }', 'display_name = "middle" }')
        .replace('{ value = 1, display_name = "top" }', THREE)
        .replace('shape = ["n", 1, 8, 8, 8]\n[[out', f'shape = ["n", 3, 8, 8, 8]\n{SCORES}[[out')
        .replace("SCORES", scores)
    )
    models = opened(tmp_path / "models", text, mask)
    order = [3, 0, 7, 1, 6, 2, 5, 4]
    run = attempt(series(render, order=order))
    result = analyze(AnalyzeImages(model="upper"), run.context, models)
    there = [1, 1, 1, 0, 0, 2, 2, 2]
    for place, labels in zip(order, maps(run, result), strict=True):
        assert (labels == there[place]).all()
    (volume,) = result.volumes
    assert [(each.display_name, each.voxels) for each in volume.measurements] == [
        ("middle", 2 * SIDE**2),
        ("bottom", 3 * SIDE**2),
        ("top", 3 * SIDE**2),
    ]


@pytest.mark.parametrize("orientation", [SAGITTAL, CORONAL])
def test_the_model_sees_the_patient_upright_however_the_slices_lie(
    upper: Registry, render: Render, attempt: After, orientation: Sequence[float]
) -> None:
    run = attempt(series(render, orientation=orientation))
    found = maps(run, analyze(AnalyzeImages(model="upper"), run.context, upper))
    assert len(found) == SIDE
    # Rows run down to the feet.
    assert all(
        labels[0, : SIDE // 2].all() and not labels[0, SIDE // 2 :].any() for labels in found
    )


def test_frames_of_one_file_are_a_volume_too(
    upper: Registry, render: Render, attempt: After
) -> None:
    frames = np.ones((SIDE, SIDE, SIDE), np.uint16)
    upstream = render(
        frames, unit="1", modality="MR", series_instance_uid="1.2", pixel_spacing_mm=[STEP_MM] * 2
    )
    (image,) = upstream.result.images
    image.image_orientation.extend(AXIAL)
    # From the head down.
    image.image_positions_mm.extend(np.ravel([(0, 0, -STEP_MM * n) for n in range(SIDE)]).tolist())
    run = attempt(upstream)
    (labels,) = maps(run, analyze(AnalyzeImages(model="upper"), run.context, upper))
    assert labels[: SIDE // 2].all()
    assert not labels[SIDE // 2 :].any()


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"modality": "CT"}, "it needs Modality MR"),
        ({"count": 5}, "it needs 6 slices of a series, or more"),
        ({"order": [0, 1, 2, 3, 4, 5, 7, 8]}, "its series has slices missing"),
        ({"order": [0, 1, 2, 3, 4, 5, 6, 6]}, "or several in one place"),
        ({"spacing_mm": 7}, "it needs voxels with sides of 1 to 6 mm"),
        ({"spacing_mm": 1.5}, "at most 3 times as long as wide"),
        ({"count": 40}, "it needs a volume with sides of 20 to 100 mm"),
        ({"orientation": SLANTED}, "within 20 degrees of an axis of the patient"),
        ({"orientation": (1, 0, 0, 1, 0, 0)}, "its Image Orientation (Patient) is impossible"),
        ({"spacing_mm": float("nan")}, "it needs a known Pixel Spacing"),
    ],
)
def test_a_series_that_makes_no_such_volume_is_skipped_with_the_reason(
    upper: Registry, render: Render, attempt: After, bad: dict[str, Any], why: str
) -> None:
    run = attempt(series(render, **bad))
    result = analyze(AnalyzeImages(model="upper"), run.context, upper)
    assert not result.findings
    assert not result.volumes
    (message,) = skipped(run)
    assert why in message


def test_images_without_a_place_are_skipped(
    upper: Registry, render: Render, attempt: After
) -> None:
    upstream = series(render)
    for image in upstream.result.images:
        image.ClearField("image_positions_mm")
    run = attempt(upstream)
    analyze(AnalyzeImages(model="upper"), run.context, upper)
    assert all("a known Image Position (Patient)" in message for message in skipped(run))


def test_a_volume_unlike_the_training_data_is_skipped(
    upper: Registry, render: Render, attempt: After
) -> None:
    slices = [np.full((1, SIDE, SIDE), 3, np.uint16) for _ in range(SIDE)]
    upstream = render(
        *slices, unit="1", modality="MR", series_instance_uid="1", pixel_spacing_mm=[STEP_MM] * 2
    )
    for number, image in enumerate(upstream.result.images):
        image.image_orientation.extend(AXIAL)
        image.image_positions_mm.extend((0, 0, STEP_MM * number))
    run = attempt(upstream)
    analyze(AnalyzeImages(model="upper"), run.context, upper)
    assert all("unlike what the model was trained on" in message for message in skipped(run))


def test_one_image_that_does_not_match_its_certificate_fails_and_the_others_are_skipped(
    upper: Registry, render: Render, attempt: After
) -> None:
    upstream = series(render)
    upstream.result.images[3].certificate.sha256 = bytes(32)
    run = attempt(upstream)
    analyze(AnalyzeImages(model="upper"), run.context, upper)
    reasons = [run.context.items[number].reason for number in range(SIDE)]
    assert reasons[3] == "PIXELS_NOT_CERTIFIED"
    assert set(reasons[:3] + reasons[4:]) == {"MODEL_NOT_APPLICABLE"}


def test_a_slice_that_comes_twice_counts_once(
    upper: Registry, render: Render, attempt: After
) -> None:
    upstream = series(render, count=SIDE + 1, order=[*range(SIDE), 3])
    for number, image in enumerate(upstream.result.images):
        image.sop_instance_uid = f"1.2.{number if number < SIDE else 3}"
    run = attempt(upstream)
    result = analyze(AnalyzeImages(model="upper"), run.context, upper)
    assert [found.item for found in result.findings] == [str(number) for number in range(SIDE)]
    (volume,) = result.volumes
    assert volume.slices == SIDE
    assert volume.measurements[1].voxels == SIDE**3 // 2
    assert "the same instance" in run.context.items[SIDE].message


def test_two_versions_of_a_slice_fail_their_series(
    upper: Registry, render: Render, attempt: After
) -> None:
    upstream = series(render, count=SIDE + 1)
    for number, image in enumerate(upstream.result.images):
        image.sop_instance_uid = f"1.2.{number % SIDE}"
    run = attempt(upstream)
    assert not analyze(AnalyzeImages(model="upper"), run.context, upper).findings
    assert {one.reason for one in run.context.items.values()} == {"SOP_INSTANCE_CONFLICT"}


def test_a_series_of_another_kind_beside_it_does_not_matter(
    upper: Registry, render: Render, attempt: After
) -> None:
    localizers = series(
        render, count=2, orientation=SAGITTAL, name="localizers", series_instance_uid="1.3"
    )
    run = attempt(series(render), localizers)
    result = analyze(AnalyzeImages(model="upper"), run.context, upper)
    assert len(result.volumes) == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (('shape = ["n", 1, 8, 8, 8]\nimage', 'shape = ["n", 1, 8, 8, 4]\nimage'), "to a cube"),
        (("8, 8, 8]\n[[outputs]]", "8, 8, 4]\n[[outputs]]"), "needs a mask in the size"),
        (("planes = 6", "planes = 1"), "greater than or equal to 2"),
        (("[1, 6]", "[6, 1]"), "the least must be below the most"),
        (("overlay = { opacity = 0.5 }", ""), "needs [overlay]"),
        (('{ value = 1, display_name = "top" }', ""), "two labels, outside and inside"),
    ],
)
def test_a_manifest_of_volumes_that_cannot_be_followed_is_refused(
    change: tuple[str, str], why: str
) -> None:

    text = MANIFEST.replace(*change)
    assert text != MANIFEST
    told = tomllib.loads(text)
    files = {"model.onnx": "0" * 64, "warm_up.npz": "0" * 64}
    with pytest.raises(ValidationError, match=why.replace("[", r"\[")):
        Manifest.model_validate({**told, "files": files, "warm_up": {"file": "warm_up.npz"}})
