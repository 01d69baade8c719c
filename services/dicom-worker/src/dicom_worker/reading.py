"""Opens a DICOM Part 10 file (PS3.10 chapter 7) strictly.

A file is complete, or it is refused with a reason.
"""

import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final

from fluoro_jobs.errors import FluoroError, Reason
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileDataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID
from pydicom.valuerep import BYTES_VR, FLOAT_VR, INT_VR, STR_VR

from dicom_worker import limits
from dicom_worker.attributes import text
from dicom_worker.blame import blame_file
from dicom_worker.inflate import inflate
from dicom_worker.pixels.image import Image, image_of
from dicom_worker.structure import SEQUENCE_VRS, Element, Walk, truncated

PREFIX: Final = b"DICM"
PREFIX_OFFSET: Final = 128
META_GROUP: Final = 0x0002
TRANSFER_SYNTAX: Final = 0x00020010
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_LITTLE_ENDIAN: Final = (True, True)
ENCODINGS: Final = {"1.2.840.10008.1.2": (False, True), "1.2.840.10008.1.2.2": (True, False)}
"""Transfer Syntax → (explicit VR, little endian).

All others are explicit VR little endian (PS3.5 A.4).
"""
PIXEL_TAGS: Final = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
"""Float Pixel Data, Double Float Pixel Data, Pixel Data."""
VRS: Final = frozenset(vr.encode() for vr in (*STR_VR, *BYTES_VR, *INT_VR, *FLOAT_VR, "SQ"))
"""Value Representations as explicit VR has them (PS3.5 6.2)."""
SHORT_BYTES: Final = 1024
"""No first value of a data set is longer: a group length, a character set, a UID."""
UID_SYNTAX: Final = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True, slots=True)
class DicomFile:
    """One complete DICOM instance.

    path: of the data set: the file itself, or what it was inflated to.
    header: every element before the pixel data. Values over `limits.DEFER_LIMIT_BYTES` are read
    from `path` when asked for. elements: the same as they lie in the file.
    pixels: the element with the pixel data, and image what the header says of it; both None when
    the instance has no image.
    """

    path: Path
    header: Dataset
    transfer_syntax: str
    little_endian: bool
    elements: tuple[Element, ...]
    pixels: Element | None
    image: Image | None


def open_dicom(path: Path, scratch: Path) -> DicomFile:
    """Opens the file at `path`; inflates into the folder `scratch` if need be.

    FluoroError: NOT_DICOM, DICOM_TRUNCATED, DICOM_INVALID (also without SOP Class, SOP Instance or
    Transfer Syntax UID), IMAGE_TOO_LARGE.
    """
    with path.open("rb") as stream:
        syntax, start = find_data_set(stream, path.stat().st_size)
    explicit, little_endian = ENCODINGS.get(syntax, EXPLICIT_LITTLE_ENDIAN)
    if syntax == DEFLATED:
        inflated = scratch / f"{path.name}.inflated"
        inflate(path, start, inflated)
        # Only the data set is deflated; the File Meta Information before it is not (PS3.5 A.5).
        path, start = inflated, 0
    with path.open("rb") as stream:
        walk = Walk(stream, path.stat().st_size, explicit, little_endian)
        elements = tuple(walk.elements(start))
        # Parsed, it would be a data set without a single element, and pass for one.
        if not elements:
            raise FluoroError(
                Reason.DICOM_TRUNCATED,
                "The file ends after its File Meta Information. Send it again.",
            )
        images = [element for element in elements if element.tag in PIXEL_TAGS]
        # The three kinds of pixel data exclude each other. Which one to show would be a guess.
        if len(images) > 1:
            raise FluoroError(Reason.DICOM_INVALID, "The instance has pixel data twice.")
        pixels = images[0] if images else None
        # What follows the pixels describes no image: signatures (FFFA,FFFA), padding (FFFC,FFFC),
        # private data.
        before = tuple(
            element for element in elements if pixels is None or element.start < pixels.start
        )
        header = read_header(stream, path, start, before, syntax)
    uid(header, "SOPClassUID")
    uid(header, "SOPInstanceUID")
    # Pixel Data Provider URL (JPIP) says that the pixels are kept elsewhere.
    if pixels is None and "BitsAllocated" in header and "PixelDataProviderURL" not in header:
        raise truncated()  # cut off right before its pixel data
    image = image_of(header, pixels) if pixels else None
    return DicomFile(path, header, syntax, little_endian, before, pixels, image)


def find_data_set(stream: BinaryIO, size: int) -> tuple[str, int]:
    """Transfer Syntax UID of the data set, and its first byte.

    Files from before Part 10 have no preamble, some no File Meta Information either. Other toolkits
    read them, and so do we where their first bytes leave no doubt. NOT_DICOM otherwise.
    """
    stream.seek(PREFIX_OFFSET)
    if stream.read(len(PREFIX)) == PREFIX:
        return read_syntax(stream, size, PREFIX_OFFSET + len(PREFIX))
    stream.seek(0)
    head = stream.read(8)
    if head[:2] == META_GROUP.to_bytes(2, "little") and head[4:6] in VRS:
        return read_syntax(stream, size, 0)
    if syntax := sniff(head):
        return syntax, 0
    raise FluoroError(Reason.NOT_DICOM, "The file is not DICOM: it has no DICM prefix.")


def sniff(head: bytes) -> str:
    """Transfer Syntax UID of a data set that starts with these 8 bytes; "" if they are of none.

    It must start with group 0008, the first that there is. An explicit VR is two capital letters;
    read as a length, they would be more than the group's first values ever have.
    """
    if head[:2] == b"\x08\x00":
        if head[4:6] in VRS:
            return "1.2.840.10008.1.2.1"
        if len(head) == 8 and int.from_bytes(head[4:], "little") <= SHORT_BYTES:  # noqa: PLR2004 - tag and length
            return "1.2.840.10008.1.2"
    if head[:2] == b"\x00\x08" and head[4:6] in VRS:
        return "1.2.840.10008.1.2.2"
    return ""


