"""Softmax regression by Newton's method, its temperature, and what a held-out set says of it."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

ROUNDS: Final = 12
DECAY: Final = 0.01
"""Weight of the squared weights in the loss. It keeps the optimum single, and so the bytes."""
TEMPERATURES: Final = np.geomspace(0.25, 4, 161)
BINS: Final = 10

Numbers = NDArray[np.float64]
Kinds = NDArray[np.intp]


def softmax(logits: Numbers) -> Numbers:
    """Along the last axis."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True))


def softmax_regression(
    values: Numbers, kinds: Kinds, classes: int, decay: float = DECAY
) -> tuple[Numbers, Numbers]:
    """Weights (features, classes) and offsets (classes,) for standardised values."""
    rows = np.hstack([values, np.ones((len(values), 1))])
    wanted, size = np.eye(classes)[kinds], rows.shape[1]
    weights = np.zeros((size, classes))
    for _ in range(ROUNDS):
        found = softmax(rows @ weights)
        slope = rows.T @ (found - wanted) / len(rows) + decay * weights
        curve = decay * np.eye(size * classes).reshape(size, classes, size, classes)
        for one in range(classes):
            for other in range(classes):
                share = found[:, one] * ((one == other) - found[:, other]) / len(rows)
                curve[:, one, :, other] += (rows * share[:, np.newaxis]).T @ rows
        step = np.linalg.solve(curve.reshape(size * classes, -1), slope.ravel())
        weights = weights - step.reshape(size, classes)
    return weights[:-1], weights[-1]


def temperature(logits: Numbers, kinds: Kinds) -> float:
    """What to divide logits by, so that the likelihood of a set apart is highest (Guo 2017)."""
    losses = [
        # The small number keeps the logarithm finite where a probability rounds to 0.
        -np.log(softmax(logits / one)[np.arange(len(kinds)), kinds] + 1e-12).mean()
        for one in TEMPERATURES
    ]
    return float(TEMPERATURES[int(np.argmin(losses))])


def whitening(values: Numbers) -> Numbers:
    """(features, features): the length of a standardised row times this is its novelty.

    It is the Mahalanobis distance from the training data, with a covariance drawn towards the unit
    matrix.
    """
    # Features that depend on each other have no inverse, and the unit matrix gives them one.
    covariance = 0.95 * np.cov(values, rowvar=False) + 0.05 * np.eye(values.shape[1])
    return np.linalg.cholesky(np.linalg.inv(covariance))


def accuracy(probabilities: Numbers, kinds: Kinds) -> float:
    """Share of rows of which the most probable class is theirs."""
    return float((probabilities.argmax(axis=1) == kinds).mean())


def area_under_curve(probabilities: Numbers, kinds: Kinds) -> float:
    """Mean over the classes of the area under the ROC curve of one against the rest."""
    areas = []
    for kind in range(probabilities.shape[1]):
        mine, others = probabilities[kinds == kind, kind], probabilities[kinds != kind, kind]
        above = (mine[:, np.newaxis] > others).mean() + 0.5 * (mine[:, np.newaxis] == others).mean()
        areas.append(above)
    return float(np.mean(areas))


def calibration_error(probabilities: Numbers, kinds: Kinds) -> float:
    """Expected calibration error of the most probable class, in ten bins of equal width."""
    sure = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == kinds
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = [
        abs(sure[bins == one].mean() - right[bins == one].mean()) * (bins == one).mean()
        for one in np.unique(bins)
    ]
    return float(np.sum(gaps))


def dice(found: NDArray[np.uint8], truth: NDArray[np.uint8], label: int) -> float:
    """Twice the shared pixels of a label by those of both, all images together."""
    mine, theirs = found == label, truth == label
    return float(2 * (mine & theirs).sum() / (mine.sum() + theirs.sum()))
