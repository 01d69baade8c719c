"""Boxes: from what a detector gives for a frame to objects in pixels of the image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray

from ml_worker.manifest import Manifest
from ml_worker.outputs import Boxes, BoxLandmarks, BoxScores, Regions
from ml_worker.prepare import Box
from ml_worker.regions import MOST_REGIONS, TooManyRegionsError, regions_in

Numbers = NDArray[np.float64]

MOST_CANDIDATES: Final = 10_000
"""Boxes of a frame that reach the threshold: more are no detection, and comparing them is slow."""
ONE: Final = 1 + 1e-3
"""Largest score: float16 may give a little more than 1, and as little less than 0."""


@dataclass(frozen=True, slots=True)
class Detected:
    """An object.

    label: its place among the labels. box: left, top, right, bottom in pixels of the image. points:
    (landmarks, 2), x and y.
    """

    label: int
    score: float
    box: Numbers
    points: Numbers


@dataclass(frozen=True, slots=True)
class Shown:
    """Where the tensor shows the frame.

    size: rows and columns of the tensor. seen: its box that shows `area` of the frame.
    """

    size: tuple[int, ...]
    seen: Box
    area: Box

    def in_frame(self, points: Numbers) -> Numbers:
        """Points of the tensor (…, 2: x, y) as points of the frame."""
        there, here = self.seen[::-1], self.area[::-1]  # columns first
        begin = np.array([side.start for side in there], float)
        scale = np.array([_length(b) / _length(a) for a, b in zip(there, here, strict=True)])
        placed: Numbers = (points - begin) * scale + np.array([side.start for side in here], float)
        return placed


def objects_in(
    manifest: Manifest,
    found: Mapping[str, NDArray[Any]],
    shown: Shown,
    threshold: float | None,
    most: int,
) -> list[Detected]:
    """The objects of one frame, the likeliest first.

    found: of that frame, by the kind of output. threshold: None for the manifest's. FluoroError
    MODEL_OUTPUT_INVALID if they can be no boxes of it.
    """
    output = manifest.output("regions") or manifest.output("boxes")
    if isinstance(output, Regions):
        rows, labels, scores, corners = of_regions(manifest, output, found, shown, threshold)
        overlap = 1.0  # regions are apart, but the boxes of turned ones may overlap
    else:
        assert isinstance(output, Boxes)
        rows, labels, scores, corners = of_boxes(manifest, output, found, shown, threshold)
        overlap = output.overlap
    boxes = shown.in_frame(corners.reshape(-1, 2, 2)).reshape(-1, 4)
    # Clipped before overlaps are compared: what lies outside of the image must not count.
    boxes = clipped(boxes, shown.area)
    # What lies wholly in the padding, or beyond what `cover` cuts off, shows nothing of the image.
    inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    rows, labels, scores, boxes = rows[inside], labels[inside], scores[inside], boxes[inside]
    kept = distinct(boxes, labels, overlap, most)
    points = points_of(manifest, found, rows[kept], shown)
    return [
        Detected(int(labels[place]), float(min(scores[place], 1)), boxes[place], each)
        for place, each in zip(kept, points, strict=True)
    ]


Candidates = tuple[NDArray[np.intp], NDArray[np.int64], Numbers, Numbers]
"""Rows, labels, scores and corners in the tensor of boxes, the likeliest first."""


def of_boxes(
    manifest: Manifest,
    output: Boxes,
    found: Mapping[str, NDArray[Any]],
    shown: Shown,
    threshold: float | None,
) -> Candidates:
    """The boxes of a frame that reach the threshold. Errors as of `objects_in`."""
    told = manifest.output("box_scores")
    assert isinstance(told, BoxScores)  # boxes need them
    count = len(found["boxes"])
    # Rows belong together by their numbers, and a shorter output would shift them.
    if any(len(values) != count for kind, values in found.items() if kind.startswith("box")):
        raise invalid(manifest, "outputs of different numbers of boxes")
    rows, labels, scores = candidates(found, threshold or told.threshold, manifest)
    corners = corners_of(found["boxes"][rows].astype(float), output, shown.size)
    check_corners(corners, shown.size, manifest)
    return rows, labels, scores, corners


def of_regions(
    manifest: Manifest,
    output: Regions,
    found: Mapping[str, NDArray[Any]],
    shown: Shown,
    threshold: float | None,
) -> Candidates:
    """The regions of a frame that reach the threshold. Errors as of `objects_in`."""
    maps = found["regions"]
    if maps.shape[1:] != shown.size:
        raise invalid(manifest, "a map of another size than what it was shown")
    # Logits in place of probabilities would pass every threshold.
    if maps.min() < 1 - ONE or maps.max() > ONE:
        raise invalid(manifest, "probabilities below 0 or above 1")
    try:
        each = [regions_in(one, output, threshold or output.threshold) for one in maps]
    except TooManyRegionsError:
        raise invalid(manifest, f"more than {MOST_REGIONS:,} regions in a frame") from None
    labels = np.repeat(np.arange(len(each)), [len(scores) for _, scores in each])
    scores = np.concatenate([scores for _, scores in each])
    order = np.argsort(-scores, kind="stable")
    corners = np.concatenate([corners for corners, _ in each])
    return order, labels[order], scores[order], corners[order]


def candidates(
    found: Mapping[str, NDArray[Any]], threshold: float, manifest: Manifest
) -> tuple[NDArray[np.intp], NDArray[np.int64], Numbers]:
    """Rows, labels and scores of the boxes that reach the threshold, the likeliest first."""
    scores = found["box_scores"]
    if scores.size and float(scores.max()) > ONE:
        raise invalid(manifest, "scores above 1")
    places = np.nonzero(scores >= threshold)
    rows = places[0]
    # `distinct` compares boxes with each other: hostile or broken outputs would take hours.
    if len(rows) > MOST_CANDIDATES:
        raise invalid(
            manifest, f"more than {MOST_CANDIDATES:,} boxes that reach the threshold of a frame"
        )
    # With a score for each label, one box may count for several of them.
    if len(places) > 1:
        labels = places[1].astype(np.int64)
    elif "box_labels" in found:
        labels = found["box_labels"][rows].astype(np.int64)
    else:
        labels = np.zeros(len(rows), np.int64)
    # A label that is none would raise IndexError later, and count as a fault of ours.
    if labels.size and not 0 <= labels.min() <= labels.max() < len(manifest.labels):
        raise invalid(manifest, "labels that it does not have")
    kept = scores[places].astype(float)
    # Stable, so that equals keep the model's order.
    order = np.argsort(-kept, kind="stable")
    return rows[order], labels[order], kept[order]


def corners_of(boxes: Numbers, output: Boxes, size: Sequence[int]) -> Numbers:
    """Left, top, right, bottom in pixels of the tensor. size: its rows and columns."""
    if output.order == "yxyx":
        boxes = boxes[:, [1, 0, 3, 2]]
    elif output.order == "xywh":
        # The first two are the centre.
        half = boxes[:, 2:] / 2
        boxes = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
    return boxes * _unit(output, size)[[0, 1, 0, 1]]


def check_corners(corners: Numbers, size: Sequence[int], manifest: Manifest) -> None:
    """FluoroError MODEL_OUTPUT_INVALID unless each box may be in a tensor of that size."""
    low, high = corners[:, :2], corners[:, 2:]
    if (high < low).any():
        raise invalid(manifest, "boxes that end before they begin")
    if (high < 0).any() or (low > np.array(size[::-1])).any():
        raise invalid(manifest, "boxes outside of what it was shown")


def clipped(boxes: Numbers, area: Box) -> Numbers:
    """Boxes cut off at the edges of what the model sees of the image."""
    down, across = area
    low = np.array([across.start, down.start] * 2)
    return np.clip(boxes, low, np.array([across.stop, down.stop] * 2))


def distinct(boxes: Numbers, labels: NDArray[np.int64], overlap: float, most: int) -> list[int]:
    """Places of the boxes that are objects of their own, in order; the first of several wins.

    Greedy non-maximum suppression among boxes of one label. Boxes have an area above 0.
    """
    kept: list[int] = []
    is_open = np.ones(len(boxes), bool)
    # A row for each side: NumPy is slow along an axis of two.
    left, top, right, bottom = np.ascontiguousarray(boxes.T)
    areas = (right - left) * (bottom - top)
    for place in range(len(boxes)):
        # Before the comparison, which takes most of the time.
        if len(kept) == most:
            break
        if not is_open[place]:
            continue
        kept.append(place)
        if overlap < 1:
            width = np.minimum(right, right[place]) - np.maximum(left, left[place])
            height = np.minimum(bottom, bottom[place]) - np.maximum(top, top[place])
            both = np.maximum(width, 0) * np.maximum(height, 0)
            share = both / (areas + areas[place] - both)
            is_open &= (labels != labels[place]) | (share < overlap)
    return kept


def points_of(
    manifest: Manifest, found: Mapping[str, NDArray[Any]], rows: NDArray[np.intp], shown: Shown
) -> Numbers:
    """The landmarks of these boxes: (boxes, landmarks, 2), x and y in the frame."""
    output, boxes = manifest.output("box_landmarks"), manifest.output("boxes")
    if not isinstance(output, BoxLandmarks):
        return np.zeros((len(rows), 0, 2))
    assert isinstance(boxes, Boxes)
    points = found["box_landmarks"][rows].astype(float).reshape(len(rows), len(output.names), 2)
    if boxes.order == "yxyx":
        points = points[..., ::-1]
    return shown.in_frame(points * _unit(boxes, shown.size))


def invalid(manifest: Manifest, what: str) -> FluoroError:
    """The refusal of what a model gave for an image."""
    return FluoroError(
        Reason.MODEL_OUTPUT_INVALID, f"{manifest.name} gave {what}, so none is told of this image."
    )


def _unit(output: Boxes, size: Sequence[int]) -> Numbers:
    """How many pixels of the tensor 1 means, in columns and rows."""
    return np.array(size[::-1], float) if output.unit == "shares" else np.ones(2)


def _length(side: slice) -> int:
    return int(side.stop - side.start)
