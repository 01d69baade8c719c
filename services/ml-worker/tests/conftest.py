"""Upstream steps made by hand, the shipped models, and models made for tests."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fluoro.v1 import dicom_pb2
from fluoro_jobs.testing import Attempt, step_context
from fluoro_jobs.worker.context import Upstream
from ml_worker.registry import Registry
from ml_worker.settings import ModelSettings
from ml_worker.testing import write_model
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Spoil = Callable[[bytes], bytes]
Render = Callable[..., Upstream]


@pytest.fixture(scope="session")
def models() -> Registry:
    """The models that ship, open on the CPU."""
    return opened()


def opened(folder: Path | None = None, **settings: Any) -> Registry:
    """The models that ship and those of this folder."""
    registry = Registry(ModelSettings(models_folder=folder, **settings))
    registry.open()
    return registry


def certificate(array: NDArray[Any], unit: str) -> dicom_pb2.PixelCertificate:
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
    return dicom_pb2.PixelCertificate(
        sha256=digest, shape=array.shape, dtype=array.dtype.str, unit=unit
    )


@pytest.fixture
def render(tmp_path: Path) -> Render:
    """What RenderDicom leaves for these arrays, one per input.

    name: of the step. spoil: changes the stored NPY files. Other keywords go into each
    RenderedImage.
    """

    def step(
        *arrays: NDArray[Any],
        name: str = "render",
        unit: str = "HU",
        modality: str = "CT",
        spoil: Spoil = bytes,
        **fields: Any,
    ) -> Upstream:
        attempt = step_context(tmp_path, [b""] * len(arrays), step=name)
        result = dicom_pb2.RenderDicomResult()
        for item, array in zip(attempt.context.each("render"), arrays, strict=True):
            with item:
                file = item.folder / "array.npy"
                np.save(file, array)
                data = spoil(file.read_bytes())
                result.images.add(
                    input=item.input,
                    item=item.key,
                    pixels=item.put("pixels", ".npy", "pixels", "application/x-npy", data),
                    certificate=certificate(array, unit),
                    modality=modality,
                    **fields,
                )
        return attempt.as_upstream(result)

    return step


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[..., Attempt]:
    """An attempt of a step that comes after these."""

    def after(*upstream: Upstream, group: bool = False) -> Attempt:
        return step_context(tmp_path, (), upstream, "analyze", reads=["pixels"], group=group)

    return after


ENDLESS = """
name = "endless"
version = "0.1.0"
summary = "Runs forever unless every voxel is 0."
intended_use = "demonstration"
license = "Apache-2.0"
source = "A test."
training_data = "None."
applies_to = { modalities = ["CT"], unit = "HU" }
overlay = { window_center = 40, window_width = 400, opacity = 0.5 }
labels = [{ value = 0, display_name = "all" }]
batch = { max = 64, bytes_per_voxel = 16 }
[[inputs]]
name = "x"
dtype = "float32"
layout = "NHW"
shape = ["frames", "rows", "columns"]
image = {}
[[outputs]]
kind = "label_map"
name = "label_map"
dtype = "uint8"
shape = ["frames", "rows", "columns"]
"""


@pytest.fixture
def endless(tmp_path: Path) -> Registry:
    """A model whose run takes 2^62 rounds if a voxel is above 0, and none for zeros (warm-up)."""
    make_endless(tmp_path / "models")
    return opened(tmp_path / "models")


def make_endless(folder: Path) -> None:
    zeros = np.zeros((1, 8, 8))
    sample = {"x": zeros.astype("<f4"), "label_map": zeros.astype("|u1")}
    write_model(folder, ENDLESS, endless_graph().SerializeToString(), sample)


@pytest.fixture(scope="session")
def write_endless() -> Callable[[Path], None]:
    """Writes that model into a folder."""
    return make_endless


def endless_graph() -> onnx.ModelProto:
    number, flag = TensorProto.FLOAT, TensorProto.BOOL
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Sin", ["state"], ["next_state"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", flag, []),
            helper.make_tensor_value_info("state", number, []),
        ],
        [
            helper.make_tensor_value_info("go_on", flag, []),
            helper.make_tensor_value_info("next_state", number, []),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "zero"], ["any"]),
        helper.make_node("Where", ["any", "many", "none"], ["rounds"]),
        helper.make_node("Loop", ["rounds", "", "largest"], ["last"], body=body),
        helper.make_node("Mul", ["x", "last"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["label_map"], to=TensorProto.UINT8),
    ]
    constants = [
        helper.make_tensor("zero", number, [], [0.0]),
        helper.make_tensor("many", TensorProto.INT64, [], [2**62]),
        helper.make_tensor("none", TensorProto.INT64, [], [0]),
    ]
    cube = ["frames", "rows", "columns"]
    outputs = [
        helper.make_tensor_value_info("label_map", TensorProto.UINT8, cube),
    ]
    graph = helper.make_graph(
        nodes, "endless", [helper.make_tensor_value_info("x", number, cube)], outputs, constants
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


DOUBLE = """
name = "double"
version = "1.0.0"
summary = "Twice the numbers."
intended_use = "demonstration"
license = "Apache-2.0"
source = "A test."
training_data = "None."
labels = [{ value = 0, display_name = "a" }, { value = 1, display_name = "b" }]
batch = { max = 4, ladder = [1, 4], bytes_per_voxel = 8 }
[[inputs]]
name = "x"
dtype = "float32"
layout = "NF"
shape = ["n", 2]
[[outputs]]
kind = "classes"
name = "y"
dtype = "float32"
shape = ["n", 2]
"""


def double_graph() -> onnx.ModelProto:
    weights = numpy_helper.from_array(np.full(2, 2, np.float32), "two")
    node = helper.make_node("Mul", ["x", "two"], ["y"])
    sides = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")
    ]
    made = helper.make_graph([node], "double", sides[:1], sides[1:], [weights])
    return helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def write_double(folder: Path, version: str = "1.0.0", factor: float = 2, **sample: Any) -> Path:
    """A model that doubles two numbers, which it calls classes."""
    model = double_graph()
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.full(2, factor, np.float32), "two")
    )
    x: NDArray[Any] = np.array([[0.1, 0.2]], np.float32)
    arrays = {"x": x, "y": x * np.float32(factor), **sample}
    text = DOUBLE.replace("1.0.0", version)
    return write_model(folder, text, model.SerializeToString(), arrays)


@pytest.fixture(scope="session")
def make_double() -> Callable[..., Path]:
    """Writes a model that doubles two numbers: folder, version, factor, arrays of the sample."""
    return write_double
