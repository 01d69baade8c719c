"""One ONNX Runtime session per model, shared by all threads of the worker."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread, Timer
from typing import Any, Final, cast

import numpy as np
import onnxruntime as ort
from fluoro.v1 import ml_pb2
from fluoro.v1.model_pb2 import Model as ModelProto
from fluoro_jobs.errors import CancelledAttempt, FluoroError, Reason
from numpy.typing import NDArray

from ml_worker.devices import PROVIDERS, nodes_on_cpu
from ml_worker.graph import checked_graph
from ml_worker.manifest import INTENDED_USE, Manifest, ModelRefusedError
from ml_worker.outputs import Output, Sums
from ml_worker.repository import ModelFiles
from ml_worker.settings import ModelSettings
from ml_worker.warm_up import difference, fits, read_sample

CANCEL_POLL_SECONDS: Final = 0.05
"""Interval at which a run looks whether it was cancelled."""

WARM_UP_SECONDS: Final = 120
"""Longest run of a sample: a graph may go round for ever, and the other models wait."""

ERROR_SEVERITY: Final = 3
"""ONNX Runtime's number for `log errors only`."""

Tensors = Mapping[str, NDArray[Any]]
"""Arrays by the names of the graph's inputs or outputs; the first axis is that of samples."""
Run = Callable[[Tensors], dict[str, NDArray[Any]]]
"""Shows inputs to a model; gives every output of its manifest."""


@dataclass(frozen=True, slots=True)
class Model:
    """An open model that has shown that it works.

    Any number of threads may run it at once; memory of one run is bounded by run_memory_bytes.
    """

    manifest: Manifest
    session: ort.InferenceSession
    run_memory_bytes: int
    manifest_sha256: bytes = b""

    @property
    def reference(self) -> ml_pb2.ModelReference:
        """What ran: enough to run it again."""
        return ml_pb2.ModelReference(
            name=self.manifest.name,
            version=self.manifest.version,
            sha256=bytes.fromhex(self.manifest.files["model.onnx"]),
            manifest_sha256=self.manifest_sha256,
            execution_provider=self.execution_provider,
            runtime_version=ort.__version__,
            intended_use=INTENDED_USE[self.manifest.intended_use],
        )

    @property
    def execution_provider(self) -> str:
        """What runs it."""
        return str(self.session.get_providers()[0])

    def samples_per_run(self, spatial: Sequence[int]) -> int:
        """How many samples of that size in space may be shown at once.

        FluoroError IMAGE_TOO_LARGE if not even one.
        """
        batch = self.manifest.batch
        samples = self.run_memory_bytes // (math.prod(spatial) * batch.bytes_per_voxel)
        if samples == 0:
            raise FluoroError(
                Reason.IMAGE_TOO_LARGE,
                f"A sample of {' x '.join(map(str, spatial))} voxels needs more memory than one "
                "run may have.",
            )
        return min(samples, batch.max)

    @contextmanager
    def runs(self, cancelled: Event) -> Iterator[Run]:
        """Yields a function that shows a batch of samples to the model.

        It may be called any number of times, one call after the other. Once `cancelled` is set, a
        run ends within one node of the graph and raises CancelledAttempt. Outputs that are not
        numbers, or not one for each sample, raise FluoroError MODEL_OUTPUT_INVALID. Any other
        failure raises FluoroError INTERNAL. It is not the pixels' fault, so another attempt may
        succeed.
        """
        options = ort.RunOptions()
        over = Event()

        def run(inputs: Tensors) -> dict[str, NDArray[Any]]:
            try:
                found = self._run(inputs, options)
            except FluoroError:
                raise
            except Exception as error:
                # ONNX Runtime reports a run that it was told to end like any other failure.
                if cancelled.is_set():
                    raise CancelledAttempt from error
                what = f"Running {self._title} failed ({type(error).__name__})."
                raise FluoroError(Reason.INTERNAL, what) from error
            for output in self.manifest.outputs:
                self._check(output, found[output.name])
            return found

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

    @property
    def _title(self) -> str:
        return f"{self.manifest.name} {self.manifest.version}"

    def _check(self, output: Output, values: NDArray[Any]) -> None:
        # A sum of values is what the values are: an image may hold infinities.
        must_be_numbers = values.dtype.kind == "f" and not isinstance(output, Sums)
        if must_be_numbers and not np.isfinite(values).all():
            raise FluoroError(
                Reason.MODEL_OUTPUT_INVALID,
                f"{self._title} gave values for this image that are not numbers.",
            )

    def _run(self, inputs: Tensors, options: ort.RunOptions) -> dict[str, NDArray[Any]]:
        names = [output.name for output in self.manifest.outputs]
        given = {
            tensor.name: np.ascontiguousarray(inputs[tensor.name], tensor.dtype)
            for tensor in self.manifest.inputs
        }
        samples = len(next(iter(given.values())))
        rung = self.manifest.batch.rung(samples)
        if rung > samples:
            given = {name: _filled(values, rung) for name, values in given.items()}
        # The manifest promises arrays, and the graph was held to it.
        found = cast("list[NDArray[Any]]", self.session.run(names, given, options))
        for output, values in zip(self.manifest.outputs, found, strict=True):
            if not fits(values.shape, (rung, *output.shape[1:])):
                raise FluoroError(
                    Reason.MODEL_OUTPUT_INVALID,
                    f"{self._title} gave {output.name} in the shape {list(values.shape)} for "
                    f"{rung} samples. Its manifest says {list(output.shape)}.",
                )
        return {name: values[:samples] for name, values in zip(names, found, strict=True)}


