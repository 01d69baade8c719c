"""Whether a lossless JPEG (ISO/IEC 10918-1 annex H) holds exactly the samples that came out of it.

libjpeg fills in what a scan lacks, skips what it has too much, goes on after a code that is none,
and its warnings are thrown away. But each sample says how many bits it took: a Huffman code for the
size of its difference from the prediction, and the difference. Together they must fill the scan.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dicom_worker.pixels.codestream import DATA, SOF, SOS, jpeg_segments

DHT, DRI = 0xC4, 0xDD
LEFT: Final = 1
SIZES: Final = 17
"""Of differences, in bits: 0 to 16. One of 16 bits is always 32768 and not written."""
ABSENT: Final = 1 << 40
"""Bits of a code that the Huffman table has not: more than any scan."""
STRIPE_SAMPLES: Final = 1 << 17
"""Samples that are looked at together: their differences stay in the processor's cache."""

Plane = NDArray[Any]
PREDICTORS: Final[dict[int, Callable[[Plane, Plane, Plane], Plane]]] = {
    1: lambda left, _above, _corner: left,
    2: lambda _left, above, _corner: above,
    3: lambda _left, _above, corner: corner,
    4: lambda left, above, corner: left + above - corner,
    5: lambda left, above, corner: left + (above - corner >> 1),
    6: lambda left, above, corner: above + (left - corner >> 1),
    7: lambda left, above, _corner: left + above >> 1,
}
"""Selection value → what is predicted (table H.1)."""


def fills_scan(frame: bytes, samples: Plane) -> bool:
    """Whether these samples take as many bytes as the scan has; False, too, if nobody can tell.

    frame: that `parse_jpeg` takes. samples: (rows, columns) or (rows, columns, components), as
    decoded. Nobody can tell of several scans, restarts, subsampling, or a point transform.
    ValueError or IndexError if a header is broken.
    """
    tables: dict[int, list[int]] = {}
    frame_header, scans = b"", []
    for marker, start, end in jpeg_segments(frame):
        if marker in SOF:
            frame_header = frame[start:end]
        elif marker == DHT:
            tables |= huffman_tables(frame[start:end])
        elif marker == SOS:
            scans.append(frame[start:end])
        elif marker == DATA:
            # Encoders stuff a zero behind each FF of data (ISO/IEC 10918-1 B.1.1.5). It is no data.
            data_bytes = end - start - frame.count(b"\xff\0", start, end)
        elif marker == DRI and any(frame[start:end]):
            return False
    planes = [samples] if samples.ndim == 2 else list(np.moveaxis(samples, -1, 0))  # noqa: PLR2004 - grey
    subsampled = any(factors != 0x11 for factors in frame_header[7::3])  # noqa: PLR2004 - 1 and 1
    # With several scans, or subsampling, samples of the planes do not stand side by side in the
    # data.
    if len(scans) != 1 or scans[0][0] != len(planes) or subsampled:
        return False
    predictor, _, transform = scans[0][-3:]
    # A point transform drops the lowest bits, so samples no longer tell the size of their
    # differences.
    if predictor not in PREDICTORS or transform:
        return False
    bits = 0
    for plane, table in zip(planes, scans[0][2:-3:2], strict=True):
        sizes = difference_sizes(plane, predictor, 1 << frame_header[0] - 1)
        lengths = tables[table >> 4]
        bits += sum(count * length for count, length in zip(sizes, lengths, strict=True) if count)
    # Encoders fill the last byte up, so whole bytes are compared.
    return (bits + 7) // 8 == data_bytes


def huffman_tables(content: bytes) -> dict[int, list[int]]:
    """Number of a table → bits of a difference of each size with its code (B.2.4.2)."""
    tables = {}
    while content:
        lengths, at = [ABSENT] * SIZES, 17
        for bits, count in enumerate(content[1:17], start=1):
            for size in content[at : at + count]:
                lengths[size] = bits + size % (SIZES - 1)
            at += count
        tables[content[0]] = lengths
        content = content[at:]
    return tables


def difference_sizes(plane: Plane, predictor: int, middle: int) -> list[int]:
    """How many differences have each size. middle: the prediction of the first sample."""
    reach = [plane.size, *[0] * SIZES]
    for part in differences(plane, predictor, middle):
        # Back to unsigned, because 32768, which abs makes of -32768, is no int16.
        sizes = np.abs(part.view(np.int16)).view(np.uint16)
        # To count 10 times takes less than to look each one's size up once.
        for size in range(1, SIZES):
            count = int(np.count_nonzero(sizes >= 1 << size - 1))
            if count == 0:
                break
            reach[size] += count
    return [one - more for one, more in pairwise(reach)]


def differences(plane: Plane, predictor: int, middle: int) -> Iterator[Plane]:
    """Samples less their predictions, modulo 2^16 (H.1.2.1): all of them, some at a time."""
    # The first column is predicted from above, its first sample as half of the range, whatever the
    # predictor (H.1.2.1).
    yield np.diff(plane[:, 0].astype(np.uint16), prepend=np.uint16(middle))
    if predictor != LEFT:
        # The first row has nothing above it, so it is predicted from the left.
        yield np.diff(plane[0].astype(np.uint16))
    rows = max(1, STRIPE_SAMPLES // plane.shape[1])
    for top in range(0, len(plane), rows):
        if predictor == LEFT:
            yield np.diff(plane[top : top + rows].astype(np.uint16, copy=False))
            continue
        known = plane[top : top + rows + 1].astype(np.int32)
        above, here = known[:-1], known[1:]
        predicted = PREDICTORS[predictor](here[:, :-1], above[:, 1:], above[:, :-1])
        yield (here[:, 1:] - predicted).astype(np.uint16)