def read_syntax(stream: BinaryIO, size: int, start: int) -> tuple[str, int]:
    """Transfer Syntax UID as File Meta Information has it, and the byte after that.

    Errors as `read_meta` and `uid`.
    """
    elements = meta_elements(stream, size, start)
    found = [element for element in elements if element.tag == TRANSFER_SYNTAX]
    plain = all(each.length is not None and each.vr not in SEQUENCE_VRS for each in elements)
    # The short way for nearly all files: a data set of pydicom takes far longer.
    if plain and len(found) == 1 and found[0].vr == "UI":
        stream.seek(found[0].offset)
        # UIDs are padded with NUL to an even length (PS3.5 9.1); some writers take a space.
        syntax = stream.read(found[0].length or 0).rstrip(b"\0 ").decode("latin-1")
        if UID_SYNTAX.fullmatch(syntax):
            return syntax, end_of(elements)
    # Whatever is out of the ordinary is what pydicom takes it for.
    meta, end = read_meta(stream, size, start)
    return uid(meta, "TransferSyntaxUID"), end


def read_meta(stream: BinaryIO, size: int, start: int) -> tuple[Dataset, int]:
    """File Meta Information (group 0002, always explicit VR little endian) and the byte after it.

    NOT_DICOM if there is none at `start`. Writers leave its group length out or get it wrong, so it
    does not count.
    """
    end = end_of(meta_elements(stream, size, start))
    stream.seek(start)
    with blame_file(Reason.DICOM_INVALID, "The File Meta Information cannot be parsed."):
        return read_dataset(
            BytesIO(stream.read(end - start)), is_implicit_VR=False, is_little_endian=True
        ), end


def meta_elements(stream: BinaryIO, size: int, start: int) -> list[Element]:
    """The elements of File Meta Information. NOT_DICOM and IMAGE_TOO_LARGE as `read_meta`."""
    stream.seek(start)
    if int.from_bytes(stream.read(2), "little") != META_GROUP:
        raise FluoroError(
            Reason.NOT_DICOM, "The file is not DICOM Part 10: it has no File Meta Information."
        )
    elements = list(Walk(stream, size).elements(start, group=META_GROUP))
    if end_of(elements) > limits.HEADER_LIMIT_BYTES:
        raise too_large()
    return elements


def end_of(elements: list[Element]) -> int:
    """The byte after these elements."""
    return max(element.offset + (element.length or 0) for element in elements)


def read_header(
    stream: BinaryIO, path: Path, start: int, elements: tuple[Element, ...], syntax: str
) -> Dataset:
    """The data set of these elements, which start at byte `start` of `path`.

    IMAGE_TOO_LARGE over `limits.HEADER_LIMIT_BYTES`. DICOM_INVALID also if pydicom sees other
    elements than we do: one of the two has guessed wrong.
    """
    if (
        sum(element.length or 0 for element in elements if not is_bulk(element))
        > limits.HEADER_LIMIT_BYTES
    ):
        raise too_large()
    explicit, little_endian = ENCODINGS.get(syntax, EXPLICIT_LITTLE_ENDIAN)
    stream.seek(start)
    with blame_file(Reason.DICOM_INVALID, "The data set cannot be parsed."):
        # Without `stop_when`, pydicom would read the pixels into memory, of whatever size.
        parsed = read_dataset(
            stream,
            not explicit,
            little_endian,
            stop_when=lambda tag, _vr, _length: tag in PIXEL_TAGS,
            defer_size=limits.DEFER_LIMIT_BYTES,
        )
        header = FileDataset(
            str(path), parsed, is_implicit_VR=not explicit, is_little_endian=little_endian
        )
        header.file_meta.TransferSyntaxUID = UID(syntax)
        implicit, _ = parsed.original_encoding
        # pydicom needs to know it to convert what it has not looked at yet.
        header.set_original_encoding(implicit, little_endian, parsed.original_character_set)
    # Where two parsers disagree, one of them would take bytes of a value for an element. Of two
    # elements with one tag, some toolkits take the first and some the last.
    if sorted(header.keys()) != sorted(element.tag for element in elements):
        raise FluoroError(Reason.DICOM_INVALID, "The data set cannot be parsed unambiguously.")
    return header


def is_bulk(element: Element) -> bool:
    """Whether a top-level element holds a large binary value (bulk data, PS3.18 annex F)."""
    if element.length is not None and element.length <= limits.INLINE_BINARY_LIMIT_BYTES:
        return False
    return is_binary(element.vr or implicit_vr(element.tag))


def is_binary(vr: str) -> bool:
    """Whether a VR, also an ambiguous one as in `US or OW`, is of bytes."""
    return vr == "UN" or vr.startswith("O") or " O" in vr


def implicit_vr(tag: int) -> str:
    """The dictionary's VR (PS3.6); UN if it has none, as for private elements."""
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


def uid(header: Dataset, keyword: str) -> str:
    """A UID that the standard requires. DICOM_INVALID if it is missing or no UID."""
    found = text(header, keyword)
    if not UID_SYNTAX.fullmatch(found):
        raise FluoroError(Reason.DICOM_INVALID, f"{keyword} is missing or not a UID.")
    return found


def too_large() -> FluoroError:
    """The header is larger than any we know."""
    return FluoroError(
        Reason.IMAGE_TOO_LARGE, f"The header has more than {limits.HEADER_LIMIT_BYTES} bytes."
    )
