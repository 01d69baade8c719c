"""Finds text in a picture: PP-OCRv4's detector proposes regions, its recogniser confirms them.

What the text says is never kept: the recogniser's answer is counted, compared and dropped. Both
networks run on the CPU, in sessions that a process makes once.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

WEIGHTS: Final = Path(__file__).parent / "weights"
THREADS: Final = min(4, len(os.sched_getaffinity(0)))
TILE: Final = 960
"""Rows and columns that the detector sees at once: its memory stays below some 350 MB."""
OVERLAP: Final = 128
SMALL: Final = 736
"""Smaller pictures are enlarged to this side at least, as the detector was tuned for."""
LARGEST_SCALE: Final = 8.0
"""Of pictures that are smaller than any with a text of some length."""
STEP: Final = 32
"""The detector wants sides that are multiples."""
PROBABILITY: Final = 0.3
"""Above it a pixel belongs to text."""
BOX_PROBABILITY: Final = 0.5
"""Above it, on average, a region is a candidate."""
UNCLIP: Final = 1.6
"""The network marks the core of a text; its outline is this much further out (DB, Liao 2020)."""
MIN_SIDE: Final = 3
MAX_CANDIDATES: Final = 500
"""Regions per tile. A page of writing has fewer; what is left over is seen in the next round."""
HEIGHT: Final = 48
"""Rows that the recogniser sees."""
MAX_WIDTH: Final = 960
TALL: Final = 1.5
CONFIDENCE: Final = 0.5
"""Mean probability of the characters from which on a region is text."""
LARGE: Final = 0.1
"""Height of a text as a share of the picture's shorter side, above which anatomy looks like one: a
kidney is a 0, a vertebra an 8. Devices write smaller."""
LARGE_CONFIDENCE, LARGE_LETTERS = 0.85, 2
"""What the recogniser has to read in a large region at least."""
LONG: Final = 5
"""Letters that are never anatomy, however large: names in a script that it half knows, too."""

Picture = NDArray[np.uint8]
"""(rows, columns, 3), 0 to 255."""


@dataclass(frozen=True, slots=True)
class Region:
    """Where text may be. corners: (4, 2) of x and y, float32, in pixels, in order around it.

    confirmed: whether the recogniser reads something in it.
    """

    corners: NDArray[np.float32]
    confirmed: bool


@cache
def session(name: str) -> onnxruntime.InferenceSession:
    """A network of this process, with bounded threads, and memory that goes back after a run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        WEIGHTS / f"{name}.onnx", options, providers=["CPUExecutionProvider"]
    )


def find_text(
    picture: Picture, resembles: Callable[[str], bool], check: Callable[[], None]
) -> Iterator[Region]:
    """Every region of the picture that the detector proposes, confirmed or not.

    resembles: whether a text, read with doubts, is one that is looked for. It is told what nobody
    else is. check: called for each region and each part of the picture; stops by raising.
    """
    for view, scale, left, top in views(picture):
        check()
        for found in candidates(view):
            check()
            corners = placed(found, scale, left, top)
            yield Region(corners, confirmed=is_text(picture, corners, resembles))


def placed(corners: NDArray[np.float32], scale: float, left: int, top: int) -> NDArray[np.float32]:
    """Corners in a view as corners in the picture."""
    return corners / np.float32(scale) + np.array((left, top), np.float32)


def views(picture: Picture) -> Iterator[tuple[Picture, float, int, int]]:
    """What the detector looks at: parts of the picture, their scale, their left and top.

    A large picture is seen as a whole, for large letters, and in tiles, for small ones.
    """
    rows, columns = picture.shape[:2]
    largest = max(rows, columns)
    if largest > TILE:
        yield scaled(picture, TILE / largest), TILE / largest, 0, 0
    for top in range(0, max(1, rows - OVERLAP), TILE - OVERLAP):
        for left in range(0, max(1, columns - OVERLAP), TILE - OVERLAP):
            tile = picture[top : top + TILE, left : left + TILE]
            fitting = min(SMALL / min(tile.shape[:2]), TILE / max(tile.shape[:2]))
            scale = max(1.0, min(LARGEST_SCALE, fitting))
            yield scaled(tile, scale), scale, left, top


def scaled(picture: Picture, scale: float) -> Picture:
    """The picture in another size."""
    if scale == 1:
        return picture
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    rows, columns = (max(1, round(scale * side)) for side in picture.shape[:2])
    return np.asarray(cv2.resize(picture, (columns, rows), interpolation=method))


