"""Colour images as 8-bit RGB."""

from typing import Any, Final

import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from dicom_worker.blame import blame_file
from dicom_worker.pixels.lut import Lut, first_input, lut_of
from dicom_worker.pixels.modality import is_signed

CHANNELS: Final = ("Red", "Green", "Blue")


def eight_bits(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Unsigned samples of `bits` bits on the scale 0 to 255."""
    if bits > 8:  # noqa: PLR2004 - bits of the result
        return (values >> (bits - 8)).astype(np.uint8)
    if bits == 8:  # noqa: PLR2004 - bits of the result
        return values.astype(np.uint8, copy=False)
    # A shift would not reach white: the largest of 4 bits would become 240.
    return (values.astype(np.uint16) * 255 // ((1 << bits) - 1)).astype(np.uint8)


def palette_of(header: Dataset, *, little_endian: bool) -> tuple[Lut, Lut, Lut]:
    """The palette of a PALETTE COLOR image (PS3.3 C.7.6.3.1.5), also a segmented one (C.7.9.2).

    DICOM_INVALID if it cannot be read.
    """
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


def apply_palette(stored: NDArray[Any], palette: tuple[Lut, Lut, Lut]) -> NDArray[np.uint8]:
    """RGB, (rows, columns, 3), of an image of indices, (rows, columns).

    Entries said to have 8 bits may fill both bytes of a word.
    """
    channels = []
    for lut in palette:
        fills_words = lut.entries.max() > 255  # noqa: PLR2004 - largest value of a byte
        # Such a palette, taken at its word, would lose the high byte, where the colours are.
        bits = 16 if fills_words else lut.bits
        channels.append(eight_bits(lut.apply(stored), bits))
    return np.stack(channels, axis=-1)
