"""Shows the images of each series to a model of volumes, and gives every image its own labels."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from fluoro.v1 import dicom_pb2, ml_pb2
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import Part, StepContext, StepItem
from numpy.typing import NDArray

from ml_worker.images import check_suits, for_each_image, rendered_images
from ml_worker.masks import labels_by, probable
from ml_worker.measurements import MM3_PER_ML, measure
from ml_worker.novelty import refuse_novel
from ml_worker.outputs import Mask
from ml_worker.overlay import draw_overlay
from ml_worker.pixels import certified_pixels
from ml_worker.prepare import NotForThisImageError, along_planes, prepare_planes, resized
from ml_worker.segmenting import counts
from ml_worker.volumes import Volume, series_of, volume_of

if TYPE_CHECKING:
    from ml_worker.sessions import Model


@dataclass(slots=True)
class Series:
    """Images of one series, and what became of them.

    labels: how many the model has. scores: (planes, labels or 1, rows, columns) of its mask, in the
    rows and columns of the model. failure: why there are none. copies: keys of images that are in
    the series already. instances: the others by SOP Instance UID. voxels, sums: by label.
    """

    labels: int
    keys: list[str] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    images: list[dicom_pb2.RenderedImage] = field(default_factory=list)
    volume: Volume | None = None
    scores: NDArray[np.float32] | None = None
    failure: NotForThisImageError | FluoroError | None = None
    copies: set[str] = field(default_factory=set)
    instances: dict[str, dicom_pb2.RenderedImage] = field(default_factory=dict)
    voxels: NDArray[np.int64] = field(init=False)
    sums: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is counted yet."""
        self.voxels, self.sums = np.zeros(self.labels, np.int64), np.zeros(self.labels)

    def add(self, key: str, part: Part, image: dicom_pb2.RenderedImage) -> None:
        """Takes an instance in once; another version of it fails the series."""
        # Without a UID nothing tells instances apart but their keys.
        first = self.instances.setdefault(image.sop_instance_uid or key, image)
        if first is image:
            self.keys.append(key)
            self.parts.append(part)
            self.images.append(image)
        elif (
            first.certificate.sha256 == image.certificate.sha256
            and first.image_positions_mm == image.image_positions_mm
        ):
            self.copies.add(key)
        else:
            self.failure = FluoroError(
                Reason.SOP_INSTANCE_CONFLICT, "Two files are versions of one instance."
            )


def takes_volumes(model: "Model") -> bool:
    """Whether it sees the images of a series as one volume."""
    applies_to = model.manifest.applies_to
    return applies_to is not None and applies_to.volume is not None


def analyze_volumes(model: "Model", context: StepContext) -> ml_pb2.AnalyzeImagesResult:
    """Runs the model once per series. Each image is an item and gets its part of the mask.

    Images of a series that makes no volume are skipped together.
    """
    result = ml_pb2.AnalyzeImagesResult(model=model.reference)
    series = gathered(context, len(model.manifest.labels))

    def find(item: StepItem, image: dicom_pb2.RenderedImage, pixels: NDArray[Any]) -> None:
        own = series[series_of(image)]
        labels = labels_of(own, item, pixels, model, context)
        result.findings.append(keep(item, image, pixels, labels, own, model))

    for_each_image(model, context, "analyze", find)
    result.volumes.extend(told(each, model) for each in series.values() if each.voxels.any())
    return result


def gathered(context: StepContext, labels: int) -> dict[tuple[object, ...], Series]:
    """The images of the step by their series. labels: how many the model has."""
    images = rendered_images(context)
    series: dict[tuple[object, ...], Series] = {}
    for given in context.inputs:
        part = next((part for part in given.parts if part.role == "pixels"), None)
        if part is None or (image := images.get((part.step, part.name))) is None:
            continue
        series.setdefault(series_of(image), Series(labels)).add(given.key, part, image)
    return series


def labels_of(
    series: Series, item: StepItem, pixels: NDArray[Any], model: "Model", context: StepContext
) -> NDArray[np.uint8]:
    """The label map of one image; the first image of a series that asks has the model run."""
    if series.failure is None and series.scores is None:
        try:
            series.volume, series.scores = seen(series, model, context)
        except FluoroError as error:
            # Kept as the series' failure, it would fail all images for good.
            if error.may_retry:
                raise
            series.failure = error
        except NotForThisImageError as error:
            series.failure = error
    if series.failure is not None:
        raise series.failure
    # Its planes stand in the volume once, under the key of the first input.
    if item.key in series.copies:
        raise NotForThisImageError("another input is the same instance")
    assert series.volume is not None
    assert series.scores is not None
    number, size = series.keys.index(item.key), pixels.shape[1:3]
    mask, tensor = model.manifest.output("mask"), model.manifest.image_input
    assert isinstance(mask, Mask)
    assert tensor is not None
    assert tensor.image is not None
    labels = np.zeros(pixels.shape[:3], np.uint8)
    for place, plane in enumerate(series.volume.planes):
        if plane.image == number:
            # One by one: all of them in the size of the image may not fit into memory.
            each = (resized(one, size, tensor.image) for one in series.scores[place])
            labels[plane.frame] = labels_by(each, mask.threshold)
    return labels


