"""VisualizeImages: shows what a class of a model depends on, or what a model makes of an image."""

from typing import TYPE_CHECKING, Any, Final

from fluoro.v1 import dicom_pb2, ml_pb2, visualize_pb2
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepContext, StepItem
from fluoro_jobs.worker.handler import handles
from numpy.typing import NDArray

from ml_worker.changing import before_after
from ml_worker.heat_map import draw_heat_map
from ml_worker.images import Models, for_each_image, frames_input, wrong_kind
from ml_worker.manifest import Input
from ml_worker.occlusion import occlude
from ml_worker.side_by_side import row_of

if TYPE_CHECKING:
    from ml_worker.sessions import Model

DEFAULT_CELLS: Final = 8


@handles(visualize_pb2.VisualizeImages)
def visualize_images(
    request: visualize_pb2.VisualizeImages, context: StepContext
) -> visualize_pb2.VisualizeImagesResult:
    """Explains a model of this process on every image that earlier steps certified."""
    # ONNX Runtime takes half a second to import, and the table of handlers does not need it.
    from ml_worker.registry import models  # noqa: PLC0415 - see above

    return visualize(request, context, models())


def visualize(
    request: visualize_pb2.VisualizeImages, context: StepContext, models: Models
) -> visualize_pb2.VisualizeImagesResult:
    """Explains one of these models on the first frame of every image, each as an item.

    FluoroError MODEL_UNKNOWN or MODEL_UNAVAILABLE if there is no such model, MODEL_NOT_APPLICABLE
    if it neither classifies nor changes images, CHOICE_UNAVAILABLE if it does not have the class.
    """
    model = models.find(request.model, request.version)
    tensor = suited_input(model)
    if "classes" not in model.manifest.kinds:
        return show_changes(request, context, model, tensor)
    labels = model.manifest.labels
    place = request.label if request.HasField("label") else None
    # Before the first image, because it is the request that is wrong.
    if place is not None and place >= len(labels):
        raise FluoroError(
            Reason.CHOICE_UNAVAILABLE,
            f"{model.manifest.name} has no class {place}; its classes are 0 to {len(labels) - 1}.",
        )
    result = visualize_pb2.VisualizeImagesResult(model=model.reference)

    def explain(item: StepItem, image: dicom_pb2.RenderedImage, pixels: NDArray[Any]) -> None:
        cells = request.cells or DEFAULT_CELLS
        found = occlude(model, tensor, pixels[0], image, cells, place, context)
        label, (down, across) = labels[found.place], found.area
        rows, columns = found.drops.shape
        drawing = draw_heat_map(pixels[0], found)
        result.maps.add(
            input=item.input,
            item=item.key,
            heat_map=item.put("heat-map", ".png", "heat-map", "image/png", drawing),
            explained=ml_pb2.ClassScore(
                frame=1,
                label=label.value,
                display_name=label.display_name,
                probability=found.whole,
                codes=label.coded,
            ),
            rows=rows,
            columns=columns,
            drops=found.drops.ravel().tolist(),
            top=down.start,
            left=across.start,
            height=down.stop - down.start,
            width=across.stop - across.start,
        )

    for_each_image(model, context, "visualize", explain)
    return result


def show_changes(
    request: visualize_pb2.VisualizeImages, context: StepContext, model: "Model", tensor: Input
) -> visualize_pb2.VisualizeImagesResult:
    """Puts what the model makes of the first frame of every image beside that frame."""
    # What would silently be ignored is refused.
    if request.cells or request.HasField("label"):
        raise FluoroError(
            Reason.CHOICE_UNAVAILABLE,
            f"{model.manifest.name} gives no classes, so there is no label to explain and no grid "
            "of cells. Leave both out.",
        )
    result = visualize_pb2.VisualizeImagesResult(model=model.reference)

    def change(item: StepItem, image: dicom_pb2.RenderedImage, pixels: NDArray[Any]) -> None:
        drawing = row_of(before_after(model, tensor, pixels[:1], image, context))
        name = item.put("before-after", ".png", "before-after", "image/png", drawing)
        result.changed.add(input=item.input, item=item.key, before_after=name)

    for_each_image(model, context, "visualize", change)
    return result


def suited_input(model: "Model") -> Input:
    """The input that takes frames.

    FluoroError MODEL_NOT_APPLICABLE unless it gives classes or images.
    """
    tensor = frames_input(model)
    if tensor is None or not {"classes", "image"} & set(model.manifest.kinds):
        raise wrong_kind(
            model, "VisualizeImages needs a model of single frames that gives classes or an image."
        )
    return tensor
