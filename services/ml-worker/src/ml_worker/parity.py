"""Whether two devices say the same of the same samples."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_worker.manifest import Manifest
from ml_worker.outputs import Classes, LabelMap, Mask, Output
from ml_worker.warm_up import difference

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Parity:
    """How far one output of a device is from that of another.

    max_abs: largest difference of two values; infinite if one of them is no number, or if the
    arrays have different shapes. label_differs: share of the samples or pixels that get another
    label, the most probable one; None for outputs that choose none. problem: in which way the
    difference is more than the manifest allows, None if it is not.
    """

    output: str
    max_abs: float
    label_differs: float | None
    problem: str | None


def parities(manifest: Manifest, found: Outputs, expected: Outputs) -> Iterator[Parity]:
    """Each output of the manifest. The tolerance is that of the warm-up."""
    for output in manifest.outputs:
        got, wanted = found[output.name], expected[output.name]
        problem = difference(manifest, output, got, expected)
        if got.shape == wanted.shape:
            max_abs, label_differs = _max_abs(got, wanted), _label_differs(output, got, wanted)
        else:
            max_abs, label_differs = np.inf, None
        yield Parity(output.name, max_abs, label_differs, problem)


def _max_abs(found: NDArray[Any], expected: NDArray[Any]) -> float:
    # Infinities that are equal differ by nothing, and unsigned numbers must not wrap.
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    differ = np.abs(found[~same].astype(np.float64) - expected[~same].astype(np.float64))
    return float(np.where(np.isnan(differ), np.inf, differ).max(initial=0.0))


def _label_differs(output: Output, found: NDArray[Any], expected: NDArray[Any]) -> float | None:
    if isinstance(output, LabelMap):
        return float((found != expected).mean())
    # A mask of one label has no axis to choose on.
    if isinstance(output, Classes | Mask) and found.shape[1] > 1:
        return float((found.argmax(axis=1) != expected.argmax(axis=1)).mean())
    return None
