"""Writes models for tests and for trying out: a manifest's text, a graph and a sample."""

import hashlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
