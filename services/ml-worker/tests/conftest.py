"""Upstream steps made by hand, the shipped models, and a model that never ends."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fluoro.v1 import dicom_pb2
from fluoro_jobs.testing import Attempt, step_context
from fluoro_jobs.worker.context import Upstream
from ml_worker.sessions import Model, open_models
from ml_worker.settings import ModelSettings
from numpy.typing import NDArray
from onnx import TensorProto, helper

Spoil = Callable[[bytes], bytes]
Render = Callable[..., Upstream]


@pytest.fixture(scope="session")
def models() -> Mapping[str, Model]:
    """The models that ship, open on the CPU."""
    return open_models(ModelSettings())


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
sha256 = "{sha256}"
summary = "Runs forever unless every voxel is 0."
working_bytes_per_voxel = 16
applies_to = {{ modality = "CT", unit = "HU" }}
input = {{ name = "x", dtype = "float32", shape = ["frames", "rows", "columns"] }}
overlay = {{ window_center = 40, window_width = 400, opacity = 0.5 }}
labels = [{{ value = 0, display_name = "all" }}]
[outputs]
label_map = {{ name = "label_map", dtype = "uint8", shape = ["frames", "rows", "columns"] }}
voxels = {{ name = "voxels", dtype = "int64", shape = ["frames", 1] }}
sums = {{ name = "sums", dtype = "float64", shape = ["frames", 1] }}
"""


@pytest.fixture
def endless(tmp_path: Path) -> Mapping[str, Model]:
    """A model whose run takes 2^62 rounds if a voxel is above 0, and none for zeros (warm-up)."""
    folder = tmp_path / "models" / "endless" / "0.1.0"
    folder.mkdir(parents=True)
    data = endless_graph().SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    (folder / "model.toml").write_text(ENDLESS.format(sha256=hashlib.sha256(data).hexdigest()))
    (folder / "CARD.md").write_text("# endless\n")
    return open_models(ModelSettings(models_folder=tmp_path / "models"))


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
        helper.make_node("Cast", ["scaled"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("ReduceSum", ["wide", "in_row"], ["by_row"], keepdims=0),
        helper.make_node("ReduceSum", ["by_row", "in_row"], ["sums"], keepdims=1),
        helper.make_node("Cast", ["sums"], ["voxels"], to=TensorProto.INT64),
    ]
    constants = [
        helper.make_tensor("zero", number, [], [0.0]),
        helper.make_tensor("many", TensorProto.INT64, [], [2**62]),
        helper.make_tensor("none", TensorProto.INT64, [], [0]),
        helper.make_tensor("in_row", TensorProto.INT64, [1], [1]),
    ]
    cube = ["frames", "rows", "columns"]
    outputs = [
        helper.make_tensor_value_info("label_map", TensorProto.UINT8, cube),
        helper.make_tensor_value_info("voxels", TensorProto.INT64, ["frames", 1]),
        helper.make_tensor_value_info("sums", TensorProto.DOUBLE, ["frames", 1]),
    ]
    graph = helper.make_graph(
        nodes, "endless", [helper.make_tensor_value_info("x", number, cube)], outputs, constants
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
