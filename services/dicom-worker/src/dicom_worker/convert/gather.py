"""Reads the files of an item: what is in them, each instance once."""

import filecmp
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepItem
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_worker import limits
from dicom_worker.attributes import decimals, text, value
from dicom_worker.pixels.colour import WORD, colour_bits
from dicom_worker.pixels.decoders import check_budget
from dicom_worker.pixels.groups import macro
from dicom_worker.pixels.image import Image
from dicom_worker.pixels.modality import MACRO, Modality, modality_of
from dicom_worker.pixels.rendering import is_grey, values_of
from dicom_worker.reading import DicomFile, open_dicom
from dicom_worker.studies.slices import Slice, coded, slices_of
from dicom_worker.studies.volumes import Left

EIGHT_BITS: Final = "8 bits"
SIXTEEN_BITS: Final = f"{WORD} bits"


@dataclass(frozen=True, slots=True)
class Source:
    """A file of which slices are to be decoded.

    file: without its header, because there are thousands. rescaled: whether it has a rescale.
    thickness: Slice Thickness in millimetres, 0 if absent. values: `grey`, or for colour the depth
    of its samples, which tells whether they are on one scale. bits: of a sample. modality: of each
    frame; None where tables make it too large to keep.
    """

    file: DicomFile
    path: Path
    kind: str
    photometric: str
    values: str
    bits: int
    rescaled: bool
    thickness: float
    modality: tuple[Modality, ...] | None

    def convert(self) -> Callable[[int, NDArray[Any]], tuple[NDArray[Any], str]]:
        """What gives, of a frame and its stored values, modality values or RGB, and their unit."""
        known = self.modality
        if known is None:
            file = open_dicom(self.path, self.path.parent)
            return values_of(file, suv=False, wide=self.bits == WORD)
        return lambda frame, stored: (known[frame].exact(stored), known[frame].unit)


@dataclass(slots=True)
class Gathered:
    """What is in the files of an item.

    sources: by number of the file. left: what is of no use for a volume. repeated: files that came
    twice, with the same bytes.
    """

    sources: dict[int, Source] = field(default_factory=dict)
    slices: list[Slice] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    repeated: int = 0


def gather(item: StepItem, check: Callable[[], None]) -> Gathered:
    """Reads the headers of all files.

    Those that are not DICOM, or have no image, are left out and counted. A series is left out as a
    whole if one of its images has no place, or if an instance is there in two versions: a volume
    without it would look complete.

    FluoroError as `open_dicom` for a broken file, because nobody knows what it belongs to;
    IMAGE_TOO_LARGE over `limits.SLICE_LIMIT` or `limits.ITEM_LIMIT_BYTES`.
    """
    found = Gathered()
    versions: dict[str, tuple[Path, str]] = {}
    bad: dict[str, FluoroError] = {}
    others: Counter[tuple[Reason, str]] = Counter()
    files: Counter[str] = Counter()
    for number, path in enumerate(fetched(item, check)):
        try:
            file = open_dicom(path, item.folder)
        except FluoroError as error:
            # Folders of studies hold other files as well. A file that came alone is the one that
            # was meant.
            if error.reason is not Reason.NOT_DICOM or len(item.parts) == 1:
                raise
            others[error.reason, error.message] += 1
            continue
        if file.image is None:
            others[Reason.NO_PIXEL_DATA, "The instance has no image."] += 1
            continue
        series = text(file.header, "SeriesInstanceUID")
        instance = text(file.header, "SOPInstanceUID")
        if known := versions.get(instance):
            # By content: a shallow comparison trusts size and time.
            if filecmp.cmp(known[0], path, shallow=False):
                found.repeated += 1
                continue
            conflict = FluoroError(
                Reason.SOP_INSTANCE_CONFLICT, "Two files are versions of one instance."
            )
            bad[series] = bad[known[1]] = conflict
        versions[instance] = path, series
        files[series] += 1
        try:
            add(found, number, path, file, file.image)
        except FluoroError as error:
            # The limit is the item's: to leave this series out would not help the others.
            if error.reason is Reason.IMAGE_TOO_LARGE:
                raise
            bad.setdefault(series, error)
    found.left += [Left("", count, *why) for why, count in others.items()]
    for series, fault in bad.items():
        found.left.append(Left(series, files[series], fault.reason, fault.message))
    found.slices = [each for each in found.slices if each.series not in bad]
    widen_palettes(found)
    return found


