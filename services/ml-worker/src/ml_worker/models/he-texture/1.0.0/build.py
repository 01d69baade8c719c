#!/usr/bin/env python3
"""Builds model.onnx and warm_up.npz out of painted tiles, and writes their SHA-256 into model.toml.

The same seed gives the same bytes: weights are rounded to three decimals, below which processors
differ.

`python build.py` builds in place; `--to FOLDER` builds there and leaves this folder alone.
"""

import argparse
import hashlib
import re
import tomllib
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from fluoro.v1 import slide_pb2
from ml_worker.reference import building, training
from ml_worker.slide_phantoms import KINDS, laboratory, tissue
from ml_worker.slides import REFERENCE, REFERENCE_MAXIMA, WHITE, normalized, to_reference
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

HERE: Final = Path(__file__).parent
SEED: Final = 7
TRAINED: Final = 60
"""Tiles of each kind."""
HELD_OUT: Final = 50
LABORATORIES: Final = 10
"""With stains of their own, to measure what normalising them is good for."""
SIDE: Final = 256
JITTER: Final = (0.65, 1.5)
"""Factors of the amounts: the estimate of a slide with few nuclei is as far off."""
IR_VERSION, OPSET = 10, 21
POOL: Final = 4
"""Pixels that become one, each way: a nucleus keeps some three."""
BLUR: Final = 9
"""Pixels of the neighbourhood that a nucleus stands out from."""
DARK: Final = 0.6
"""Amount of hematoxylin from which on a pixel counts as nucleus."""
FLOOR: Final = 1e-3
"""Least mean of which the logarithm is taken. There, a factor is a sum."""
ROUNDS, RATE, SHRINK = 4000, 0.5, 1e-3
"""Of gradient descent on the softmax regression: steps, their length, the weights' decay."""
DECIMALS: Final = 3

Tiles = NDArray[np.uint8]
Numbers = NDArray[np.float64]


def tiles_of(random: np.random.Generator, each: int) -> tuple[Tiles, NDArray[np.intp]]:
    """Painted tiles in the reference's colours, a bit off, and their kinds."""
    kinds = np.repeat(np.arange(len(KINDS)), each)
    stains = REFERENCE * REFERENCE_MAXIMA / (1.1, 1.2)
    painted = [tissue(kind, random, stains * random.uniform(*JITTER, 2), SIDE) for kind in kinds]
    return np.stack(painted), kinds


def features(tiles: Tiles) -> Numbers:
    """What the graph computes, by NumPy: (tiles, 4)."""
    pooled = tiles.reshape(len(tiles), SIDE // POOL, POOL, SIDE // POOL, POOL, 3).mean(axis=(2, 4))
    amounts = -np.log((pooled + 1) / WHITE) @ np.linalg.pinv(REFERENCE).T
    hematoxylin, eosin = amounts[..., 0], amounts[..., 1]
    edge = BLUR // 2
    padded = np.pad(hematoxylin, ((0, 0), (edge, edge), (edge, edge)), "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (BLUR, BLUR), axis=(1, 2))
    stands_out = np.abs(hematoxylin - windows.mean(axis=(3, 4)))
    over = np.maximum(hematoxylin - DARK, 0)
    means = [each.mean(axis=(1, 2)) for each in (hematoxylin, eosin, stands_out, over)]
    return np.log(np.maximum(np.stack(means, axis=1), FLOOR))


def trained(values: Numbers, kinds: NDArray[np.intp]) -> tuple[Numbers, Numbers]:
    """Weights (4, 3) and offsets (3) of a softmax regression, by gradient descent."""
    mean, std = values.mean(axis=0), values.std(axis=0)
    scaled = (values - mean) / std
    weights, offsets = np.zeros((scaled.shape[1], len(KINDS))), np.zeros(len(KINDS))
    wanted = np.eye(len(KINDS))[kinds]
    for _ in range(ROUNDS):
        wrong = softmax(scaled @ weights + offsets) - wanted
        weights -= RATE * (scaled.T @ wrong / len(scaled) + SHRINK * weights)
        offsets -= RATE * wrong.mean(axis=0)
    weights = weights / std[:, np.newaxis]
    offsets = offsets - mean @ weights
    return weights.round(DECIMALS), offsets.round(DECIMALS)


def softmax(values: Numbers) -> Numbers:
    """Along the last axis."""
    raised = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True))


