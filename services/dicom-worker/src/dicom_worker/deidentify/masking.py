"""Writes the masks of a plan into a copy of the file, which then goes the way of every file.

Native pixel data is patched where it lies. Of compressed frames those with a mask are encoded anew,
without loss and in the Transfer Syntax of the file; where that cannot be, all frames are written as
Explicit VR Little Endian.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray

from dicom_worker.deidentify.burned_in import Check, Mask, Plan, cover, darkest
from dicom_worker.deidentify.elements import Element
from dicom_worker.deidentify.encoders import encode
from dicom_worker.deidentify.pixeldata import item
from dicom_worker.pixels.decoders import CODECS, compressed_frame, uncertified_frames
from dicom_worker.pixels.frames import group_frames, read_frame
from dicom_worker.pixels.image import Image
from dicom_worker.reading import DicomFile
from dicom_worker.structure import ITEM, SEQUENCE_END, UNDEFINED

EXPLICIT: Final = "1.2.840.10008.1.2.1"
"""Explicit VR Little Endian."""
PHOTOMETRIC, PLANAR, HIGH_BIT = 0x00280004, 0x00280006, 0x00280102
NEUTRAL: Final = {"YBR_FULL": (0, 128, 128)}
"""Photometric Interpretation → black; zeros in all others."""


@dataclass(frozen=True, slots=True)
class Masked:
    """A file with its masks, inflated.

    syntax: as it has to be written. start: where its data set starts. changed: elements to replace.
    """

    path: Path
    syntax: str
    start: int
    changed: tuple[Element, ...] = ()


def mask(file: DicomFile, planned: Plan, scratch: Path, check: Check) -> Masked:
    """A copy of the file in the folder `scratch`, its header as it was.

    FluoroError as `uncertified_frames`, and DEIDENTIFICATION_REFUSED.
    """
    assert file.image is not None and file.pixels is not None  # noqa: PT018 - one fact
    path = scratch / "masked"
    start = file.elements[0].start
    if file.pixels.length is not None:
        shutil.copyfile(file.path, path)
        patch(file, file.image, planned, path, check)
        return Masked(path, file.transfer_syntax, start)
    try:
        assemble(file, path, partial(write_frames, file, file.image, planned, check))
    except NoEncoderError:
        assemble(file, path, partial(write_native, file, file.image, planned, check))
        return Masked(path, EXPLICIT, start, native_elements(file.image))
    return Masked(path, file.transfer_syntax, start)


class NoEncoderError(Exception):
    """A masked frame cannot be encoded without loss in the file's Transfer Syntax."""


def patch(file: DicomFile, image: Image, planned: Plan, path: Path, check: Check) -> None:
    """Masks native pixel data in the file at `path`, cell by cell."""
    assert file.pixels is not None and file.pixels.length is not None  # noqa: PT018 - one fact
    if image.bits_allocated == 1:
        raise FluoroError(
            Reason.DEIDENTIFICATION_REFUSED,
            "There is text in pixels of one bit, which cannot be masked.",
        )
    order = "<" if file.little_endian else ">"
    dtype = np.dtype(f"{order}u{image.bits_allocated // 8}")
    # Words of two bytes were swapped as such, also where each byte is a pixel (PS3.5 A.3).
    swapped = not file.little_endian and image.bits_allocated == 8 and file.pixels.vr == "OW"  # noqa: PLR2004 - bits of a byte
    size = image.frame_bits // 8
    # Mapped: of a large file only the masked cells are written.
    raw = np.memmap(path, np.uint8, "r+", file.pixels.offset, (file.pixels.length,))
    for index, frame in enumerate(uncertified_frames(file)):
        check()
        if not planned.frames[index].touched:
            continue
        start = index * size
        hidden = planned.mask(index, frame.values.shape)
        cells = raw[start : start + size].view(dtype)
        if image.photometric == "YBR_FULL_422":
            # Two pixels share their colour: Y, Y, Cb, Cr (PS3.3 C.7.6.3.1.2).
            pairs = hidden.reshape(-1, 2).any(axis=1)
            cells.reshape(-1, 4)[pairs] = (0, 0, 128, 128)
            continue
        where, black = cells_under(hidden, image)
        if image.samples == 1:
            black = cells[darkest(file, frame.values) ^ swapped]
        cells[where ^ swapped] = black
    raw.flush()


