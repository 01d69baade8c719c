"""One ONNX Runtime session per model, shared by all threads of the worker."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Timer
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from fluoro.v1 import ml_pb2
from fluoro.v1.model_pb2 import Model as ModelProto
from fluoro_jobs.errors import CancelledAttempt, FluoroError, Reason
from numpy.typing import NDArray

from ml_worker.batching import Batcher, Rules
from ml_worker.devices import PROVIDERS, nodes_on_cpu
from ml_worker.gpu_memory import check_room
from ml_worker.graph import checked_graph
from ml_worker.manifest import INTENDED_USE, Manifest, ModelRefusedError
from ml_worker.outputs import Output, Sums
from ml_worker.repository import ModelFiles
from ml_worker.running import Tensors, run_session, still_works
from ml_worker.settings import ModelSettings
from ml_worker.waiting import Alone, Caller, Work
from ml_worker.warm_up import difference, fits, read_sample

COMPANY: Final = (
    " They depend on what else is in the run, and images of other jobs may be: mend the graph, or "
    "say batch.max = 1."
)

WARM_UP_SECONDS: Final = 120
"""Longest run of a sample: a graph may go round for ever, and the other models wait."""

FATAL_SEVERITY: Final = 4
"""ONNX Runtime's number for `log what ends the process only`.

