"""From what a decoder gives to stored values (PS3.5 8.1.1)."""

from typing import Any

from numpy.typing import NDArray

from dicom_worker.pixels.image import Image


def stored_values(decoded: NDArray[Any], image: Image, *, compressed: bool) -> NDArray[Any]:
    """The values: as many bits as Bits Stored, the highest of them High Bit.

    They are sign-extended where Pixel Representation is 1. The other bits may hold overlays.
    decoded: integers of Bits Allocated, or floats, which stay as they are. compressed: the decoder
    has put the value into the lowest bits. Result: the same shape and dtype.
    """
    if image.is_float or image.bits_allocated in (image.bits_stored, 1):
        return decoded
    container = decoded.dtype.itemsize * 8
    high_bit = image.bits_stored - 1 if compressed else image.high_bit
    values = decoded << (container - 1 - high_bit)
    values >>= container - image.bits_stored
    return values
