"""The sample that a model must get right before anybody may use it."""

import zipfile
from collections.abc import Mapping
from io import BytesIO
from typing import Any, Final

import numpy as np
from fluoro.v1.model_pb2 import Model as ModelProto
from numpy.typing import NDArray

from ml_worker.manifest import Manifest, ModelRefusedError
from ml_worker.outputs import Output

MAX_SAMPLE_BYTES: Final = 512 * 2**20
"""Most bytes of all arrays of a sample, unpacked."""

Sample = Mapping[str, NDArray[Any]]
"""Arrays by the names of inputs and outputs."""


def read_sample(manifest: Manifest, data: bytes) -> Sample:
    """The arrays of a warm-up file, one for each tensor of the manifest.

    ModelRefusedError if one is missing, or is not as the manifest says.
    """
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            size_bytes = sum(member.file_size for member in archive.infolist())
        # The sizes come from the archive's directory: a few kilobytes may unpack to gigabytes.
        if size_bytes <= MAX_SAMPLE_BYTES:
            with np.load(BytesIO(data), allow_pickle=False) as arrays:
                sample = {name: arrays[name] for name in arrays.files}
    # Of zipfile, zlib and NumPy, and of many kinds: MemoryError for an array that is not there.
    except Exception as error:
        raise _wrong(f"is not an NPZ file: {error}") from error
    if size_bytes > MAX_SAMPLE_BYTES:
        raise _wrong(f"has more than {MAX_SAMPLE_BYTES} bytes")
    for tensor in (*manifest.inputs, *manifest.outputs):
        if tensor.name not in sample:
            raise _wrong(f"has no array {tensor.name}")
        array = sample[tensor.name]
        if not isinstance(array, np.ndarray):  # NumPy gives a member that is no array as bytes
            raise _wrong(f"has {tensor.name}, which is no array")
        # A sample of another type would test a cast, and not the model.
        if array.dtype.name != tensor.dtype or not fits(array.shape, tensor.shape):
            raise _wrong(
                f"has {tensor.name} as {array.dtype.name} of shape {list(array.shape)}; model.toml "
                f"says {tensor.dtype} of shape {list(tensor.shape)}"
            )
    if not 1 <= len(sample[manifest.inputs[0].name]) <= manifest.batch.max:
        raise _wrong(f"has no samples, or more than batch.max ({manifest.batch.max})")
    return sample


def difference(
    manifest: Manifest, output: Output, found: NDArray[Any], sample: Sample
) -> str | None:
    """How an output differs from what the sample promises, None if it does not."""
    expected, warm_up = sample[output.name], manifest.warm_up
    if found.dtype.name != output.dtype or found.shape != expected.shape:
        return (
            f"The warm-up gives {output.name} as {found.dtype.name} of shape {list(found.shape)}; "
            f"{warm_up.file} has {expected.dtype.name} of shape {list(expected.shape)}."
        )
    if found.dtype.kind == "f":
        # The sum of values with NaN among them is NaN, and rightly so.
        right = np.isclose(found, expected, rtol=warm_up.rtol, atol=warm_up.atol, equal_nan=True)
    else:
        right = found == expected
    share = 1 - float(right.mean()) if right.size else 0.0
    # Processors round differently at the edge of a class, so label maps may differ in a few voxels.
    if share <= warm_up.differing_share:
        return None
    return (
        f"The warm-up gives other values of {output.name}: {share:.3g} of them differ by more than "
        f"atol {warm_up.atol:g} and rtol {warm_up.rtol:g}, and {warm_up.differing_share:g} may."
    )


def fits(found: tuple[int, ...], promised: tuple[int | str, ...]) -> bool:
    """Whether an array of this shape is what the manifest promises."""
    return len(found) == len(promised) and all(
        isinstance(size, str) or size == length
        for length, size in zip(found, promised, strict=True)
    )


def _wrong(what: str) -> ModelRefusedError:
    return ModelRefusedError(ModelProto.PROBLEM_WARM_UP_DIFFERS, f"The warm-up file {what}.")
