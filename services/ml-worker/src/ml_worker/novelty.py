"""Samples that are unlike what a model was trained on: what it says of them means nothing."""

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from ml_worker.outputs import Novelty
from ml_worker.prepare import NotForThisImageError

if TYPE_CHECKING:
    from ml_worker.sessions import Model

UNLIKE: Final = "it is unlike what the model was trained on"


def novel(model: "Model", found: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Which samples are, (samples,); none if the model does not tell."""
    measure = model.manifest.output("novelty")
    if isinstance(measure, Novelty):
        # `>=`, as `verdict_of` has it, so that one image is never both.
        return np.asarray(found["novelty"] >= measure.threshold)
    return np.zeros(len(next(iter(found.values()))), np.bool_)


def refuse_novel(model: "Model", found: dict[str, NDArray[Any]]) -> None:
    """NotForThisImageError if one of the samples is."""
    if novel(model, found).any():
        raise NotForThisImageError(UNLIKE)
