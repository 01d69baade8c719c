"""EfficientNet-Lite0 out of its wheel: photographs become vectors that know what is in them."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from fluoro.v1.embedding_pb2 import EmbedImages, FindSimilar
from fluoro_jobs.testing import Attempt, step_context
from fluoro_jobs.worker.context import Upstream
from ml_worker.operations.embed import embed
from ml_worker.operations.similar import find_similar
from ml_worker.registry import Registry
from ml_worker.settings import ModelSettings
from sklearn.datasets import load_sample_images

SCRIPT = Path(__file__).parents[1] / "efficientnet_lite0.py"
TEMPLES = {442, 483, 497, 698}
"""Classes of ImageNet: bell cote, castle, church, palace."""
DAISY = 985


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("efficientnet_lite0", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["efficientnet_lite0"] = module
    spec.loader.exec_module(module)
    return module


def test_photographs_have_vectors_by_which_the_like_are_found(
    script: ModuleType,
    tmp_path: Path,
    render: Callable[..., Upstream],
    attempt: Callable[..., Attempt],
) -> None:
    weights = script.download()
    places = [script.write(tmp_path / name, weights) for name in ("models", "again")]
    files = [(place / "model.onnx").read_bytes() for place in places]
    assert files[0] == files[1]
    models = Registry(ModelSettings(models_folder=tmp_path / "models"))
    models.open()

    temple, flower = (image[np.newaxis] for image in load_sample_images().images)
    arrays = [temple, flower, temple[:, 20:, 30:], flower[:, ::-1, ::-1]]
    upstream = render(*map(np.ascontiguousarray, arrays), unit="1", modality="XC")
    run = attempt(upstream)
    result = embed(EmbedImages(model="efficientnet-lite0"), run.context, models)
    assert [each.dimensions for each in result.embeddings] == [1280] * 4
    assert result.model.intended_use == models.find("efficientnet-lite0").reference.intended_use
    after = step_context(tmp_path, (), [run.as_upstream(result)], reads=["embedding"])
    found = find_similar(FindSimilar(neighbors=1), after.context).found
    assert [one.neighbors[0].input for one in found] == [2, 3, 0, 1]

    # The last layer, which the model leaves out, has the classes to check the conversion by.
    tops = []
    for each in result.embeddings[:2]:
        vector = np.load(run.context.fetch(run.context.artifacts[each.vectors].blob))[0]
        # The vectors' lengths are gone; without the bias the order of the classes stays close.
        tops.append(set(np.argsort(-(weights["_fc.weight"] @ vector))[:4].tolist()))
    assert tops[0] & TEMPLES, tops
    assert DAISY in tops[1], tops
