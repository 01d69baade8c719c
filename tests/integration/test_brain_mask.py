"""DeepBrain out of its wheel: the brain in a painted head, rendered from DICOM files."""

import importlib.util
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from dicom_worker.operations.render import render_dicom
from dicom_worker.studies.painting import head, write_head
from dicom_worker.testing import wheel_file
from fluoro.v1.dicom_pb2 import RenderDicom
from fluoro.v1.ml_pb2 import AnalyzeImages, AnalyzeImagesResult
from fluoro_jobs.testing import Attempt, step_context
from ml_worker.operations.analyze import analyze
from ml_worker.registry import Registry
from ml_worker.settings import ModelSettings

SCRIPT = Path(__file__).parents[2] / "services" / "ml-worker" / "deepbrain.py"
LEAST_DICE = 0.85
"""The painted head has no convolutions, which the network looks for."""

HALF = 56
"""Slices from the feet up, the fewest whose extent is that of a head."""

Seen = tuple[Attempt, AnalyzeImagesResult]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deepbrain", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["deepbrain"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    weights, folder = script.download(), tmp_path_factory.mktemp("models")
    places = [script.write(folder / name, weights) for name in ("models", "again")]
    files = [(place / "model.onnx").read_bytes() for place in places]
    assert files[0] == files[1]
    registry = Registry(ModelSettings(models_folder=folder / "models"))
    registry.open()
    return registry


@pytest.fixture
def see(models: Registry, tmp_path: Path) -> Callable[[list[bytes]], Seen]:
    """Renders files and shows them to the model."""

    def seen(files: list[bytes]) -> Seen:
        rendering = step_context(tmp_path, files, step="render")
        upstream = rendering.as_upstream(render_dicom(RenderDicom(), rendering.context))
        run = step_context(tmp_path, (), (upstream,), "analyze", reads=["pixels"])
        return run, analyze(AnalyzeImages(model="deepbrain"), run.context, models)

    return seen


def painted(folder: Path) -> list[bytes]:
    write_head(folder)
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def test_a_painted_head_has_its_brain_where_it_was_painted(
    see: Callable[[list[bytes]], Seen], tmp_path: Path
) -> None:
    (folder := tmp_path / "head").mkdir()
    run, result = see(painted(folder))
    maps = [np.load(io.BytesIO(run.read(found.label_map)))[0] for found in result.findings]
    _, brain = head()
    found = np.stack(maps).astype(bool)
    dice = 2 * (found & brain).sum() / (found.sum() + brain.sum())
    assert dice > LEAST_DICE
    (volume,) = result.volumes
    assert volume.measurements[1].display_name == "brain"
    assert volume.measurements[1].voxels == found.sum()


def test_half_a_head_and_images_of_other_things_are_skipped(
    see: Callable[[list[bytes]], Seen], tmp_path: Path
) -> None:
    (folder := tmp_path / "head").mkdir()
    files = painted(folder)
    names = ("CT_small", "MR_small", "MR_small_bigendian")
    run, result = see([*files[:HALF], *(wheel_file(name) for name in names)])
    assert not result.findings
    told = [
        item.message.removeprefix("deepbrain is not made for this image: ")
        for item in run.context.items.values()
    ]
    assert set(told[:HALF]) == {"it is unlike what the model was trained on."}
    assert told[HALF] == "it needs Modality MR."
    assert {message.split(" ")[0] for message in told[HALF + 1 :]} == {"it"}
