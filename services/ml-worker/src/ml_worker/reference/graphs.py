"""Graphs from bytes of an image to features, in single precision to ship and in double to train."""

import itertools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

IR_VERSION: Final = 10
OPSET: Final = 21
RING: Final = 5
PALETTE: Final = (
    (26, 22, 26),
    (96, 112, 138),
    (184, 62, 66),
    (104, 68, 48),
    (150, 100, 68),
    (152, 130, 94),
    (232, 222, 216),
)
"""Colours that are looked for: black, blue-grey, red, dark and light brown, waxy, white."""


class Graph:
    """Nodes and constants in the order they are added.

    single: float32, else float64. ring: pixels at each side of the image that are taken for skin.
    """

    def __init__(self, *, single: bool, ring: int = RING) -> None:
        self.ring = ring
        self.element = TensorProto.FLOAT if single else TensorProto.DOUBLE
        self.dtype = np.float32 if single else np.float64
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def op(self, operator: str, *inputs: Any, output: str = "", **attributes: Any) -> str:
        """Adds a node and returns its output. Numbers and arrays become constants."""
        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        name = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [name], **attributes))
        return name

    def constant(self, value: Any) -> str:
        """Integers as int64, all else in the graph's precision."""
        array = np.asarray(value)
        array = array.astype(np.int64 if array.dtype.kind == "i" else self.dtype)
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def mean(self, value: str, axes: Sequence[int] = (2, 3)) -> str:
        """Over these axes, which stay with length 1."""
        return self.op("ReduceMean", value, list(axes), keepdims=1)

    def blur(self, value: str, width: int, channels: int) -> str:
        """Mean of a square of an odd width; edges repeat."""
        edge = width // 2
        # Zeros at the edges would look like a dark frame around every image.
        padded = self.op("Pad", value, [0, 0, edge, edge] * 2, mode="edge")
        rows = np.full((channels, 1, width, 1), 1 / width)
        across = self.op("Conv", padded, rows, group=channels)
        return self.op("Conv", across, rows.reshape(channels, 1, 1, width), group=channels)

    def model(
        self, name: str, inputs: Any, outputs: Sequence[onnx.ValueInfoProto], **told: str
    ) -> onnx.ModelProto:
        """The model."""
        return helper.make_model(
            helper.make_graph(self.nodes, name, [inputs], outputs, self.constants),
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
            producer_name="fluoro",
            **told,
        )


def planes(graph: Graph, image: str) -> str:
    """(samples, 3, rows, columns) from 0 to 1, of bytes (samples, rows, columns, 3)."""
    # Bytes are turned, not floats: an image of many pixels needs less memory.
    turned = graph.op("Transpose", image, perm=[0, 3, 1, 2])
    return graph.op("Mul", graph.op("Cast", turned, to=graph.element), 1 / 255)


def sides(graph: Graph, value: str) -> list[str]:
    """The four strips at the edges of the image."""
    end = 2**31
    return [
        graph.op("Slice", value, [start], [stop], [axis])
        for axis in (2, 3)
        for start, stop in ((0, graph.ring), (-graph.ring, end))
    ]


def skin_of(graph: Graph, value: str) -> tuple[str, list[str]]:
    """Mean colour of the edges (samples, 3, 1, 1), and that of each edge."""
    means = [graph.mean(side) for side in sides(graph, value)]
    return graph.op("Mul", graph.op("Sum", *means), 0.25), means


def distance(graph: Graph, value: str, from_: str) -> str:
    """How far each pixel is from a colour: (samples, 1, rows, columns)."""
    apart = graph.op("Sub", value, from_)
    squares = graph.op("ReduceSum", graph.op("Mul", apart, apart), [1], keepdims=1)
    return graph.op("Sqrt", graph.op("Add", squares, 1e-6))


def soft_mask(graph: Graph, apart: str, at: float = 0.12, slope: float = 40.0) -> str:
    """About 1 where a pixel is farther from skin than `at`, about 0 where nearer."""
    return graph.op("Sigmoid", graph.op("Mul", graph.op("Sub", apart, at), slope))


def scene(graph: Graph, value: str) -> list[str]:
    """What tells pictures of skin from others, whatever is on it; all (samples, n, 1, 1).

    The colour of the edges, how the edges differ from each other, and how uneven each is.
    """
    skin, means = skin_of(graph, value)
    told = [skin]
    for one, mean in zip(sides(graph, value), means, strict=True):
        told.append(graph.op("Abs", graph.op("Sub", mean, skin)))
        told.append(graph.mean(distance(graph, one, mean)))
    return told


def lesion_of(graph: Graph, value: str) -> tuple[str, str]:
    """Distance from skin of the blurred image, and the soft mask of the lesion.

    That is what is about half as far from skin as the farthest place.
    """
    skin, _ = skin_of(graph, value)
    apart = distance(graph, graph.blur(value, 3, 3), skin)
    highest = graph.op("ReduceMax", graph.blur(apart, 9, 1), [2, 3], keepdims=1)
    share = graph.op("Div", apart, graph.op("Add", highest, 0.02))
    return apart, soft_mask(graph, share, 0.45, 14.0)