def seen(
    series: Series, model: "Model", context: StepContext
) -> tuple[Volume, NDArray[np.float32]]:
    """The volume of a series, and the scores of its planes, (planes, labels or 1, rows, columns).

    A single score is the probability of the inside.
    """
    manifest, tensor = model.manifest, model.manifest.image_input
    assert tensor is not None  # the manifest was held to it
    assert manifest.applies_to is not None
    assert manifest.applies_to.volume is not None
    volume = volume_of(series.images, manifest.applies_to.volume)
    # The files go when the planes are made, also if that fails: a series may be larger than the
    # disk.
    with TemporaryDirectory(dir=context.scratch) as folder:
        planes = planes_of(series, volume, Path(folder), model, context)
        shown = prepare_planes(planes, series.images[0], tensor)
    space = [tensor.layout.index(letter) for letter in "DHW"]
    ends = (-3, -2, -1)
    turned = volume.to_patient(np.moveaxis(shown, space, ends))
    found = model.run({tensor.name: np.moveaxis(turned, ends, space)}, context)
    by_kind: dict[str, NDArray[Any]] = {
        output.kind: found[output.name] for output in manifest.outputs
    }
    refuse_novel(model, by_kind)
    order = [2 + tensor.spatial_order.index(letter) for letter in "DHW"]
    (slices,) = volume.to_slices(np.moveaxis(by_kind["mask"], order, ends))
    mask = manifest.output("mask")
    assert isinstance(mask, Mask)
    scores = np.moveaxis(slices, 0, 1).astype(np.float32)
    # The order of labels is the same for logits, but a threshold is a probability.
    if mask.scores == "logits" and len(slices) == 1:
        scores = probable(scores)
    return volume, along_planes(scores, len(volume.planes))


def planes_of(
    series: Series, volume: Volume, folder: Path, model: "Model", context: StepContext
) -> Iterator[NDArray[Any]]:
    """The pixels of each plane, checked, one image at a time on the disk."""
    applies_to = model.manifest.applies_to
    assert applies_to is not None
    for number, planes in groupby(volume.planes, lambda plane: plane.image):
        image = series.images[number]
        path = context.fetch(series.parts[number].blob, folder)
        try:
            pixels = certified_pixels(path, image.certificate, context.check)
        except FluoroError as error:
            # It fails in its own turn, with the reason. The others lack it.
            raise NotForThisImageError("an image of its series cannot be read") from error
        check_suits(applies_to, image, pixels)
        for plane in planes:
            yield pixels[plane.frame]
        path.unlink()


def keep(
    item: StepItem,
    image: dicom_pb2.RenderedImage,
    pixels: NDArray[Any],
    labels: NDArray[np.uint8],
    series: Series,
    model: "Model",
) -> ml_pb2.ImageFinding:
    """Stores the labels of one image and a picture of the frame that has most of them."""
    manifest = model.manifest
    file = item.folder / "label-map.npy"
    np.save(file, labels)
    # The first frame of a multi-frame image may have nothing of the mask to show.
    fullest = int(np.count_nonzero(labels, axis=(1, 2)).argmax())
    window = image.window if image.HasField("window") else None
    drawing = draw_overlay(pixels[fullest], labels[fullest], manifest, window)
    voxels, sums = counts(pixels, {"label_map": labels}, series.labels)
    series.voxels += voxels
    series.sums += sums
    return ml_pb2.ImageFinding(
        input=item.input,
        item=item.key,
        model=model.reference,
        label_map=item.put("label-map", ".npy", "label-map", "application/x-npy", file),
        overlay=item.put("overlay", ".png", "overlay", "image/png", drawing),
        measurements=measure(manifest.labels, voxels, sums, image),
    )


def told(series: Series, model: "Model") -> ml_pb2.VolumeFinding:
    """What the images of a series have together."""
    assert series.volume is not None
    # By the distance of planes and not by their thickness: slices may overlap or leave room.
    voxel_ml = float(np.prod(series.volume.spacing_mm)) / MM3_PER_ML
    in_order = dict.fromkeys(series.keys[plane.image] for plane in series.volume.planes)
    measurements = measure(
        model.manifest.labels, series.voxels, series.sums, dicom_pb2.RenderedImage()
    )
    for measurement in measurements:
        measurement.volume_ml = measurement.voxels * voxel_ml
    return ml_pb2.VolumeFinding(
        series_instance_uid=series.images[0].series_instance_uid,
        items=list(in_order),
        slices=len(series.volume.planes),
        spacing_mm=series.volume.spacing_mm,
        measurements=measurements,
    )
