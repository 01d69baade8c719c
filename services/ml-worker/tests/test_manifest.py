"""What a model's folder must be for the worker to start."""

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import onnxruntime
import pytest
from ml_worker.manifest import ModelRefusedError, read_models
from ml_worker.sessions import open_models
from ml_worker.settings import SHIPPED_MODELS, ModelSettings
from pydantic import ValidationError

CT_TISSUE = Path("ct-tissue", "1.0.0")
SERVICE = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped models, to be spoilt."""
    return shutil.copytree(SHIPPED_MODELS, tmp_path / "models")


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_building_ct_tissue_again_gives_the_same_bytes(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, SHIPPED_MODELS / CT_TISSUE / "build.py", "--to", tmp_path], check=True
    )
    for name in ("model.onnx", "model.toml"):
        assert (tmp_path / name).read_bytes() == (SHIPPED_MODELS / CT_TISSUE / name).read_bytes()


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
    code = "import ml_worker.sessions as s; print(s.__file__, *s.warm_up())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert shown.split() == [str(tmp_path / "site" / "ml_worker" / "sessions.py"), "ct-tissue"]
    assert not list((tmp_path / "site").rglob("build.py"))


def test_the_card_states_the_thresholds_of_the_manifest_and_they_leave_no_gap() -> None:
    card = (
        (SHIPPED_MODELS / CT_TISSUE / "CARD.md")
        .read_text(encoding="utf-8")
        .replace("\N{MINUS SIGN}", "-")
    )
    (model,) = read_models(SHIPPED_MODELS)
    ranged = [(label, label.range) for label in model.manifest.labels if label.range]
    for label, (low, high) in ranged:
        assert f"| {label.value} | {label.display_name} | {low:g} | {high:g} |" in card
    assert all(below[1] == above[0] for (_, below), (_, above) in itertools.pairwise(ranged))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "ct-tissue"', 'name = "ct-organs"', "calls itself ct-organs/1.0.0"),
        ('version = "1.0.0"', 'version = "1.0"', "version"),
        ('summary = "', 'sumary = "', "sumary"),
        ("value = 3", "value = 4", "values must be 0, 1, 2"),
        ('display_name = "bone"', 'display_name = "air"', "display names must differ"),
        ("range = [-950, -190]", "range = [-960, -190]", "ranges must not overlap"),
        ("range = [151, 3072]", "range = [3072, 151]", "a range must begin below its end"),
        ('color = "#4fa3e3"', 'color = "blue"', "color"),
        ("opacity = 0.45", "opacity = 45", "opacity"),
        ('dtype = "float32"', 'dtype = "float64"', "input must be float32"),
        ('shape = ["frames", 6]', 'shape = ["frames", 5]', "outputs.voxels must be"),
        ("working_bytes_per_voxel = 48", "working_bytes_per_voxel = 0", "working_bytes_per_voxel"),
        ("[applies_to]", "[applies_to", "not a manifest"),
        ('name = "hounsfield"', 'name = "values"', "model.toml promises the inputs"),
    ],
)
def test_a_manifest_that_is_not_right_is_refused_and_the_message_says_where(
    folder: Path, old: str, new: str, message: str
) -> None:
    replace(folder / CT_TISSUE / "model.toml", old, new)
    with pytest.raises(ModelRefusedError, match=r"ct-tissue/1\.0\.0") as caught:
        open_models(ModelSettings(models_folder=folder))
    assert message in str(caught.value)


def test_another_file_than_the_manifest_is_about_is_refused(folder: Path) -> None:
    file = folder / CT_TISSUE / "model.onnx"
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ModelRefusedError, match="SHA-256"):
        open_models(ModelSettings(models_folder=folder))


def test_a_file_that_is_no_graph_is_refused(folder: Path) -> None:
    data = b"not a graph"
    file = folder / CT_TISSUE / "model.onnx"
    old = hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_bytes(data)
    replace(folder / CT_TISSUE / "model.toml", old, hashlib.sha256(data).hexdigest())
    with pytest.raises(ModelRefusedError, match=r"cannot open model\.onnx"):
        open_models(ModelSettings(models_folder=folder))


@pytest.mark.parametrize("name", ["model.onnx", "CARD.md"])
def test_a_model_without_its_file_or_its_card_is_refused(folder: Path, name: str) -> None:
    (folder / CT_TISSUE / name).unlink()
    with pytest.raises(ModelRefusedError, match=name):
        open_models(ModelSettings(models_folder=folder))


def test_a_folder_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefusedError, match="FLUORO_ML_MODELS_FOLDER"):
        open_models(ModelSettings(models_folder=tmp_path))


def test_the_newest_version_is_served(folder: Path) -> None:
    for version in ("1.10.0", "1.9.0"):
        shutil.copytree(folder / CT_TISSUE, folder / "ct-tissue" / version)
        replace(
            folder / "ct-tissue" / version / "model.toml",
            'version = "1.0.0"',
            f'version = "{version}"',
        )
    models = open_models(ModelSettings(models_folder=folder))
    assert [model.reference.version for model in models.values()] == ["1.10.0"]


@pytest.mark.skipif(onnxruntime.get_device() == "GPU", reason="this ONNX Runtime has CUDA")
def test_without_cuda_a_worker_told_to_use_it_does_not_start() -> None:
    with pytest.raises(ModelRefusedError, match="extra `gpu`"):
        open_models(ModelSettings(device="cuda"))


def test_settings_come_from_the_environment_and_a_folder_must_be_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLUORO_ML_INTRA_OP_THREADS", "3")
    monkeypatch.setenv("FLUORO_ML_MODELS_FOLDER", str(tmp_path))
    settings = ModelSettings()
    assert (settings.models_folder, settings.device, settings.intra_op_threads) == (
        tmp_path,
        "cpu",
        3,
    )
    monkeypatch.setenv("FLUORO_ML_MODELS_FOLDER", str(tmp_path / "nowhere"))
    with pytest.raises(ValidationError, match="models_folder"):
        ModelSettings()


def test_the_table_of_handlers_does_not_load_onnx_runtime() -> None:
    code = (
        "import sys, ml_worker.operations, ml_worker.settings;"
        "sys.exit('onnxruntime' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
