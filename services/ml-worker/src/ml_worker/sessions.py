"""One ONNX Runtime session per model, shared by all threads of the worker.

It is opened and warmed up before the worker is ready.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from threading import Event, Lock, Thread
from typing import Any, Final, cast

import numpy as np
import onnxruntime as ort
from fluoro.v1 import ml_pb2
from fluoro_jobs.errors import CancelledAttempt, FluoroError, Reason
from numpy.typing import NDArray

from ml_worker.manifest import Manifest, ModelFile, ModelRefusedError, Tensor, read_models
from ml_worker.settings import ModelSettings

CANCEL_POLL_SECONDS: Final = 0.05
"""Interval at which a run looks whether it was cancelled."""

WARM_UP_SHAPE: Final = (1, 8, 8)
"""Frames, rows and columns of the zeros that every model sees before it is ready."""

ERROR_SEVERITY: Final = 3
"""ONNX Runtime's number for `log errors only`."""

PROVIDERS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    # HEURISTIC, because EXHAUSTIVE tunes anew for each new image size. kSameAsRequested, because
    # the default doubles what it holds.
    "cuda": (
        "CUDAExecutionProvider",
        {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"},
    ),
}
"""Execution provider and its options by device."""

ONNX_TYPES: Final = {
    "float32": "tensor(float)",
    "float64": "tensor(double)",
    "uint8": "tensor(uint8)",
    "int64": "tensor(int64)",
}


@dataclass(frozen=True, slots=True)
class Found:
    """What a model returns for a chunk of frames.

    labels: uint8 (frames, rows, columns). voxels: int64 (labels). sums: float64 (labels).
    """

    labels: NDArray[np.uint8]
    voxels: NDArray[np.int64]
    sums: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Model:
    """An open model.

    Any number of threads may run it at once; memory of one run is bounded by run_memory_bytes.
    """

    manifest: Manifest
    session: ort.InferenceSession
    run_memory_bytes: int

    @property
    def reference(self) -> ml_pb2.ModelReference:
        """What ran: enough to run it again."""
        return ml_pb2.ModelReference(
            name=self.manifest.name,
            version=self.manifest.version,
            sha256=bytes.fromhex(self.manifest.sha256),
            execution_provider=self.session.get_providers()[0],
            runtime_version=ort.__version__,
        )

    def frames_per_run(self, rows: int, columns: int) -> int:
        """How many frames may be shown at once. FluoroError IMAGE_TOO_LARGE if not even one."""
        frames = self.run_memory_bytes // (rows * columns * self.manifest.working_bytes_per_voxel)
        if frames == 0:
            raise FluoroError(
                Reason.IMAGE_TOO_LARGE,
                f"A frame of {rows} x {columns} voxels needs more memory than one run may have.",
            )
        return frames

    @contextmanager
    def runs(self, cancelled: Event) -> Iterator[Callable[[NDArray[Any]], Found]]:
        """Yields a function that shows frames (frames, rows, columns) to the model.

        It may be called any number of times, one call after the other. Once `cancelled` is set, a
        run ends within one node of the graph and raises CancelledAttempt. Any other failure raises
        FluoroError INTERNAL. It is not the pixels' fault, so another attempt may succeed.
        """
        options = ort.RunOptions()
        over = Event()

        def run(frames: NDArray[Any]) -> Found:
            try:
                return self._run(frames, options)
            except Exception as error:
                # ONNX Runtime reports a run that it was told to end like any other failure.
                if cancelled.is_set():
                    raise CancelledAttempt from error
                model = f"{self.manifest.name} {self.manifest.version}"
                what = f"Running {model} failed ({type(error).__name__})."
                raise FluoroError(Reason.INTERNAL, what) from error

        watcher = Thread(
            target=stop_when,
            args=(cancelled, over, options),
            name="stop-when-cancelled",
            daemon=True,
        )
        watcher.start()
        try:
            yield run
        finally:
            over.set()
            watcher.join()

    def _run(self, frames: NDArray[Any], options: ort.RunOptions) -> Found:
        outputs = self.manifest.outputs
        names = [outputs.label_map.name, outputs.voxels.name, outputs.sums.name]
        values = np.ascontiguousarray(frames, np.float32)
        # The manifest promises arrays of these types, and check_tensors has held the graph to it.
        labels, voxels, sums = cast(
            "list[NDArray[Any]]",
            self.session.run(names, {self.manifest.input.name: values}, options),
        )
        return Found(labels, voxels.sum(axis=0), sums.sum(axis=0))