def widen_palettes(found: Gathered) -> None:
    """Gives the palettes of a series 16 bits where its colours have several depths.

    Of palettes alike, one may happen to have colours that 8 bits hold.
    """
    series: dict[str, set[int]] = defaultdict(set)
    for each in found.slices:
        series[each.series].add(each.file)
    for numbers in series.values():
        colours = [number for number in numbers if found.sources[number].values != "grey"]
        if len({found.sources[number].values for number in colours}) == 1:
            continue
        for number in colours:
            source = found.sources[number]
            image = source.file.image
            if image and image.photometric == "PALETTE COLOR":
                check_budget(image, WORD)
                found.sources[number] = replace(source, values=SIXTEEN_BITS, bits=WORD)


def fetched(item: StepItem, check: Callable[[], None]) -> Iterator[Path]:
    """The files of an item. IMAGE_TOO_LARGE once they are over `limits.ITEM_LIMIT_BYTES`."""
    size = 0
    for part in item.parts:
        check()
        path = item.fetch(part)
        size += path.stat().st_size
        if size > limits.ITEM_LIMIT_BYTES:
            raise FluoroError(
                Reason.IMAGE_TOO_LARGE,
                f"The files of one item have more than {limits.ITEM_LIMIT_BYTES} bytes.",
            )
        yield path


def add(found: Gathered, number: int, path: Path, file: DicomFile, image: Image) -> None:
    """Adds the frames of a file.

    FluoroError: GEOMETRY_INVALID, DICOM_INVALID, IMAGE_TOO_LARGE.
    """
    bits = colour_bits(file)
    check_budget(image, bits)
    if len(found.slices) + image.frames > limits.SLICE_LIMIT:
        raise FluoroError(
            Reason.IMAGE_TOO_LARGE, f"There are more than {limits.SLICE_LIMIT} slices in one item."
        )
    # All of them before the file is entered: one impossible frame must leave nothing behind.
    slices = list(slices_of(file.header, image, number))
    thickness = decimals(file.header, "SliceThickness")
    found.sources[number] = Source(
        replace(file, header=Dataset(), elements=()),
        path,
        coded(text(file.header, "Modality")),
        image.photometric if is_grey(image) else "RGB",
        depth_of(image, bits),
        bits,
        value(macro(file.header, 0, MACRO), "RescaleSlope") is not None,
        thickness[0] if thickness else 0,
        modalities(file, image),
    )
    found.slices += slices


def depth_of(image: Image, bits: int) -> str:
    """`grey`, or what the samples of a colour are: `8 bits`, `12 signed bits`."""
    if is_grey(image):
        return "grey"
    signed = image.signed and image.photometric != "PALETTE COLOR"  # its indices are, not colours
    return f"{bits} {'signed ' if signed else ''}bits"


def modalities(file: DicomFile, image: Image) -> tuple[Modality, ...] | None:
    """Of each frame; None if they have tables. Colours have none, and stay as they are."""
    if not is_grey(image):
        return None if image.photometric == "PALETTE COLOR" else (Modality(),) * image.frames
    known: dict[Modality, Modality] = {}
    made = []
    for frame in range(image.frames):
        modality = modality_of(file.header, frame, little_endian=file.little_endian)
        if modality.lut:
            return None
        made.append(known.setdefault(modality, modality))
    return tuple(made)
