"""Jobs of different owners whose images share a run, on a real worker."""

import socket
import urllib.request
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pydicom
from fluoro.v1.job_pb2 import Item, Job
from fluoro_jobs.ledger import control
from fluoro_jobs.testing.rig import Rig, until
from ml_worker.testing import write_model
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from pydicom.data import get_testdata_file

MANIFEST = """
name = "picky"
version = "1.0.0"
summary = "Fails if a voxel is above 20,000."
intended_use = "demonstration"
license = "Apache-2.0"
source = "A test."
training_data = "None."
applies_to = { modalities = ["CT"], unit = "HU" }
labels = [{ value = 0, display_name = "any" }]
batch = { max = 4, bytes_per_voxel = 64, max_delay_seconds = 10 }
[[inputs]]
name = "x"
dtype = "float32"
layout = "NHW"
shape = ["n", "rows", "columns"]
image = {}
[[outputs]]
kind = "classes"
name = "y"
dtype = "float32"
shape = ["n", 1]
"""


def write_picky(folder: Path) -> None:
    node = helper.make_node
    nodes = [
        node("ReduceMax", ["x", "plane"], ["largest"], keepdims=0),
        node("Div", ["largest", "limit"], ["share"]),
        node("Cast", ["share"], ["place"], to=TensorProto.INT64),
        node("Gather", ["table", "place"], ["one"]),  # fails out of the table's bounds
        node("Unsqueeze", ["one", "last"], ["y"]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "plane": np.array([1, 2]),
        "last": np.array([1]),
        "limit": np.array(20_000, np.float32),
        "table": np.array([1], np.float32),
    }
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "picky",
        [value("x", TensorProto.FLOAT, ["n", "rows", "columns"])],
        [value("y", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    made = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    sample = {"x": np.zeros((1, 8, 8), np.float32), "y": np.ones((1, 1), np.float32)}
    write_model(folder, MANIFEST, made.SerializeToString(), sample)


def ct(largest: int) -> bytes:
    """A real slice with one voxel of this value."""
    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    pixels = dataset.pixel_array.copy()
    pixels[0, 0] = largest
    dataset.PixelData = pixels.tobytes()
    file = BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def submitted(rig: Rig, owner: str, largest: int = 0) -> tuple[UUID, str]:
    """A job, and whose it is."""
    job = Job(inputs=[rig.blob(ct(largest), owner)])
    job.steps.add(name="render").render_dicom.SetInParent()
    step = job.steps.add(name="analyze", after=["render"])
    step.analyze_images.model = "picky"
    return rig.submit(job, owner=owner), owner


def items(rig: Rig, jobs: Sequence[tuple[UUID, str]]) -> list[str]:
    """What became of the only image of each job: its state, or the reason."""

    def last(job: Job) -> str:
        (item,) = job.steps[-1].items
        return item.reason or Item.State.Name(item.state).removeprefix("STATE_")

    for job, owner in jobs:
        until(lambda job=job, owner=owner: rig.job(job, owner).HasField("end_time"), 60, rig.logs())
    return [last(rig.job(job, owner)) for job, owner in jobs]


def figures(port: int) -> dict[str, float]:
    """The worker's metrics of models."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
        lines = page.read().decode().splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines)
        if name.startswith("fluoro_model_")
    }


def test_images_of_different_owners_share_a_run_and_a_bad_one_fails_alone(
    rig: Rig, tmp_path: Path
) -> None:
    write_picky(tmp_path / "models")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for service in ("dicom_worker", "scheduler"):
        rig.start(service, slots=2)
    # Sixteen slots unless told otherwise: four jobs at once are in the worker.
    rig.served("ml_worker", port, ml_models_folder=tmp_path / "models")
    begun = figures(port)
    name = 'fluoro_model_run_samples_{}{{model="picky"}}'

    def since(kind: str) -> float:
        key = name.format(kind)
        return figures(port)[key] - begun[key]

    good = [submitted(rig, owner) for owner in ("ada", "ben", "eve", "ada")]
    assert items(rig, good) == ["SUCCEEDED"] * 4
    assert (since("count"), since("sum")) == (1, 4)

    mixed = [submitted(rig, "ada", largest) for largest in (0, 0, 30_000, 0)]
    assert items(rig, mixed) == ["SUCCEEDED", "SUCCEEDED", "MODEL_RUN_FAILED", "SUCCEEDED"]
    assert "idx=" not in rig.logs(), "ONNX Runtime quotes what it was shown"

    cancelled, *others = [submitted(rig, "eve"), submitted(rig, "ada"), submitted(rig, "ben")]
    until(lambda: rig.job(*cancelled).steps[-1].tasks[0].attempts, 30, "the run's beginning")
    with rig.ledger.connection() as connection:
        control.cancel(connection, cancelled[1], cancelled[0])
    rig.have_workers_look()
    others += [submitted(rig, "ada"), submitted(rig, "ada")]
    assert items(rig, others) == ["SUCCEEDED"] * 4
