"""docs/bring-your-model.md, run as a reader would: from scikit-learn to a finding."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fluoro.v1 import ml_pb2
from fluoro_jobs.testing import Attempt
from fluoro_jobs.worker.context import Upstream
from ml_worker.operations.analyze import analyze
from ml_worker.registry import Registry
from ml_worker.settings import ModelSettings

PAGE = Path(__file__).parents[3] / "docs" / "bring-your-model.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the script on the page makes."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    start = next(n for n, block in enumerate(blocks) if block.startswith("# bring.py"))
    end = next(n for n, block in enumerate(blocks) if block.startswith("# use.py"))
    place = tmp_path_factory.mktemp("bring")
    (place / "bring.py").write_text("\n".join(blocks[start:end]), encoding="utf-8")
    subprocess.run([sys.executable, "bring.py", "models"], cwd=place, check=True)
    return place / "models"


@pytest.mark.parametrize(
    ("shape", "level", "expected"),
    [((1, 30, 40, 3), 230, "bright"), ((2, 64, 64), 20, "dark")],
    ids=["a photograph", "grey frames"],
)
def test_the_model_of_the_page_classifies_images(
    folder: Path,
    render: Callable[..., Upstream],
    attempt: Callable[..., Attempt],
    shape: tuple[int, ...],
    level: int,
    expected: str,
) -> None:
    models = Registry(ModelSettings(models_folder=folder))
    models.open()
    noise = np.random.default_rng(7).integers(-15, 15, shape)
    run = attempt(render((level + noise).astype("|u1"), unit="1", modality="XC"))
    result = analyze(ml_pb2.AnalyzeImages(model="bright"), run.context, models)
    (finding,) = result.findings
    assert [(score.frame, score.display_name) for score in finding.classes[::2]] == [
        (frame + 1, expected) for frame in range(shape[0])
    ]
    assert sum(score.probability for score in finding.classes[:2]) == pytest.approx(1)
    assert finding.classes[0].probability > 0.9
    assert not run.context.artifacts
    assert result.model.intended_use == 1, "a report says that it is a demonstration"


def test_a_model_that_neither_segments_nor_classifies_is_refused_in_words(
    make_double: Callable[..., Path],
    render: Callable[..., Upstream],
    attempt: Callable[..., Attempt],
    tmp_path: Path,
) -> None:
    make_double(tmp_path / "numbers")
    models = Registry(ModelSettings(models_folder=tmp_path / "numbers"))
    models.open()
    run = attempt(render(np.zeros((1, 2, 2), "|u1"), unit="1"))
    with pytest.raises(Exception, match="AnalyzeImages needs a model of single frames"):
        analyze(ml_pb2.AnalyzeImages(model="double"), run.context, models)
