"""DICOM files with one to three things wrong with them, each made anew from a seed and a number."""

import io
import random
import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

import imagecodecs
from dicom_worker.deidentify.painting import background, stamp
from dicom_worker.structure import Element, Walk
from dicom_worker.testing import WHEEL
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import UID
from rle.utils import encode_pixel_data

NAME: Final = "Quixotic^Zebedee"
"""Of the patient of every file, as long as nothing damaged it."""
NUMBER: Final = "ZQ77310042"
"""The same patient's ID."""
LARGEST_BYTES: Final = 160 * 1024
"""Of a file that is changed: many small ones find more than few large ones."""
SYNTAXES: Final = (
    *("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"),
    *(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91, 100, 201)),
    *("1.2.840.10008.1.2.5", "1.2.3"),
)
LENGTHS: Final = (0, 1, 2, 3, 7, 255, 0xFFFE, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
NUMBERS: Final = (0, 1, 2, 3, 7, 8, 11, 12, 15, 16, 17, 31, 32, 63, 64, 255, 4096, 0x7FFF, 0xFFFF)
PIXEL_GROUP: Final = 0x0028
TEXTS: Final = (
    *(b"MONOCHROME1", b"MONOCHROME2", b"RGB", b"PALETTE COLOR", b"YBR_FULL", b"YBR_FULL_422"),
    *(b"YBR_RCT", b"ISO 2022 IR 87", b"\\ISO 2022 IR 149", b"GB18030", b"1e400", b"nan", b"-1"),
    *(b"99999999999", b"\\\\\\", b"\0", b"\x1b$B", b"\xff" * 64, b"1.2.3", b"20250229", b""),
)
META_START: Final = 132


class Source:
    """A file as bytes, and where its elements are."""

    def __init__(self, data: bytes, syntax: str) -> None:
        """syntax: Transfer Syntax UID."""
        self.data = data
        self.little_endian = syntax != "1.2.840.10008.1.2.2"
        stream = io.BytesIO(data)
        meta = list(Walk(stream, len(data)).elements(META_START, group=2))
        self.start = meta[-1].offset + (meta[-1].length or 0)
        self.elements: list[Element] = meta
        if syntax != "1.2.840.10008.1.2.1.99":
            explicit = syntax != "1.2.840.10008.1.2"
            walk = Walk(stream, len(data), explicit, self.little_endian)
            self.elements += walk.elements(self.start)


@cache
def sources() -> Sequence[Source]:
    """Every small file of pydicom's wheel that can be read, all of one patient."""
    found = []
    for path in sorted((WHEEL / "test_files").glob("*.dcm")):
        if path.stat().st_size > LARGEST_BYTES:
            continue
        try:
            dataset = dcmread(path)
            syntax = UID(dataset.file_meta.TransferSyntaxUID)
            dataset.PatientName, dataset.PatientID = NAME, NUMBER
            target = io.BytesIO()
            dataset.save_as(target)
            found.append(Source(target.getvalue(), syntax))
        except Exception:  # noqa: BLE001 - some of them are broken on purpose
            continue
    return found


@cache
def lettered() -> Sequence[Source]:
    """Images with the patient's name in the pixels, in Transfer Syntaxes that are masked apart."""
    dataset = dcmread(WHEEL / "test_files" / "MR_small.dcm")
    dataset.PatientName, dataset.PatientID = NAME, NUMBER
    dataset.SmallestImagePixelValue, dataset.LargestImagePixelValue = 0, 255
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelRepresentation = 0
    pixels = background(random.Random(NUMBER), 128, 160)
    ink = stamp(NAME.split("^", maxsplit=1)[0].upper(), 20, 0)
    pixels[8 : 8 + ink.shape[0], 8 : 8 + ink.shape[1]][ink > 0.5] = 255
    dataset.Rows, dataset.Columns = pixels.shape
    frames = {
        "1.2.840.10008.1.2.4.50": imagecodecs.jpeg8_encode(pixels, level=95),
        "1.2.840.10008.1.2.4.70": imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1),
        "1.2.840.10008.1.2.4.80": imagecodecs.jpegls_encode(pixels),
        "1.2.840.10008.1.2.4.90": imagecodecs.jpeg2k_encode(
            pixels, codecformat="j2k", reversible=True
        ),
        "1.2.840.10008.1.2.5": encode_pixel_data(pixels.tobytes(), dataset, "<"),
        "1.2.840.10008.1.2.1": b"",
    }
    found = []
    for number, (uid, frame) in enumerate(frames.items()):
        # One UID for all would make them versions of one instance, which are refused.
        instance = UID(f"{dataset.StudyInstanceUID}.{number}")
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = instance
        dataset.file_meta.TransferSyntaxUID = UID(uid)
        # pydicom encapsulates only what has an undefined length.
        dataset.PixelData = encapsulate([bytes(frame)]) if frame else pixels.tobytes()
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = bool(frame)
        target = io.BytesIO()
        dataset.save_as(target)
        found.append(Source(target.getvalue(), uid))
    return found


