"""Label maps: a class for each voxel, written frame by frame and counted."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from fluoro.v1 import dicom_pb2
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepContext
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray

from ml_worker.manifest import Input
from ml_worker.masks import label_map_of, labels_pixels
from ml_worker.novelty import refuse_novel
from ml_worker.showing import show

if TYPE_CHECKING:
    from ml_worker.sessions import Model


@dataclass(frozen=True, slots=True)
class Segmented:
    """What a model found in all frames.

    preview: labels of the first one (uint8, rows and columns); voxels, sums: per label.
    """

    preview: NDArray[np.uint8]
    voxels: NDArray[np.int64]
    sums: NDArray[np.float64]


def keeps_size(model: "Model", tensor: Input) -> bool:
    """Whether it gives a label map in the size of the image."""
    # In another size it would count other voxels than the certified ones.
    return "label_map" in model.manifest.kinds and not tensor.changes_size


def segments(model: "Model", tensor: Input) -> bool:
    """Whether it tells a label for every pixel of a frame."""
    return keeps_size(model, tensor) or labels_pixels(model, tensor)


def segment(
    model: "Model",
    tensor: Input,
    pixels: NDArray[Any],
    image: dicom_pb2.RenderedImage,
    path: Path,
    context: StepContext,
) -> Segmented:
    """Shows the pixels (frames, rows, columns) to the model, and writes the label map as NPY.

    FluoroError MODEL_OUTPUT_INVALID if a voxel gets a label that the manifest does not have,
    NotForThisImageError if the model says that a frame is unlike its training data.
    """
    labels = len(model.manifest.labels)
    preview = np.zeros(pixels.shape[1:3], np.uint8)
    voxels, sums = np.zeros(labels, np.int64), np.zeros(labels, np.float64)
    # Written, not mapped: on a full disk a write raises OSError, where a mapped page would kill the
    # process and every task in it.
    with path.open("xb") as file:
        shape = pixels.shape[:3]
        write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for number, (frames, found) in enumerate(labelled(model, tensor, pixels, image, context)):
            label_map = found["label_map"]
            # A label that the manifest does not have would count for none, and the shares would not
            # add up.
            if label_map.shape != frames.shape[:3] or int(label_map.max()) >= labels:
                raise FluoroError(
                    Reason.MODEL_OUTPUT_INVALID,
                    f"{model.manifest.name} gave labels that it does not have, or too few.",
                )
            if number == 0:
                # A view would keep the outputs of the whole chunk in memory.
                preview = label_map[0].copy()
            # Chunk by chunk: a label map of a long series does not fit into memory.
            file.write(label_map.tobytes())
            counted = counts(frames, found, labels)
            voxels += counted[0]
            sums += counted[1]
    return Segmented(preview, voxels, sums)


def labelled(
    model: "Model",
    tensor: Input,
    pixels: NDArray[Any],
    image: dicom_pb2.RenderedImage,
    context: StepContext,
) -> Iterator[tuple[NDArray[Any], dict[str, NDArray[Any]]]]:
    """Frames with their `label_map`, and counts of its labels if the graph has them."""
    for frames, found in show(model, tensor, pixels, image, context):
        refuse_novel(model, found)
        if keeps_size(model, tensor):
            yield frames, found
            continue
        # One by one: a chunk is small in the size of the model, and need not be in its own. Counts
        # of the graph are of its size, so they stay behind.
        for number, scores in enumerate(found["mask"]):
            frame = frames[number : number + 1]
            label_map = label_map_of(model, tensor, image, frame.shape[1:3], scores)
            yield frame, {"label_map": label_map[np.newaxis]}


def counts(
    frames: NDArray[Any], found: dict[str, NDArray[Any]], labels: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Voxels of each label, and the sum of their values; counted here if the graph does not."""
    if {"voxels", "sums"} <= found.keys():
        return found["voxels"].sum(axis=0), found["sums"].sum(axis=0)
    flat = found["label_map"].ravel()
    values = frames.reshape(len(flat), -1).mean(axis=1, dtype=np.float64)
    voxels = np.bincount(flat, minlength=labels)
    return voxels.astype(np.int64), np.bincount(flat, values, labels).astype(np.float64)
