"""Makes a model that finds the brain in T1-weighted MR of a head: deepbrain, out of a pinned wheel.

`make deepbrain FOLDER=models` runs it. The wheel is not installed, and no TensorFlow is needed: its
frozen graph is read by a few lines, and the network is written here. The same bytes each time.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from ml_worker.testing import files_of_wheel, write_model
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

HERE: Final = Path(__file__).parent
MEMBER: Final = "deepbrain/models/graph.pb"
SIDE: Final = 128
DOWN: Final = ((0, 1), (2, 3), (4, 5))
"""Numbers of the two convolutions before each pooling."""
UP: Final = (("", 6, 5), ("_1", 7, 3), ("_2", 8, 1))
"""Of each step up: its transposed convolution, the convolution after it, and the one before the
pooling whose maps it takes in."""
RIM: Final = (1, 3)
"""From where to where around the brain it is looked, in voxels of the network."""
LEAST_SHARE: Final = 0.02
"""Of the volume, which a brain takes even in a large field of view."""
FAR: Final = 10.0
"""What is told if there is no brain to look around."""

Array = NDArray[np.float32]
Weights = Mapping[str, Array]
Fields = Mapping[int, list[Any]]

MANIFEST: Final = f"""
name = "deepbrain"
version = "1.0.0"
summary = "Finds the brain in T1-weighted MR of a whole head."
intended_use = "research"
license = "MIT"
source = "deepbrain 0.1 (PyPI), its graph.pb, converted by deepbrain.py"
training_data = "CC359, NFBS and ADNI, as the authors say: T1-weighted MR of adults' heads."

[applies_to]
modalities = ["MR"]
unit = "1"

# What the network has seen: a whole head, its skin and skull around the brain.
[applies_to.volume]
planes = 40
spacing_mm = [0.4, 4]
anisotropy = 4
extent_mm = [130, 330]
tilt_degrees = 30

[[inputs]]
name = "volume"
dtype = "float32"
layout = "NCWHD"
shape = ["n", 1, {SIDE}, {SIDE}, {SIDE}]
image = {{ colour = "grey", resize = "stretch" }}

[[outputs]]
kind = "mask"
name = "brain"
dtype = "float32"
shape = ["n", 1, {SIDE}, {SIDE}, {SIDE}]

# How bright it is around what was found, relative to inside. Around a brain lie liquor and skull.
[[outputs]]
kind = "novelty"
name = "rim"
dtype = "float32"
shape = ["n"]
threshold = 0.4

[providers.cpu]

# ONNX Runtime's CUDA has no transposed convolution of volumes.
[providers.cuda]
cpu_ops = ["ConvTranspose"]

[batch]
max = 1
bytes_per_voxel = 200

[overlay]
opacity = 0.4

[[labels]]
value = 0
display_name = "no brain"

[[labels]]
value = 1
display_name = "brain"
color = "#d9534f"
codes = [{{ value = "12738006", scheme = "SCT", meaning = "Brain" }}]
"""
CARD: Final = """# deepbrain 1.0.0

The U-Net of DeepBrain's extractor (Itzcovich 2018): for each voxel of a T1-weighted MR of a head,
how likely it belongs to the brain.

- **Weights**: wheel deepbrain 0.1 of Ivan Itzcovich (MIT, as its metadata say), pinned by its
  SHA-256. The network is as it was. Before it stands the division by the largest value, which
  DeepBrain does outside; behind it the rim, which DeepBrain does not have.
- **Trained on** CC359, NFBS and ADNI, as its authors say: adults, T1-weighted, heads with skin and
  skull.
- **Sees** the whole volume in 128 x 128 x 128 voxels, whatever its shape, turned to axes of the
  patient.
- **Input guard**: series with few or uneven slices, long voxels, a small or large field of view or
  slices at a slant are skipped. So is a volume where what was found has no dark rim of liquor and
  skull, 0.4 of its own brightness: half a head, a knee, a T2-weighted or already stripped brain.
- **Tried on** the MNI152 template inside a painted skull and scalp (Dice 0.98), and on painted
  heads without convolutions (0.9). Nothing here has been validated for medical use.
- **Warm-up sample**: noise, and what the graph gave for it when it was made. It shows that a
  machine computes the same. That the conversion is right was seen once, against TensorFlow: at most
  1e-5 apart, no voxel on another side of one half.
