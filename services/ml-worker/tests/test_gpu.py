"""On a GPU: the same answers as on the CPU, from the GPU and nothing else."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from ml_worker.registry import Registry
from ml_worker.repository import read_model
from ml_worker.settings import SHIPPED_MODELS, ModelSettings
from ml_worker.waiting import Alone
from ml_worker.warm_up import read_sample

HAS_GPU = (
    "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    and Path("/dev/nvidia0").exists()
)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="there is no GPU")]
MODELS = sorted(path.parent for path in SHIPPED_MODELS.glob("*/*/model.toml"))


@pytest.mark.parametrize("place", MODELS, ids=lambda place: f"{place.parent.name} {place.name}")
def test_a_model_gives_on_the_gpu_what_it_gives_on_the_cpu(place: Path) -> None:
    files = read_model(place)
    manifest, found = files.manifest, {}
    sample = read_sample(manifest, files.files[manifest.warm_up.file])
    for device in ("cpu", "cuda"):
        registry = Registry(ModelSettings(device=device))
        registry.open()
        model = registry.find(manifest.name, manifest.version)
        assert model.execution_provider == ("CPU" if device == "cpu" else "CUDA") + (
            "ExecutionProvider"
        )
        shown = {one.name: sample[one.name] for one in manifest.inputs}
        found[device] = model.run(shown, Alone())
    for output in manifest.outputs:
        on_cpu, on_gpu = found["cpu"][output.name], found["cuda"][output.name]
        assert np.allclose(on_cpu, on_gpu, atol=1e-3, rtol=1e-3, equal_nan=True), output.name
        if output.kind == "classes":
            assert np.array_equal(on_cpu.argmax(axis=1), on_gpu.argmax(axis=1))
