"""Clears the bits of pixel cells that no pixel value uses (PS3.5 8.1.1).

Old scanners draw overlays into them, and an overlay may be a text.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from dicom_worker.deidentify.header import BITS, HIGH_BIT, SIGNED, STORED, Header

CELLS: Final = {8: "u1", 16: "u2", 32: "u4"}
"""Bits Allocated and the type of a cell."""


@dataclass(frozen=True, slots=True)
class Unused:
    """What to do with a cell. used: its bits that are kept.

    sign: position of the bit that goes into the bits of `above`; those are none in unsigned pixels.
    """

    cell: str
    used: int
    sign: int
    above: int

    def clear(self, data: bytes) -> bytes:
        """The cells with nothing but their values. The same object if that is what they were."""
        # The padding at the end of the pixel data may be less than a cell.
        size = len(data) // np.dtype(self.cell).itemsize * np.dtype(self.cell).itemsize
        cells = np.frombuffer(data[:size], self.cell)
        kind = cells.dtype.type
        clean = cells & kind(self.used)
        if self.above:
            clean |= (cells >> kind(self.sign) & kind(1)) * kind(self.above)
        if np.array_equal(clean, cells):
            return data
        cleared: bytes = clean.astype(self.cell).tobytes()
        return cleared + data[size:]

    def tables(self) -> list[bytes | None]:
        """For cells in planes of bytes, the highest first: what becomes of each of 256 values.

        None: nothing. Above the byte of the sign there are zeros.
        """
        places = reversed(range(np.dtype(self.cell).itemsize))
        return [self._table(8 * place) for place in places]

    def _table(self, shift: int) -> bytes | None:
        sign = 1 << self.sign >> shift & 0xFF
        used, above = self.used >> shift & 0xFF, self.above >> shift & 0xFF
        table = bytes(each & used | (above if each & sign else 0) for each in range(256))
        return None if table == bytes(range(256)) else table


def unused(header: Header, *, little_endian: bool) -> Unused | None:
    """Of native pixel data; None if values fill their cells, or if the header says nonsense."""
    allocated, stored = header.number(BITS), header.number(STORED)
    high = header.number(HIGH_BIT, stored - 1)
    if allocated not in CELLS or not 0 < stored < allocated or not stored <= high + 1 <= allocated:
        return None
    used = (1 << high + 1) - (1 << high + 1 - stored)
    above = (1 << allocated) - (1 << high + 1) if header.number(SIGNED) else 0
    return Unused(("<" if little_endian else ">") + CELLS[allocated], used, high, above)