def within(graph: Graph, mask: str, value: str) -> str:
    """Mean of the value inside a soft mask."""
    area = graph.op("Add", graph.mean(mask), 1e-3)
    return graph.op("Div", graph.mean(graph.op("Mul", value, mask)), area)


def presence(graph: Graph, value: str) -> list[str]:
    """How much of the image is how far from skin, and the farthest coarse place."""
    skin, _ = skin_of(graph, value)
    apart = distance(graph, graph.blur(value, 7, 3), skin)
    areas = [graph.mean(soft_mask(graph, apart, at)) for at in (0.06, 0.12, 0.24)]
    highest = graph.op("ReduceMax", graph.blur(apart, 9, 1), [2, 3], keepdims=1)
    return [*areas, graph.mean(apart), highest]


def color(graph: Graph, value: str) -> list[str]:
    """Mean and spread of the lesion's colour, and shares of seven colours."""
    _, mask = lesion_of(graph, value)
    mean = within(graph, mask, value)
    apart = graph.op("Sub", value, mean)
    spread = graph.op("Sqrt", within(graph, mask, graph.op("Mul", apart, apart)))
    told = [mean, spread]
    for entry in PALETTE:
        from_ = graph.constant((np.array(entry) / 255).reshape(1, 3, 1, 1))
        near = soft_mask(graph, distance(graph, value, from_), 0.16, -40.0)
        told.append(graph.op("Sqrt", within(graph, mask, near)))
    return told


def shape(graph: Graph, value: str) -> list[str]:
    """Area, length and softness of the edge, and moments about the lesion's centre."""
    apart, mask = lesion_of(graph, value)
    area = graph.mean(mask)
    # An image without a lesion has no area, and nothing may divide by 0.
    root = graph.op("Sqrt", graph.op("Add", area, 1e-3))
    edge = graph.op("Mul", mask, graph.op("Sub", 1.0, mask))
    steep = graph.op("Sub", graph.blur(mask, 3, 1), graph.blur(mask, 7, 1))
    told = [root]
    told.append(graph.op("Div", graph.mean(edge), root))
    told.append(graph.op("Div", graph.mean(graph.op("Abs", steep)), root))
    weight = graph.op("Mul", mask, mask)
    place = np.linspace(-1, 1, 96)
    row, column = place.reshape(1, 1, 96, 1), place.reshape(1, 1, 1, 96)
    down, across = (
        graph.op("Sub", axis, within(graph, weight, axis))
        for axis in (graph.constant(row), graph.constant(column))
    )
    second = {
        name: within(graph, weight, graph.op("Mul", *pair))
        for name, pair in (("rr", (down, down)), ("cc", (across, across)), ("rc", (down, across)))
    }
    trace = graph.op("Add", graph.op("Add", second["rr"], second["cc"]), 1e-3)
    apart = graph.op("Sub", second["rr"], second["cc"])
    twice = graph.op("Mul", second["rc"], 2.0)
    turned = graph.op("Add", graph.op("Mul", apart, apart), graph.op("Mul", twice, twice))
    told.append(graph.op("Div", graph.op("Sqrt", graph.op("Add", turned, 1e-6)), trace))
    told.append(graph.op("Div", trace, graph.op("Add", area, 1e-3)))
    square = graph.op("Add", graph.op("Mul", down, down), graph.op("Mul", across, across))
    fourth = within(graph, weight, graph.op("Mul", square, square))
    told.append(graph.op("Div", fourth, graph.op("Mul", trace, trace)))
    return told


def texture(graph: Graph, value: str) -> list[str]:
    """How much lighter and darker than around it the inside is, at four sizes; along and across."""
    _, mask = lesion_of(graph, value)
    inside = graph.op("Relu", graph.op("Sub", graph.op("Mul", graph.blur(mask, 9, 1), 2.0), 1.0))
    light = graph.op("ReduceMean", value, [1], keepdims=1)
    blurred = [light, *(graph.blur(light, width, 1) for width in (3, 5, 9, 15))]
    told = []
    for fine, coarse in itertools.pairwise(blurred):
        band = graph.op("Mul", graph.op("Sub", fine, coarse), 20.0)
        energy = within(graph, inside, graph.op("Mul", band, band))
        lighter = graph.op("Relu", band)
        cube = within(graph, inside, graph.op("Mul", lighter, graph.op("Mul", lighter, lighter)))
        told.append(graph.op("Log", graph.op("Add", energy, 1e-3)))
        told.append(graph.op("Log", graph.op("Add", cube, 1e-3)))
        fourth = within(graph, inside, graph.op("Mul", *[graph.op("Mul", band, band)] * 2))
        told.append(graph.op("Log", graph.op("Add", fourth, 1e-3)))
    return told


def row_of(graph: Graph, parts: Sequence[str]) -> str:
    """(samples, features) of parts (samples, n, 1, 1)."""
    return graph.op("Flatten", graph.op("Concat", *parts, axis=1))


def evaluated(model: onnx.ModelProto, images: NDArray[Any], step: int = 50) -> list[NDArray[Any]]:
    """The outputs by ONNX's own evaluator, which is NumPy: another one than the worker's."""
    evaluator = ReferenceEvaluator(model)
    runs = [
        evaluator.run(None, {"image": images[start : start + step]})
        for start in range(0, len(images), step)
    ]
    return [np.concatenate(parts) for parts in zip(*runs, strict=True)]
