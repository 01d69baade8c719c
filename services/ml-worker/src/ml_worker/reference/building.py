"""Builds, checks and writes a reference model: what each build.py calls."""

import argparse
import hashlib
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

DECIMALS: Final = 3
"""Of trained numbers: where processors differ lies far below."""
LISTED: Final = 0.995
"""Share of the training data that is nearer than the threshold of novelty."""

Figures = Mapping[str, str]
"""Rows of the table of a card: what was measured, and the value as it is printed."""
Answers = Mapping[str, NDArray[Any]]
Ask = Callable[[NDArray[np.uint8]], Answers]
"""Runs the model that is in the folder."""


def serialised(model: onnx.ModelProto) -> bytes:
    """The bytes of model.onnx."""
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def sample(**arrays: NDArray[Any]) -> bytes:
    """The bytes of warm_up.npz. Not compressed, because versions of zlib differ."""
    file = BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def threshold(novelties: NDArray[np.float64]) -> float:
    """With some room above nearly all of the training data."""
    # A quantile and not the maximum: one odd picture would make everything look known.
    return round(1.15 * float(np.quantile(novelties, LISTED)), 1)


def write(here: Path, build: Callable[[], tuple[onnx.ModelProto, bytes, float]]) -> None:
    """Builds from the command line: in place, or `--to` another folder.

    build: gives the graph, the bytes of the sample, and the threshold of novelty.
    """
    arguments = argparse.ArgumentParser(description="Builds model.onnx.")
    arguments.add_argument("--to", type=Path, default=here, metavar="FOLDER", help="where to write")
    folder = arguments.parse_args().to
    model, warm_up, limit = build()
    text = (here / "model.toml").read_text(encoding="utf-8")
    told = tomllib.loads(text)
    model.graph.name, model.producer_version = told["name"], told["version"]
    model.graph.doc_string = told["summary"]
    for name, data in (("model.onnx", serialised(model)), ("warm_up.npz", warm_up)):
        (folder / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        text = re.sub(rf'(?m)^"{re.escape(name)}" = ".*"$', f'"{name}" = "{digest}"', text)
    text = re.sub(r"(?m)^threshold = .*$", f"threshold = {limit}", text)
    (folder / "model.toml").write_text(text, encoding="utf-8")


def as_printed(figures: Mapping[str, float]) -> Figures:
    """Three decimals."""
    return {name: f"{value:.3f}" for name, value in figures.items()}


def stacked(skins: Sequence[Any]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.intp]]:
    """Pictures, truths and kinds."""
    return (
        np.stack([skin.pixels for skin in skins]),
        np.stack([skin.truth for skin in skins]),
        np.array([skin.kind for skin in skins]),
    )
