"""What a model's folder must be for its model to be READY."""

import hashlib
import io
import itertools
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from fluoro.v1.model_pb2 import Model as ModelProto
from fluoro_jobs.errors import FluoroError, Reason
from ml_worker import devices, sessions
from ml_worker.devices import DeviceMissingError, check_wheels, nodes_on_cpu
from ml_worker.manifest import ModelRefusedError
from ml_worker.registry import Registry
from ml_worker.repository import read_model
from ml_worker.sessions import open_model
from ml_worker.settings import SHIPPED_MODELS, ModelSettings
from ml_worker.waiting import Alone
from numpy.typing import NDArray
from onnx import TensorProto, helper
from pydantic import ValidationError

CT_TISSUE = Path("ct-tissue", "1.0.0")
HE_TEXTURE = Path("he-texture", "1.0.0")
SERVICE = Path(__file__).parents[1]
Problem = ModelProto
Double = Callable[..., Path]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A copy of the shipped model, to be spoilt."""
    return shutil.copytree(SHIPPED_MODELS / CT_TISSUE, tmp_path / CT_TISSUE)


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def rehash(place: Path, name: str, data: bytes) -> None:
    """Puts another file there, with its hash in the manifest."""
    old = hashlib.sha256((place / name).read_bytes()).hexdigest()
    (place / name).write_bytes(data)
    replace(place / "model.toml", old, hashlib.sha256(data).hexdigest())


def saved(**arrays: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def refused(place: Path) -> ModelRefusedError:
    with pytest.raises(ModelRefusedError) as caught:
        open_model(read_model(place), ModelSettings())
    return caught.value


@pytest.mark.parametrize("model", [CT_TISSUE, HE_TEXTURE], ids=str)
def test_building_a_model_again_gives_the_same_bytes(tmp_path: Path, model: Path) -> None:
    subprocess.run(
        [sys.executable, SHIPPED_MODELS / model / "build.py", "--to", tmp_path], check=True
    )
    for name in ("model.onnx", "model.toml", "warm_up.npz"):
        assert (tmp_path / name).read_bytes() == (SHIPPED_MODELS / model / name).read_bytes()


def test_the_wheel_ships_every_model_and_serves_it(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=SERVICE,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import ml_worker.registry as r;"
        "print(r.__file__, r.warm_up().find('ct-tissue').execution_provider)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()[-1]
    assert shown.split() == [
        str(tmp_path / "site" / "ml_worker" / "registry.py"),
        "CPUExecutionProvider",
    ]
    assert not list((tmp_path / "site").rglob("build.py"))


def test_the_card_states_the_thresholds_of_the_manifest_and_they_leave_no_gap() -> None:
    files = read_model(SHIPPED_MODELS / CT_TISSUE)
    card = files.card.replace("\N{MINUS SIGN}", "-")
    ranged = [(label, label.range) for label in files.manifest.labels if label.range]
    for label, (low, high) in ranged:
        assert f"| {label.value} | {label.display_name} | {low:g} | {high:g} |" in card
    assert all(below[1] == above[0] for (_, below), (_, above) in itertools.pairwise(ranged))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "ct-tissue"', 'name = "ct-organs"', "calls itself ct-organs/1.0.0"),
        ('version = "1.0.0"', 'version = "1.0"', "version"),
        ('summary = "', 'sumary = "', "sumary"),
        ('intended_use = "research"', 'intended_use = "anything"', "intended_use"),
        ("value = 3", "value = 4", "values must be 0, 1, 2"),
        ('display_name = "bone"', 'display_name = "air"', "display names must differ"),
        ("range = [-950, -190]", "range = [-960, -190]", "ranges must not overlap"),
        ("range = [151, 3072]", "range = [3072, 151]", "a range must begin below its end"),
        ('color = "#4fa3e3"', 'color = "blue"', "color"),
        ("opacity = 0.45", "opacity = 45", "opacity"),
        ('layout = "NHW"', 'layout = "NHWC"', "one letter per axis"),
        ('layout = "NHW"', 'layout = "NHF"', "must have H and W"),
        ('colour = "grey"', 'colour = "rgb"', "must have C"),
        ('colour = "grey"', 'resize = "fit"', "image.resize belongs to a tensor of fixed size"),
        ('colour = "grey"', "spacing_mm = [1, 1, 1]", "spacing_mm must have 2"),
        ('colour = "grey"', "std = [0]", "std"),
        ('colour = "grey"', "values = { from = [1, 0], to = [0, 1] }", "must begin below"),
        ('shape = ["frames", 6]', 'shape = ["frames", 5]', "must be 6, one per label"),
        ("bytes_per_voxel = 48", "bytes_per_voxel = 0", "bytes_per_voxel"),
        ("max = 1024", "max = 1024\nladder = [1, 8]", "ladder must rise, and end with max"),
        ('"warm_up.npz" = ', '"other.npz" = ', "must have the SHA-256 of warm_up.npz"),
        ('"warm_up.npz" = ', '"../warm_up.npz" = ', "files"),
        ('kind = "sums"', 'kind = "label_map"', "label_map"),
        ('kind = "sums"', 'kind = "guess"', "guess"),
        ("[applies_to]", "[applies_to", "not a manifest"),
    ],
)
def test_a_manifest_that_is_not_right_is_refused_and_the_message_says_where(
    place: Path, old: str, new: str, message: str
) -> None:
    replace(place / "model.toml", old, new)
    found = refused(place)
    assert found.problem == Problem.PROBLEM_MANIFEST_INVALID
    assert message in str(found)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "hounsfield"', 'name = "values"', "promises the inputs ['values']"),
        ('name = "sums"', 'name = "totals"', "promises the outputs"),
        ('shape = ["frames", 6]', 'shape = ["frames", "labels", 6]', "must have 2 axes"),
    ],
)
def test_a_manifest_that_lies_about_the_graph_is_found_out(
    place: Path, old: str, new: str, message: str
) -> None:
    replace(place / "model.toml", old, new)
    assert message in str(refused(place))


@pytest.mark.parametrize("name", ["model.onnx", "CARD.md", "warm_up.npz"])
def test_a_model_without_one_of_its_files_is_refused(place: Path, name: str) -> None:
    (place / name).unlink()
    found = refused(place)
    assert found.problem == Problem.PROBLEM_FILES_MISSING
    assert name in str(found)


def test_a_pipe_in_place_of_a_file_keeps_nobody_waiting(place: Path) -> None:
    (place / "model.onnx").unlink()
    os.mkfifo(place / "model.onnx")
    assert refused(place).problem == Problem.PROBLEM_FILES_MISSING


@pytest.mark.parametrize("name", ["model.onnx", "warm_up.npz"])
def test_another_file_than_the_manifest_is_about_is_refused(place: Path, name: str) -> None:
    (place / name).write_bytes((place / name).read_bytes() + b"\0")
    found = refused(place)
    assert found.problem == Problem.PROBLEM_FILE_MISMATCH
    assert f"{name} has SHA-256" in str(found)


@pytest.mark.parametrize("data", [b"not a graph", b"", b"\x08\x07" * 8])
def test_a_file_that_is_no_graph_is_refused(place: Path, data: bytes) -> None:
    rehash(place, "model.onnx", data)
    assert refused(place).problem == Problem.PROBLEM_GRAPH_INVALID


def graph(place: Path) -> onnx.ModelProto:
    return onnx.load_from_string((place / "model.onnx").read_bytes())


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda model: model.graph.node[0].input.__setitem__(0, "?"), "GRAPH_INVALID"),
        (lambda model: setattr(model.opset_import[0], "version", 99), "OPSET_UNSUPPORTED"),
        (lambda model: setattr(model, "ir_version", 99), "OPSET_UNSUPPORTED"),
        (
            lambda model: model.opset_import.append(helper.make_opsetid("my.own", 1)),
            "OPSET_UNSUPPORTED",
        ),
        (
            lambda model: setattr(
                model.graph.input[0].type.tensor_type, "elem_type", TensorProto.DOUBLE
            ),
            "GRAPH_INVALID",
        ),
    ],
    ids=["dangling", "future opset", "future format", "custom operators", "types that clash"],
)
def test_a_graph_that_the_checker_refuses_never_reaches_onnx_runtime(
    place: Path, spoil: Callable[[onnx.ModelProto], Any], problem: str
) -> None:
    model = graph(place)
    spoil(model)
    rehash(place, "model.onnx", model.SerializeToString())
    assert Problem.Problem.Name(refused(place).problem) == f"PROBLEM_{problem}"


# --- weights in other files ---


def outside(place: Path, location: str, data: bytes, *, offset: int = 0, length: int = 8) -> None:
    """Moves the weights out of the graph."""
    model = graph(place)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    rehash(place, "model.onnx", model.SerializeToString())
    (place / "weights.bin").write_bytes(data)


TWOS = np.full(2, 2, "<f4").tobytes()


def listed(place: Path, data: bytes) -> None:
    sha256 = hashlib.sha256(data).hexdigest()
    replace(place / "model.toml", "[files]", f'[files]\n"weights.bin" = "{sha256}"')


def test_weights_in_another_file_are_taken_if_their_hash_is_in_the_manifest(
    tmp_path: Path,
    make_double: Double,
) -> None:
    place = make_double(tmp_path)
    outside(place, "weights.bin", b"\0" * 4 + TWOS, offset=4)
    listed(place, b"\0" * 4 + TWOS)
    model = open_model(read_model(place), ModelSettings())
    assert model.manifest.name == "double"
    (place / "weights.bin").write_bytes(b"\0" * 12)
    assert refused(place).problem == Problem.PROBLEM_FILE_MISMATCH


@pytest.mark.parametrize("location", ["weights.bin", "/etc/hostname", "../secret", ""])
def test_weights_in_a_file_that_the_manifest_does_not_list_are_refused(
    tmp_path: Path, make_double: Double, location: str
) -> None:
    place = make_double(tmp_path)
    outside(place, location, TWOS)
    found = refused(place)
    assert found.problem == Problem.PROBLEM_EXTERNAL_DATA
    assert "hostname" not in str(found)


@pytest.mark.parametrize(("offset", "length"), [(-4, 8), (4, 8), (0, -9), (99, 1)])
def test_weights_beyond_their_file_are_refused(
    tmp_path: Path, make_double: Double, offset: int, length: int
) -> None:
    place = make_double(tmp_path)
    outside(place, "weights.bin", TWOS, offset=offset, length=length)
    listed(place, TWOS)
    assert refused(place).problem in {
        Problem.PROBLEM_EXTERNAL_DATA,
        Problem.PROBLEM_GRAPH_INVALID,
    }


# --- the warm-up ---


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"y": np.array([[0.2, 0.5]], np.float32)}, "0.5 of them differ"),
        ({"y": np.array([[0.2, 0.4]] * 2, np.float32)}, "shape [1, 2]"),
        ({"y": np.array([[0.2, 0.4]])}, "as float64"),
        ({"x": np.zeros((0, 2), np.float32)}, "no samples"),
        ({"x": np.zeros((5, 2), np.float32)}, "more than batch.max"),
        ({"x": np.zeros((1, 3), np.float32)}, "of shape [1, 3]"),
    ],
)
def test_a_model_that_gives_other_than_its_sample_promises_is_not_served(
    tmp_path: Path, make_double: Double, sample: dict[str, NDArray[Any]], message: str
) -> None:
    found = refused(make_double(tmp_path, **sample))
    assert found.problem == Problem.PROBLEM_WARM_UP_DIFFERS
    assert message in str(found)


def test_a_sample_may_differ_by_the_tolerance_that_the_manifest_states(
    tmp_path: Path, make_double: Double
) -> None:
    place = make_double(tmp_path, y=np.array([[0.2, 0.5]], np.float32))
    replace(place / "model.toml", "[warm_up]", "[warm_up]\natol = 0.2")
    open_model(read_model(place), ModelSettings())
    replace(place / "model.toml", "atol = 0.2", "differing_share = 0.5")
    open_model(read_model(place), ModelSettings())


def member(header: bytes, flags: int = 0) -> bytes:
    """A ZIP file with this as x.npy."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", header)
    data = bytearray(file.getvalue())
    for place in (6, data.find(b"PK\x01\x02") + 8):
        data[place] |= flags
    return bytes(data)


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no zip",
        b"PK\x05\x06" + bytes(18),
        member(header("{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999, 2)}\n")),
        member(header("(" * 9 + "\n")),
        member(b"no array"),
        member(b"", flags=1),
    ],
    ids=["empty", "no zip", "no members", "256 TiB", "no header", "no array", "encrypted"],
)
def test_a_sample_that_is_no_npz_is_refused(
    tmp_path: Path, make_double: Double, data: bytes
) -> None:
    place = make_double(tmp_path)
    rehash(place, "warm_up.npz", data)
    assert refused(place).problem == Problem.PROBLEM_WARM_UP_DIFFERS


