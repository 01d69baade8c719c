"""From modality values to grey values of a screen (VOI LUT Module, PS3.3 C.11.2)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_worker.attributes import decimals, item, text, value
from dicom_worker.blame import blame_file
from dicom_worker.pixels.groups import macro
from dicom_worker.pixels.lut import INT16_MAX, Lut, lut_of
from dicom_worker.pixels.modality import is_signed, may_be_negative

WHITE: Final = 255.0
BLOCK: Final = 1 << 18
"""Values that are windowed at once."""


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
        result = np.empty(values.shape, np.uint8)
        flat, shown = np.ascontiguousarray(values).reshape(-1), result.reshape(-1)
        # In blocks, because the formulas take 8 bytes a value several times over.
        for start in range(0, flat.size, BLOCK):
            block = slice(start, start + BLOCK)
            with np.errstate(over="ignore", invalid="ignore"):
                grey = FUNCTIONS[self.function](
                    flat[block].astype(np.float64), self.center, self.width
                )
            shown[block] = np.rint(np.nan_to_num(grey))
        return result


def linear(x: NDArray[np.float64], center: float, width: float) -> NDArray[np.float64]:
    """PS3.3 C.11.2.1.2.1.

    Black up to center - 0.5 - (width - 1) / 2, white above center - 0.5 + (width - 1) / 2.
    """
    # The formula would divide by 0. The standard makes it a step here.
    if width == 1:
        return np.where(x > center - 0.5, WHITE, 0.0)
    return np.clip(((x - (center - 0.5)) / (width - 1) + 0.5) * WHITE, 0, WHITE)


def linear_exact(x: NDArray[np.float64], center: float, width: float) -> NDArray[np.float64]:
    """PS3.3 C.11.2.1.3.2: black up to center - width / 2, white above center + width / 2."""
    return np.clip(((x - center) / width + 0.5) * WHITE, 0, WHITE)


def sigmoid(x: NDArray[np.float64], center: float, width: float) -> NDArray[np.float64]:
    """PS3.3 C.11.2.1.3.1."""
    # exp overflows far below the window; what is divided by infinity is the black that is meant.
    return WHITE / (1 + np.exp(-4 * (x - center) / width))


FUNCTIONS: Final[dict[str, Callable[[NDArray[np.float64], float, float], NDArray[np.float64]]]] = {
    "LINEAR": linear,
    "LINEAR_EXACT": linear_exact,
    "SIGMOID": sigmoid,
}
"""VOI LUT Function (0028,1056) → its formula."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which VOI transform to show; nothing set means the file's own.

    window: in place of the file's. hounsfield: the same for values in Hounsfield units alone.
    index: 0-based among the file's windows. explanation: of one of its windows or tables.
    """

    window: Window | None = None
    hounsfield: Window | None = None
    index: int | None = None
    explanation: str = ""


def transform_of(
    header: Dataset, frame: int, choice: Choice, unit: str, *, little_endian: bool
) -> Lut | Window | None:
    """What leads from modality values, in `unit`, to the grey values of this frame (0-based).

    A VOI LUT of the file wins over its windows. None if there is neither. FluoroError:
    CHOICE_UNAVAILABLE if the file has no such window, DICOM_INVALID if a table cannot be read.
    """
    if choice.window:
        return choice.window
    # A preset for CT means nothing for other values: those keep the file's own window.
    if choice.hounsfield and unit == "HU":
        return choice.hounsfield
    source = macro(header, frame, "FrameVOILUTSequence")
    if choice.index is not None or choice.explanation:
        chosen: Dataset | Window | None = chosen_of(source, choice)
    else:
        windows = windows_of(source)
        chosen = item(source, "VOILUTSequence") or next(iter(windows), None)
    if isinstance(chosen, Dataset):
        signed = may_be_negative(header, frame)
        return lut_of(chosen, little_endian=little_endian, signed=signed)
    # Some writers put a width of 0 where they have no window.
    return chosen if chosen and chosen.is_valid() else None


def chosen_of(source: Dataset, choice: Choice) -> Dataset | Window:
    """The window of this index, or the window or table of this explanation."""
    windows = windows_of(source)
    wanted = choice.explanation.strip().casefold()
    numbers = (
        [choice.index]
        if choice.index is not None
        else matches(strings(source, "WindowCenterWidthExplanation"), wanted)
    )
    for number in numbers:
        if number < len(windows) and windows[number].is_valid():
            return windows[number]
    if wanted:
        with blame_file(Reason.DICOM_INVALID, "The VOI LUTs cannot be read."):
            tables = list(value(source, "VOILUTSequence") or [])
        for number in matches([text(table, "LUTExplanation") for table in tables], wanted):
            found: Dataset = tables[number]
            return found
    raise FluoroError(
        Reason.CHOICE_UNAVAILABLE, "The file has no window of this index or explanation."
    )


def windows_of(source: Dataset) -> list[Window]:
    """All windows of a data set, also those that the standard does not allow."""
    function = text(source, "VOILUTFunction").upper() or "LINEAR"
    centers, widths = decimals(source, "WindowCenter"), decimals(source, "WindowWidth")
    return [Window(center, width, function) for center, width in zip(centers, widths, strict=False)]


def strings(source: Dataset, keyword: str) -> list[str]:
    """One or many strings; [] if absent."""
    found = value(source, keyword)
    return [found] if isinstance(found, str) else [str(each) for each in found or []]


def matches(texts: list[str], wanted: str) -> list[int]:
    """Where that text stands, in any case, spaces around it aside."""
    return [number for number, each in enumerate(texts) if each.strip().casefold() == wanted]


def full_range(values: NDArray[Any], ignored: NDArray[np.bool_]) -> Window:
    """The window from the smallest value (black) to the largest (white).

    Only values that are numbers and not `ignored` count.
    """
    # Padding is far below all tissue, and would leave the image with a few greys.
    shown = values[~ignored & np.isfinite(values)]
    low, high = (float(shown.min()), float(shown.max())) if shown.size else (0.0, 0.0)
    # The +1 makes the LINEAR formula reach black at `low` and white at `high`, no sooner.
    return Window((low + high + 1) / 2, high - low + 1)


def padding_mask(stored: NDArray[Any], header: Dataset) -> NDArray[np.bool_]:
    """Which stored values are padding (PS3.3 C.7.5.1.1.2).

    Pixel Padding Value, or whatever is between it and Pixel Padding Range Limit.
    """
    padding = value(header, "PixelPaddingValue")
    limit = value(header, "PixelPaddingRangeLimit")
    if not isinstance(padding, int):
        return np.zeros(stored.shape, np.bool_)
    signed = is_signed(header)
    ends = (padding, limit if isinstance(limit, int) else padding)
    # The limit may lie on either side of the padding value (PS3.3 C.7.5.1.1.2).
    low, high = sorted(as_stored(end, signed=signed) for end in ends)
    return (stored >= low) & (stored <= high)


def as_stored(padding: int, *, signed: bool) -> int:
    """A padding value as pixels have it: some writers give it the other VR of US and SS.

    Both have 16 bits, and Pixel Representation says which is meant (PS3.3 C.7.5.1.1.2).
    """
    if signed and padding > INT16_MAX:
        return padding - (1 << 16)
    return padding + (1 << 16) if padding < 0 and not signed else padding
