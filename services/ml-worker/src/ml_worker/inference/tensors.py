"""Tensors of the Open Inference Protocol as arrays, and back."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray
from open_inference import open_inference_pb2 as wire

from ml_worker.manifest import Input, Manifest
from ml_worker.outputs import Output
from ml_worker.warm_up import fits

DATATYPES: Final = {
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}
"""Those of manifests, in the protocol's words."""
CONTENTS: Final = {
    "float32": "fp32_contents",
    "float64": "fp64_contents",
    "uint8": "uint_contents",
    "uint16": "uint_contents",
    "int32": "int_contents",
    "int64": "int64_contents",
    "bool": "bool_contents",
}
"""Fields with values one by one. Of float16 there is none: it goes as raw contents."""


def read_inputs(request: wire.ModelInferRequest, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """The arrays of a request by the names of the model's inputs, of at least one sample.

    FluoroError INVALID_ARGUMENT if they are not what the model takes. Values are not repeated.
    """
    # Parameters change what is asked for. To ignore them would answer another question.
    if request.parameters:
        raise refused("this server knows no parameters of extensions")
    found = {tensor.name: tensor for tensor in request.inputs}
    names = [tensor.name for tensor in manifest.inputs]
    if len(found) != len(request.inputs) or set(found) != set(names):
        raise refused(f"it must have each of these inputs once: {', '.join(names)}")
    raw: Mapping[str, bytes] = {}
    if request.raw_input_contents:
        if len(request.raw_input_contents) != len(request.inputs):
            raise refused("raw_input_contents must have an entry per input")
        order = [tensor.name for tensor in request.inputs]
        raw = dict(zip(order, request.raw_input_contents, strict=True))
    arrays = {each.name: _array(found[each.name], each, raw) for each in manifest.inputs}
    if len({len(array) for array in arrays.values()}) > 1:
        raise refused("all inputs must have the same number of samples")
    return arrays


def write_outputs(
    response: wire.ModelInferResponse, arrays: Mapping[str, NDArray[Any]], outputs: Sequence[Output]
) -> None:
    """Puts these outputs into the answer, as raw contents."""
    for output in outputs:
        array = arrays[output.name]
        response.outputs.add(
            name=output.name, datatype=DATATYPES[output.dtype], shape=list(array.shape)
        )
        # Raw contents are little endian, on whatever machine the model runs.
        response.raw_output_contents.append(_little(array.dtype, array).tobytes())


def wanted_outputs(request: wire.ModelInferRequest, manifest: Manifest) -> list[Output]:
    """The outputs that are asked for, in that order; all if none is named.

    FluoroError INVALID_ARGUMENT if the model has no such output.
    """
    # They would ask for shared memory or the most probable classes only, and get neither.
    if any(each.parameters for each in request.outputs):
        raise refused("this server knows no parameters of outputs")
    known = {output.name: output for output in manifest.outputs}
    names = list(dict.fromkeys(each.name for each in request.outputs)) or list(known)
    if not set(names) <= known.keys():
        raise refused(f"the model has these outputs: {', '.join(known)}")
    return [known[name] for name in names]


def described(tensor: Input | Output) -> wire.ModelMetadataResponse.TensorMetadata:
    """What a model takes or gives, in the protocol's words."""
    return wire.ModelMetadataResponse.TensorMetadata(
        name=tensor.name,
        datatype=DATATYPES[tensor.dtype],
        shape=[size if isinstance(size, int) else -1 for size in tensor.shape],
    )


def refused(what: str) -> FluoroError:
    """The refusal of a request."""
    return FluoroError(Reason.INVALID_ARGUMENT, f"The request cannot be run: {what}.")


def _array(
    told: wire.ModelInferRequest.InferInputTensor, tensor: Input, raw: Mapping[str, bytes]
) -> NDArray[Any]:
    name, shape, dtype = tensor.name, tuple(told.shape), np.dtype(tensor.dtype)
    if told.parameters:
        raise refused("this server knows no parameters of inputs")
    if told.datatype != DATATYPES[tensor.dtype]:
        raise refused(f"{name} must be {DATATYPES[tensor.dtype]}")
    # Two negative sizes would multiply to a right number of values.
    if min(shape, default=0) < 1 or not fits(shape, tensor.shape):
        raise refused(f"{name} must have the shape {list(tensor.shape)}, each axis 1 at least")
    count = math.prod(shape)
    if raw:
        data = raw[name]
        if len(data) != count * dtype.itemsize or told.HasField("contents"):
            raise refused(f"raw contents of {name} must be of its shape, and its only contents")
        array = np.frombuffer(data, dtype.newbyteorder("<"))
        return array.astype(dtype, copy=False).reshape(shape)
    field = CONTENTS.get(tensor.dtype)
    if field is None:
        raise refused(f"{name} must go as raw contents")
    values = getattr(told.contents, field)
    # Values in two fields contradict each other; to take one of them would be a guess.
    others = [one for one, _ in told.contents.ListFields() if one.name != field]
    if len(values) != count or others:
        raise refused(f"{name} must have its {count} values in {field} alone")
    # Wide first: NumPy's conversion to a narrow type wraps around what does not fit.
    wide = np.array(values, np.int64 if dtype.kind in "iu" else dtype)
    if dtype.kind in "iu" and not _holds(dtype, wide):
        raise refused(f"{name} has values that {told.datatype} cannot hold")
    return wide.astype(dtype).reshape(shape)


def _holds(dtype: np.dtype[Any], values: NDArray[np.int64]) -> bool:
    limits = np.iinfo(dtype)
    return bool(limits.min <= values.min() and values.max() <= limits.max)


def _little(dtype: np.dtype[Any], array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(dtype.newbyteorder("<"), copy=False)