def _filled(values: NDArray[Any], samples: int) -> NDArray[Any]:
    """With the last sample repeated: zeros could be what a model cannot work with."""
    return np.concatenate([values, np.repeat(values[-1:], samples - len(values), axis=0)])


def stop_when(cancelled: Event, over: Event, options: ort.RunOptions) -> None:
    """Ends the run that has these options once `cancelled` is set; returns once `over` is."""
    while not over.wait(CANCEL_POLL_SECONDS):
        if cancelled.is_set():
            options.terminate = True
            return


def open_model(files: ModelFiles, settings: ModelSettings) -> Model:
    """Opens a model, holds it against its manifest and runs its warm-up sample.

    ModelRefusedError if it cannot be served on the device.
    """
    manifest = files.manifest
    provider = manifest.provider(settings.device)
    name, options = PROVIDERS[settings.device]
    graph = checked_graph(manifest, files.files)
    sample = read_sample(manifest, files.files[manifest.warm_up.file])
    try:
        session = ort.InferenceSession(
            graph, session_options(settings), providers=[(name, {**options, **provider.options})]
        )
    except Exception as error:
        raise ModelRefusedError(
            ModelProto.PROBLEM_RUN_FAILED,
            f"ONNX Runtime {ort.__version__} cannot open model.onnx: {error}",
        ) from error
    check_placement(session, settings, provider.cpu_ops)
    model = Model(manifest, session, settings.run_memory_bytes, files.manifest_sha256)
    over = Event()
    alarm = Timer(WARM_UP_SECONDS, over.set)
    alarm.daemon = True
    alarm.start()
    try:
        with model.runs(over) as run:
            found = run({tensor.name: sample[tensor.name] for tensor in manifest.inputs})
    except CancelledAttempt:
        raise ModelRefusedError(
            ModelProto.PROBLEM_RUN_FAILED,
            f"The warm-up run takes more than {WARM_UP_SECONDS} s. Put a smaller sample there.",
        ) from None
    except FluoroError as error:
        why = error.__cause__ or error
        raise ModelRefusedError(
            ModelProto.PROBLEM_RUN_FAILED, f"The warm-up run failed: {why}"
        ) from error
    finally:
        alarm.cancel()
    for output in manifest.outputs:
        if (what := difference(manifest, output, found[output.name], sample)) is not None:
            raise ModelRefusedError(ModelProto.PROBLEM_WARM_UP_DIFFERS, what)
    return model


def session_options(settings: ModelSettings) -> ort.SessionOptions:
    """Few threads that do not spin, and memory that goes back to the system after each run."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.intra_op_threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.enable_cpu_mem_arena = False
    options.log_severity_level = ERROR_SEVERITY
    return options


def check_placement(
    session: ort.InferenceSession, settings: ModelSettings, cpu_ops: Sequence[str]
) -> None:
    """ModelRefusedError FELL_BACK_TO_CPU unless the device runs it, but for these operators.

    ONNX Runtime falls back to the CPU with only a line in the log. That is a hundred times slower,
    and nobody would know.
    """
    name, _ = PROVIDERS[settings.device]
    if session.get_providers()[0] != name:
        raise ModelRefusedError(
            ModelProto.PROBLEM_FELL_BACK_TO_CPU,
            f"FLUORO_ML_DEVICE is {settings.device}, but {name} does not work here. "
            "Is there a GPU and a driver?",
        )
    placed = {
        part.ep_name: [node.op_type for node in part.get_nodes()]
        for part in session.get_provider_graph_assignment_info()
    }
    strays = nodes_on_cpu(settings.device, placed, cpu_ops)
    if strays:
        raise ModelRefusedError(
            ModelProto.PROBLEM_FELL_BACK_TO_CPU,
            f"FLUORO_ML_DEVICE is {settings.device}, but the CPU would run {', '.join(strays)}. "
            f"Change the graph, or list them as cpu_ops in [providers.{settings.device}].",
        )