def written(seed: int, number: int) -> bytes:
    """File `number` of this seed with a name in the pixels."""
    chance = random.Random(f"written {seed}/{number}")
    return damaged(chance.choice(lettered()), chance)


def mutant(seed: int, number: int) -> bytes:
    """File `number` of this seed."""
    chance = random.Random(f"{seed}/{number}")
    return damaged(chance.choice(sources()), chance)


def damaged(source: Source, chance: random.Random) -> bytes:
    """The file with one to three things wrong."""
    data = chance.choice(MUTATIONS)(source, chance)
    for _ in range(chance.choice((0, 0, 1, 2))):
        data = bytes(flipped(data, chance, 0, len(data)))
    return data


def flipped(data: bytes, chance: random.Random, start: int, end: int) -> bytes:
    """A byte between `start` and `end` is another one."""
    if end <= start:
        return data
    changed = bytearray(data)
    changed[chance.randrange(start, end)] = chance.choice((0, 0xFF, 0x7F, chance.randrange(256)))
    return bytes(changed)


def header_byte(source: Source, chance: random.Random) -> bytes:
    """A byte before the pixel data."""
    return flipped(source.data, chance, META_START, source.elements[-1].offset)


def pixel_byte(source: Source, chance: random.Random) -> bytes:
    """A byte of the last value, which are the pixels if there are any."""
    return flipped(source.data, chance, source.elements[-1].offset, len(source.data))


def cut(source: Source, chance: random.Random) -> bytes:
    """The file ends early."""
    return source.data[: chance.randrange(len(source.data))]


def hole(source: Source, chance: random.Random) -> bytes:
    """Some bytes are missing."""
    at, size = chance.randrange(len(source.data)), chance.choice((1, 2, 8, 512, 4096))
    return source.data[:at] + source.data[at + size :]


def repeated(source: Source, chance: random.Random) -> bytes:
    """Some bytes are there twice."""
    at, size = chance.randrange(len(source.data)), chance.choice((1, 2, 8, 512, 4096))
    return source.data[: at + size] + source.data[at:]


def length(source: Source, chance: random.Random) -> bytes:
    """An element states another length."""
    element = chance.choice(source.elements)
    changed = bytearray(source.data)
    size = 4 if element.offset - element.start == 12 or element.vr is None else 2
    little = source.little_endian or element.tag >> 16 == 2
    value = chance.choice(LENGTHS) & ((1 << 8 * size) - 1)
    changed[element.offset - size : element.offset] = value.to_bytes(
        size, "little" if little else "big"
    )
    return bytes(changed)


