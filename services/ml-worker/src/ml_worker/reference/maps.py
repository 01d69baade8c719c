"""Label maps of painted skin: a softmax regression of each block's colour against the skin's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ml_worker.reference import building, graphs, training
from ml_worker.reference.graphs import Graph
from ml_worker.skin_phantoms import Skin

SIDE: Final = 192
TRAINED: Final = 90
HELD_OUT: Final = 80
POOL: Final = 4
"""Pixels of a block each way, whose mean colour gets a label: a photograph has millions."""
RING: Final = 2
"""Blocks at each side of the image that are taken for skin."""
BLOCKS: Final = 200
"""Of each picture that are trained on."""
BLUR: Final = 3


@dataclass(frozen=True, slots=True)
class Mapper:
    """What a build.py chooses. paint: the n-th picture. labels: their names, by value."""

    paint: Callable[[np.random.Generator, int], Skin]
    labels: tuple[str, ...]
    seed: int

    def pictures(self, seed: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Painted pictures and their label maps."""
        random = np.random.default_rng([self.seed, seed])
        return building.stacked([self.paint(random, number) for number in range(count)])[:2]

    def build(self) -> tuple[onnx.ModelProto, bytes, float]:
        """The graph, the bytes of its sample, and the threshold of novelty."""
        images, truth = self.pictures(0, TRAINED)
        told, scene = features(images)
        weights, offsets = self.trained(told, truth)
        center, spread = scene.mean(axis=0), scene.std(axis=0) + 1e-3
        white = training.whitening((scene - center) / spread) / spread[:, np.newaxis]
        center, white = center.round(building.DECIMALS), white.round(building.DECIMALS)

        def novelty(values: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.asarray(np.linalg.norm((values - center) @ white, axis=1))

        shown, _ = self.pictures(3, 2)
        values, surroundings = features(shown)
        logits = np.einsum("nfrc,fk->nkrc", values, weights) + offsets[:, np.newaxis, np.newaxis]
        warm_up = building.sample(
            image=shown,
            label_map=logits.argmax(axis=1).astype(np.uint8).repeat(POOL, 1).repeat(POOL, 2),
            novelty=novelty(surroundings).round(4).astype(np.float32),
        )
        model = self.graph(weights, offsets, center, white)
        return model, warm_up, building.threshold(novelty(scene))

    def trained(
        self, told: NDArray[np.float64], truth: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights and offsets, rounded, of some pixels of each picture."""
        random = np.random.default_rng([self.seed, 9])
        truth = truth[:, POOL // 2 :: POOL, POOL // 2 :: POOL]
        # Some blocks of each picture: neighbours are alike, and teach little.
        place = random.integers(truth[0].size, size=(len(told), BLOCKS))
        flat = told.reshape(*told.shape[:2], -1)
        rows = np.concatenate([one[:, at].T for one, at in zip(flat, place, strict=True)])
        kinds = np.take_along_axis(truth.reshape(len(truth), -1), place, axis=1).ravel()
        mean, std = rows.mean(axis=0), rows.std(axis=0)
        weights, offsets = training.softmax_regression(
            (rows - mean) / std, kinds.astype(np.intp), len(self.labels), decay=1e-3
        )
        weights = weights / std[:, np.newaxis]
        offsets = offsets - mean @ weights
        return weights.round(building.DECIMALS), offsets.round(building.DECIMALS)

    def graph(
        self,
        weights: NDArray[np.float64],
        offsets: NDArray[np.float64],
        center: NDArray[np.float64],
        white: NDArray[np.float64],
    ) -> onnx.ModelProto:
        """From bytes to label map and novelty."""
        graph = Graph(single=True, ring=RING)
        whole = graphs.planes(graph, "image")
        square = [POOL, POOL]
        # ceil_mode, because photographs need not have a multiple of POOL rows and columns.
        value = graph.op("AveragePool", whole, kernel_shape=square, strides=square, ceil_mode=1)
        logits = graph.op("Conv", block_features(graph, value), weights.T[..., None, None], offsets)
        label = graph.op("ArgMax", logits, axis=1, keepdims=1)
        graph.op("Squeeze", as_large(graph, label), [1], output="label_map")
        scene = graphs.row_of(graph, graphs.scene(graph, value))
        spread = graph.op("MatMul", graph.op("Sub", scene, center), white)
        graph.op("ReduceL2", spread, [1], keepdims=0, output="novelty")
        outputs = [
            helper.make_tensor_value_info(
                "label_map", TensorProto.UINT8, ["samples", "rows", "columns"]
            ),
            helper.make_tensor_value_info("novelty", TensorProto.FLOAT, ["samples"]),
        ]
        return graph.model("map", image_info(), outputs)

    def held_out(self, ask: building.Ask, limit: float) -> building.Figures:
        """Figures of the model in the folder on pictures that it was not trained on.

        limit: the threshold of novelty.
        """
        images, truth = self.pictures(2, HELD_OUT)
        found = ask(images)
        labels = found["label_map"]
        figures = {
            f"Dice of {name}": training.dice(labels, truth, value)
            for value, name in enumerate(self.labels)
        }
        figures["accuracy of pixels"] = float((labels == truth).mean())
        figures["abstained"] = float((found["novelty"] >= limit).mean())
        return building.as_printed(figures)


def features(images: NDArray[np.uint8]) -> list[NDArray[np.float64]]:
    """What the graph sees, in double precision: of each block, and of the edges of the image."""
    graph = Graph(single=False, ring=RING)
    graph.op("Identity", block_features(graph, "image"), output="told")
    graph.op("Identity", graphs.row_of(graph, graphs.scene(graph, "image")), output="scene")
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in ("told", "scene")
    ]
    blocks = images.reshape(len(images), SIDE // POOL, POOL, SIDE // POOL, POOL, 3)
    pooled = blocks.mean(axis=(2, 4)).transpose(0, 3, 1, 2) / 255
    given = helper.make_tensor_value_info("image", TensorProto.DOUBLE, [None, *pooled.shape[1:]])
    return graphs.evaluated(graph.model("features", given, outputs), pooled)


def block_features(graph: Graph, value: str) -> str:
    """(samples, 13, rows, columns) of mean colours.

    The colour less that of skin, the products of its channels, how far it is from skin, and the
    colour itself.
    """
    skin, _ = graphs.skin_of(graph, value)
    blurred = graph.blur(value, BLUR, 3)
    apart = graph.op("Mul", graph.op("Sub", blurred, skin), 4.0)
    turned = graph.op("Gather", apart, [1, 2, 0], axis=1)
    squares, products = graph.op("Mul", apart, apart), graph.op("Mul", apart, turned)
    far = graph.op("Mul", graphs.distance(graph, blurred, skin), 4.0)
    return graph.op("Concat", apart, squares, products, far, blurred, axis=1)


def as_large(graph: Graph, label: str) -> str:
    """The labels of blocks, as bytes (samples, 1, rows, columns) in the size of the image."""
    repeated = graph.op(
        "Resize",
        graph.op("Cast", label, to=TensorProto.FLOAT),
        "",
        [1.0, 1.0, float(POOL), float(POOL)],
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )
    size = graph.op("Shape", "image", start=1, end=3)
    # The last blocks may reach beyond the image.
    cut = graph.op("Slice", repeated, [0, 0], size, [2, 3])
    return graph.op("Cast", cut, to=TensorProto.UINT8)


def image_info() -> onnx.ValueInfoProto:
    """The input."""
    return helper.make_tensor_value_info(
        "image", TensorProto.UINT8, ["samples", "rows", "columns", 3]
    )
