"""Classes: how sure a model is of each, for each frame."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from fluoro.v1 import dicom_pb2, ml_pb2
from fluoro_jobs.worker.context import StepContext
from numpy.typing import NDArray

from ml_worker.manifest import Input, Label
from ml_worker.novelty import refuse_novel
from ml_worker.outputs import Classes
from ml_worker.showing import show

if TYPE_CHECKING:
    from ml_worker.sessions import Model

MOST_CLASSES: Final = 20
"""Most classes that a result lists for a frame."""


def classify(
    model: "Model",
    tensor: Input,
    pixels: NDArray[Any],
    image: dicom_pb2.RenderedImage,
    context: StepContext,
) -> Iterator[ml_pb2.ClassScore]:
    """The most probable classes of each frame, the most probable first.

    NotForThisImageError if the model says that a frame is unlike its training data.
    """
    output, labels = model.manifest.output("classes"), model.manifest.labels
    assert isinstance(output, Classes)  # the caller looked
    frame = 0
    for _, found in show(model, tensor, pixels, image, context):
        refuse_novel(model, found)
        for scores in probabilities(output, found["classes"]):
            frame += 1
            yield from most_probable(scores, labels, frame, MOST_CLASSES)


def most_probable(
    scores: NDArray[np.float64], labels: Sequence[Label], frame: int, most: int
) -> Iterator[ml_pb2.ClassScore]:
    """The classes of a frame with the highest scores, (labels,), the highest first."""
    # Stable, so that equal scores keep the order of the labels.
    for place in np.argsort(-scores, kind="stable")[:most]:
        yield ml_pb2.ClassScore(
            frame=frame,
            label=labels[place].value,
            display_name=labels[place].display_name,
            probability=float(scores[place]),
            codes=labels[place].coded,
        )


def probabilities(output: Classes, scores: NDArray[Any]) -> NDArray[np.float64]:
    """What the model gives, as probabilities: (samples, labels) float64."""
    values = scores.astype(np.float64)
    if output.scores == "probabilities":
        return values
    if not output.exclusive:
        # Without overflow at either end.
        sigmoid: NDArray[np.float64] = np.exp(-np.logaddexp(0, -values))
        return sigmoid
    # The largest becomes 0, so that exp cannot overflow.
    raised = np.exp(values - values.max(axis=1, keepdims=True))
    softmax: NDArray[np.float64] = raised / raised.sum(axis=1, keepdims=True)
    return softmax
