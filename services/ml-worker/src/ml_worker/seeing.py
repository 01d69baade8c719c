"""A model for tests that makes vectors and classes of photographs."""

from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ml_worker.registry import Registry
from ml_worker.settings import ModelSettings
from ml_worker.testing import write_model

SIDE: Final = 8
DIMENSIONS: Final = 6
MANIFEST: Final = f"""
name = "seeing"
version = "1.0.0"
summary = "Sees whether the upper left quarter is bright."
intended_use = "demonstration"
license = "Apache-2.0"
source = "A test."
training_data = "None."
applies_to = {{ modalities = [], unit = "1", photometric = ["grey", "colour"] }}
labels = [{{ value = 0, display_name = "dark" }}, {{ value = 1, display_name = "bright" }}]
batch = {{ max = 4, bytes_per_voxel = 64 }}
[[inputs]]
name = "x"
dtype = "float32"
layout = "NCHW"
shape = ["n", 3, {SIDE}, {SIDE}]
image = {{ colour = "rgb", values = {{ from = "full", to = [0, 1] }}, resize = "stretch" }}
[[outputs]]
kind = "embedding"
name = "vectors"
dtype = "float32"
shape = ["n", {DIMENSIONS}]
[[outputs]]
kind = "classes"
name = "scores"
dtype = "float32"
shape = ["n", 2]
scores = "logits"
"""
Array = NDArray[np.float32]


def weights() -> Array:
    """Of the embedding: (values of a sample, dimensions)."""
    return np.random.default_rng(7).normal(size=(3 * SIDE**2, DIMENSIONS)).astype(np.float32)


def corner() -> Array:
    """Of the classes: the mean of the upper left quarter, times 10 for `bright`."""
    inside = np.zeros((3, SIDE, SIDE), np.float32)
    inside[:, : SIDE // 2, : SIDE // 2] = 10 / (3 * (SIDE // 2) ** 2)
    return np.stack([np.zeros(inside.size, np.float32), inside.ravel()], axis=1)


def seeing_graph() -> onnx.ModelProto:
    """Vectors are linear: black gives zeros. White gives what is no number."""
    constants = [
        numpy_helper.from_array(np.array([-1, 3 * SIDE**2]), "flat"),
        numpy_helper.from_array(np.array([1]), "axis"),
        numpy_helper.from_array(np.array([0.995], np.float32), "almost_white"),
        numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
        numpy_helper.from_array(np.array([[5, 0]], np.float32), "bias"),
        numpy_helper.from_array(weights(), "weights"),
        numpy_helper.from_array(corner(), "corner"),
    ]
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["row"]),
        helper.make_node("ReduceMean", ["row", "axis"], ["mean"]),
        helper.make_node("Sub", ["almost_white", "mean"], ["below"]),
        helper.make_node("Sqrt", ["below"], ["root"]),
        helper.make_node("Mul", ["root", "zero"], ["nothing"]),
        helper.make_node("MatMul", ["row", "weights"], ["linear"]),
        helper.make_node("Add", ["linear", "nothing"], ["vectors"]),
        helper.make_node("MatMul", ["row", "corner"], ["seen"]),
        helper.make_node("Add", ["seen", "bias"], ["biased"]),
        helper.make_node("Add", ["biased", "nothing"], ["scores"]),
    ]
    sides = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])
        for name, shape in (("x", (3, SIDE, SIDE)), ("vectors", (DIMENSIONS,)), ("scores", (2,)))
    ]
    graph = helper.make_graph(nodes, "seeing", sides[:1], sides[1:], constants)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def write_seeing(folder: Path) -> Registry:
    """The models that ship and this one, open."""
    x = np.random.default_rng(3).uniform(0, 0.9, (2, 3, SIDE, SIDE)).astype(np.float32)
    row = x.reshape(2, -1)
    scores = row @ corner() + np.array([5, 0], np.float32)
    sample = {"x": x, "vectors": row @ weights(), "scores": scores}
    write_model(folder, MANIFEST, seeing_graph().SerializeToString(), sample)
    models = Registry(ModelSettings(models_folder=folder))
    models.open()
    return models