def test_a_model_that_gives_no_numbers_is_not_served(tmp_path: Path, make_double: Double) -> None:
    infinite = make_double(tmp_path, factor=np.inf)
    found = refused(infinite)
    assert found.problem == Problem.PROBLEM_RUN_FAILED
    assert "not numbers" in str(found)


@pytest.mark.usefixtures("endless")
def test_a_model_that_goes_round_for_ever_is_refused_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "models" / "endless" / "0.1.0"
    ones: NDArray[Any] = np.ones((1, 8, 8))
    rehash(place, "warm_up.npz", saved(x=ones.astype("<f4"), label_map=ones.astype("|u1")))
    monkeypatch.setattr(sessions, "WARM_UP_SECONDS", 0.2)
    found = refused(place)
    assert found.problem == Problem.PROBLEM_RUN_FAILED
    assert "more than 0.2 s" in str(found)


@pytest.mark.parametrize(
    ("batch", "problem"),
    [
        ("max = 4, ladder = [1, 4]", "needs batch.max 1"),
        ("max = 1", ""),
    ],
)
def test_a_graph_for_one_sample_at_a_time_needs_a_batch_of_one(
    tmp_path: Path, make_double: Double, batch: str, problem: str
) -> None:
    place, model = make_double(tmp_path), graph(tmp_path / "double" / "1.0.0")
    for side in (model.graph.input[0], model.graph.output[0]):
        side.type.tensor_type.shape.dim[0].dim_value = 1
    rehash(place, "model.onnx", model.SerializeToString())
    for _ in range(2):
        replace(place / "model.toml", '["n", 2]', "[1, 2]")
    replace(place / "model.toml", "max = 4, ladder = [1, 4]", batch)
    if problem:
        assert problem in str(refused(place))
    else:
        open_model(read_model(place), ModelSettings())