A run that fails is told to its caller. ONNX Runtime's own words may quote the image.
"""


@dataclass(frozen=True, slots=True)
class Model:
    """An open model that has shown that it works.

    Any number of threads may run it at once; memory of one run is bounded by run_memory_bytes.
    """

    manifest: Manifest
    session: ort.InferenceSession
    run_memory_bytes: int
    batcher: Batcher
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
        # To shrink the sample would be another image than the one that was certified.
        if samples == 0:
            raise FluoroError(
                Reason.IMAGE_TOO_LARGE,
                f"A sample of {' x '.join(map(str, spatial))} voxels needs more memory than one "
                "run may have.",
            )
        return min(samples, batch.max)

    def run(self, inputs: Tensors, caller: Caller) -> dict[str, NDArray[Any]]:
        """Shows samples to the model, along with those of other jobs; every output of its manifest.

        inputs: by the names of the graph's inputs, first axis N. Any number of samples: they run as
        many at a time as fit. caller: a StepContext. Errors as of `Batcher.result`, and
        IMAGE_TOO_LARGE if a run may not have the memory for one sample.
        """
        return self.batcher.result(self.submit(inputs, caller))

    def submit(self, inputs: Tensors, caller: Caller, delay_seconds: float | None = None) -> Work:
        """Begins `run`, so that the caller can prepare more meanwhile.

        Ask `batcher.result`, or call `batcher.leave`. delay_seconds: how long to wait for company;
        None: as the manifest says. FluoroError IMAGE_TOO_LARGE as of `run`.
        """
        given = {
            tensor.name: np.ascontiguousarray(inputs[tensor.name], tensor.dtype)
            for tensor in self.manifest.inputs
        }
        if delay_seconds is None:
            delay_seconds = self.manifest.batch.max_delay_seconds
        return self.batcher.submit(given, self.most_samples(given), caller, delay_seconds)

    def most_samples(self, inputs: Tensors) -> int:
        """How many samples like these may be shown at once. Errors as of `samples_per_run`."""
        sizes = [
            [
                size
                for letter, size in zip(tensor.layout, inputs[tensor.name].shape, strict=True)
                if letter not in "NC"
            ]
            for tensor in self.manifest.inputs
        ]
        return self.samples_per_run(max(sizes, key=math.prod))


def batcher(
    session: ort.InferenceSession, manifest: Manifest, sample: Tensors, settings: ModelSettings
) -> Batcher:
    """What runs the session. sample: what the model can run if it can run anything."""
    names = [output.name for output in manifest.outputs]
    title = f"{manifest.name} {manifest.version}"
    one = {tensor.name: sample[tensor.name][:1].copy() for tensor in manifest.inputs}

    def run(inputs: Tensors, rung: int, options: ort.RunOptions) -> dict[str, NDArray[Any]]:
        found = run_session(session, names, inputs, rung, options)
        for output in manifest.outputs:
            check_shape(title, output, found[output.name], rung)
        return found

    def check(found: Tensors) -> None:
        for output in manifest.outputs:
            check_numbers(title, output, found[output.name])

    def works() -> bool:
        return still_works(session, names, one, manifest.batch.rung(1), settings.run_seconds)

    batch = manifest.batch
    # One run at a time: it has all threads already, and a second one would double the memory.
    rules = Rules(1, settings.run_seconds, batch.rung, batch.ladder)
    return Batcher(manifest.name, title, rules, run, check, works)


def check_shape(title: str, output: Output, values: NDArray[Any], samples: int) -> None:
    """FluoroError MODEL_OUTPUT_INVALID unless they are of so many samples."""
    if not fits(values.shape, (samples, *output.shape[1:])):
        raise FluoroError(
            Reason.MODEL_OUTPUT_INVALID,
            f"{title} gave {output.name} in the shape {list(values.shape)} for {samples} samples. "
            f"Its manifest says {list(output.shape)}.",
        )


def check_numbers(title: str, output: Output, values: NDArray[Any]) -> None:
    """FluoroError MODEL_OUTPUT_INVALID unless they are numbers."""
    # A sum of values is what the values are: an image may hold infinities.
    must_be_numbers = values.dtype.kind == "f" and not isinstance(output, Sums)
    if must_be_numbers and not np.isfinite(values).all():
        raise FluoroError(
            Reason.MODEL_OUTPUT_INVALID,
            f"{title} gave values for this image that are not numbers.",
        )


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
    # Before the first run: a model on the wrong device would pass the warm-up, slowly.
    check_placement(session, settings, provider.cpu_ops)
    model = Model(
        manifest,
        session,
        settings.run_memory_bytes,
        batcher(session, manifest, sample, settings),
        files.manifest_sha256,
    )
    warm_up(model, sample)
    if settings.device == "cuda":
        # Last, because it runs the model at its largest: one that is wrong is refused before.
        check_room(model, sample, settings.gpu_reserve_bytes)
    return model


def warm_up(model: Model, sample: Tensors) -> None:
    """ModelRefusedError unless it gives what the sample promises, whoever is in the run with it.

    Samples of different jobs run together, so what one gets must not depend on the others.
    """
    manifest = model.manifest
    inputs = {tensor.name: sample[tensor.name] for tensor in manifest.inputs}
    first = {name: values[:1] for name, values in inputs.items()}
    company = in_company(inputs, manifest)
    # The sample alone, in company and cut down to its first: a graph that mixes samples would mix
    # patients.
    for shown, hint in ((inputs, ""), (company, COMPANY), (first, COMPANY)):
        found = _warm_up_run(model, shown)
        for output in manifest.outputs:
            got, expected = found[output.name], sample[output.name]
            if hint:  # as many as both have
                got, expected = got[: len(expected)], expected[: len(got)]
            what = difference(manifest, output, got, {output.name: expected})
            if what is not None:
                raise ModelRefusedError(ModelProto.PROBLEM_WARM_UP_DIFFERS, what + hint)


def _warm_up_run(model: Model, shown: Tensors) -> Tensors:
    caller = Alone()
    alarm = Timer(WARM_UP_SECONDS, caller.cancelled.set)
    # A timer must not keep the process from ending.
    alarm.daemon = True
    alarm.start()
    try:
        return model.batcher.result(model.submit(shown, caller, delay_seconds=0))
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


def in_company(inputs: Tensors, manifest: Manifest) -> Tensors:
    """The sample, and others that fill the run up: mirrored images, and the same numbers."""
    shown, batch = {}, manifest.batch
    for tensor in manifest.inputs:
        sample = inputs[tensor.name]
        filling = min(batch.max, batch.rung(len(sample) + 1)) - len(sample)
        others = sample[np.arange(filling) % len(sample)]
        # Company that is the sample itself would hide a graph that mixes samples.
        if "W" in tensor.layout:
            others = np.flip(others, tensor.layout.index("W"))
        shown[tensor.name] = np.concatenate([sample, others])
    return shown


def session_options(settings: ModelSettings) -> ort.SessionOptions:
    """Few threads that do not spin, and memory that goes back to the system after each run."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    # Threads that spin while they wait take processors from the runs of other models.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # `check_placement` needs to know which node runs where.
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.enable_cpu_mem_arena = False
    # A pattern takes all memory of a run as one block. Over 32 MiB, the C library asks the system
    # for that block anew each time, and clearing its pages takes some 5 % of a run.
    options.enable_mem_pattern = False
    options.log_severity_level = FATAL_SEVERITY
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
            "Is there a GPU and a driver? Are the options in the manifest's [providers] right?",
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
