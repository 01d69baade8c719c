"""A graph the size of ResNet-50 (He et al., 2015, https://arxiv.org/abs/1512.03385) as ONNX.

Its weights are random, so it recognises nothing: 25.6 million numbers, 4.1 GFLOP per image of
224 x 224. Batch normalisation is folded into the convolutions, as exporters do.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE: Final = 224
"""Rows and columns of an image."""
LABELS: Final = 1000
STAGES: Final = ((3, 64), (4, 128), (6, 256), (3, 512))
"""Bottleneck blocks of each stage, and their channels inside; outside they have four times more."""
WIDENING: Final = 4


@dataclass
class _Layers:
    """Nodes and weights so far."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [out], **attributes))
        return out

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        # He initialisation: activations neither vanish nor explode on their way down.
        spread = np.sqrt(2 / math.prod(shape[1:]))
        values = (self.rng.standard_normal(shape) * spread).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def convolution(self, x: str, channels: tuple[int, int], size: int, stride: int) -> str:
        before, after = channels
        kernel, bias = self.weight(after, before, size, size), self.weight(after)
        pads = [size // 2] * 4
        return self.add("Conv", x, kernel, bias, pads=pads, strides=[stride, stride])

    def block(self, x: str, before: int, inside: int, stride: int) -> str:
        after = inside * WIDENING
        y = self.add("Relu", self.convolution(x, (before, inside), 1, 1))
        y = self.add("Relu", self.convolution(y, (inside, inside), 3, stride))
        y = self.convolution(y, (inside, after), 1, 1)
        if (before, stride) != (after, 1):
            x = self.convolution(x, (before, after), 1, stride)
        return self.add("Relu", self.add("Add", x, y))


def resnet50(seed: int = 0) -> bytes:
    """The model: input `x` (n, 3, 224, 224) float32, output `y` (n, 1000) float32 probabilities."""
    layers = _Layers(np.random.default_rng(seed))
    x = layers.add("Relu", layers.convolution("x", (3, 64), 7, 2))
    x = layers.add("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])
    channels = 64
    for inside, stride in _blocks():
        x = layers.block(x, channels, inside, stride)
        channels = inside * WIDENING
    x = layers.add("Flatten", layers.add("GlobalAveragePool", x))
    x = layers.add("Gemm", x, layers.weight(LABELS, channels), transB=1)
    layers.nodes.append(helper.make_node("Softmax", [x], ["y"], axis=1))
    sides = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", LABELS]),
    ]
    graph = helper.make_graph(layers.nodes, "resnet50", sides[:1], sides[1:], layers.weights)
    opset = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, ir_version=10, opset_imports=opset).SerializeToString()


def _blocks() -> Iterator[tuple[int, int]]:
    """Channels inside and stride of each block."""
    for number, (blocks, inside) in enumerate(STAGES):
        for place in range(blocks):
            yield inside, 2 if number > 0 and place == 0 else 1
