"""DetectObjects: shows certified pixels to a model that finds objects, and draws them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from fluoro.v1 import detect_pb2, dicom_pb2
from fluoro_jobs.worker.context import StepContext, StepItem
from fluoro_jobs.worker.handler import handles
from numpy.typing import NDArray

from ml_worker.box_picture import draw_boxes
from ml_worker.detecting import Detected, Shown, objects_in
from ml_worker.images import Models, for_each_image, frames_input, wrong_kind
from ml_worker.manifest import Input, Manifest
from ml_worker.outputs import BoxLandmarks
from ml_worker.prepare import size_in_space, visible
from ml_worker.showing import show

if TYPE_CHECKING:
    from ml_worker.sessions import Model

DEFAULT_OBJECTS: Final = 100
DECIMALS: Final = 3
"""Of places: a thousandth of a pixel. Further ones depend on the processor."""


@handles(detect_pb2.DetectObjects)
def detect_objects(
    request: detect_pb2.DetectObjects, context: StepContext
) -> detect_pb2.DetectObjectsResult:
    """Runs a model of this process on every image that earlier steps certified."""
    # ONNX Runtime takes half a second to import, and the table of handlers does not need it.
    from ml_worker.registry import models  # noqa: PLC0415 - see above

    return detect(request, context, models())


def detect(
    request: detect_pb2.DetectObjects, context: StepContext, models: Models
) -> detect_pb2.DetectObjectsResult:
    """Finds objects in every image by one of these models, each image as an item.

    FluoroError MODEL_UNKNOWN or MODEL_UNAVAILABLE if there is no such model, MODEL_NOT_APPLICABLE
    if it gives neither boxes nor regions in images.
    """
    model = models.find(request.model, request.version)
    tensor = suited_input(model)
    threshold = request.threshold if request.HasField("threshold") else None
    most = request.max_objects or DEFAULT_OBJECTS
    result = detect_pb2.DetectObjectsResult(model=model.reference)

    def find(item: StepItem, image: dicom_pb2.RenderedImage, pixels: NDArray[Any]) -> None:
        frame = pixels.shape[1:3]
        shown = Shown(size_in_space(frame, image, tensor), *visible(frame, image, tensor))
        by_frame = [
            objects_in(
                model.manifest,
                {kind: values[place] for kind, values in found.items()},
                shown,
                threshold,
                most,
            )
            for frames, found in show(model, tensor, pixels, image, context)
            for place in range(len(frames))
        ]
        drawing = draw_boxes(pixels[0], by_frame[0], model.manifest.labels)
        result.images.add(
            input=item.input,
            item=item.key,
            picture=item.put("detections", ".png", "detections", "image/png", drawing),
            objects=[
                told(each, number, model.manifest)
                for number, objects in enumerate(by_frame, 1)
                for each in objects
            ],
        )

    for_each_image(model, context, "detect", find)
    return result


def suited_input(model: "Model") -> Input:
    """The input that takes frames. FluoroError MODEL_NOT_APPLICABLE unless it tells places."""
    tensor = frames_input(model)
    if tensor is None or not {"boxes", "regions"} & set(model.manifest.kinds):
        raise wrong_kind(
            model, "DetectObjects needs a model of single frames that gives boxes or regions."
        )
    return tensor


def told(found: Detected, frame: int, manifest: Manifest) -> detect_pb2.DetectedObject:
    """The object in the words of the API."""
    label = manifest.labels[found.label]
    left, top, right, bottom = found.box.round(DECIMALS).tolist()
    return detect_pb2.DetectedObject(
        frame=frame,
        label=label.value,
        display_name=label.display_name,
        score=found.score,
        codes=label.coded,
        left=left,
        top=top,
        width=round(right - left, DECIMALS),
        height=round(bottom - top, DECIMALS),
        landmarks=[
            detect_pb2.Landmark(name=name, x=x, y=y)
            for name, (x, y) in zip(
                names_of(manifest), found.points.round(DECIMALS).tolist(), strict=True
            )
        ],
    )


def names_of(manifest: Manifest) -> Sequence[str]:
    """What the model's landmarks are."""
    output = manifest.output("box_landmarks")
    return output.names if isinstance(output, BoxLandmarks) else ()
