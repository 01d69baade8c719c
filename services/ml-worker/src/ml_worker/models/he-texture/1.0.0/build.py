#!/usr/bin/env python3
"""Builds model.onnx and warm_up.npz out of painted tiles; their SHA-256 go into model.toml.

The same seed gives the same bytes: weights are rounded to three decimals, below which processors
differ.

`python build.py` builds in place; `--to FOLDER` builds there and leaves this folder alone.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from dicom_worker.slides.tissue import LEAST_DENSITY, stain_of
from fluoro.v1 import slide_pb2
from ml_worker.reference import building, training
from ml_worker.reference.classifiers import Head
from ml_worker.reference.graphs import Graph
from ml_worker.slide_phantoms import KINDS, laboratory, tissue
from ml_worker.slides import REFERENCE, REFERENCE_MAXIMA, WHITE, normalized, to_reference
from numpy.typing import NDArray
from onnx import TensorProto, helper
from scipy import ndimage

SEED: Final = 7
TRAINED: Final = 60
"""Tiles of each kind."""
SET_APART: Final = 30
"""Of each kind, for the temperature."""
HELD_OUT: Final = 50
LABORATORIES: Final = 10
"""With stains of their own, to measure what normalising them is good for."""
SEEN_LABORATORIES: Final = 18
"""Others, whose normalised tiles are known to `novelty`."""
MIXES: Final = ((10, 10, 10), (24, 4, 2), (16, 10, 4))
"""Tiles of each kind on a slide: the estimate of stains depends on it."""
SIDE: Final = 256
JITTER: Final = (0.65, 1.5)
"""Factors of the amounts: the estimate of a slide with few nuclei is as far off."""
POOL: Final = 4
"""Pixels that become one, each way: a nucleus keeps some three."""
BLUR: Final = 9
"""Pixels of the neighbourhood that a nucleus stands out from."""
DARK: Final = 0.6
"""Amount of hematoxylin from which on a pixel counts as nucleus."""
FLOOR: Final = 1e-3
"""Least mean of which the logarithm is taken. There, a factor is a sum."""
TOLD: Final = 4
"""Features that tell the textures apart; the others are for `novelty` alone."""

Tiles = NDArray[np.uint8]
Numbers = NDArray[np.float64]
Kinds = NDArray[np.intp]


def tiles_of(random: np.random.Generator, each: int) -> tuple[Tiles, Kinds]:
    """Painted tiles in the reference's colours, a bit off, and their kinds."""
    kinds = np.repeat(np.arange(len(KINDS)), each)
    stains = REFERENCE * REFERENCE_MAXIMA / (1.1, 1.2)
    painted = [tissue(kind, random, stains * random.uniform(*JITTER, 2), SIDE) for kind in kinds]
    return np.stack(painted), kinds


def slides(random: np.random.Generator, count: int) -> Iterator[tuple[Tiles, Tiles, Kinds]]:
    """Tiles of slides of other laboratories, as they are and normalised, and their kinds.

    The stains of each are estimated from its tiles, as TileSlide does.
    """
    for number in range(count):
        stains = laboratory(random)
        kinds = np.repeat(np.arange(len(KINDS)), MIXES[number % len(MIXES)])
        tiles = np.stack([tissue(kind, random, stains) for kind in kinds])
        density = -np.log((tiles[:, ::16, ::16].reshape(-1, 3) + 1.0) / WHITE)
        stain = stain_of(density[density.mean(axis=1) > LEAST_DENSITY])
        assert stain
        estimate = slide_pb2.StainEstimate(
            hematoxylin=stain.hematoxylin,
            eosin=stain.eosin,
            hematoxylin_maximum=stain.maxima[0],
            eosin_maximum=stain.maxima[1],
        )
        tables = to_reference(slide_pb2.TiledSlide(stain=estimate))
        assert tables is not None
        yield tiles, normalized(tiles, tables), kinds


def look(graph: Graph) -> str:
    """What is seen of a tile, (tiles, features): the first `TOLD` tell its texture.

    Amounts of hematoxylin and eosin, and of a third colour that neither has; how they vary, from
    pixel to pixel too; and how much light passes through the brightest place.
    """
    op, space = graph.op, [2, 3]
    light = op("Cast", op("Transpose", "image", perm=[0, 3, 1, 2]), to=graph.element)
    pooled = op("AveragePool", light, kernel_shape=[POOL, POOL], strides=[POOL, POOL])
    passing = op("Log", op("Div", op("Add", pooled, 1.0), WHITE))
    amounts = op("Conv", passing, -unmixing()[:, :, None, None])
    hematoxylin = op("Slice", amounts, [0], [1], [1])
    stands_out = op("Abs", op("Sub", hematoxylin, graph.blur(hematoxylin, BLUR, 1)))
    over = op("Relu", op("Sub", hematoxylin, DARK))
    stains = op("Slice", amounts, [0], [2], [1])
    told = op("Max", graph.mean(op("Concat", stains, stands_out, over, axis=1)), FLOOR)
    means = graph.mean(amounts)
    apart = op("Sub", amounts, means)
    spread = op("Sqrt", graph.mean(op("Mul", apart, apart)))
    steps = op("Add", *(step(graph, amounts, axis) for axis in space))
    varied = op("Add", op("Concat", spread, steps, axis=1), FLOOR)
    third = op("Slice", means, [2], [3], [1])
    brightest = op("ReduceMax", op("ReduceMax", passing, space, keepdims=1), [1], keepdims=1)
    logarithms = op("Log", op("Concat", told, varied, axis=1))
    return op("Flatten", op("Concat", logarithms, third, brightest, axis=1))