def test_a_graph_that_gives_one_answer_for_several_samples_is_found_out(
    tmp_path: Path, make_double: Double
) -> None:
    place, model = make_double(tmp_path), graph(tmp_path / "double" / "1.0.0")
    model.graph.node[0].CopyFrom(helper.make_node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=1))
    model.opset_import[0].version = 13
    rehash(place, "model.onnx", model.SerializeToString())
    x: NDArray[Any] = np.ones((1, 2), np.float32)
    rehash(place, "warm_up.npz", saved(x=x, y=x))
    found = refused(place)
    assert found.problem == Problem.PROBLEM_RUN_FAILED
    assert "for 4 samples" in str(found)


# --- devices ---


@pytest.mark.skipif(onnxruntime.get_device() == "GPU", reason="this ONNX Runtime has CUDA")
def test_without_cuda_a_worker_told_to_use_it_does_not_start() -> None:
    with pytest.raises(DeviceMissingError, match="extra `gpu`"):
        Registry(ModelSettings(device="cuda")).open()


def test_a_worker_told_to_use_a_gpu_does_not_start_in_a_mixed_environment() -> None:
    with pytest.raises(DeviceMissingError, match="overwrite each other"):
        check_wheels(["onnxruntime", "onnxruntime-gpu"], "cuda")
    check_wheels(["onnxruntime", "onnxruntime-gpu"], "cpu")


