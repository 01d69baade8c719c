"""From what a decoder gives to stored values (PS3.5 8.1.1, 8.2)."""

from typing import Any

import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray

from dicom_worker.pixels.codestream import CodeStream
from dicom_worker.pixels.image import Image


def cell_values(cells: NDArray[Any], image: Image) -> NDArray[Any]:
    """The values in pixel cells: as many bits as Bits Stored, the highest of them High Bit.

    They are sign-extended where Pixel Representation is 1. The other bits may hold overlays.
    cells: integers of Bits Allocated, or floats, which stay as they are. Result: the same shape and
    dtype.
    """
    if image.is_float or image.bits_allocated in (image.bits_stored, 1):
        return cells
    if not image.signed and image.high_bit == image.bits_stored - 1:
        # Most have nothing in the other bits, and to look is faster than to clear them.
        return (
            cells if cells.max() >> image.bits_stored == 0 else cells & (1 << image.bits_stored) - 1
        )
    container = cells.dtype.itemsize * 8
    # Up, to drop the bits above High Bit, and down again, which fills in the sign of signed values.
    values = cells << (container - 1 - image.high_bit)
    values >>= container - image.bits_stored
    return values


def sample_values(samples: NDArray[Any], found: CodeStream, image: Image) -> NDArray[Any]:
    """The values of a code stream that has a precision of its own.

    The code stream decides: its precision and, in JPEG 2000, its sign. JPEG and JPEG-LS know no
    sign; there a signed image has two's complement of that precision. Bits Stored and Pixel
    Representation must be able to hold each value, whatever they say otherwise. Only where High Bit
    is above Bits Stored - 1, and the code stream has bits for it, are samples whole pixel cells.

    samples: integers in which the lowest `found.precision` bits count. Result: the same shape, the
    dtype of Bits Allocated and Pixel Representation. FluoroError PIXELS_UNDECODABLE.
    """
    dtype = np.dtype(f"{'i' if image.signed else 'u'}{image.bits_allocated // 8}")
    if image.high_bit >= image.bits_stored and found.precision > image.high_bit:
        return cell_values(samples.astype(dtype), image)
    if image.signed and found.signed is None and found.precision >= image.bits_stored:
        unused = samples.dtype.itemsize * 8 - found.precision
        samples = (samples << unused).view(samples.dtype.str.replace("u", "i")) >> unused
    # Fewer bits than Bits Stored: a negative value would have lost the bits that tell its sign.
    bits = image.bits_stored
    if image.signed and found.signed is None:
        bits = min(bits, found.precision)
    low = -(1 << bits - 1) if image.signed else 0
    high = (1 << bits - image.signed) - 1
    if int(samples.min()) < low or int(samples.max()) > high:
        raise FluoroError(
            Reason.PIXELS_UNDECODABLE,
            "A compressed frame has values that do not fit Bits Stored and Pixel Representation.",
        )
    return samples.astype(dtype, copy=False)