"""


def fields(message: bytes) -> Fields:
    """A protobuf message by the numbers of its fields: whole numbers, and bytes as they are."""
    found: dict[int, list[Any]] = defaultdict(list)
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004 - the last byte of a varint
                return value
            shift += 7

    while place < len(message):
        key = number()
        if (kind := key & 7) == 0:
            found[key >> 3].append(number())
            continue
        length = {1: 8, 5: 4}.get(kind) or number()
        found[key >> 3].append(message[place : place + length])
        place += length
    return found


def read_weights(graph: bytes) -> Weights:
    """Each constant of floats in a GraphDef of TensorFlow, by the name of its node."""
    weights = {}
    for node in map(fields, fields(graph)[1]):
        if node[2] != [b"Const"]:
            continue
        attributes = {each[1][0]: fields(each[2][0]) for each in map(fields, node[5])}
        tensor = fields(attributes[b"value"][8][0])
        if tensor[1] == [TensorProto.FLOAT]:
            shape = [fields(size)[1][0] for size in fields(tensor[2][0])[2]] if tensor[2] else []
            values = b"".join(tensor[4] or tensor[5])
            weights[node[1][0].decode()] = np.frombuffer(values, "<f4").reshape(shape)
    return weights


class _Graph:
    """Nodes and their weights, in order."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, name: str, values: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def kernel(self, name: str) -> str:
        """As ONNX has it: from (in space, 2 kinds of channels) to (the 2 swapped, in space)."""
        return self.constant(
            f"{name}/kernel", self.weights[f"{name}/kernel"].transpose(4, 3, 0, 1, 2)
        )

    def conv(self, x: str, number: int) -> str:
        name = f"conv3d_{number}" if number else "conv3d"
        bias = self.constant(f"{name}/bias", self.weights[f"{name}/bias"])
        return self.add("Conv", x, self.kernel(name), bias, auto_pad="SAME_UPPER")

    def relu(self, x: str, number: int) -> str:
        return self.add("Relu", self.conv(x, number))


def make_graph(weights: Weights) -> onnx.ModelProto:
    """The U-Net, after the division by the largest value that belongs to it."""
    graph = _Graph(weights)
    space = graph.constant("space", np.array([1, 2, 3, 4]))
    least = graph.constant("least", np.array(1e-6, np.float32))
    largest = graph.add("Max", graph.add("ReduceMax", "volume", space), least)
    x = scaled = graph.add("Div", "volume", largest)
    kept = {}
    for first, second in DOWN:
        kept[second] = graph.relu(graph.relu(x, first), second)
        x = graph.add("MaxPool", kept[second], kernel_shape=[2, 2, 2], strides=[2, 2, 2])
    for suffix, number, across in UP:
        # SAME of TensorFlow for an even size: one row more at the end, which is cut off here.
        kernel = graph.kernel(f"conv3d_transpose{suffix}")
        x = graph.add("ConvTranspose", x, kernel, strides=[2, 2, 2], pads=[0, 0, 0, 1, 1, 1])
        x = graph.relu(graph.add("Concat", x, kept[across], axis=1), number)
    graph.add("Sigmoid", graph.conv(x, 9), output="brain")
    add_rim(graph, scaled)
    shape = ["n", 1, SIDE, SIDE, SIDE]
    volume, brain, rim = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, size)
        for name, size in (("volume", shape), ("brain", shape), ("rim", ["n"]))
    )
    made = helper.make_graph(graph.nodes, "deepbrain", [volume], [brain, rim], graph.constants)
    return helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def add_rim(graph: _Graph, scaled: str) -> None:
    """The mean value around what was found, by that inside; FAR if next to nothing was found."""

    def grown(mask: str, steps: int) -> str:
        for axis in range(3):
            kernel, pads = [1, 1, 1], [0, 0, 0]
            kernel[axis], pads[axis] = 2 * steps + 1, steps
            mask = graph.add("MaxPool", mask, kernel_shape=kernel, pads=[*pads, *pads])
        return mask

    def mean(mask: str) -> str:
        count = graph.add("Max", graph.add("ReduceSum", mask, "space", keepdims=0), "one")
        inside = graph.add("Mul", scaled, mask)
        return graph.add("Div", graph.add("ReduceSum", inside, "space", keepdims=0), count)

    graph.constant("one", np.array(1, np.float32))
    graph.constant("half", np.array(0.5, np.float32))
    graph.constant("few", np.array(LEAST_SHARE, np.float32))
    graph.constant("far", np.array(FAR, np.float32))
    mask = graph.add("Cast", graph.add("Greater", "brain", "half"), to=TensorProto.FLOAT)
    around = graph.add("Sub", grown(mask, RIM[1]), grown(mask, RIM[0]))
    inner = graph.add("Max", mean(mask), "least")
    ratio = graph.add("Div", mean(around), inner)
    is_little = graph.add("Less", graph.add("ReduceMean", mask, "space", keepdims=0), "few")
    graph.add("Where", is_little, "far", ratio, output="rim")


def download() -> Weights:
    """The weights."""
    (graph,) = files_of_wheel(HERE / "deepbrain.txt", MEMBER)
    return read_weights(graph)


def write(folder: Path, weights: Weights) -> Path:
    """Writes `deepbrain/1.0.0` and returns it."""
    graph = make_graph(weights).SerializeToString(deterministic=True)
    volume = np.random.default_rng(7).uniform(0, 1, (1, 1, SIDE, SIDE, SIDE)).astype(np.float32)
    brain, rim = ort.InferenceSession(graph).run(["brain", "rim"], {"volume": volume})
    sample = {"volume": volume, "brain": brain, "rim": rim}
    place = write_model(folder, MANIFEST, graph, sample)
    (place / "CARD.md").write_text(CARD, encoding="utf-8")
    return place


if __name__ == "__main__":
    sys.stdout.write(f"{write(Path(sys.argv[1]), download())}\n")
