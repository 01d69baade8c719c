"""Objects as files. What repeats many times is encoded once, or one by one."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from highdicom import SOPClass
from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import correct_ambiguous_vr, write_sequence
from pydicom.tag import Tag

LONG: Final = (Tag("PerFrameFunctionalGroupsSequence"), Tag("ContentSequence"))
"""Sequences of which an object may have thousands of items."""
CONTENT: Final = Tag("ContentSequence")
UTF_8: Final = convert_encodings("ISO_IR 192")
Known = dict[tuple[int, ...], tuple[DataElement, bytes]]
"""Bytes of sequences by the ids of their items, which the elements keep alive."""


def saved(written: SOPClass, folder: Path) -> Path:
    """The object as a file."""
    path = folder / f"{written.SOPInstanceUID}.dcm"
    if long := [written[tag] for tag in LONG if tag in written]:
        for sequence in long:
            # The next call walks through everything: with thousands of items it would take most of
            # the time.
            del written[sequence.tag]
        correct_ambiguous_vr(written, is_little_endian=True)
        written.set_original_encoding(False, True, UTF_8)  # so that what is encoded stays so
        for sequence in long:
            written[sequence.tag] = encoded(sequence, {})
    written.save_as(path, enforce_file_format=True)
    return path


def encoded(sequence: DataElement, known: Known) -> RawDataElement:
    """The sequence as it is written; what items share is encoded once.

    pydicom would encode it for each item, and look at it once per level above it.
    """
    same = tuple(map(id, sequence.value))
    # Codes of classes repeat in every group and frame: encoded once, they take a fraction of the
    # time.
    if same not in known:
        for item in sequence.value:
            item.set_original_encoding(False, True, default_encoding)
            for element in list(item.elements()):
                if isinstance(element, DataElement) and element.VR == "SQ":
                    item[element.tag] = encoded(element, known)
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, False
        write_sequence(buffer, sequence, UTF_8)
        known[same] = sequence, buffer.getvalue()
    return raw(sequence.tag, known[same][1])


def put_content(container: Dataset, items: Iterable[Dataset]) -> None:
    """Makes these the content of an SR container. Each is taken and encoded before the next."""
    parts = (encoded(DataElement(CONTENT, "SQ", [item]), {}).value for item in items)
    container[CONTENT] = raw(CONTENT, b"".join(part for part in parts if part))


def raw(tag: int, value: bytes) -> RawDataElement:
    """A sequence that is encoded."""
    return RawDataElement(
        Tag(tag), "SQ", len(value), value, 0, is_implicit_VR=False, is_little_endian=True
    )
