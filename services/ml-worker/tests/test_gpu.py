"""On a GPU: the same answers as on the CPU, from the GPU and nothing else."""

from pathlib import Path

import pytest
from ml_worker.parity import parities
from ml_worker.registry import Registry
from ml_worker.repository import read_model
from ml_worker.sessions import in_company
from ml_worker.settings import SHIPPED_MODELS, ModelSettings
from ml_worker.testing import has_gpu
from ml_worker.waiting import Alone
from ml_worker.warm_up import read_sample

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not has_gpu(), reason="there is no GPU")]
MODELS = sorted(path.parent for path in SHIPPED_MODELS.glob("*/*/model.toml"))


@pytest.mark.parametrize("place", MODELS, ids=lambda place: f"{place.parent.name} {place.name}")
def test_a_model_gives_on_the_gpu_what_it_gives_on_the_cpu(place: Path) -> None:
    files = read_model(place)
    manifest, found = files.manifest, {}
    shown = in_company(read_sample(manifest, files.files[manifest.warm_up.file]), manifest)
    for device in ("cpu", "cuda"):
        registry = Registry(ModelSettings(device=device))
        registry.open()
        model = registry.find(manifest.name, manifest.version)
        assert model.execution_provider == ("CPU" if device == "cpu" else "CUDA") + (
            "ExecutionProvider"
        )
        found[device] = model.run(shown, Alone())
    for parity in parities(manifest, found["cuda"], found["cpu"]):
        assert parity.problem is None
        assert not parity.label_differs, parity.output
