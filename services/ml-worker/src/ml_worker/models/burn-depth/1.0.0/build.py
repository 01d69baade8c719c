#!/usr/bin/env python3
"""Builds model.onnx and warm_up.npz out of painted skin; their SHA-256 go into model.toml.

The same seed gives the same bytes. `python build.py` builds in place; `--to FOLDER` builds there
and leaves this folder alone.
"""

from pathlib import Path

import numpy as np
from ml_worker.reference.building import write
from ml_worker.reference.maps import SIDE, Mapper
from ml_worker.skin_phantoms import DEPTHS, Skin, burn


def paint(random: np.random.Generator, _number: int) -> Skin:
    """A burn."""
    return burn(random, SIDE)


MAPPER = Mapper(paint, DEPTHS, seed=16)
held_out = MAPPER.held_out


if __name__ == "__main__":
    write(Path(__file__).parent, MAPPER.build)