def step(graph: Graph, values: str, axis: int) -> str:
    """How far neighbours along an axis lie apart, in the mean."""
    ends = ((1, 2**31), (0, -1))
    neighbors = (graph.op("Slice", values, [start], [end], [axis]) for start, end in ends)
    return graph.mean(graph.op("Abs", graph.op("Sub", *neighbors)))


def unmixing() -> Numbers:
    """From optical density to amounts of hematoxylin, eosin and what is neither."""
    third = np.cross(*REFERENCE.T)
    rows = np.vstack([np.linalg.pinv(REFERENCE), third / np.linalg.norm(third)])
    return np.asarray(rows.round(6))


def features(tiles: Tiles) -> tuple[Numbers, Numbers]:
    """What the graph sees, by NumPy: of the texture, and the rest."""
    pooled = tiles.reshape(len(tiles), SIDE // POOL, POOL, SIDE // POOL, POOL, 3).mean(axis=(2, 4))
    passing = np.log((pooled + 1) / WHITE)
    amounts = -passing @ unmixing().T
    hematoxylin = amounts[..., 0]
    stands_out = np.abs(
        hematoxylin - ndimage.uniform_filter(hematoxylin, (0, BLUR, BLUR), mode="nearest")
    )
    over = np.maximum(hematoxylin - DARK, 0)
    means = amounts.mean(axis=(1, 2))
    told = [means[:, :2], *(one.mean(axis=(1, 2))[:, np.newaxis] for one in (stands_out, over))]
    # Both ways: a slide may lie in any direction.
    steps = sum(np.abs(np.diff(amounts, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2))
    varied = np.hstack([amounts.std(axis=(1, 2)), steps]) + FLOOR
    rest = [np.log(varied), means[:, 2:], passing.max(axis=(1, 2, 3))[:, np.newaxis]]
    return np.log(np.maximum(np.hstack(told), FLOOR)), np.hstack(rest)


def tile_info() -> onnx.ValueInfoProto:
    """The input."""
    return helper.make_tensor_value_info("image", TensorProto.UINT8, ["samples", SIDE, SIDE, 3])


def trained() -> tuple[Head, float]:
    """Weights on features as they are, and the threshold of novelty."""
    tiles, kinds = tiles_of(np.random.default_rng(SEED), TRAINED)
    told, rest = features(tiles)
    mean, std = told.mean(axis=0), told.std(axis=0)
    weights, offsets = training.softmax_regression((told - mean) / std, kinds, len(KINDS))
    weights = weights / std[:, np.newaxis]
    others = slides(np.random.default_rng(SEED + 3), SEEN_LABORATORIES)
    alike = [np.hstack(features(tiles)) for _, tiles, _ in others]
    known = np.vstack([np.hstack([told, rest]), *alike])
    center, spread = known.mean(axis=0), known.std(axis=0) + FLOOR
    white = training.whitening((known - center) / spread) / spread[:, np.newaxis]
    head = Head(
        weights,
        offsets - mean @ weights,
        center.round(building.DECIMALS),
        white.round(building.DECIMALS),
    )
    apart, apart_kinds = tiles_of(np.random.default_rng(SEED + 4), SET_APART)
    head = head.at(training.temperature(head.logits(features(apart)[0]), apart_kinds))
    return head, building.threshold(head.novelty(known[:, :TOLD], known[:, TOLD:]))


def build() -> tuple[onnx.ModelProto, bytes, float]:
    """The graph, the bytes of its sample, and the threshold of novelty."""
    head, limit = trained()
    graph = Graph(single=True)
    seen = look(graph)
    logits = graph.op("Gemm", graph.op("Slice", seen, [0], [TOLD], [1]), head.weights, head.offsets)
    graph.op("Softmax", logits, axis=1, output="probabilities")
    spread = graph.op("MatMul", graph.op("Sub", seen, head.center), head.whitening)
    graph.op("ReduceL2", spread, [1], keepdims=0, output="novelty")
    outputs = [
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["samples", len(KINDS)]),
        helper.make_tensor_value_info("novelty", TensorProto.FLOAT, ["samples"]),
    ]
    shown, _ = tiles_of(np.random.default_rng(SEED + 1), 1)
    told, rest = features(shown)
    warm_up = building.sample(
        image=shown,
        probabilities=training.softmax(head.logits(told)).round(5).astype(np.float32),
        novelty=head.novelty(told, rest).round(4).astype(np.float32),
    )
    return graph.model("texture", tile_info(), outputs), warm_up, limit


def held_out(ask: building.Ask, limit: float) -> building.Figures:
    """Figures of the model in the folder, on tiles that it was not trained on."""
    random = np.random.default_rng(SEED + 2)
    painted, kinds = tiles_of(random, HELD_OUT)
    found = ask(painted)
    sure = found["classes"].astype(np.float64)
    plain, alike, novel = [], [], []
    for tiles, same, theirs in slides(random, LABORATORIES):
        raw, normal = ask(tiles), ask(same)
        plain.append(training.accuracy(raw["classes"], theirs))
        alike.append(training.accuracy(normal["classes"], theirs))
        novel.append([(one["novelty"] >= limit).mean() for one in (raw, normal)])
    return building.as_printed(
        {
            "accuracy in the reference's colours": training.accuracy(sure, kinds),
            "expected calibration error": training.calibration_error(sure, kinds),
            "abstained": float((found["novelty"] >= limit).mean()),
            "accuracy in other stains, as they are": float(np.mean(plain)),
            "worst laboratory, as it is": min(plain),
            "abstained, as they are": float(np.mean(novel, axis=0)[0]),
            "accuracy in other stains, normalised": float(np.mean(alike)),
            "worst laboratory, normalised": min(alike),
            "abstained, normalised": float(np.mean(novel, axis=0)[1]),
        }
    )


if __name__ == "__main__":
    building.write(Path(__file__).parent, build)