def candidates(view: Picture) -> Iterator[NDArray[np.float32]]:
    """The corners of what the detector takes for text, in pixels of the view."""
    rows, columns = view.shape[:2]
    # A border instead of stretching: the letters keep their shape.
    bottom, right = -rows % STEP, -columns % STEP
    padded = np.pad(view, ((0, bottom), (0, right), (0, 0)), "edge")
    probability = run("detector", normalised(padded))[0, 0]
    mask = (probability > PROBABILITY).astype(np.uint8)
    mask = cv2.dilate(mask, np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    # The largest first: what the limit cuts off is the smallest, and is seen in the next round.
    for contour in sorted(contours, key=cv2.contourArea, reverse=True)[:MAX_CANDIDATES]:
        centre, (width, height), angle = cv2.minAreaRect(contour)
        if min(width, height) < MIN_SIDE or mean_inside(probability, contour) < BOX_PROBABILITY:
            continue
        margin = UNCLIP * width * height / (2 * (width + height))
        grown = (width + 2 * margin, height + 2 * margin)
        yield np.asarray(cv2.boxPoints((centre, grown, angle)), np.float32)


def mean_inside(probability: NDArray[np.float32], contour: Any) -> float:
    """The mean probability within the smallest rectangle around a contour."""
    left, top, width, height = cv2.boundingRect(contour)
    corners = cv2.boxPoints(cv2.minAreaRect(contour)) - (left, top)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [corners.astype(np.int32)], 1)
    part = probability[top : top + height, left : left + width]
    return float(cv2.mean(part, mask)[0])


def is_text(
    picture: Picture, corners: NDArray[np.float32], resembles: Callable[[str], bool]
) -> bool:
    """Whether the recogniser reads something in the region, in one of its directions."""
    crop = upright(picture, corners)
    # Whoever turns a text writes it upwards, downwards or upside down.
    turns = (0, 2) if crop.shape[0] < TALL * crop.shape[1] else (1, 3)
    height = min(cv2.minAreaRect(corners)[1])
    least, letters = CONFIDENCE, 1
    if height > LARGE * min(picture.shape[:2]):
        least, letters = LARGE_CONFIDENCE, LARGE_LETTERS
    for turn in turns:
        text, mean = read(np.ascontiguousarray(np.rot90(crop, turn)))
        needed = CONFIDENCE if len(text) >= LONG else least
        if (len(text) >= letters and mean > needed) or resembles(text):
            return True
    return False


def upright(picture: Picture, corners: NDArray[np.float32]) -> Picture:
    """The region cut out and turned, so that its edges are those of an image."""
    order = np.argsort(corners.sum(axis=1))
    turned = np.roll(corners, -int(order[0]), axis=0)
    width = round(float(np.linalg.norm(turned[0] - turned[1])))
    height = round(float(np.linalg.norm(turned[1] - turned[2])))
    width, height = max(1, width), max(1, height)
    # Shrunk on the way: a region of a large image needs no more than the recogniser's rows.
    shrink = min(1.0, 2 * HEIGHT / min(width, height))
    width, height = max(1, round(width * shrink)), max(1, round(height * shrink))
    target = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    warp = cv2.getPerspectiveTransform(turned.astype(np.float32), target)
    return np.asarray(
        cv2.warpPerspective(picture, warp, (width, height), borderMode=cv2.BORDER_REPLICATE)
    )


def read(crop: Picture) -> tuple[str, float]:
    """The letters and digits that the recogniser reads, and their mean probability."""
    rows, columns = crop.shape[:2]
    width = min(MAX_WIDTH, max(HEIGHT, round(HEIGHT * columns / rows)))
    line = np.asarray(cv2.resize(crop, (width, HEIGHT)), np.uint8)
    steps = run("recogniser", normalised(line))[0]
    best = steps.argmax(axis=1)
    # Connectionist temporal classification: 0 is the blank, repetitions are one character.
    new = (best != 0) & (best != np.concatenate(([0], best[:-1])))
    letters = new & np.isin(best, np.flatnonzero(alphanumeric()))
    text = "".join(characters()[each] for each in best[letters])
    return text, float(steps.max(axis=1)[letters].mean()) if text else 0.0


@cache
def characters() -> list[str]:
    """Of each class of the recogniser; the first is the blank, the last a space."""
    named = session("recogniser").get_modelmeta().custom_metadata_map["character"].splitlines()
    return ["", *named, " "]


@cache
def alphanumeric() -> NDArray[np.bool_]:
    """Whether a class of the recogniser is a letter or digit: a line or a dot is no text."""
    return np.array([each.isalnum() for each in characters()])


def normalised(picture: Picture) -> NDArray[np.float32]:
    """(1, 3, rows, columns), -1 to 1, as both networks want it."""
    return (picture.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]


def run(name: str, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    """The one output of a network for its one input."""
    network = session(name)
    (output,) = network.run(None, {network.get_inputs()[0].name: tensor})
    return np.asarray(output, np.float32)
