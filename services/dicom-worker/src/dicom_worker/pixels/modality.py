"""From stored values to modality values, Hounsfield for CT (Modality LUT Module, PS3.3 C.11.1)."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_worker.attributes import decimals, item, number, text, value
from dicom_worker.pixels.groups import macro
from dicom_worker.pixels.lut import Lut, lut_of

MACRO: Final = "PixelValueTransformationSequence"
INT16: Final = np.iinfo(np.int16)
FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
FLOAT32_TINY: Final = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class Modality:
    """modality value = stored value · slope + intercept, or the table's where there is one.

    unit: `HU`, `Gy`, or `1` for any other.
    """

    slope: float = 1.0
    intercept: float = 0.0
    lut: Lut | None = None
    unit: str = "1"

    def apply(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Modality values of the same shape: `<i2` if all are whole and fit, else `<f4`.

        DICOM_INVALID if one does not fit that, or a slope of 0 makes all values one.
        """
        return narrow(self.exact(stored))

    def exact(self, stored: NDArray[Any]) -> NDArray[Any]:
        """The same to the last unit, for the screen: integers or `<f8`. DICOM_INVALID."""
        if self.lut:
            return self.lut.apply(stored)
        if self.slope == 1 and self.intercept == 0:
            return stored
        if (
            self.slope != 0
            and self.slope.is_integer()
            and self.intercept.is_integer()
            and np.issubdtype(stored.dtype, np.integer)
        ):
            reach = (abs(int(stored.min())) + abs(int(stored.max()))) * abs(self.slope) + abs(
                self.intercept
            )
            if reach < np.iinfo(np.int32).max:
                # Exact like float64, in half of the memory.
                return stored.astype(np.int32) * np.int32(self.slope) + np.int32(self.intercept)
        # An overflow becomes an infinity here, and `narrow` refuses that with a reason.
        with np.errstate(over="ignore", invalid="ignore"):
            made = np.asarray(stored * np.float64(self.slope) + np.float64(self.intercept))
        # Slices without any signal may have a slope of 0, and lose nothing by it.
        if made.min() == made.max() and stored.min() != stored.max():
            raise FluoroError(
                Reason.DICOM_INVALID, "A slope of 0, or next to it, leaves nothing of the values."
            )
        return made


def narrow(values: NDArray[Any]) -> NDArray[Any]:
    """The values as `<i2` if they are integers that fit, else as `<f4`.

    DICOM_INVALID if they do not fit that either.
    """
    if np.issubdtype(values.dtype, np.integer):
        if values.min() >= INT16.min and values.max() <= INT16.max:
            return values.astype("<i2", copy=False)
    elif not is_in_reach(float(np.nanmax(np.abs(values), initial=0))):
        raise FluoroError(
            Reason.DICOM_INVALID,
            "Values after the rescale are too large or too small for 32-bit floating point.",
        )
    return values.astype("<f4", copy=False)


def is_in_reach(largest: float) -> bool:
    """Whether values of which the largest is this keep a difference as 32-bit floats."""
    return largest == 0 or FLOAT32_TINY <= largest <= FLOAT32_MAX


def modality_of(header: Dataset, frame: int, *, little_endian: bool) -> Modality:
    """What the header says for this frame (0-based).

    A Modality LUT Sequence wins over a rescale. DICOM_INVALID if it is not possible.
    """
    if table := item(header, "ModalityLUTSequence"):
        lut = lut_of(table, little_endian=little_endian, signed=is_signed(header))
        return Modality(lut=lut, unit=unit_of(header, text(table, "ModalityLUTType") or "US"))
    # RT Dose has Dose Grid Scaling instead. A rescale beside it is a leftover.
    if text(header, "Modality") == "RTDOSE":
        return dose_of(header)
    source = macro(header, frame, MACRO)
    slope, intercept = decimals(source, "RescaleSlope"), decimals(source, "RescaleIntercept")
    if len(slope) == len(intercept) == 1:
        return Modality(
            slope[0], intercept[0], unit=unit_of(header, text(source, "RescaleType") or "HU")
        )
    # Half a rescale is none: the standard requires both attributes (PS3.3 C.11.1).
    if value(source, "RescaleSlope") is None or value(source, "RescaleIntercept") is None:
        return Modality()
    raise FluoroError(
        Reason.DICOM_INVALID, "Rescale Slope or Rescale Intercept is not a finite number."
    )


def dose_of(header: Dataset) -> Modality:
    """Dose by Dose Grid Scaling (PS3.3 C.8.8.3.4.1), which RT Dose has in place of a rescale."""
    found = decimals(header, "DoseGridScaling")
    if len(found) != 1:
        return Modality()
    return Modality(found[0], unit="Gy" if text(header, "DoseUnits") == "GY" else "1")


def is_signed(header: Dataset) -> bool:
    """Whether stored values may be negative."""
    return number(header, "PixelRepresentation", 0, 1, default=0) == 1


def may_be_negative(header: Dataset, frame: int) -> bool:
    """Whether modality values of this frame (0-based) may be negative (PS3.3 C.11.2.1.1)."""
    # The output of a Modality LUT is unsigned (PS3.3 C.11.1.1.1).
    if item(header, "ModalityLUTSequence"):
        return False
    source, signed = macro(header, frame, MACRO), is_signed(header)
    slope, intercept = decimals(source, "RescaleSlope"), decimals(source, "RescaleIntercept")
    if not len(slope) == len(intercept) == 1:
        return signed
    bits = number(header, "BitsStored", 1, 64, default=16)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return min(slope[0] * low, slope[0] * high) + intercept[0] < 0


def unit_of(header: Dataset, rescale_type: str) -> str:
    """`HU` for a CT whose Rescale Type is HU or absent (PS3.3 C.8.2.1.1.5); else `1`."""
    return "HU" if text(header, "Modality") == "CT" and rescale_type == "HU" else "1"
