"""From modality values to grey values of a screen (VOI LUT Module, PS3.3 C.11.2)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_worker.attributes import decimals, item, text, value
from dicom_worker.pixels.groups import macro
from dicom_worker.pixels.lut import Lut, lut_of

WHITE: Final = 255.0


@dataclass(frozen=True, slots=True)
class Window:
    """Window Center and Window Width in modality values, and the VOI LUT Function.

    function: LINEAR, LINEAR_EXACT or SIGMOID.
    """

    center: float
    width: float
    function: str = "LINEAR"

    def is_valid(self) -> bool:
        """Whether the standard allows it: width at least 1 for LINEAR, else above 0.

        PS3.3 C.11.2.1.2.1, C.11.2.1.3.
        """
        least = self.width >= 1 if self.function == "LINEAR" else self.width > 0
        return (
            self.function in FUNCTIONS
            and bool(np.isfinite(self.center) and np.isfinite(self.width))
            and least
        )

    def apply(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Grey values 0 to 255, of the same shape.

        The window must be valid. Values that are not a number become 0.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            grey = FUNCTIONS[self.function](values.astype(np.float64), self.center, self.width)
        return np.rint(np.nan_to_num(grey)).astype(np.uint8)


def linear(x: NDArray[np.float64], center: float, width: float) -> NDArray[np.float64]:
    """PS3.3 C.11.2.1.2.1.

    Black up to center - 0.5 - (width - 1) / 2, white above center - 0.5 + (width - 1) / 2.
    """
    if width == 1:
        return np.where(x > center - 0.5, WHITE, 0.0)
    return np.clip(((x - (center - 0.5)) / (width - 1) + 0.5) * WHITE, 0, WHITE)


def linear_exact(x: NDArray[np.float64], center: float, width: float) -> NDArray[np.float64]:
    """PS3.3 C.11.2.1.3.2: black up to center - width / 2, white above center + width / 2."""
    return np.clip(((x - center) / width + 0.5) * WHITE, 0, WHITE)


def sigmoid(x: NDArray[np.float64], center: float, width: float) -> NDArray[np.float64]:
    """PS3.3 C.11.2.1.3.1."""
    return WHITE / (1 + np.exp(-4 * (x - center) / width))


FUNCTIONS: Final[dict[str, Callable[[NDArray[np.float64], float, float], NDArray[np.float64]]]] = {
    "LINEAR": linear,
    "LINEAR_EXACT": linear_exact,
    "SIGMOID": sigmoid,
}
"""VOI LUT Function (0028,1056) → its formula."""


def window_of(header: Dataset, frame: int) -> Window | None:
    """The header's first window for this frame (0-based) that the standard allows, or None."""
    source = macro(header, frame, "FrameVOILUTSequence")
    centers, widths = decimals(source, "WindowCenter"), decimals(source, "WindowWidth")
    if not centers or not widths:
        return None
    window = Window(centers[0], widths[0], text(source, "VOILUTFunction").upper() or "LINEAR")
    return window if window.is_valid() else None


def voi_lut_of(header: Dataset, *, little_endian: bool) -> Lut | None:
    """The first VOI LUT of the header, or None. DICOM_INVALID if it cannot be read."""
    table = item(header, "VOILUTSequence")
    return lut_of(table, little_endian=little_endian) if table else None


def full_range(values: NDArray[Any], ignored: NDArray[np.bool_]) -> Window:
    """The window from the smallest value (black) to the largest (white).

    Only values that are numbers and not `ignored` count.
    """
    shown = values[~ignored & np.isfinite(values)]
    low, high = (float(shown.min()), float(shown.max())) if shown.size else (0.0, 0.0)
    return Window((low + high + 1) / 2, high - low + 1)


def padding_mask(stored: NDArray[Any], header: Dataset) -> NDArray[np.bool_]:
    """Which stored values are padding (PS3.3 C.7.5.1.1.2).

    Pixel Padding Value, or whatever is between it and Pixel Padding Range Limit.
    """
    padding = value(header, "PixelPaddingValue")
    limit = value(header, "PixelPaddingRangeLimit")
    if not isinstance(padding, int):
        return np.zeros(stored.shape, np.bool_)
    low, high = sorted((padding, limit if isinstance(limit, int) else padding))
    return (stored >= low) & (stored <= high)
