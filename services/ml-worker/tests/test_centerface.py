"""CenterFace out of its wheel: the face in a photograph, with its eyes."""

import importlib.util
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from fluoro.v1.detect_pb2 import DetectedObject, DetectObjects
from fluoro_jobs.testing import Attempt
from fluoro_jobs.worker.context import Upstream
from ml_worker.operations.detect import detect
from ml_worker.registry import Registry
from ml_worker.settings import ModelSettings
from skimage.data import astronaut

SCRIPT = Path(__file__).parents[1] / "centerface.py"
EYES = {"eye, left in the image": (204, 101), "eye, right in the image": (247, 103)}
"""Column and row in the portrait, read off by eye."""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("centerface", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["centerface"] = module
    spec.loader.exec_module(module)
    return module


def eyes_of(face: DetectedObject) -> dict[str, tuple[float, float]]:
    return {each.name: (each.x, each.y) for each in face.landmarks if each.name in EYES}


def test_a_portrait_has_one_face_with_two_eyes_where_they_are(
    script: ModuleType,
    tmp_path: Path,
    render: Callable[..., Upstream],
    attempt: Callable[..., Attempt],
) -> None:
    network, license_ = script.download()
    places = [
        script.write(tmp_path / name, deepcopy(network), license_) for name in ("models", "again")
    ]
    files = [(place / "model.onnx").read_bytes() for place in places]
    assert files[0] == files[1]
    assert "Martin Drawitsch" in (places[0] / "CARD.md").read_text()
    models = Registry(ModelSettings(models_folder=tmp_path / "models"))
    models.open()

    portrait = astronaut()
    # Once as it is, once in a wide picture that is shown in a third of its size, once without her.
    wide = np.zeros((1, 512, 1920, 3), "|u1")
    wide[0, :, 1000:1512] = portrait
    empty = portrait[np.newaxis, 300:, 300:]
    run = attempt(render(portrait[np.newaxis], wide, empty, unit="1", modality="XC"))
    result = detect(DetectObjects(model="centerface"), run.context, models)
    found = [list(image.objects) for image in result.images]
    assert [len(faces) for faces in found] == [1, 1, 0]
    (face,), (far,) = found[:2]
    assert (face.display_name, face.frame) == ("face", 1)
    assert face.score > 0.8
    for name, (x, y) in EYES.items():
        assert eyes_of(face)[name] == pytest.approx((x, y), abs=5), name
        assert eyes_of(far)[name] == pytest.approx((1000 + x, y), abs=8), name
    assert far.left == pytest.approx(1000 + face.left, abs=12)
    assert far.height == pytest.approx(face.height, rel=0.2)
    assert all(face.left < x < face.left + face.width for x, _ in eyes_of(face).values())
    assert all(face.top < y < face.top + face.height / 2 for _, y in eyes_of(face).values())
