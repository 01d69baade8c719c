"""Texts that stand still while a film runs: found in one frame, they are known in the others.

Frames of a film are alike but for noise, in which now and then a text is missed. And a frame whose
texts are known already needs one search, to prove that there is nothing else, instead of two.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

MAX_KNOWN: Final = 256
"""Texts that are remembered. A film with more has texts that move, which no two frames share."""
MAX_PIXELS: Final = 64 * 1024
"""Of a remembered text; larger ones are thinned out. All together take 64 MiB at most."""
SAME: Final = 0.5
"""Correlation of the strokes from which on it is the same text. Noise alone has under 0.1."""

Outline = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Known:
    """A text. strokes: its surroundings without what is dark or bright over more than a letter."""

    outline: Outline
    strokes: NDArray[np.float32]


@dataclass(slots=True)
class Film:
    """What was found so far in the frames of an instance, in order of finding."""

    known: list[Known] = field(default_factory=list)

    def add(self, values: NDArray[Any], outlines: tuple[Outline, ...]) -> None:
        """Remembers the texts of a frame, as many as there is room for."""
        # Every frame is compared with all known texts, so their number bounds time and memory.
        room = MAX_KNOWN - len(self.known)
        self.known += [Known(outline, strokes(values, outline)) for outline in outlines[:room]]

    def again(self, values: NDArray[Any], since: int = 0) -> Iterator[Outline]:
        """Those of the texts, from the one of this number on, that a frame has, too."""
        for known in self.known[since:]:
            if alike(known.strokes, strokes(values, known.outline)):
                yield known.outline


def strokes(values: NDArray[Any], outline: Outline) -> NDArray[np.float32]:
    """The part of a frame around an outline, high-pass filtered. (rows, columns), thinned out."""
    left, top = (max(0, int(edge)) for edge in np.floor(outline.min(axis=0)))
    right, bottom = (int(edge) for edge in np.ceil(outline.max(axis=0)))
    part = np.nan_to_num(values[top : bottom + 1, left : right + 1].astype(np.float32))
    grey = part if part.ndim == 2 else part.mean(axis=-1)  # noqa: PLR2004 - rows, columns
    height = float(min(cv2.minAreaRect(outline)[1]))
    # What is broader than a letter moves from frame to frame; strokes stand still.
    fine = grey - cv2.GaussianBlur(grey, (0, 0), max(1.0, height / 2))
    # A text that fills the frame is known by fewer pixels just as well.
    step = max(1, int(np.ceil(np.sqrt(fine.size / MAX_PIXELS))))
    return np.ascontiguousarray(fine[::step, ::step])


def alike(first: NDArray[np.float32], second: NDArray[np.float32]) -> bool:
    """Whether two parts of the same shape show the same strokes."""
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    # Two flat parts have no strokes, and are not the same text for that.
    return scale > 0 and float(np.vdot(first, second)) > SAME * scale
