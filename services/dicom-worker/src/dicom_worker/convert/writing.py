"""Writes an instance: meta information, header, pixel data, and what followed it."""

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Final

import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filebase import DicomFileLike
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from dicom_worker import limits
from dicom_worker.attributes import text
from dicom_worker.blame import blame_file
from dicom_worker.convert.encoding import Target
from dicom_worker.deidentify.elements import Element
from dicom_worker.deidentify.header import SOP_CLASS, SOP_INSTANCE, Header
from dicom_worker.deidentify.pixeldata import CHUNK_BYTES, MAX_OFFSET, item
from dicom_worker.deidentify.writing import file_meta, uid_value
from dicom_worker.pixels.image import Image
from dicom_worker.reading import ENCODINGS, EXPLICIT_LITTLE_ENDIAN, DicomFile, too_large
from dicom_worker.structure import ITEM, SEQUENCE_END, UNDEFINED

DROPPED: Final = (0xFFFCFFFC, 0xFFFAFFFA)
"""Data Set Trailing Padding, and Digital Signatures Sequence: these are of other bytes."""
TAG: Final = {
    "PixelData": b"\xe0\x7f\x10\x00",
    "FloatPixelData": b"\xe0\x7f\x08\x00",
    "DoubleFloatPixelData": b"\xe0\x7f\x09\x00",
}
FLOAT_VRS: Final = {"FloatPixelData": b"OF", "DoubleFloatPixelData": b"OD"}


def write_head(target: BinaryIO, header: Dataset, kind: Target) -> None:
    """Preamble, File Meta Information, and all before the pixel data."""
    names = Header(
        [
            Element(SOP_CLASS, "UI", uid_value(text(header, "SOPClassUID"))),
            Element(SOP_INSTANCE, "UI", uid_value(text(header, "SOPInstanceUID"))),
        ],
        little_endian=True,
    )
    target.write(file_meta(names, kind.syntax))
    write_elements(target, header, kind)


def write_elements(target: BinaryIO, dataset: Dataset, kind: Target) -> None:
    """The elements of a data set. DICOM_INVALID if one cannot be written in this encoding."""
    stream = DicomFileLike(target)
    stream.is_little_endian, stream.is_implicit_VR = True, kind.implicit
    with blame_file(Reason.DICOM_INVALID, "The data set cannot be written in another encoding."):
        write_dataset(stream, dataset)


def write_native(
    target: BinaryIO, kind: Target, image: Image, chunks: Iterable[Any], size: int
) -> None:
    """Pixel data of so many bytes. IMAGE_TOO_LARGE if its length cannot be said."""
    if size >= MAX_OFFSET:
        raise FluoroError(
            Reason.IMAGE_TOO_LARGE, "The decoded pixel data is longer than 4 GiB. Keep it encoded."
        )
    length = (size + size % 2).to_bytes(4, "little")
    vr = FLOAT_VRS.get(image.keyword, b"OW" if image.bits_allocated > 8 else b"OB")  # noqa: PLR2004 - bits of a byte
    target.write(TAG[image.keyword] + (length if kind.implicit else vr + b"\0\0" + length))
    target.writelines(chunks)
    target.write(b"\0" * (size % 2))


def native_bytes(file: DicomFile, image: Image) -> Iterator[bytes]:
    """The native pixel data of a little endian file as it is, without what follows the image."""
    assert file.pixels is not None
    left = image.native_bytes
    with file.path.open("rb") as stream:
        stream.seek(file.pixels.offset)
        while left:
            chunk = stream.read(min(left, CHUNK_BYTES))
            left -= len(chunk)
            yield chunk


def native_frames(frames: Iterable[NDArray[Any]]) -> Iterator[Any]:
    """Decoded frames as little endian bytes."""
    for values in frames:
        yield np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data


def write_encapsulated(target: BinaryIO, frames: Iterable[bytes], count: int) -> int:
    """Encapsulated pixel data (PS3.5 A.4), one fragment per frame; bytes of all fragments.

    The Basic Offset Table stays empty if it could not say where the last frame is.
    """
    table = bytes(4 * count)
    target.write(TAG["PixelData"] + b"OB\0\0" + UNDEFINED.to_bytes(4, "little"))
    target.write(item(ITEM, len(table)))
    place = target.tell()
    target.write(table)
    start = target.tell()
    offsets = []
    size = 0
    for frame in frames:
        offsets.append(target.tell() - start)
        target.write(item(ITEM, len(frame)) + frame)
        size += len(frame)
    target.write(item(SEQUENCE_END, 0))
    end = target.tell()
    # Offsets have 32 bits (PS3.5 A.4), and only after the last frame are they known.
    if offsets[-1] > MAX_OFFSET:
        raise FluoroError(Reason.IMAGE_TOO_LARGE, "The encoded frames have more than 4 GiB.")
    target.seek(place)
    target.write(b"".join(each.to_bytes(4, "little") for each in offsets))
    target.seek(end)
    return size


def behind(file: DicomFile) -> Dataset:
    """The elements behind the pixel data, without padding and signatures."""
    assert file.pixels is not None
    if file.pixels.length is None:
        last = file.pixels.fragments[-1]
        start = last.offset + last.length + 8
    else:
        start = file.pixels.offset + file.pixels.length
    explicit, little_endian = ENCODINGS.get(file.transfer_syntax, EXPLICIT_LITTLE_ENDIAN)
    size = file.path.stat().st_size - start
    if size > limits.HEADER_LIMIT_BYTES:
        raise too_large()
    with file.path.open("rb") as stream:
        stream.seek(start)
        # Some writers pad files with zeros, which pydicom would take for elements.
        if not stream.read(size).strip(b"\0"):
            return Dataset()
        stream.seek(start)
        with blame_file(Reason.DICOM_INVALID, "What follows the pixel data cannot be parsed."):
            found = read_dataset(stream, not explicit, little_endian)
    for tag in DROPPED:
        found.pop(tag, None)
    return found
