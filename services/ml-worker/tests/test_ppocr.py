"""PP-OCRv4's detector out of its wheel, as a model of DetectObjects: painted text, and none."""

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from fluoro.v1.detect_pb2 import DetectedImage, DetectObjects
from fluoro_jobs.testing import Attempt
from fluoro_jobs.worker.context import Upstream
from ml_worker.operations.detect import detect
from ml_worker.registry import Registry
from ml_worker.repository import read_model
from ml_worker.settings import ModelSettings
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SCRIPT = Path(__file__).parents[1] / "ppocr.py"
Pixels = NDArray[np.uint8]
Render = Callable[..., Upstream]
After = Callable[..., Attempt]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ppocr", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ppocr"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = script.write(tmp_path_factory.mktemp("models"), script.download())
    return made


@pytest.fixture(scope="module")
def models(place: Path) -> Registry:
    registry = Registry(ModelSettings(models_folder=place.parents[1]))
    registry.open()
    return registry


def painted(rows: int, columns: int, left: int, top: int, size: int) -> Pixels:
    """A dark page with a name on it."""
    picture = Image.new("L", (columns, rows), 30)
    font = ImageFont.load_default(size)
    ImageDraw.Draw(picture).text((left, top), "MUELLER 1962", fill=200, font=font)
    return np.asarray(picture)


def found_in(
    pictures: list[Pixels], render: Render, attempt: After, models: Registry
) -> list[DetectedImage]:
    arrays = [picture[np.newaxis] for picture in pictures]
    run = attempt(render(*arrays, unit="1", modality="XC"))
    return list(detect(DetectObjects(model="text-lines"), run.context, models).images)


def check_surrounds(found: DetectedImage, picture: Pixels) -> None:
    """One box, around the ink and not much wider."""
    (line,) = found.objects
    rows, columns = np.nonzero(picture > 120)
    slack = 0.4 * (rows.max() - rows.min())
    assert (line.display_name, line.frame) == ("text", 1)
    assert line.score > 0.8
    assert line.left == pytest.approx(columns.min(), abs=slack)
    assert line.top == pytest.approx(rows.min(), abs=slack)
    assert line.left + line.width == pytest.approx(columns.max(), abs=slack)
    assert line.top + line.height == pytest.approx(rows.max(), abs=slack)


def test_a_line_of_text_is_found_where_it_is_in_images_of_any_size(
    models: Registry, render: Render, attempt: After
) -> None:
    pictures = [
        painted(200, 300, 40, 60, 16),
        painted(700, 960, 300, 500, 40),
        painted(2000, 3000, 400, 1200, 90),
        painted(600, 30_000, 9000, 60, 480),
    ]
    found = found_in(pictures, render, attempt, models)
    assert [image.input for image in found] == [0, 1, 2, 3]
    for image, picture in zip(found, pictures, strict=True):
        check_surrounds(image, picture)


def test_images_without_text_have_none_however_small(
    models: Registry, render: Render, attempt: After
) -> None:
    noise = np.random.default_rng(7).normal(128, 12, (300, 400)).astype(np.uint8)
    color = np.full((200, 100, 3), (200, 120, 90), np.uint8)
    empty = np.zeros((64, 64), np.uint8)
    pixel = np.full((1, 1), 255, np.uint8)
    line = np.full((1, 30_000), 77, np.uint8)
    pictures = [noise, color, empty, pixel, line]
    found = found_in(pictures, render, attempt, models)
    assert [(image.input, len(image.objects)) for image in found] == [(n, 0) for n in range(5)]


def test_what_the_card_says_is_measured_on_painted_words_and_on_pictures(
    script: ModuleType, place: Path
) -> None:
    manifest, network = read_model(place).manifest, (place / "model.onnx").read_bytes()
    pages = [(ground, 0) for ground in script.SMOOTH]
    figures = script.measured(manifest, network, pages, ["brick", "retina", "moon"])
    assert {figures.recall(script.SMOOTH, [0], size) for size in script.SIZES[1:]} == {1}
    assert figures.aside == 0
    # Craters look like letters to it, and the card says so.
    assert figures.pictures["brick"] == figures.pictures["retina"] == 0
    assert 1 <= figures.pictures["moon"] <= 3

    every = Counter({(*page, size): 2 for page in script.EVERY_PAGE for size in script.SIZES})
    half = Counter(dict.fromkeys(every, 1))
    card = script.Figures(half, every, 1, 5, {"brick": 0, "moon": 2}).card()
    assert "| 8 | 50% | 50% | 50% |" in card
    assert "of 2 of scikit-image, 1 have boxes:\n  moon 2." in card
    assert "craters" in (place / "CARD.md").read_text()
