"""The device that a benchmark of GPUs runs on."""

from ml_worker.devices import DeviceMissingError, check_device
from ml_worker.manifest import Device
from ml_worker.testing import has_gpu


def gpu(*, or_cpu: bool) -> Device:
    """CUDA, or else the benchmark ends. or_cpu: it runs on the CPU then, to see that it runs."""
    if has_gpu():
        return "cuda"
    if or_cpu:
        return "cpu"
    try:
        check_device("cuda")
    except DeviceMissingError as error:
        raise SystemExit(f"This benchmark needs a GPU. {error}") from error
    raise SystemExit("This benchmark needs a GPU, and none answers. Is there a GPU and a driver?")
