"""Holds a graph against its manifest before anything runs it.

`onnx` reads it, not ONNX Runtime: what is refused here has not been near an execution provider.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import onnx
from fluoro.v1.model_pb2 import Model as ModelProto
from google.protobuf.message import DecodeError, Message

from ml_worker.manifest import Input, Manifest, ModelRefusedError
from ml_worker.outputs import Output

MAX_IR_VERSION: Final = 13
"""Newest format of the file that ONNX Runtime 1.31 reads."""
OPSETS: Final = {"": 26, "ai.onnx": 26, "ai.onnx.ml": 5, "com.microsoft": 1}
"""Newest version of each operator set that ONNX Runtime 1.31 runs."""
MAX_GRAPH_BYTES: Final = 2**31 - 1
"""Most bytes of a graph with its weights: protobuf's own limit."""

_DTYPES: Final = {
    "float16": onnx.TensorProto.FLOAT16,
    "float32": onnx.TensorProto.FLOAT,
    "float64": onnx.TensorProto.DOUBLE,
    "uint8": onnx.TensorProto.UINT8,
    "uint16": onnx.TensorProto.UINT16,
    "int32": onnx.TensorProto.INT32,
    "int64": onnx.TensorProto.INT64,
    "bool": onnx.TensorProto.BOOL,
}


def checked_graph(manifest: Manifest, files: Mapping[str, bytes]) -> bytes:
    """The graph of model.onnx as one message, with the weights that it keeps in other files.

    files: those of the manifest, whose hashes are right. ModelRefusedError if the ONNX checker
    (full check) refuses the graph, if it needs operators that are not there, names data outside of
    the files, or has other inputs or outputs than the manifest says.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(files["model.onnx"])
    except DecodeError as error:
        raise _invalid("model.onnx is not an ONNX file.") from error
    # Before the checker, whose words on a newer operator set do not say what to do.
    _check_opsets(model)
    embedded = _embed(model, files)
    try:
        onnx.checker.check_model(model, full_check=True)
    # The checker raises errors of several libraries, and ValueError for a graph that is too large.
    except Exception as error:
        raise _invalid(f"The ONNX checker refuses model.onnx: {error}") from error
    _check_tensors(manifest, model.graph)
    return bytes(model.SerializeToString(deterministic=True)) if embedded else files["model.onnx"]


def _invalid(message: str) -> ModelRefusedError:
    return ModelRefusedError(ModelProto.PROBLEM_GRAPH_INVALID, message)


def _check_opsets(model: onnx.ModelProto) -> None:
    def refuse(what: str) -> ModelRefusedError:
        return ModelRefusedError(
            ModelProto.PROBLEM_OPSET_UNSUPPORTED,
            f"model.onnx needs {what}. Export it for an older one.",
        )

    if model.ir_version > MAX_IR_VERSION:
        raise refuse(f"IR version {model.ir_version}, and this release reads {MAX_IR_VERSION}")
    for used in (*model.opset_import, *(o for f in model.functions for o in f.opset_import)):
        newest = OPSETS.get(used.domain, 0)
        # A function of the file itself has a domain of its own, and brings its nodes.
        local = any(function.domain == used.domain for function in model.functions)
        if used.version > newest and not local:
            raise refuse(
                f"operator set {used.domain or 'ai.onnx'!r} {used.version}, and this release runs "
                f"{newest or 'none of it'}"
            )


def _embed(model: onnx.ModelProto, files: Mapping[str, bytes]) -> bool:
    """Puts weights from other files into the message. Whether there are any.

    ONNX Runtime would read these files again, by then perhaps others, and checks no hash.
    """
    outside = [
        tensor
        for tensor in _tensors(model)
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data
    ]
    size = len(files["model.onnx"])
    for tensor in outside:
        told = {entry.key: entry.value for entry in tensor.external_data}
        name = told.get("location", "")
        # Only listed files were hashed. A path could also lead out of the model's folder.
        if name not in files:
            raise ModelRefusedError(
                ModelProto.PROBLEM_EXTERNAL_DATA,
                "model.onnx keeps weights in a file that [files] of model.toml does not list. "
                "Add its name and SHA-256, or save the model as one file.",
            )
        data = files[name]
        start = _number(told, "offset", 0)
        end = start + _number(told, "length", len(data) - start)
        # Python takes a negative offset from the end, and gives what there is of too long a part.
        if not 0 <= start <= end <= len(data):
            raise ModelRefusedError(
                ModelProto.PROBLEM_EXTERNAL_DATA,
                f"model.onnx names bytes that {name} does not have.",
            )
        # Protobuf fails on more than 2 GiB only when the message is written, with words that help
        # nobody.
        size += end - start
        if size > MAX_GRAPH_BYTES:
            raise _invalid("The graph with its weights is larger than 2 GiB.")
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
        tensor.raw_data = data[start:end]
    return bool(outside)


def _number(told: Mapping[str, str], key: str, default: int) -> int:
    try:
        return int(told.get(key, default))
    except ValueError:
        raise _invalid(f"The external data of model.onnx have no number as {key}.") from None


def _tensors(message: Message) -> Iterator[Any]:
    """Every tensor in a message, wherever it is: weights, constants, those of inner graphs."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for one in value if field.is_repeated else [value]:
            if isinstance(one, onnx.TensorProto):
                yield one
            else:
                yield from _tensors(one)


def _check_tensors(manifest: Manifest, graph: onnx.GraphProto) -> None:
    # Older exporters list weights among the inputs as well (IR version 3 and before).
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [node for node in graph.input if node.name not in weights]
    _check_side("inputs", manifest.inputs, inputs, every=True)
    _check_side("outputs", manifest.outputs, list(graph.output), every=False)


def _check_side(
    side: str,
    promised: tuple[Input | Output, ...],
    nodes: list[onnx.ValueInfoProto],
    *,
    every: bool,
) -> None:
    found = {node.name: node.type for node in nodes}
    names = {tensor.name for tensor in promised}
    if not names <= found.keys() or (every and names != found.keys()):
        raise _differs(f"promises the {side} {sorted(names)}, but model.onnx has {sorted(found)}")
    for tensor in promised:
        kind = found[tensor.name]
        if kind.WhichOneof("value") != "tensor_type":
            raise _differs(f"says that {tensor.name} is a tensor, and in model.onnx it is none")
        element = kind.tensor_type.elem_type
        if element != _DTYPES[tensor.dtype]:
            name = onnx.TensorProto.DataType.Name(element).lower()
            raise _differs(f"says {tensor.name} is {tensor.dtype}, in model.onnx it is {name}")
        # A graph may leave its shape open; then the warm-up tells.
        if kind.tensor_type.HasField("shape"):
            shape = [_size(axis) for axis in kind.tensor_type.shape.dim]
            if not _fits(tensor.shape, shape):
                raise _differs(
                    f"says {tensor.name} has the shape {list(tensor.shape)}, in model.onnx it is "
                    f"{[size or '?' for size in shape]}"
                )


def _size(axis: onnx.TensorShapeProto.Dimension) -> int | None:
    return axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else None


def _fits(promised: tuple[int | str, ...], found: list[int | None]) -> bool:
    """Whether the graph takes every shape that is promised."""
    return len(promised) == len(found) and all(
        there is None or there == size for size, there in zip(promised, found, strict=True)
    )


def _differs(what: str) -> ModelRefusedError:
    return ModelRefusedError(ModelProto.PROBLEM_GRAPH_MISMATCH, f"model.toml {what}.")
