"""Classifiers of painted skin: features, softmax regression, and how new an image is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ml_worker.reference import building, graphs, training
from ml_worker.reference.graphs import Graph
from ml_worker.skin_phantoms import KINDS, lesion, plain

SIDE: Final = 96
TRAINED: Final = 270
SET_APART: Final = 120
"""For the temperature."""
HELD_OUT: Final = 300

Look = Callable[[Graph, str], list[str]]


@dataclass(frozen=True, slots=True)
class Classifier:
    """What a build.py chooses. look: the features. classes: how many. seed: of its pictures."""

    look: Look
    classes: int
    seed: int

    def pictures(self, seed: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
        """Painted pictures and their classes: skin without and with a lesion, or the kinds."""
        random = np.random.default_rng([self.seed, seed])
        if self.classes == len(KINDS):
            painted = [lesion(random, number % len(KINDS), SIDE) for number in range(count)]
        else:
            painted = [
                lesion(random, number // 2 % len(KINDS), SIDE)
                if number % 2
                else plain(random, SIDE)
                for number in range(count)
            ]
        pixels, _, kinds = building.stacked(painted)
        return pixels, kinds if self.classes == len(KINDS) else (kinds >= 0).astype(np.intp)

    def build(self) -> tuple[onnx.ModelProto, bytes, float]:
        """The graph, the bytes of its sample, and the threshold of novelty."""
        images, kinds = self.pictures(0, TRAINED)
        told, scene = self.features(images)
        head = trained(told, scene, kinds, self.classes)
        # Other pictures than those trained on, of which the model is surer than it should be.
        apart, apart_kinds = self.pictures(1, SET_APART)
        logits = head.logits(self.features(apart)[0])
        head = head.at(training.temperature(logits, apart_kinds))
        limit = building.threshold(head.novelty(told, scene))
        shown, _ = self.pictures(3, 3)
        values, surroundings = self.features(shown)
        warm_up = building.sample(
            image=shown,
            probabilities=training.softmax(head.logits(values)).round(5).astype(np.float32),
            novelty=head.novelty(values, surroundings).round(4).astype(np.float32),
        )
        return self.graph(head), warm_up, limit

    def features(self, images: NDArray[np.uint8]) -> list[NDArray[np.float64]]:
        """What the graph sees, in double precision: of the lesion, and of what is around it."""
        graph = Graph(single=False)
        value = graphs.planes(graph, "image")
        for name, parts in (
            ("told", self.look(graph, value)),
            ("scene", graphs.scene(graph, value)),
        ):
            graph.op("Identity", graphs.row_of(graph, parts), output=name)
        outputs = [
            helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["samples", None])
            for name in ("told", "scene")
        ]
        return graphs.evaluated(graph.model("features", image_info(), outputs), images)

    def graph(self, head: "Head") -> onnx.ModelProto:
        """From bytes to probabilities and novelty."""
        graph = Graph(single=True)
        value = graphs.planes(graph, "image")
        told = graphs.row_of(graph, self.look(graph, value))
        scene = graphs.row_of(graph, graphs.scene(graph, value))
        logits = graph.op("Gemm", told, head.weights, head.offsets)
        graph.op("Softmax", logits, axis=1, output="probabilities")
        both = graph.op("Concat", told, scene, axis=1)
        spread = graph.op("MatMul", graph.op("Sub", both, head.center), head.whitening)
        graph.op("ReduceL2", spread, [1], keepdims=0, output="novelty")
        outputs = [
            helper.make_tensor_value_info(
                "probabilities", TensorProto.FLOAT, ["samples", self.classes]
            ),
            helper.make_tensor_value_info("novelty", TensorProto.FLOAT, ["samples"]),
        ]
        return graph.model("classifier", image_info(), outputs)

    def held_out(self, ask: building.Ask, limit: float) -> building.Figures:
        """Figures of the model in the folder on pictures that it was not trained on.

        limit: the threshold of novelty.
        """
        images, kinds = self.pictures(2, HELD_OUT)
        found = ask(images)
        sure = found["classes"].astype(np.float64)
        return building.as_printed(
            {
                "accuracy": training.accuracy(sure, kinds),
                "AUC": training.area_under_curve(sure, kinds),
                "expected calibration error": training.calibration_error(sure, kinds),
                "abstained": float((found["novelty"] >= limit).mean()),
            }
        )


@dataclass(frozen=True, slots=True)
class Head:
    """What was trained, rounded, on features as they are."""

    weights: NDArray[np.float64]
    offsets: NDArray[np.float64]
    center: NDArray[np.float64]
    whitening: NDArray[np.float64]

    def logits(self, told: NDArray[np.float64]) -> NDArray[np.float64]:
        """(samples, classes)."""
        return np.asarray(told @ self.weights + self.offsets)

    def novelty(self, told: NDArray[np.float64], scene: NDArray[np.float64]) -> NDArray[np.float64]:
        """(samples,): Mahalanobis distance of all features from the training data."""
        both = np.hstack([told, scene]) - self.center
        return np.asarray(np.linalg.norm(both @ self.whitening, axis=1))

    def at(self, temperature: float) -> "Head":
        """Calibrated."""
        return Head(
            (self.weights / temperature).round(building.DECIMALS),
            (self.offsets / temperature).round(building.DECIMALS),
            self.center,
            self.whitening,
        )


def trained(
    told: NDArray[np.float64], scene: NDArray[np.float64], kinds: NDArray[np.intp], classes: int
) -> Head:
    """Before the temperature: weights and offsets are not rounded yet."""
    # A feature that is the same everywhere would divide by 0.
    mean, std = told.mean(axis=0), told.std(axis=0) + 1e-6
    weights, offsets = training.softmax_regression((told - mean) / std, kinds, classes)
    weights = weights / std[:, np.newaxis]
    both = np.hstack([told, scene])
    center, spread = both.mean(axis=0), both.std(axis=0) + 1e-3
    white = training.whitening((both - center) / spread) / spread[:, np.newaxis]
    return Head(
        weights,
        offsets - mean @ weights,
        center.round(building.DECIMALS),
        white.round(building.DECIMALS),
    )


def image_info() -> onnx.ValueInfoProto:
    """The input."""
    return helper.make_tensor_value_info("image", TensorProto.UINT8, ["samples", SIDE, SIDE, 3])
