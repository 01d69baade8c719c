#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["onnx==1.23.2"]
# ///
"""Builds model.onnx and warm_up.npz from the ranges in model.toml, which gets their SHA-256.

The same model.toml gives the same bytes.

`python build.py` builds in place; `python build.py --to FOLDER` builds there and leaves this folder
alone.
"""

import argparse
import hashlib
import re
import tomllib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper

HERE: Final = Path(__file__).parent

IR_VERSION: Final = 10
"""Format of the file; ONNX Runtime 1.31 reads up to 13."""

OPSET: Final = 21
"""Operator set; ONNX Runtime 1.31 knows up to 26."""

Ranges = Sequence[tuple[float, float] | None]
"""[from, to) in Hounsfield units of each label, in order; None for the one that takes the rest."""


class Graph:
    """Nodes and constants in the order they are added, so that the bytes depend on nothing else."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Adds a node with one output and returns the output's name."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(
        self, name: str, element: int, values: Sequence[float], shape: Sequence[int] = ()
    ) -> str:
        """Adds a constant (element: a TensorProto data type) and returns its name."""
        self.constants.append(helper.make_tensor(name, element, shape, values))
        return name


def add_masks(graph: Graph, value: str, ranges: Ranges) -> list[str]:
    """Per label a mask (frames, rows, columns) of its voxels.

    What is left includes NaN, because no comparison holds for it.
    """
    masks = []
    for label, bounds in enumerate(ranges):
        if bounds is not None:
            low, high = (
                graph.constant(f"{end}_{label}", TensorProto.FLOAT, [bound])
                for end, bound in zip(("from", "to"), bounds, strict=True)
            )
            above = graph.node("GreaterOrEqual", [value, low], f"above_{label}")
            below = graph.node("Less", [value, high], f"below_{label}")
            masks.append(graph.node("And", [above, below], f"in_{label}"))
    taken = masks[0]
    for number, mask in enumerate(masks[1:], start=1):
        taken = graph.node("Or", [taken, mask], f"taken_{number}")
    rest = graph.node("Not", [taken], "in_none")
    ranged = iter(masks)
    return [rest if bounds is None else next(ranged) for bounds in ranges]


def add_label_map(graph: Graph, masks: Sequence[str], output: str) -> None:
    """The label map: each voxel gets the number of the one mask it is in."""
    labels = [
        graph.constant(f"label_{number}", TensorProto.UINT8, [number])
        for number in range(len(masks))
    ]
    last = len(masks) - 1
    chosen = labels[0]
    for number in range(1, last + 1):
        chosen = graph.node(
            "Where",
            [masks[number], labels[number], chosen],
            output if number == last else f"map_{number}",
        )


def add_measures(graph: Graph, value: str, masks: Sequence[str], voxels: str, sums: str) -> None:
    """Per frame and label: number of voxels (exact) and sum of values (in double precision)."""
    wide = graph.node("Cast", [value], "wide", to=TensorProto.DOUBLE)
    zero = graph.constant("zero", TensorProto.DOUBLE, [0.0])
    in_frame = graph.constant("in_frame", TensorProto.INT64, [1, 2], [2])
    column = graph.constant("column", TensorProto.INT64, [1], [1])
    counted, summed = [], []
    for label, mask in enumerate(masks):
        ones = graph.node("Cast", [mask], f"ones_{label}", to=TensorProto.INT32)
        count = graph.node("ReduceSum", [ones, in_frame], f"count_{label}", keepdims=0)
        counted.append(graph.node("Unsqueeze", [count, column], f"count_column_{label}"))
        inside = graph.node("Where", [mask, wide, zero], f"inside_{label}")
        total = graph.node("ReduceSum", [inside, in_frame], f"sum_{label}", keepdims=0)
        summed.append(graph.node("Unsqueeze", [total, column], f"sum_column_{label}"))
    counts = graph.node("Concat", counted, "counts", axis=1)
    graph.node("Cast", [counts], voxels, to=TensorProto.INT64)
    graph.node("Concat", summed, sums, axis=1)


def build(manifest: dict[str, Any]) -> bytes:
    """The bytes of model.onnx for a manifest."""
    ranges = [tuple(label["range"]) if "range" in label else None for label in manifest["labels"]]
    (tensor,) = manifest["inputs"]
    outputs = {output["kind"]: output for output in manifest["outputs"]}
    graph = Graph()
    masks = add_masks(graph, tensor["name"], ranges)
    add_label_map(graph, masks, outputs["label_map"]["name"])
    add_measures(graph, tensor["name"], masks, outputs["voxels"]["name"], outputs["sums"]["name"])
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            manifest["name"],
            [tensor_info(tensor)],
            [tensor_info(output) for output in manifest["outputs"]],
            graph.constants,
            doc_string=manifest["summary"],
        ),
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="fluoro",
        producer_version=manifest["version"],
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def warm_up(manifest: dict[str, Any]) -> bytes:
    """The bytes of warm_up.npz: what NumPy finds beside each threshold, not what the graph does."""
    bounds = sorted({bound for label in manifest["labels"] for bound in label.get("range", ())})
    steps = [bound + step for bound in bounds for step in (-1, 0, 1)]
    values = np.array([*steps, np.nan, np.inf, -np.inf], np.float32).reshape(1, 3, -1)
    labels = np.zeros(values.shape, np.uint8)
    for label in manifest["labels"]:
        if "range" in label:
            low, high = label["range"]
            labels[(values >= low) & (values < high)] = label["value"]
    inside = [labels == label["value"] for label in manifest["labels"]]
    found = {
        "label_map": labels,
        "voxels": np.array([[mask.sum() for mask in inside]], np.int64),
        "sums": np.array([[values[mask].sum(dtype=np.float64) for mask in inside]]),
    }
    file = BytesIO()
    (tensor,) = manifest["inputs"]
    outputs = {output["name"]: found[output["kind"]] for output in manifest["outputs"]}
    np.savez(file, **{tensor["name"]: values}, **outputs)
    return file.getvalue()


def tensor_info(tensor: dict[str, Any]) -> onnx.ValueInfoProto:
    """An input or output as the graph declares it."""
    element = {
        "float32": TensorProto.FLOAT,
        "float64": TensorProto.DOUBLE,
        "uint8": TensorProto.UINT8,
        "int64": TensorProto.INT64,
    }
    return helper.make_tensor_value_info(tensor["name"], element[tensor["dtype"]], tensor["shape"])


def main() -> None:
    """Builds."""
    arguments = argparse.ArgumentParser(description="Builds model.onnx from model.toml.")
    arguments.add_argument(
        "--to",
        type=Path,
        default=HERE,
        metavar="FOLDER",
        help="where to write model.onnx and model.toml",
    )
    folder: Path = arguments.parse_args().to
    text = (HERE / "model.toml").read_text(encoding="utf-8")
    manifest = tomllib.loads(text)
    for name, data in (("model.onnx", build(manifest)), ("warm_up.npz", warm_up(manifest))):
        (folder / name).write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        text = re.sub(rf'(?m)^"{re.escape(name)}" = ".*"$', f'"{name}" = "{sha256}"', text)
    (folder / "model.toml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
