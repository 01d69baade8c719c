"""DICOMDIR (PS3.10 8, PS3.3 F) of the DICOM files that go into an archive.

pydicom looks at all of a series for each instance that it adds, so the tree and the offsets in it
are ours.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from itertools import pairwise
from typing import Final, NamedTuple

from fluoro_jobs.blame import blame_file
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepContext
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from export_worker.dicom.origin import Origin
from export_worker.dicom.records import KINDS, TAGS, identity_of, kind_of, needed, record_of
from export_worker.dicom.sources import START_BYTES, read_header, read_start
from export_worker.packing import Packed

INSTANCES_LIMIT: Final = 100_000
"""Most instances of a DICOMDIR: each takes 2 ms and 0.6 KB of memory."""
INSTANCE_BYTES: Final = 2**16
LIMIT_BYTES: Final = 256 * 2**20
"""Most of the records of an instance, and of all: a DICOMDIR is made in memory."""
UNLISTED: Final = (Reason.NOT_DICOM, Reason.DICOM_INVALID, Reason.IMAGE_TOO_LARGE)
"""Why a file is left out. For any other reason there is no archive."""
COMPONENT_CHARACTERS: Final = 8
"""Of a part of a File ID (PS3.10 8.2)."""
NEXT_AT: Final = 8
"""Where the Offset of the Next Directory Record (0004,1400) stands in a record."""
LOWER_AT: Final = 30
"""Where the Offset of Referenced Lower-Level Directory Entity (0004,1420) stands in a record."""
ITEM: Final = b"\xfe\xff\x00\xe0"
LEVELS: Final = ("PATIENT", "STUDY", "SERIES")
"""Kinds of the records above that of an instance."""
UIDS: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
"""Keywords of what stands for a record; for a patient it is who that is."""
Key = str | tuple[str, ...]
"""What a record stands for: a UID, or who a patient is."""


class Listed(NamedTuple):
    """files: with their names in the file-set. directory: the DICOMDIR, empty if it lists nothing.

    listed, left_out: how many instances.
    """

    files: list[Packed]
    directory: bytes
    listed: int
    left_out: int


@dataclass(slots=True)
class Record:
    """A directory record. name: its part of a File ID. data: as Explicit VR Little Endian."""

    name: str = ""
    data: bytearray = field(default_factory=bytearray)
    children: dict[Key, "Record"] = field(default_factory=dict)
    offset: int = 0

    def __iter__(self) -> Iterator["Record"]:
        """Those below it, each before its children."""
        for child in self.children.values():
            yield child
            yield from child


class Directory:
    """The records of a file-set."""

    def __init__(self, uid: str) -> None:
        """uid: of the file-set."""
        self._uid = uid
        self._root = Record()
        self._size = 0

    def add(self, header: Dataset) -> str:
        """Adds an instance; returns its name. Raises whatever a hostile header provokes."""
        # Two hospitals may give one Patient ID: no study stands under another patient's name.
        keys: list[Key] = [
            identity_of(header),
            *(str(needed(header, keyword).value) for keyword in UIDS),
        ]
        at, fresh = self._root, []
        names: list[str] = []
        for kind, key in zip((*LEVELS, kind_of(header)), keys, strict=True):
            # By key at each level: instances of one series come in any order.
            known = at.children.get(key)
            if known is None:
                prefix = KINDS[kind].prefix
                name = f"{prefix}{len(at.children):0{COMPONENT_CHARACTERS - len(prefix)}}"
                made = record_of(kind, header, len(at.children) + 1)
                if kind not in LEVELS:
                    refer(made, header, [*names, name])
                known = Record(name, encoded(made))
                fresh.append((at, key, known))
            names.append(known.name)
            at = known
        size = sum(len(ITEM) + 4 + len(record.data) for *_, record in fresh)
        # Before anything is entered: a refused instance leaves no half of its records.
        if size > INSTANCE_BYTES or self._size + size > LIMIT_BYTES:
            # The instance is left out of the list, and stays in the archive.
            raise FluoroError(Reason.IMAGE_TOO_LARGE, "Its records are too large for a DICOMDIR.")
        self._size += size
        for parent, key, record in fresh:  # once all could be encoded
            parent.children[key] = record
        return "/".join(names)

    def written(self) -> bytes:
        """The DICOMDIR."""
        # Offsets have a fixed length, so the head is as long without them.
        at = len(self._head(0, 0))
        for record in self._root:
            record.offset = at
            at += len(ITEM) + 4 + len(record.data)
        # In a second pass: a record points at those after it, whose places the first one has set.
        for parent in (self._root, *self._root):
            children = list(parent.children.values())
            for one, following in pairwise(children):
                struct.pack_into("<I", one.data, NEXT_AT, following.offset)
            if parent.data and children:
                struct.pack_into("<I", parent.data, LOWER_AT, children[0].offset)
        first, *_ = last = list(self._root.children.values())
        head = bytearray(self._head(first.offset, last[-1].offset))
        struct.pack_into("<I", head, len(head) - 4, at - len(head))
        items = (ITEM + struct.pack("<I", len(one.data)) + one.data for one in self._root)
        return b"".join([head, *items])

    def _head(self, first: int, last: int) -> bytes:
        """All before the first record; ends with the length of the sequence."""
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPInstanceUID = UID(self._uid)
        ds.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
        ds.FileSetID = None
        ds.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = first
        ds.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity = last
        # No known inconsistencies (PS3.3 F.3.2.2).
        ds.FileSetConsistencyFlag = 0
        ds.DirectoryRecordSequence = []
        buffer = BytesIO()
        dcmwrite(buffer, ds, enforce_file_format=True)
        return buffer.getvalue()


def refer(record: Dataset, header: Dataset, names: list[str]) -> None:
    """Says which file a record is of. names: of the file and the folders above it."""
    record.ReferencedFileID = names
    record.ReferencedSOPClassUIDInFile = needed(header, "SOPClassUID").value
    record.ReferencedSOPInstanceUIDInFile = needed(header, "SOPInstanceUID").value
    syntax = needed(header.file_meta, "TransferSyntaxUID").value
    record.ReferencedTransferSyntaxUIDInFile = syntax


def encoded(record: Dataset) -> bytearray:
    """As Explicit VR Little Endian."""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, record)
    return bytearray(buffer.getvalue())


def file_set(files: Sequence[Packed], context: StepContext) -> Listed:
    """Gives DICOM files names as PS3.10 8.2 has them. What cannot be listed keeps its name.

    FluoroError TOO_MANY_INPUTS over the limit.
    """
    instances = [number for number, file in enumerate(files) if file.artifact.role == "instance"]
    if len(instances) > INSTANCES_LIMIT:
        raise FluoroError(
            Reason.TOO_MANY_INPUTS,
            f"A DICOMDIR lists at most {INSTANCES_LIMIT:,} instances. Leave out `dicomdir`.",
        )
    directory = Directory(Origin(context.job, context.step).uid("file-set"))
    named, seen = list(files), set()
    for done, number in enumerate(instances):
        context.progress("list", done, len(instances))
        try:
            with blame_file(Reason.DICOM_INVALID, "It cannot be listed."):
                header = header_of(files[number].artifact.blob, context)
                if (uid := header.SOPInstanceUID) in seen:  # a second copy stands outside
                    continue
                named[number] = replace(files[number], path=directory.add(header))
                seen.add(uid)
        except FluoroError as error:
            # A store that is away for a moment must not turn a file into one that cannot be listed.
            if error.reason not in UNLISTED:
                raise
    data = directory.written() if seen else b""
    return Listed(named, data, len(seen), len(instances) - len(seen))


def header_of(blob: str, context: StepContext) -> Dataset:
    """What records say of a file."""
    header = read_start(context.piece(blob, 0, START_BYTES), TAGS)
    if header is not None:
        return header
    path = context.fetch(blob)
    try:
        with path.open("rb") as file:
            return read_header(file, TAGS)
    finally:
        # An archive may list 100,000 files, and each is needed for its header alone.
        path.unlink()
