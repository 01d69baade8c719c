"""One run of a session: filled up to its rung, on the CPU or bound to the GPU's memory."""

import re
from collections.abc import Mapping, Sequence
from threading import Timer
from typing import Any, Final, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ml_worker.devices import CPU

Tensors = Mapping[str, NDArray[Any]]
"""Arrays by the names of the graph's inputs or outputs; the first axis is that of samples."""

_NO_MEMORY: Final = re.compile(
    r"bad.?alloc|failed to allocate|out of memory|alloc_failed", re.IGNORECASE
)
"""How ONNX Runtime, CUDA, cuDNN and cuBLAS say so; it has no exception of its own for it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a run failed because a buffer could not be had."""
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None


def run_session(
    session: ort.InferenceSession,
    names: Sequence[str],
    inputs: Tensors,
    rung: int,
    options: ort.RunOptions,
) -> dict[str, NDArray[Any]]:
    """The outputs of these names. What ONNX Runtime raises comes as it is.

    rung: how many samples the run has; the last one is repeated until they are so many, and the
    outputs are of so many too.
    """
    samples = len(next(iter(inputs.values())))
    given = inputs
    if rung > samples:
        # The ladder is for graphs that are fixed to some sizes, or tuned for them.
        given = {name: _filled(values, rung) for name, values in inputs.items()}
    # On the CPU there is nothing to copy, and a binding would only cost time.
    if session.get_providers()[0] == CPU:
        # The manifest promises arrays, and the graph was held to it.
        found = cast("list[NDArray[Any]]", session.run(names, dict(given), options))
    else:
        found = run_bound(session, names, given, options, "cuda")
    return dict(zip(names, found, strict=True))


def run_bound(
    session: ort.InferenceSession,
    names: Sequence[str],
    inputs: Tensors,
    options: ort.RunOptions,
    device: str,
) -> list[NDArray[Any]]:
    """The same with inputs and outputs in the device's memory: one copy there, and one back."""
    binding = session.io_binding()
    for name, values in inputs.items():
        there = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values), device, 0)
        binding.bind_ortvalue_input(name, there)  # type: ignore[no-untyped-call]
    for name in names:
        binding.bind_output(name, device, 0)  # type: ignore[no-untyped-call]
    session.run_with_iobinding(binding, options)  # type: ignore[no-untyped-call]
    found = binding.copy_outputs_to_cpu()  # type: ignore[no-untyped-call]
    return cast("list[NDArray[Any]]", found)


def still_works(
    session: ort.InferenceSession, names: Sequence[str], inputs: Tensors, rung: int, seconds: float
) -> bool:
    """Whether the session runs inputs that it has run before, filled up, within this time."""
    options = ort.RunOptions()
    fuse = Timer(seconds, setattr, (options, "terminate", True))
    # A timer of a long run must not keep the process from ending.
    fuse.daemon = True
    fuse.start()
    try:
        run_session(session, names, inputs, rung, options)
    except Exception:  # noqa: BLE001 - whatever it is, it does not work
        return False
    finally:
        fuse.cancel()
    return True


def _filled(values: NDArray[Any], samples: int) -> NDArray[Any]:
    """With the last sample repeated: zeros could be what a model cannot work with."""
    return np.concatenate([values, np.repeat(values[-1:], samples - len(values), axis=0)])