def test_nodes_that_fell_back_to_the_cpu_are_named_unless_the_manifest_allows_them() -> None:
    placed = {"CUDAExecutionProvider": ["Conv"], "CPUExecutionProvider": ["Shape", "NonZero"]}
    assert nodes_on_cpu("cuda", placed, ["Shape"]) == ["NonZero"]
    assert nodes_on_cpu("cpu", placed, []) == []


def test_a_worker_does_not_start_if_its_gpu_would_not_run_every_node(
    tmp_path: Path, make_double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This machine has no GPU: what is called `cuda` here is the CPU, where every node falls back.
    monkeypatch.setitem(devices.PROVIDERS, "cuda", (devices.CPU, {}))
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    make_double(tmp_path)
    with pytest.raises(DeviceMissingError, match="the CPU would run"):
        Registry(ModelSettings(device="cuda", models_folder=tmp_path)).open()


def test_a_model_that_is_not_made_for_the_device_is_unavailable(
    tmp_path: Path, make_double: Double
) -> None:
    place = make_double(tmp_path)
    with (place / "model.toml").open("a") as file:
        file.write("[providers.cuda]\n")
    assert refused(place).problem == Problem.PROBLEM_DEVICE_UNSUPPORTED


# --- settings ---


def test_settings_come_from_the_environment_and_a_folder_must_be_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLUORO_ML_INTRA_OP_THREADS", "3")
    monkeypatch.setenv("FLUORO_ML_MODELS_FOLDER", str(tmp_path))
    settings = ModelSettings()
    assert (settings.folders, settings.device, settings.intra_op_threads) == (
        (SHIPPED_MODELS, tmp_path),
        "cpu",
        3,
    )
    monkeypatch.setenv("FLUORO_ML_MODELS_FOLDER", str(tmp_path / "nowhere"))
    with pytest.raises(ValidationError, match="models_folder"):
        ModelSettings()


def test_the_table_of_handlers_does_not_load_onnx_runtime() -> None:
    code = (
        "import sys, ml_worker.operations, ml_worker.settings;"
        "sys.exit('onnxruntime' in sys.modules or 'onnx' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_batch_is_filled_up_to_a_rung_and_the_filling_is_cut_off(
    tmp_path: Path, make_double: Double
) -> None:
    model = open_model(read_model(make_double(tmp_path)), ModelSettings())
    x: NDArray[Any] = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert [model.manifest.batch.rung(samples) for samples in (1, 2, 4)] == [1, 4, 4]
    assert np.array_equal(model.run({"x": x}, Alone())["y"], 2 * x)
    with pytest.raises(FluoroError) as caught:
        model.run({"x": np.full((3, 2), np.inf, np.float32)}, Alone())
    assert caught.value.reason == Reason.MODEL_OUTPUT_INVALID