def constants_of(weights: Numbers, offsets: Numbers) -> list[onnx.TensorProto]:
    """What the nodes name."""
    constants = {
        "one": np.float32(1),
        "white": np.float32(WHITE),
        "dark": np.float32(DARK),
        "floor": np.float32(FLOOR),
        "unmix": -np.linalg.pinv(REFERENCE).round(6).astype(np.float32)[:, :, None, None],
        "window": np.full((1, 1, BLUR, BLUR), 1 / BLUR**2, np.float32),
        "pads": np.array([0, 0, BLUR // 2, BLUR // 2] * 2, np.int64),
        "first": np.array([0], np.int64),
        "second": np.array([1], np.int64),
        "third": np.array([2], np.int64),
        "channel": np.array([1], np.int64),
        "space": np.array([2, 3], np.int64),
        "weights": weights.astype(np.float32),
        "offsets": offsets.astype(np.float32),
    }
    return [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]


def nodes() -> list[onnx.NodeProto]:
    """From the bytes of a tile to probabilities."""
    node = helper.make_node
    return [
        node("Cast", ["tile"], ["light"], to=TensorProto.FLOAT),
        node("Transpose", ["light"], ["planes"], perm=[0, 3, 1, 2]),
        node(
            "AveragePool",
            ["planes"],
            ["pooled"],
            kernel_shape=[POOL, POOL],
            strides=[POOL, POOL],
        ),
        node("Add", ["pooled", "one"], ["more"]),
        node("Div", ["more", "white"], ["share"]),
        node("Log", ["share"], ["density"]),
        node("Conv", ["density", "unmix"], ["amounts"]),
        node("Slice", ["amounts", "first", "second", "channel"], ["hematoxylin"]),
        node("Pad", ["hematoxylin", "pads"], ["padded"], mode="edge"),
        node("Conv", ["padded", "window"], ["around"]),
        node("Sub", ["hematoxylin", "around"], ["difference"]),
        node("Abs", ["difference"], ["stands_out"]),
        node("Sub", ["hematoxylin", "dark"], ["above"]),
        node("Relu", ["above"], ["over"]),
        node("Concat", ["amounts", "stands_out", "over"], ["maps"], axis=1),
        node("ReduceMean", ["maps", "space"], ["means"], keepdims=0),
        node("Max", ["means", "floor"], ["above_floor"]),
        node("Log", ["above_floor"], ["features"]),
        node("Gemm", ["features", "weights", "offsets"], ["logits"]),
        node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]


def graph(weights: Numbers, offsets: Numbers, manifest: dict[str, Any]) -> bytes:
    """The bytes of model.onnx."""
    model = helper.make_model(
        helper.make_graph(
            nodes(),
            manifest["name"],
            [helper.make_tensor_value_info("tile", TensorProto.UINT8, ["tiles", SIDE, SIDE, 3])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["tiles", 3])],
            constants_of(weights, offsets),
            doc_string=manifest["summary"],
        ),
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="fluoro",
        producer_version=manifest["version"],
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def warm_up(weights: Numbers, offsets: Numbers) -> bytes:
    """The bytes of warm_up.npz: what NumPy finds for a tile of each kind, not the graph."""
    tiles, _ = tiles_of(np.random.default_rng(SEED + 1), 1)
    expected = softmax(features(tiles) @ weights + offsets)
    file = BytesIO()
    np.savez_compressed(file, tile=tiles, probabilities=expected.round(5).astype(np.float32))
    return file.getvalue()


def held_out(ask: building.Ask, _limit: float) -> building.Figures:
    """Accuracies of the model in the folder, on tiles that it was not trained on.

    The stains of a laboratory are estimated from its tiles, as TileSlide does.
    """
    from dicom_worker.slides.tissue import LEAST_DENSITY, stain_of  # noqa: PLC0415 - for the check alone

    random = np.random.default_rng(SEED + 2)
    tiles, kinds = tiles_of(random, HELD_OUT)
    reference = training.accuracy(ask(tiles)["classes"], kinds)
    plain, alike = [], []
    kinds = np.repeat(np.arange(len(KINDS)), 10)
    for _ in range(LABORATORIES):
        stains = laboratory(random)
        tiles = np.stack([tissue(kind, random, stains) for kind in kinds])
        density = -np.log((tiles[:, ::16, ::16].reshape(-1, 3) + 1.0) / WHITE)
        stain = stain_of(density[density.mean(axis=1) > LEAST_DENSITY])
        assert stain
        slide = slide_pb2.TiledSlide(
            stain=slide_pb2.StainEstimate(
                hematoxylin=stain.hematoxylin,
                eosin=stain.eosin,
                hematoxylin_maximum=stain.maxima[0],
                eosin_maximum=stain.maxima[1],
            )
        )
        tables = to_reference(slide)
        assert tables is not None
        plain.append(training.accuracy(ask(tiles)["classes"], kinds))
        tiles = np.stack([normalized(tile, tables=tables) for tile in tiles])
        alike.append(training.accuracy(ask(tiles)["classes"], kinds))
    return building.as_printed(
        {
            "accuracy in the reference's colours": reference,
            "accuracy in other stains, as they are": float(np.mean(plain)),
            "worst laboratory, as it is": min(plain),
            "accuracy in other stains, normalised": float(np.mean(alike)),
            "worst laboratory, normalised": min(alike),
        }
    )


def main() -> None:
    """Builds, or checks."""
    arguments = argparse.ArgumentParser(description="Builds model.onnx.")
    arguments.add_argument("--to", type=Path, default=HERE, metavar="FOLDER", help="where to write")
    given = arguments.parse_args()
    tiles, kinds = tiles_of(np.random.default_rng(SEED), TRAINED)
    weights, offsets = trained(features(tiles), kinds)
    text = (HERE / "model.toml").read_text(encoding="utf-8")
    manifest = tomllib.loads(text)
    built = {
        "model.onnx": graph(weights, offsets, manifest),
        "warm_up.npz": warm_up(weights, offsets),
    }
    for name, data in built.items():
        (given.to / name).write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        text = re.sub(rf'(?m)^"{re.escape(name)}" = ".*"$', f'"{name}" = "{sha256}"', text)
    (given.to / "model.toml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
