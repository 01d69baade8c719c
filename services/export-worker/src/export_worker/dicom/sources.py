"""Reads of a DICOM file what an object made from it repeats or refers to, and nothing else.

The file may be hostile: it is read up to its pixels, at most `HEADER_LIMIT_BYTES` of it. What it
says may be wrong: a value that its VR does not allow is left out, so that no object repeats it.
"""

import math
import re
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import numpy as np
from fluoro_jobs.blame import blame_file, silence
from fluoro_jobs.errors import FluoroError, Reason
from pydicom import config, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset, read_partial
from pydicom.filewriter import write_data_element
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pydicom.valuerep import DA, TM, validate_value

silence("pydicom", "highdicom")

HEADER_LIMIT_BYTES: Final = 64 * 2**20
"""Most that is read of a file before its pixels, and inflated of a deflated one."""
START_BYTES: Final = 2**16
"""What is read at once: most headers are smaller."""
ITEMS_LIMIT: Final = 100_000
"""Most items of sequences in that. Each takes 8 bytes in the file, and 1.2 KB of memory."""

PATIENT: Final = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex"),
    *("PatientAge", "PatientSize", "PatientWeight"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"),
)
STUDY: Final = (
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
    *("ReferringPhysicianName", "StudyDescription"),
)
SERIES: Final = ("SeriesInstanceUID", "Modality", "Laterality")
EQUIPMENT: Final = (
    *("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "DeviceSerialNumber"),
    "InstitutionName",
)
COMMON: Final = (
    *("SOPClassUID", "SOPInstanceUID", "InstanceNumber", "TimezoneOffsetFromUTC"),
    "LongitudinalTemporalInformationModified",
)
IMAGE: Final = (
    *("Rows", "Columns", "NumberOfFrames", "ImageType", "FrameOfReferenceUID"),
    *("PositionReferenceIndicator", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "RescaleType"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
KEPT: Final = (*PATIENT, *STUDY, *SERIES, *EQUIPMENT, *COMMON, *IMAGE)
"""Keywords of what is read. highdicom copies from it what the modules of an object have."""

CODE: Final = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
"""Keywords of a code."""
TAGS: Final[list[BaseTag | int]] = [Tag(keyword) for keyword in (*KEPT, "SpecificCharacterSet")]
ITEM_TAGS: Final = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
"""(FFFE,E000) in both orders of bytes."""
PIXELS: Final = 0x7FE00001
"""The first element of pixel data."""
FIRST_GROUPS: Final = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
"""What a file without a preamble begins with: its File Meta Information, or group 0008."""
META_GROUP: Final = 2
META_START: Final = 144
"""Where the File Meta Information begins that its group length counts (PS3.10 7.1)."""
BINARY: Final = frozenset(("US", "UL", "SS", "SL", "FD", "FL"))
NUMERIC: Final = BINARY | {"DS", "IS"}
"""VRs that hold numbers: in binary, and all."""
FRAME_OF_REFERENCE: Final = Tag("FrameOfReferenceUID")
KNOWN_VALUES: Final = 20_000
KNOWN_BYTES: Final = 1024
"""Most values that are remembered, and most bytes of one."""
GRID_DIGITS: Final = 4
"""Decimals of millimetres and direction cosines in which grids are compared."""

GEOMETRY: Final = {
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PlanePositionSequence": ("ImagePositionPatient",),
}
"""What is kept of functional groups."""

PARSED: Final = {"DA": DA, "TM": TM}
"""VRs whose form may be right where there is no such day."""

OFFSET: Final = re.compile(r"[+-](0\d|1[0-4])[0-5]\d")
"""Timezone Offset From UTC (0008,0201)."""

IDENTIFIERS: Final = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
"""What a reference needs."""

IDENTITY: Final = ("PatientID", "IssuerOfPatientID", "PatientName")
"""Who a patient is."""

POSITIVE: Final = frozenset(("PixelSpacing", "SliceThickness"))
"""Zero is an error (PS3.3 10.7.1.1)."""

TYPE_2: Final = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
    *("StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
"""Present in every object, empty where nothing is known."""

CHOICES: Final = {
    "PatientSex": ("M", "F", "O"),
    "Laterality": ("R", "L"),
    "PatientIdentityRemoved": ("YES", "NO"),
    "LongitudinalTemporalInformationModified": ("UNMODIFIED", "MODIFIED", "REMOVED"),
    "LossyImageCompression": ("00", "01"),
}
"""Enumerated Values; any other is an error wherever it is copied to."""


DEFINED: Final = {
    keyword: (Tag(keyword), dictionary_VR(keyword))
    for keyword in (*KEPT, *CODE, *chain(*GEOMETRY.values()))
}
"""Tag and VR by keyword."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An attribute of a header: as Explicit VR Little Endian, and parsed.

    Sequences are not kept parsed: that takes twenty times as much memory.
    """

    encoded: bytes
    element: DataElement | None


class Known:
    """Attributes seen so far: instances of a series share most, and each is looked at once."""

    def __init__(self) -> None:
        """Knows none yet."""
        self._kept: dict[tuple[object, ...], Kept | None] = {}

    def kept(self, header: Dataset, keyword: str, characters: str) -> Kept | None:
        """What is valid of an attribute of the header; None if nothing is.

        characters: Specific Character Set (0008,0005) of the header.
        """
        raw: Any = header.get_item(DEFINED[keyword][0])
        if raw is None:
            return None
        if not isinstance(raw, RawDataElement) or len(raw.value or b"") > KNOWN_BYTES:
            return kept(valid(header, keyword))
        key = (keyword, raw.VR, raw.value, raw.is_implicit_VR, raw.is_little_endian, characters)
        if key not in self._kept:
            # All at once: what the next instances share is soon there again.
            if len(self._kept) >= KNOWN_VALUES:
                self._kept.clear()
            self._kept[key] = kept(valid(header, keyword))
        return self._kept[key]


@dataclass(frozen=True, slots=True)
class Source:
    """One instance that objects may refer to.

    study, series, instance, sop_class, frame_of_reference: UIDs; the last may be empty.
    subject: study and patient. No object has sources of two, whatever their UIDs say.
    position: along the normal of its plane, millimetres; None if it has none.
    grid: what images of one segmentation have in common. kept: its header, see `header`.
    """

    study: str
    subject: tuple[str, ...]
    series: str
    instance: str
    sop_class: str
    modality: str
    frame_of_reference: str
    rows: int
    columns: int
    frames: int
    number: int
    position: float | None
    grid: tuple[object, ...]
    kept: tuple[Kept, ...]

    @property
    def header(self) -> Dataset:
        """What was kept of its header, in Unicode. The caller may change it."""
        # Copies, because highdicom and `set_spacing` change what they are given.
        header = Dataset({one.element.tag: copy(one.element) for one in self.kept if one.element})
        # Sequences are parsed when asked for, see `Kept`.
        if groups := b"".join(one.encoded for one in self.kept if one.element is None):
            header.update(read_dataset(BytesIO(groups), False, True))
        header.set_original_encoding(False, True, "utf-8")
        return header

    @property
    def encoded(self) -> bytes:
        """The header as Explicit VR Little Endian."""
        return b"".join(one.encoded for one in self.kept)

    @property
    def may_be_segmented(self) -> bool:
        """Whether a segmentation can say where its frames are: without places there is but one."""
        return self.frames == 1 or bool(self.frame_of_reference)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, rows, columns."""
        return self.frames, self.rows, self.columns


def read_source(start: bytes, rest: Callable[[], Path], known: Known | None = None) -> Source:
    """Reads a DICOM file. known: from files read before.

    start: its first `START_BYTES`. rest: gives the file; called if its header is longer than that.

    FluoroError NOT_DICOM or DICOM_INVALID if nothing can refer to it, IMAGE_TOO_LARGE if its header
    is over the limit, NO_PIXEL_DATA if it is no image.
    """
    with blame_file(Reason.DICOM_INVALID, "The header cannot be read. Inspect the file."):
        header = read_start(start, TAGS)
        # The header goes on after the first 64 KiB. That is rare, and only then is the file
        # fetched.
        if header is None:
            with rest().open("rb") as file:
                header = read_header(file)
        kept = cleaned(header, known or Known())
        header = Dataset({one.element.tag: one.element for one in kept if one.element})
        if groups := b"".join(one.encoded for one in kept if one.element is None):
            header.update(read_dataset(BytesIO(groups), False, True))
        if missing := [keyword for keyword in IDENTIFIERS if not header.get(keyword)]:
            raise FluoroError(
                Reason.DICOM_INVALID,
                f"The file has no valid {missing[0]}, so nothing can refer to it.",
            )
        if not (header.get("Rows") and header.get("Columns")):
            raise FluoroError(Reason.NO_PIXEL_DATA, "The instance has no image.")
        return source_of(header, kept)


class Bounded:
    """A binary file of which only so much may be read."""

    def __init__(self, file: BinaryIO) -> None:
        """file: open, at its start."""
        self._file, self._left, self._items = file, HEADER_LIMIT_BYTES, 0
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1, /) -> bytes:
        """As of a file. FluoroError IMAGE_TOO_LARGE past a limit."""
        # One byte over the limit tells that there is more.
        data = self._file.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(data)
        # Values may hold these bytes by chance: rather one too many than one not counted.
        self._items += data.count(ITEM_TAGS[0]) + data.count(ITEM_TAGS[1])
        if self._left < 0 or self._items > ITEMS_LIMIT:
            raise FluoroError(
                Reason.IMAGE_TOO_LARGE,
                f"The header is larger than 64 MiB, or has more than {ITEMS_LIMIT:,} items.",
            )
        return data


def read_header(file: BinaryIO, tags: list[BaseTag | int] = TAGS) -> Dataset:
    """These attributes as they are.

    Files without a preamble are read, too, if their first bytes leave no doubt: FluoroError
    NOT_DICOM. Of a deflated data set as much is inflated as may be read: pixels come last.
    """
    head = file.read(START_BYTES)
    is_part_10 = head[128:132] == b"DICM"
    if not is_part_10 and head[:2] not in FIRST_GROUPS:
        raise FluoroError(Reason.NOT_DICOM, "The file is not DICOM: it has no DICM prefix.")
    if (header := read_start(head, tags)) is not None:
        return header
    file.seek(132)
    if is_part_10:
        # pydicom's `read_file_meta_info` reads a value of any length.
        reader = cast("BinaryIO", Bounded(file))
        meta = read_dataset(reader, False, True, stop_when=after_meta)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            file.seek(META_START + meta.FileMetaInformationGroupLength)
            inflated = cast("BinaryIO", Bounded(BytesIO(inflate(file))))
            header = read_dataset(inflated, False, True, stop_when=at_pixels, specific_tags=tags)
            header.file_meta = FileMetaDataset(meta)
            return header
    file.seek(0)
    reader = cast("BinaryIO", Bounded(file))
    return dcmread(reader, stop_before_pixels=True, specific_tags=tags, force=not is_part_10)


def read_start(head: bytes, tags: list[BaseTag | int]) -> Dataset | None:
    """These attributes of a file that begins so, if its pixels do not begin later; else None."""
    ended = False

    def at_end(tag: BaseTag, vr: str | None, length: int) -> bool:
        nonlocal ended
        ended = at_pixels(tag, vr, length)
        return ended

    header = None
    # A deflated data set has to be inflated before anything is seen of it.
    if head[128:132] == b"DICM" and DeflatedExplicitVRLittleEndian.encode() not in head:
        with suppress(Exception):  # of a header that goes on, or is broken: it is read once more
            header = read_partial(cast("BinaryIO", BytesIO(head)), at_end, specific_tags=tags)
    return header if ended else None


def inflate(file: BinaryIO) -> bytes:
    """As much of a deflated data set as may be read."""
    # Raw deflate, without zlib's header (PS3.5 A.5).
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    parts, left = [], HEADER_LIMIT_BYTES
    while left > 0 and not inflater.eof and (data := inflater.unconsumed_tail or file.read(2**16)):
        parts.append(inflater.decompress(data, left))
        left -= len(parts[-1])
    return b"".join(parts)


def after_meta(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    """Whether the File Meta Information ends here."""
    return tag.group != META_GROUP


def at_pixels(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    """Whether the header ends here: at any pixel data."""
    return int(tag) >= PIXELS


def cleaned(header: Dataset, known: Known) -> list[Kept]:
    """What is valid of the kept attributes, in Unicode and in order of tags."""
    characters = str(header.get("SpecificCharacterSet", ""))
    found = ((keyword, known.kept(header, keyword, characters)) for keyword in ORDERED)
    return [UNICODE, *(one or EMPTY[keyword] for keyword, one in found if one or keyword in EMPTY)]


def valid(source: Dataset, keyword: str) -> DataElement | None:
    """An attribute if its value is one that its VR, or the list of its choices, allows."""
    tag, vr = DEFINED[keyword]
    value = source.get(keyword)
    if vr == "SQ":
        groups = [kept_group(item) for item in value or ()]
        return DataElement(tag, vr, groups) if any(len(group) for group in groups) else None
    if value is None or value == "":
        return None
    values = list(value) if isinstance(value, MultiValue) else [value]
    if not is_valid(keyword, vr, values):
        return None
    texts = values if vr in BINARY else [str(one) for one in values]
    # pydicom would look at them once more.
    only = texts if len(texts) > 1 else texts[0]
    return DataElement(tag, vr, only, validation_mode=config.IGNORE)


def is_valid(keyword: str, vr: str, values: Sequence[Any]) -> bool:
    """Whether an attribute may have these values."""
    texts = [str(one) for one in values]
    try:
        for one, text in zip(values, texts, strict=True):
            validate_value(vr, one if vr in BINARY else text, config.RAISE)
            # pydicom checks the form alone, and 20250231 has the form of a date.
            if vr in PARSED:
                PARSED[vr](text)
        numbers = [float(text) for text in texts] if vr in NUMERIC else []
    except (ValueError, TypeError, OverflowError):
        return False
    if keyword in POSITIVE and min(numbers) <= 0:
        return False
    if keyword == "TimezoneOffsetFromUTC" and not OFFSET.fullmatch(texts[0]):
        return False
    return all(map(math.isfinite, numbers)) and set(texts) <= set(CHOICES.get(keyword, texts))


def kept_group(item: Dataset) -> Dataset:
    """Of an item of functional groups, what says where frames are; of a code, the code."""
    kept = Dataset()
    for keyword, parts in GEOMETRY.items():
        if item.get(keyword):
            inner = Dataset()
            for part in parts:
                copy_valid(item.get(keyword)[0], inner, part)
            setattr(kept, keyword, [inner])
    for keyword in CODE:
        copy_valid(item, kept, keyword)
    return kept


def copy_valid(source: Dataset, target: Dataset, keyword: str) -> None:
    """Copies what `valid` finds, if the source has the attribute."""
    if keyword in source and (element := valid(source, keyword)):
        target[element.tag] = element


def source_of(header: Dataset, kept: Sequence[Kept]) -> Source:
    """What objects need to know of a cleaned header. kept: its attributes."""
    orientation = [float(one) for one in header.get("ImageOrientationPatient", ())]
    position = [float(one) for one in header.get("ImagePositionPatient", ())]
    frames = int(header.get("NumberOfFrames") or 1)
    multiframe = frames > 1 or "PerFrameFunctionalGroupsSequence" in header
    single = not multiframe and len(orientation) == 6 and len(position) == 3  # noqa: PLR2004 - axes
    # highdicom looks for places wherever there is a frame of reference.
    if "FrameOfReferenceUID" in header and not (single or places_frames(header)):
        del header.FrameOfReferenceUID
        kept = [one for one in kept if one.element is None or one.element.tag != FRAME_OF_REFERENCE]
    frame_of_reference = str(header.get("FrameOfReferenceUID", ""))
    patient = (str(header.get(keyword, "")) for keyword in IDENTITY)
    subject = (str(header.StudyInstanceUID), *patient)
    series, rows, columns = str(header.SeriesInstanceUID), int(header.Rows), int(header.Columns)
    spacing = [float(one) for one in header.get("PixelSpacing", ())]
    # Rounded, because slices of one series may differ in the last digit.
    numbers = tuple(round(one, GRID_DIGITS) for one in (*orientation, *spacing))
    return Source(
        study=subject[0],
        subject=subject,
        series=series,
        instance=str(header.SOPInstanceUID),
        sop_class=str(header.SOPClassUID),
        modality=str(header.get("Modality", "OT")),
        frame_of_reference=frame_of_reference,
        rows=rows,
        columns=columns,
        frames=frames,
        number=int(header.get("InstanceNumber") or 0),
        position=(
            float(np.dot(np.cross(orientation[:3], orientation[3:]), position)) if single else None
        ),
        # What does not lie in one space, or has several frames, is an object of its own.
        grid=(
            (*subject, series, rows, columns, frame_of_reference, *numbers)
            if single and frame_of_reference
            else (*subject, series, str(header.SOPInstanceUID))
        ),
        kept=tuple(kept),
    )


def places_frames(header: Dataset) -> bool:
    """Whether its functional groups say where every frame is."""
    shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
    frames = header.get("PerFrameFunctionalGroupsSequence") or [Dataset()]
    return all(
        any(keyword in groups for groups in (shared[0], frame))
        for frame in frames
        for keyword in ("PlanePositionSequence", "PlaneOrientationSequence")
    )


def kept(element: DataElement | None) -> Kept | None:
    """The attribute as it is kept."""
    if element is None:
        return None
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_data_element(buffer, element, ["utf-8"])
    return Kept(buffer.getvalue(), None if element.VR == "SQ" else element)


ORDERED: Final = sorted(KEPT, key=Tag)
"""In the order of a file."""


def _fixed(keyword: str, value: str) -> Kept:
    made = kept(DataElement(Tag(keyword), dictionary_VR(keyword), value))
    assert made is not None
    return made


UNICODE: Final = _fixed("SpecificCharacterSet", "ISO_IR 192")
EMPTY: Final = {keyword: _fixed(keyword, "") for keyword in TYPE_2}
"""What stands for values that nothing is known of."""