def stop_when(cancelled: Event, over: Event, options: ort.RunOptions) -> None:
    """Ends the run that has these options once `cancelled` is set; returns once `over` is."""
    while not over.wait(CANCEL_POLL_SECONDS):
        if cancelled.is_set():
            options.terminate = True
            return


def open_models(settings: ModelSettings) -> Mapping[str, Model]:
    """Opens and warms up the newest version of every model, by name.

    ModelRefusedError if one cannot be served on the device.
    """
    check_device(settings.device)
    return {
        file.manifest.name: open_model(file, settings)
        for file in read_models(settings.models_folder)
    }


def check_device(device: str) -> None:
    """ModelRefusedError unless this build of ONNX Runtime has the device."""
    provider, _ = PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise ModelRefusedError(
            f"FLUORO_ML_DEVICE is {device}, but this ONNX Runtime has no {provider}. "
            "Install the extra `gpu`, not `cpu`."
        )
    if device == "cuda":
        ort.preload_dlls()


def open_model(file: ModelFile, settings: ModelSettings) -> Model:
    """Opens a model, checks it against its manifest and runs it once."""
    manifest = file.manifest
    where = f"Model {manifest.name}/{manifest.version}"
    provider, provider_options = PROVIDERS[settings.device]
    try:
        session = ort.InferenceSession(
            file.onnx, session_options(settings), providers=[(provider, provider_options)]
        )
    except Exception as error:
        raise ModelRefusedError(
            f"{where}: ONNX Runtime {ort.__version__} cannot open model.onnx: {error}"
        ) from error
    # ONNX Runtime falls back to the CPU with only a line in the log. That is a hundred times
    # slower, and nobody would know.
    if session.get_providers()[0] != provider:
        raise ModelRefusedError(
            f"{where}: FLUORO_ML_DEVICE is {settings.device}, but {provider} does not work here. "
            "Is there a GPU and a driver?"
        )
    check_tensors(manifest, session)
    model = Model(manifest, session, settings.run_memory_bytes)
    try:
        with model.runs(Event()) as run:
            run(np.zeros(WARM_UP_SHAPE, np.float32))
    except FluoroError as error:
        raise ModelRefusedError(f"{where}: the warm-up run failed: {error.__cause__}") from error
    return model


def session_options(settings: ModelSettings) -> ort.SessionOptions:
    """Few threads that do not spin, and memory that goes back to the system after each run."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.intra_op_threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False
    options.log_severity_level = ERROR_SEVERITY
    return options


def check_tensors(manifest: Manifest, session: ort.InferenceSession) -> None:
    """ModelRefusedError unless the graph has the manifest's inputs and outputs.

    Their types and shapes must be the same.
    """
    expected = (
        [manifest.input],
        [manifest.outputs.label_map, manifest.outputs.voxels, manifest.outputs.sums],
    )
    for role, tensors, nodes in zip(
        ("inputs", "outputs"), expected, (session.get_inputs(), session.get_outputs()), strict=True
    ):
        promised = sorted(signature(tensor) for tensor in tensors)
        found = sorted(f"{node.name} {node.type} {list(node.shape)}" for node in nodes)
        if promised != found:
            raise ModelRefusedError(
                f"Model {manifest.name}/{manifest.version}: model.toml promises the {role} "
                f"{promised}, but model.onnx has {found}."
            )


def signature(tensor: Tensor) -> str:
    """A tensor as ONNX Runtime writes it."""
    return f"{tensor.name} {ONNX_TYPES[tensor.dtype]} {list(tensor.shape)}"


_OPENING: Final = Lock()


@cache
def _opened() -> Mapping[str, Model]:
    return open_models(ModelSettings())


def loaded_models() -> Mapping[str, Model]:
    """The models of this process, by name.

    Opened once, on first use, with ModelSettings from the environment.
    """
    # `cache` alone would have two threads open the models at the same time.
    with _OPENING:
        return _opened()


def warm_up() -> Mapping[str, Model]:
    """Opens the models of this process and runs each once.

    Call it before readiness; ModelRefusedError means do not start.
    """
    return loaded_models()
