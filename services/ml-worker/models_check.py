#!/usr/bin/env python3
"""Measures the reference models anew on held-out pictures, and holds their cards against it.

A model takes part if its build.py has `held_out(ask, limit)`, which gives the rows of the card's
table. Prints a JSON object per model; fails if a row is not in the card as it came out.
`python models_check.py NAME …` checks some.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import onnxruntime
from ml_worker.outputs import Novelty
from ml_worker.repository import read_model
from ml_worker.settings import SHIPPED_MODELS
from numpy.typing import NDArray

BATCH: Final = 30


def build_of(place: Path) -> ModuleType:
    """build.py of a model, imported."""
    spec = importlib.util.spec_from_file_location("build", place / "build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(place: Path) -> dict[str, str] | None:
    """The rows of the table, None if the model has no reference figures."""
    held_out = getattr(build_of(place), "held_out", None)
    if held_out is None:
        return None
    manifest = read_model(place).manifest
    session = onnxruntime.InferenceSession(place / "model.onnx")
    (tensor,) = manifest.inputs
    kinds = [output.kind for output in manifest.outputs]
    names = [output.name for output in manifest.outputs]

    def ask(images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        runs = [
            session.run(names, {tensor.name: images[start : start + BATCH]})
            for start in range(0, len(images), BATCH)
        ]
        return dict(zip(kinds, map(np.concatenate, zip(*runs, strict=True)), strict=True))

    novelty = manifest.output("novelty")
    return dict(held_out(ask, novelty.threshold if isinstance(novelty, Novelty) else np.inf))


def missing(place: Path, rows: dict[str, str]) -> list[str]:
    """Rows that the card does not have."""
    card = (place / "CARD.md").read_text(encoding="utf-8")
    return [
        row for row in (f"| {name} | {value} |" for name, value in rows.items()) if row not in card
    ]


def main(names: list[str]) -> int:
    """How many models have a card that is not right."""
    wrong = 0
    for file in sorted(SHIPPED_MODELS.glob("*/*/build.py")):
        place = file.parent
        if (names and place.parent.name not in names) or (rows := measured(place)) is None:
            continue
        sys.stdout.write(json.dumps({"model": place.parent.name, **rows}) + "\n")
        if lacking := missing(place, rows):
            wrong += 1
            sys.stderr.write(f"{place / 'CARD.md'} lacks:\n" + "\n".join([*lacking, ""]))
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
