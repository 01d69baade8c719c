#!/usr/bin/env python3
"""Builds model.onnx and warm_up.npz out of painted skin; their SHA-256 go into model.toml.

The same seed gives the same bytes. `python build.py` builds in place; `--to FOLDER` builds there
and leaves this folder alone.
"""

from pathlib import Path

from ml_worker.reference import graphs
from ml_worker.reference.building import write
from ml_worker.reference.classifiers import Classifier

CLASSIFIER = Classifier(graphs.color, classes=3, seed=12)
held_out = CLASSIFIER.held_out


if __name__ == "__main__":
    write(Path(__file__).parent, CLASSIFIER.build)
