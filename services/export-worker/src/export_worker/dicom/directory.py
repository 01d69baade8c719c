"""DICOMDIR (PS3.10 8, PS3.3 F) of the DICOM files that go into an archive."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import PurePath
from shutil import rmtree
from typing import Final, NamedTuple

from fluoro_jobs.blame import blame_file
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepContext
from pydicom.fileset import FileSet
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from export_worker.dicom.origin import Origin
from export_worker.dicom.sources import KEPT, read_header
from export_worker.packing import Packed

RECORDS: Final = (
    *("SeriesNumber", "ContentDate", "ContentTime", "CompletionFlag", "VerificationFlag"),
    *("ConceptNameCodeSequence", "DocumentTitle", "HL7InstanceIdentifier"),
    *("MIMETypeOfEncapsulatedDocument", "ContentLabel", "ContentDescription", "ContentCreatorName"),
)
"""What directory records repeat of an instance, beside what objects do."""
TAGS: Final[list[BaseTag | int]] = [Tag(keyword) for keyword in (*KEPT, *RECORDS)]
INSTANCES_LIMIT: Final = 2_000
"""Most instances of a DICOMDIR, which take 45 s: pydicom looks at all of a series for each."""


class Listed(NamedTuple):
    """files: with their names in the file-set. directory: the DICOMDIR, empty if it lists nothing.

    listed, left_out: how many instances.
    """

    files: list[Packed]
    directory: bytes
    listed: int
    left_out: int


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
    with tidied(FileSet()) as directory:
        return listed(directory, files, instances, context)


@contextmanager
def tidied(directory: FileSet) -> Iterator[FileSet]:
    """Deletes what pydicom staged: its folder goes with a warning once nobody knows of it."""
    staged = directory._stage  # noqa: SLF001 - there is no other way to its folders
    first = staged["t"]
    try:
        yield directory
    finally:
        for folder in (first, staged["t"]):
            folder.cleanup()


def listed(
    directory: FileSet, files: Sequence[Packed], instances: Sequence[int], context: StepContext
) -> Listed:
    """Fills the directory."""
    directory.UID = UID(Origin(context.job, context.step).uid("file-set"))
    numbers: dict[str, int] = {}
    for done, number in enumerate(instances):
        context.progress("list", done, len(instances))
        path = context.fetch(files[number].artifact.blob)
        try:
            blamed = blame_file(Reason.DICOM_INVALID, "It cannot be listed.")
            with path.open("rb") as file, blamed:
                header = read_header(file, TAGS)
                if header.SOPInstanceUID not in numbers:  # a second copy stands outside
                    directory.add(header)
                    numbers[header.SOPInstanceUID] = number
        except FluoroError:
            continue
        finally:
            path.unlink()
    named = list(files)
    for instance in directory:
        number = numbers[instance.SOPInstanceUID]
        named[number] = replace(files[number], path=PurePath(instance.FileID).as_posix())
    return Listed(named, written(directory, context), len(numbers), len(instances) - len(numbers))


def written(directory: FileSet, context: StepContext) -> bytes:
    """The DICOMDIR. pydicom writes copies of the headers beside it, which nobody needs."""
    if not len(directory):
        return b""
    folder = context.scratch / "file-set"
    directory.write(folder)
    data = (folder / "DICOMDIR").read_bytes()
    rmtree(folder)
    return data