def cells_under(hidden: Mask, image: Image) -> tuple[NDArray[np.int64], Any]:
    """Which cells of a native frame are masked, and what they become in colour."""
    black = NEUTRAL.get(image.photometric, (0,) * image.samples)
    flat = np.flatnonzero(hidden)
    size = image.rows * image.columns
    if image.planar:
        where = [flat + size * sample for sample in range(image.samples)]
    else:
        where = [flat * image.samples + sample for sample in range(image.samples)]
    return np.concatenate(where), np.repeat(np.array(black), len(flat))


def assemble(file: DicomFile, path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Everything before the pixel data, what `write` writes, and everything after."""
    assert file.pixels is not None
    last = file.pixels.fragments[-1]
    with file.path.open("rb") as source, path.open("wb") as target:
        target.write(source.read(file.pixels.start))
        write(target)
        # Past the sequence delimiter, of 8 bytes, which `write` has written itself if need be.
        source.seek(last.offset + last.length + 8)
        shutil.copyfileobj(source, target)


def write_frames(
    file: DicomFile, image: Image, planned: Plan, check: Check, target: BinaryIO
) -> None:
    """Encapsulated pixel data: masked frames encoded anew, the others as they are."""
    assert file.pixels is not None
    codec = CODECS[file.transfer_syntax]
    target.write(b"\xe0\x7f\x10\x00OB\0\0" + UNDEFINED.to_bytes(4, "little") + item(ITEM, 0))
    with file.path.open("rb") as source:
        for index, group in enumerate(group_frames(source, file.pixels.fragments, image.frames)):
            check()
            stream = read_frame(source, group)
            if planned.frames[index].touched:
                frame = compressed_frame(stream, file.transfer_syntax, image, codec)
                covered = cover(file, frame.values, planned.mask(index, frame.values.shape))
                # Only masked frames are encoded anew: the others keep every byte, which needs no
                # proof.
                stream = encode(covered, file.transfer_syntax, image, frame.precision) or b""
                if not stream or not gives(stream, covered, file.transfer_syntax, image):
                    raise NoEncoderError
            target.write(item(ITEM, len(stream)) + stream)
    target.write(item(SEQUENCE_END, 0))


def gives(stream: bytes, values: NDArray[Any], syntax: str, image: Image) -> bool:
    """Whether our own decoder gives exactly these values for a new code stream."""
    try:
        again = compressed_frame(stream, syntax, image, CODECS[syntax]).values
    except FluoroError as error:
        # A child that was killed says nothing about the code stream.
        if error.reason is not Reason.PIXELS_UNDECODABLE:
            raise
        return False
    return np.array_equal(again, values)


def write_native(
    file: DicomFile, image: Image, planned: Plan, check: Check, target: BinaryIO
) -> None:
    """All frames, decoded, as native pixel data."""
    size = image.frames * image.decoded_frame_bytes
    # In explicit VR, cells of more than 8 bits are OW (PS3.5 A.2). The size fits 32 bits, see
    # `limits.ARRAY_LIMIT_BYTES`.
    vr = b"OW" if image.bits_allocated > 8 else b"OB"  # noqa: PLR2004 - bits of a byte
    target.write(b"\xe0\x7f\x10\x00" + vr + b"\0\0" + (size + size % 2).to_bytes(4, "little"))
    target.writelines(
        np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data
        for values in covered_frames(file, planned, check)
    )
    target.write(b"\0" * (size % 2))


def covered_frames(file: DicomFile, planned: Plan, check: Check) -> Iterator[NDArray[Any]]:
    """All frames, with their masks."""
    for index, frame in enumerate(uncertified_frames(file)):
        check()
        if planned.frames[index].touched:
            yield cover(file, frame.values, planned.mask(index, frame.values.shape))
        else:
            yield frame.values


def native_elements(image: Image) -> tuple[Element, ...]:
    """What the Image Pixel Module has to say of decoded frames."""
    high_bit = Element(HIGH_BIT, "US", (image.bits_stored - 1).to_bytes(2, "little"))
    if image.samples == 1:
        return (high_bit,)
    return high_bit, Element(PHOTOMETRIC, "CS", b"RGB "), Element(PLANAR, "US", b"\0\0")
