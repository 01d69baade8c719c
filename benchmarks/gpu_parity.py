"""What each model says on the GPU, against the same on the CPU.

The models are those that ship, those of FLUORO_ML_MODELS_FOLDER, and a graph the size of ResNet-50.
Each is shown full runs of its warm-up sample with mirror images of it. A line per model has the
largest difference of each output (`max_abs`), the share of samples or pixels that get another label
(`label_differs`), samples per second on both devices, and the GPU's memory that the model took
(`gpu_mib`). A model that the GPU does not serve has its `problem` instead.

Last line: `ratio` = outputs within the tolerance of their manifest / all outputs. 1 is parity.
`speed` = samples per second of the graph the size of ResNet-50, GPU / CPU.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from batching import write_resnet
from ml_worker.gpu_memory import free_bytes
from ml_worker.manifest import Device, Manifest, ModelRefusedError
from ml_worker.parity import parities
from ml_worker.repository import places, read_model
from ml_worker.running import Tensors
from ml_worker.sessions import Model, in_company, open_model
from ml_worker.settings import ModelSettings
from ml_worker.waiting import Alone
from ml_worker.warm_up import read_sample
from rig.figures import quick, say
from rig.gpu import gpu

RESNET: Final = "resnet50"


def rate(model: Model, shown: Tensors, seconds: float) -> float:
    """Samples per second in full runs, for so long and at least one run."""
    samples, began = 0, time.perf_counter()
    while samples == 0 or time.perf_counter() - began < seconds:
        model.run(shown, Alone())
        samples += len(next(iter(shown.values())))
    return samples / (time.perf_counter() - began)


def measured(place: Path, device: Device, seconds: float) -> dict[str, Any]:
    """The figures of one model. ModelRefusedError if one of the devices does not serve it."""
    files = read_model(place)
    manifest = files.manifest
    shown = in_company(read_sample(manifest, files.files[manifest.warm_up.file]), manifest)
    on_cpu = open_model(files, ModelSettings(device="cpu"))
    free_before = free_bytes() if device == "cuda" else None
    on_gpu = open_model(files, ModelSettings(device=device))
    free_after = free_bytes() if device == "cuda" else None
    found = list(parities(manifest, on_gpu.run(shown, Alone()), on_cpu.run(shown, Alone())))
    differs = [one.label_differs for one in found if one.label_differs is not None]
    return {
        "within": [one.problem is None for one in found],
        "max_abs": {one.output: one.max_abs for one in found},
        "label_differs": max(differs, default=None),
        "cpu_per_second": rate(on_cpu, shown, seconds),
        "gpu_per_second": rate(on_gpu, shown, seconds),
        "gpu_mib": (free_before - free_after) / 2**20 if free_before and free_after else None,
    }


def folders(extra: Path) -> Iterator[Path]:
    """Every model's folder."""
    for folder in (*ModelSettings().folders, extra):
        yield from (place.folder for place in places(folder))


def main(device: Device, seconds: float) -> None:
    """seconds: for which each model runs on each device."""
    within: list[bool] = []
    speed = 0.0
    with tempfile.TemporaryDirectory() as made:
        write_resnet(Path(made))
        for place in folders(Path(made)):
            name = f"{place.parent.name} {place.name}"
            try:
                figures = measured(place, device, seconds)
            except ModelRefusedError as error:
                # A model that the GPU does not serve has no output within its tolerance.
                within += [False] * outputs_of(place)
                say(name, problem=str(error))
                continue
            within += figures["within"]
            if place.parent.name == RESNET:
                speed = figures["gpu_per_second"] / figures["cpu_per_second"]
            say(name, **figures)
    say("gpu_parity", ratio=sum(within) / len(within), speed=speed, device=device)


def outputs_of(place: Path) -> int:
    """How many outputs the manifest of a model names; 1 if it cannot be read."""
    try:
        manifest: Manifest = read_model(place).manifest
    except ModelRefusedError:
        return 1
    return len(manifest.outputs)


if __name__ == "__main__":
    if quick(__doc__):
        main(gpu(or_cpu=True), 0)
    else:
        main(gpu(or_cpu=False), 2)
