"""ClassifyImages: asks several models of what kind an image is, and abstains when in doubt."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from fluoro.v1 import classify_pb2, dicom_pb2
from fluoro_jobs.worker.context import StepContext, StepItem
from fluoro_jobs.worker.handler import handles
from numpy.typing import NDArray

from ml_worker.classifying import most_probable, probabilities
from ml_worker.images import Models, for_each_image_of, frames_input, wrong_kind
from ml_worker.manifest import Input
from ml_worker.outputs import Classes, Novelty
from ml_worker.showing import show

if TYPE_CHECKING:
    from ml_worker.sessions import Model

Frame = classify_pb2.ClassifiedFrame

DEFAULT_LEAST: Final = 0.5
DEFAULT_TOP: Final = 5


@handles(classify_pb2.ClassifyImages)
def classify_images(
    request: classify_pb2.ClassifyImages, context: StepContext
) -> classify_pb2.ClassifyImagesResult:
    """Runs models of this process on every image that earlier steps certified."""
    # ONNX Runtime takes half a second to import, and the table of handlers does not need it.
    from ml_worker.registry import models  # noqa: PLC0415 - see above

    return classify_all(request, context, models())


def classify_all(
    request: classify_pb2.ClassifyImages, context: StepContext, models: Models
) -> classify_pb2.ClassifyImagesResult:
    """Asks these models about every image, each as an item.

    FluoroError MODEL_UNKNOWN or MODEL_UNAVAILABLE if there is no such model, MODEL_NOT_APPLICABLE
    if one does not give classes of which one is true, or has other labels than the first.
    """
    # All of them before the first image: one that is missing fails the step, not half of its items.
    asked = [models.find(each.model, each.version) for each in request.models]
    tensors = [suited_input(model, asked[0]) for model in asked]
    # 0 is a choice: no class is too improbable.
    least = request.least_probability if request.HasField("least_probability") else DEFAULT_LEAST
    result = classify_pb2.ClassifyImagesResult()

    def ask(item: StepItem, image: dicom_pb2.RenderedImage, pixels: NDArray[Any]) -> None:
        # (models, frames, labels), and a novelty of each model and frame
        scores, novelties = [], []
        for model, tensor in zip(asked, tensors, strict=True):
            found = list(scores_of(model, tensor, pixels, image, context))
            scores.append(np.concatenate([each for each, _ in found]))
            novelties.append(np.concatenate([each for _, each in found]))
        frames = [
            frame_of(asked, number, by_model, novelty, least, request.top or DEFAULT_TOP)
            for number, (by_model, novelty) in enumerate(
                zip(np.stack(scores, axis=1), np.stack(novelties, axis=1), strict=True), 1
            )
        ]
        result.images.add(input=item.input, item=item.key, frames=frames)

    for_each_image_of(asked, context, "classify", ask)
    return result


def suited_input(model: "Model", first: "Model") -> Input:
    """The input that takes frames of images.

    FluoroError MODEL_NOT_APPLICABLE unless the model tells which of the first model's labels is
    true.
    """
    output = model.manifest.output("classes")
    tensor = frames_input(model)
    # Where several labels may be true, a mean over models tells of no class.
    if tensor is None or not isinstance(output, Classes) or not output.exclusive:
        raise wrong_kind(
            model, "ClassifyImages needs a model of single frames that gives exclusive classes."
        )
    # A mean over labels in another order would mix up the classes without a word.
    if labels_of(model) != labels_of(first):
        raise wrong_kind(model, f"ClassifyImages needs the labels of {first.manifest.name}.")
    return tensor


def labels_of(model: "Model") -> list[tuple[int, str]]:
    """Values and names, in order."""
    return [(label.value, label.display_name) for label in model.manifest.labels]


def scores_of(
    model: "Model",
    tensor: Input,
    pixels: NDArray[Any],
    image: dicom_pb2.RenderedImage,
    context: StepContext,
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Of each chunk of frames, the probabilities (frames, labels) and the novelty (frames,).

    Novelty is NaN if the model does not tell it.
    """
    output = model.manifest.output("classes")
    assert isinstance(output, Classes)  # `suited_input` looked
    for _, found in show(model, tensor, pixels, image, context):
        scores = probabilities(output, found["classes"])
        # NaN is below every threshold, so a model that does not tell calls nothing novel.
        unknown = np.full(len(scores), np.nan)
        yield scores, found.get("novelty", unknown).astype(np.float64)


def frame_of(
    models: "Sequence[Model]",
    number: int,
    scores: NDArray[np.float64],
    novelties: NDArray[np.float64],
    least: float,
    top: int,
) -> classify_pb2.ClassifiedFrame:
    """What the models say of a frame. scores: (models, labels). novelties: (models,)."""
    mean = scores.mean(axis=0)
    best = int(mean.argmax())
    # All models have these labels: `suited_input` looked.
    label = models[0].manifest.labels[best]
    frame = Frame(
        frame=number,
        label=label.value,
        display_name=label.display_name,
        mean_probability=float(mean[best]),
        agreement=float((scores.argmax(axis=1) == best).mean()),
        codes=label.coded,
    )
    for model, row, novelty in zip(models, scores, novelties, strict=True):
        output = model.manifest.output("classes")
        assert isinstance(output, Classes)  # `suited_input` looked
        opinion = frame.opinions.add(
            model=model.reference,
            classes=most_probable(row, model.manifest.labels, number, top),
            calibrated=output.calibrated,
        )
        if isinstance(measure := model.manifest.output("novelty"), Novelty):
            opinion.novelty, opinion.novelty_threshold = float(novelty), measure.threshold
    frame.verdict = verdict_of(frame, least)
    return frame


def verdict_of(
    frame: classify_pb2.ClassifiedFrame, least: float
) -> "classify_pb2.ClassifiedFrame.Verdict.ValueType":
    """Whether the frame has a class, and if not, the first reason against it."""
    told = [each for each in frame.opinions if each.HasField("novelty")]
    # First, because on what is unlike the training data agreement means nothing either.
    if any(each.novelty >= each.novelty_threshold for each in told):
        return Frame.VERDICT_OUT_OF_DISTRIBUTION
    if frame.agreement < 1:
        return Frame.VERDICT_MODELS_DISAGREE
    return Frame.VERDICT_CLASSIFIED if frame.mean_probability >= least else Frame.VERDICT_UNCERTAIN