def pixel_number(source: Source, chance: random.Random) -> bytes:
    """Rows, Bits Stored, Planar Configuration or another number is another one."""
    numbers = [each for each in source.elements if each.tag >> 16 == PIXEL_GROUP]
    numbers = [each for each in numbers if each.length == 2]
    if not numbers:
        return header_byte(source, chance)
    element = chance.choice(numbers)
    changed = bytearray(source.data)
    value = struct.pack("<H" if source.little_endian else ">H", chance.choice(NUMBERS))
    changed[element.offset : element.offset + 2] = value
    return bytes(changed)


def value(source: Source, chance: random.Random) -> bytes:
    """An element has another value of the same length."""
    element = chance.choice(source.elements[:-1])
    size = element.length or 0
    text = (chance.choice(TEXTS) * 2).ljust(size)[:size]
    return source.data[: element.offset] + text + source.data[element.offset + size :]


def syntax(source: Source, chance: random.Random) -> bytes:
    """The file states another Transfer Syntax."""
    element = next(each for each in source.elements if each.tag == 0x00020010)
    uid = chance.choice(SYNTAXES).encode()
    uid += b"\0" * (len(uid) % 2)
    end = element.offset + (element.length or 0)
    stated = struct.pack("<H", len(uid)) + uid
    return source.data[: element.offset - 2] + stated + source.data[end:]


def element_twice(source: Source, chance: random.Random) -> bytes:
    """An element of one file stands in another."""
    other = chance.choice(sources())
    taken = chance.choice(other.elements)
    place = chance.choice(source.elements).start
    inserted = other.data[taken.start : taken.offset + (taken.length or 0)]
    return source.data[:place] + inserted + source.data[place:]


def element_gone(source: Source, chance: random.Random) -> bytes:
    """An element is missing."""
    element = chance.choice(source.elements)
    end = element.offset + (element.length or 0)
    return source.data[: element.start] + source.data[end:]


def spliced(source: Source, chance: random.Random) -> bytes:
    """The pixels of another file follow the header."""
    other = chance.choice(sources())
    return source.data[: source.elements[-1].start] + other.data[other.elements[-1].start :]


def nested(source: Source, chance: random.Random) -> bytes:
    """Sequences in sequences in sequences."""
    depth = chance.choice((2, 20, 70, 2000))
    inside = struct.pack("<HH2sHL", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF)
    inside += struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    ends = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    place = source.elements[-1].start
    closed = chance.choice((depth, depth - 1))
    return source.data[:place] + inside * depth + ends * closed + source.data[place:]


def bare(source: Source, chance: random.Random) -> bytes:
    """No preamble, or no File Meta Information either."""
    return source.data[chance.choice((128, META_START, source.start)) :]


def fragments(source: Source, chance: random.Random) -> bytes:
    """A fragment of compressed pixels is missing, there twice, cut, or of another length."""
    element = source.elements[-1]
    if not element.fragments:
        return pixel_number(source, chance)
    which = chance.choice(element.fragments)
    start, end = which.offset - 8, which.offset + which.length
    size = struct.pack("<L", chance.choice(LENGTHS))
    half = which.offset + which.length // 2
    return chance.choice(
        (
            source.data[:start] + source.data[end:],
            source.data[:end] + source.data[start:],
            source.data[: start + 4] + size + source.data[which.offset :],
            source.data[:half] + bytes(end - half) + source.data[end:],
        )
    )


def no_dicom(source: Source, chance: random.Random) -> bytes:
    """Bytes of something else."""
    start = chance.choice((b"\xff\xd8\xff\xe0", b"\x89PNG", b"PK\3\4", b"%PDF", b"", b"\x08\0"))
    return start + chance.choice((b"", chance.randbytes(300), source.data[200:400]))


MUTATIONS: Final[tuple[Callable[[Source, random.Random], bytes], ...]] = (
    *(header_byte, header_byte, header_byte, pixel_byte, pixel_byte, cut, hole, repeated, length),
    *(length, pixel_number, pixel_number, pixel_number, value, value, syntax, element_twice),
    *(element_gone, spliced, nested, bare, fragments, no_dicom),
)
"""What may be wrong with a file; some more often than others."""
