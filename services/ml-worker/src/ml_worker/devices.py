"""What runs models, and whether it is really there: without its GPU the worker does not start."""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from typing import Final

import onnxruntime as ort

from ml_worker.manifest import Device

CPU: Final = "CPUExecutionProvider"
PROVIDERS: Final[dict[Device, tuple[str, dict[str, str]]]] = {
    "cpu": (CPU, {}),
    # HEURISTIC, because EXHAUSTIVE tunes anew for each new image size. kSameAsRequested, because
    # the default doubles what it holds. No TF32, because it rounds factors to 10 bits: samples made
    # on a CPU would be missed by more than their tolerance.
    "cuda": (
        "CUDAExecutionProvider",
        {
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": "0",
        },
    ),
}
"""Execution provider and its options by device."""
WHEELS: Final = ("onnxruntime", "onnxruntime-gpu")
"""Share one import package: whichever was installed last is what runs."""


class DeviceMissingError(Exception):
    """The worker does not start; the text says what to mend."""


def check_device(device: Device) -> None:
    """DeviceMissingError unless this installation can run models on the device."""
    check_wheels([name for name in WHEELS if _is_installed(name)], device)
    provider, _ = PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise DeviceMissingError(
            f"FLUORO_ML_DEVICE is {device}, but this ONNX Runtime has no {provider}. "
            "Install the extra `gpu`, not `cpu`."
        )
    if device == "cuda":
        # CUDA's libraries come in wheels, where the system's loader does not look.
        ort.preload_dlls()


def check_wheels(installed: Sequence[str], device: Device) -> None:
    """DeviceMissingError if both wheels are there and a GPU is demanded."""
    # On a CPU either of them runs, whichever was installed last.
    if device != "cpu" and len(installed) > 1:
        raise DeviceMissingError(
            f"Both {' and '.join(installed)} are installed, and overwrite each other. "
            "Make the environment anew with the extra `gpu` alone."
        )


def nodes_on_cpu(
    device: Device, placed: Mapping[str, Sequence[str]], cpu_ops: Sequence[str]
) -> list[str]:
    """Operators that the CPU would run although another device is demanded.

    placed: operators by execution provider. cpu_ops: those that the manifest allows there.
    """
    if device == "cpu":
        return []
    return sorted(set(placed.get(CPU, ())) - set(cpu_ops))


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
