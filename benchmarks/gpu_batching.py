"""200 callers of one image each on a GPU, on a graph the size of ResNet-50.

`callers`: 200 threads show one prepared image after the other to the batcher, as tasks of an
ml-worker do; their images share runs of up to 32. `once`: ONNX Runtime, one image at a time, with
the same session options. `batch`: ONNX Runtime at the best of some fixed sizes. Images come from
the CPU's memory and outputs return to it, in all three.

Last line: `ratio` = images per second, callers / once. `ratio_batch` = callers / batch.
`gpu_mib`: the GPU's memory that the model took.
"""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from batching import callers, plain, write_resnet
from ml_worker.gpu_memory import free_bytes
from ml_worker.manifest import Device
from ml_worker.repository import read_model
from ml_worker.sessions import open_model
from ml_worker.settings import ModelSettings
from rig.figures import percentile, quick, ratio, say
from rig.gpu import gpu
from rig.resnet import SIDE

CALLERS: Final = 200
LADDER: Final = (1, 2, 4, 8, 16, 32)


def main(device: Device, rounds: int, images: int, sizes: Sequence[int]) -> None:
    """rounds: of so many images each. sizes: batches to choose from."""
    with tempfile.TemporaryDirectory() as folder:
        place = write_resnet(Path(folder), LADDER)
        free_before = free_bytes() if device == "cuda" else None
        model = open_model(read_model(place), ModelSettings(device=device))
        free_after = free_bytes() if device == "cuda" else None
    shown = np.random.default_rng(0).random((images, 3, SIDE, SIDE), np.float32)
    # The first run of each size compiles and chooses kernels.
    for size in LADDER[: len(sizes)]:
        plain(model.session, shown[:size], size)
    tried = {size: plain(model.session, shown, size) for size in sizes}
    best = max(tried, key=tried.__getitem__)
    rates: dict[str, list[float]] = {"callers": [], "once": [], "batch": []}
    seconds: list[float] = []
    for _ in range(rounds):
        rates["callers"].append(callers(model, shown, seconds, CALLERS))
        rates["batch"].append(plain(model.session, shown, best))
        rates["once"].append(plain(model.session, shown, 1))
    for name, per_second in rates.items():
        say(name, per_second=statistics.median(per_second))
    say(
        "gpu_batching",
        ratio=ratio(rates["callers"], rates["once"]),
        ratio_batch=ratio(rates["callers"], rates["batch"]),
        p95_ms=1000 * percentile(seconds, 95),
        best_batch=best,
        gpu_mib=(free_before - free_after) / 2**20 if free_before and free_after else None,
        device=device,
    )


if __name__ == "__main__":
    if quick(__doc__):
        main(gpu(or_cpu=True), 1, 4, (1, 4))
    else:
        main(gpu(or_cpu=False), 5, 2000, LADDER)
