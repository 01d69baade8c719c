"""Whether a model fits beside the others into the GPU's memory: shown once, before it serves."""

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np
import onnxruntime as ort
from fluoro.v1.model_pb2 import Model as ModelProto

from ml_worker.manifest import ModelRefusedError
from ml_worker.running import Tensors, is_out_of_memory, run_session

if TYPE_CHECKING:
    from ml_worker.sessions import Model

RUNTIMES: Final = ("libcudart.so.13", "libcudart.so.12")
"""CUDA's runtime, which ONNX Runtime has loaded by then."""


def free_bytes() -> int | None:
    """What is free on this process's GPU (cudaMemGetInfo), None if nobody can tell."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    for name in RUNTIMES:
        try:
            runtime = ctypes.CDLL(name)
        except OSError:
            continue
        if runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0:
            return free.value
    return None


def check_room(
    model: "Model", sample: Tensors, reserve_bytes: int, free: Callable[[], int | None] = free_bytes
) -> None:
    """Runs the model at its largest; ModelRefusedError NO_GPU_MEMORY unless that fits.

    sample: of its warm-up. What the run took stays in the session's arena, so that later runs find
    it, and models that come after see what is left. reserve_bytes: must be free still.
    """
    inputs = {tensor.name: sample[tensor.name] for tensor in model.manifest.inputs}
    most = model.most_samples(inputs)
    shown = {name: values[np.arange(most) % len(values)] for name, values in inputs.items()}
    names = [output.name for output in model.manifest.outputs]
    try:
        run_session(model.session, names, shown, most, ort.RunOptions())
    except Exception as error:
        if not is_out_of_memory(error):
            raise ModelRefusedError(
                ModelProto.PROBLEM_RUN_FAILED, f"A run of {most} samples failed: {error}"
            ) from error
        raise _refused(f"A run of {most} samples runs out of it") from error
    left = free()
    # What the run took stays in the arena, so this is all that later models will find.
    if left is not None and left < reserve_bytes:
        raise _refused(f"After a run of {most} samples {left} bytes of it are free")


def _refused(what: str) -> ModelRefusedError:
    return ModelRefusedError(
        ModelProto.PROBLEM_NO_GPU_MEMORY,
        f"{what}. Lower batch.max, remove other models, or give them a worker of their own.",
    )
