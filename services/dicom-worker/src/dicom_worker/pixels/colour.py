"""Colour images as RGB."""

from typing import Any, Final, NamedTuple

import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from dicom_worker.blame import blame_file
from dicom_worker.pixels.lut import Lut, first_input, lut_of
from dicom_worker.pixels.modality import is_signed
from dicom_worker.reading import DicomFile

CHANNELS: Final = ("Red", "Green", "Blue")
BYTE, WORD = 8, 16
"""Bits."""


class Palette(NamedTuple):
    """The tables of a PALETTE COLOR image, whose entries have the same bits: 8 to 16."""

    red: Lut
    green: Lut
    blue: Lut

    @property
    def bits(self) -> int:
        """Of a sample of a colour."""
        return self.red.bits

    def apply(self, stored: NDArray[Any]) -> NDArray[Any]:
        """RGB, (rows, columns, 3), of indices, (rows, columns): 8 bits in uint8, more in uint16."""
        return np.stack([lut.apply(stored) for lut in self], axis=-1)


def colour_bits(file: DicomFile) -> int:
    """Bits of a sample in the array of a file: Bits Stored, or those of its palette."""
    assert file.image is not None
    if file.image.photometric != "PALETTE COLOR":
        return file.image.bits_stored
    return palette_of(file.header, little_endian=file.little_endian).bits


def eight_bits(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Unsigned samples of `bits` bits on the scale 0 to 255."""
    if bits > 8:  # noqa: PLR2004 - bits of the result
        return (values >> (bits - 8)).astype(np.uint8)
    if bits == 8:  # noqa: PLR2004 - bits of the result
        return values.astype(np.uint8, copy=False)
    # A shift would not reach white: the largest of 4 bits would become 240.
    return (values.astype(np.uint16) * 255 // ((1 << bits) - 1)).astype(np.uint8)


def palette_of(header: Dataset, *, little_endian: bool, wide: bool = False) -> Palette:
    """The palette of a PALETTE COLOR image (PS3.3 C.7.6.3.1.5), also a segmented one (C.7.9.2).

    wide: in 16 bits, and not in as few as lose nothing. DICOM_INVALID if it cannot be read.
    """
    luts = luts_of(header, little_endian=little_endian)
    return widened(luts, WORD) if wide else narrowest(luts)


def luts_of(header: Dataset, *, little_endian: bool) -> tuple[Lut, Lut, Lut]:
    """The tables of a palette, as the file has them."""
    if "SegmentedRedPaletteColorLookupTableData" in header:
        return segmented_palette(header)
    signed = is_signed(header)
    red, green, blue = (
        lut_of(
            header,
            f"{channel}PaletteColorLookupTable",
            little_endian=little_endian,
            signed=signed,
        )
        for channel in CHANNELS
    )
    return red, green, blue


def segmented_palette(header: Dataset) -> tuple[Lut, Lut, Lut]:
    """A segmented palette, expanded by pydicom."""
    with blame_file(Reason.DICOM_INVALID, "The segmented palette cannot be read."):
        count, start, bits = (int(number) for number in header.RedPaletteColorLookupTableDescriptor)
        # 65,536 does not fit 16 bits, so 0 stands for it (PS3.3 C.7.6.3.1.5).
        inputs = np.arange(start, start + (count or 65536))
        rgb = apply_color_lut(inputs, header)
    # pydicom indexes with the dtype of the entries.
    if len(inputs) > 256 and rgb.dtype == np.uint8:  # noqa: PLR2004 - values of a byte
        raise FluoroError(
            Reason.PIXELS_UNDECODABLE, "A segmented palette of 8 bits has more than 256 entries."
        )
    start = first_input(start, signed=is_signed(header))
    red, green, blue = (Lut(start, rgb[:, channel].astype(np.uint16), bits) for channel in range(3))
    return red, green, blue


def narrowest(luts: tuple[Lut, Lut, Lut]) -> Palette:
    """The palette of these tables, with as few bits as lose nothing.

    Many files say 16 bits and have colours of 8, in the upper byte or in both.
    """
    palette = widened(luts, max(width(lut, luts) for lut in luts))
    halved = (halves(lut.entries) for lut in palette)
    low, high = (np.concatenate(each) for each in zip(*halved, strict=True))
    if palette.bits == WORD and (not low.any() or np.array_equal(low, high)):
        return Palette(
            *(Lut(lut.first, (lut.entries >> BYTE).astype(np.uint8), BYTE) for lut in palette)
        )
    return palette


def widened(luts: tuple[Lut, Lut, Lut], bits: int) -> Palette:
    """The palette of these tables with so many bits, which none of them exceeds."""
    dtype = np.uint8 if bits == BYTE else np.uint16
    tables = (
        lut.entries.astype(np.uint32) * ((1 << bits) - 1) // ((1 << width(lut, luts)) - 1)
        for lut in luts
    )
    return Palette(
        *(
            Lut(lut.first, table.astype(dtype), bits)
            for lut, table in zip(luts, tables, strict=True)
        )
    )


def halves(table: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The lower and the upper bytes of words."""
    return table & 0xFF, table >> BYTE


def width(lut: Lut, luts: tuple[Lut, Lut, Lut]) -> int:
    """Bits of an entry. Those said to have 8 may fill both bytes of a word."""
    # Taken at its word, such a palette would lose the high byte, where the colours are.
    largest = max(int(each.entries.max()) for each in luts if each.bits == lut.bits)
    return WORD if largest >> lut.bits else lut.bits
