"""Lookup tables: Modality LUT, VOI LUT and palettes are described alike.

PS3.3 C.11.1.1, C.11.2.1.1, C.7.6.3.1.5.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_worker.attributes import value
from dicom_worker.blame import blame_file

INT16_MAX: Final = 2**15 - 1


@dataclass(frozen=True, slots=True)
class Lut:
    """entries[i] is the output for the input `first + i`.

    Inputs outside give the first or last entry. bits: of an entry, 8 to 16.
    """

    first: int
    entries: NDArray[Any]
    bits: int

    def apply(self, values: NDArray[Any]) -> NDArray[Any]:
        """The outputs, of the same shape. Floats are rounded: a table has whole inputs."""
        integers = values if np.issubdtype(values.dtype, np.integer) else np.rint(values)
        # Wide before the subtraction: an unsigned input below the first one would wrap around.
        index = np.clip(integers.astype(np.int64) - self.first, 0, len(self.entries) - 1)
        return self.entries[index]


def lut_of(source: Dataset, prefix: str = "LUT", *, little_endian: bool, signed: bool) -> Lut:
    """The table from `{prefix}Descriptor` (entries, first input, bits) and `{prefix}Data`.

    The data are numbers (VR US or SS) or bytes (OW). signed: whether inputs may be negative.
    DICOM_INVALID if one of the two is missing, or they contradict each other.
    """
    descriptor, data = value(source, f"{prefix}Descriptor"), value(source, f"{prefix}Data")
    with blame_file(Reason.DICOM_INVALID, "A lookup table cannot be read."):
        count, first, bits = (int(number) for number in descriptor)
        # 65,536 does not fit 16 bits, so 0 stands for it (PS3.3 C.11.1.1).
        count = count or 65536
        if isinstance(data, bytes):
            # Entries of 8 bits have a byte each with some writers and a word with others. The
            # length tells.
            packed = "u1" if len(data) < 2 * count else "<u2" if little_endian else ">u2"
            entries = np.frombuffer(data, packed).astype(np.uint16)
        else:
            # Read as SS, large entries are negative, and NumPy puts no negative numbers into uint16
            # directly.
            entries = np.asarray(np.atleast_1d(data), np.int64).astype(np.uint16)
    if not 8 <= bits <= 16 or not 0 < count <= len(entries):  # noqa: PLR2004 - PS3.3 C.11.1.1
        raise FluoroError(
            Reason.DICOM_INVALID, "A lookup table's descriptor does not match its data."
        )
    return Lut(first_input(first, signed=signed), entries[:count], bits)


def first_input(first: int, *, signed: bool) -> int:
    """The first input of a descriptor, which is US or SS as the inputs are.

    Files of implicit VR do not say which, and some files say it wrong.
    """
    return first - (1 << 16) if signed and first > INT16_MAX else first
