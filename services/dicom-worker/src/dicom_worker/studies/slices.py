"""Where each frame of a file lies in space, and what tells it from others at the same place."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import hypot
from typing import Final

from fluoro_jobs.errors import FluoroError, Reason
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicom_worker.attributes import decimals, item, text, value
from dicom_worker.pixels.groups import macros
from dicom_worker.pixels.image import Image

AXES: Final = 3
UNIT_TOLERANCE: Final = 2e-3
"""How far direction cosines may be from unit length and a right angle: files round them."""
FAR_MM: Final = 1e5
"""No pixel lies so far from the origin, and none is so large."""
NEAR_MM: Final = 1e-5
"""No pixel is so small."""

GRID_FRAME_OFFSETS: Final = 0x3004000C

CODE: Final = re.compile(r"[A-Z0-9_ .+\\e-]{0,256}")
"""Code strings, several of them, and numbers."""

Vector = tuple[float, float, float]
Find = Callable[[str], Dataset]
"""Gives the macros of a frame, see `pixels.groups`."""
Place = tuple[Vector, Vector]
"""Position of a frame, and the normal of its plane."""
Mark = tuple[float, ...] | str
"""A value of an attribute: numbers, or text; "" if it is absent."""

MARKS: Final = {
    "echo_time_ms": ("MREchoSequence", "EffectiveEchoTime", "EchoTime"),
    "echo_number": ("MREchoSequence", "EchoNumbers", "EchoNumbers"),
    "b_value": ("MRDiffusionSequence", "DiffusionBValue", "DiffusionBValue"),
    "gradient": ("MRDiffusionSequence", "", "DiffusionGradientOrientation"),
    "temporal_position": (
        "FrameContentSequence",
        "TemporalPositionIndex",
        "TemporalPositionIdentifier",
    ),
    "trigger_time_ms": (
        "CardiacSynchronizationSequence",
        "NominalCardiacTriggerDelayTime",
        "TriggerTime",
    ),
    "image_type": ("MRImageFrameTypeSequence", "FrameType", "ImageType"),
    "segment": (
        "SegmentIdentificationSequence",
        "ReferencedSegmentNumber",
        "ReferencedSegmentNumber",
    ),
    "stack": ("FrameContentSequence", "StackID", "StackID"),
    "acquisition": ("FrameContentSequence", "FrameAcquisitionNumber", "AcquisitionNumber"),
    "acquisition_time": (
        "FrameContentSequence",
        "FrameAcquisitionDateTime",
        "AcquisitionTime",
    ),
}
"""What may tell slices of one place from each other, the most telling first.

Name → macro of functional groups, attribute in there (PS3.3 C.7.6.16, C.8.13.5, C.8.20.3),
attribute of objects without functional groups.
"""


@dataclass(frozen=True, slots=True)
class Plane:
    """What the slices of a volume have in common.

    frame_of_reference: its UID. row, column: unit vectors of increasing column and row number, at
    right angles. spacing: millimetres between rows and between columns.
    """

    frame_of_reference: str
    rows: int
    columns: int
    samples: int
    row: Vector
    column: Vector
    spacing: tuple[float, float]

    @property
    def normal(self) -> Vector:
        """The unit vector at a right angle to both: right-handed."""
        return cross(self.row, self.column)


@dataclass(frozen=True, slots=True)
class Slice:
    """One frame. file: number of the file; frame: 0-based.

    position: of the first pixel's centre, in millimetres. number: Instance Number, 0 if absent.
    pitch: Spacing Between Slices, or Slice Thickness, millimetres; 0 if absent. marks: as in
    `MARKS`. apart: Spacing Between Slices alone.
    """

    file: int
    frame: int
    series: str
    plane: Plane
    position: Vector
    number: float
    pitch: float
    marks: tuple[Mark, ...]
    apart: float = 0.0


def slices_of(header: Dataset, image: Image, file: int) -> Iterator[Slice]:
    """The frames of a file. GEOMETRY_INVALID if one has no place, or an impossible one."""
    series, number = text(header, "SeriesInstanceUID"), decimals(header, "InstanceNumber")
    reference = text(header, "FrameOfReferenceUID")
    known: dict[tuple[float, ...], Plane] = {}
    offsets = dose_offsets(header, image.frames)
    for frame in range(image.frames):
        find = macros(header, frame)
        orientation, spacing = orientation_of(find), spacing_of(find)
        # Thousands of frames share a plane, and are compared by it, so each is made once.
        plane = known.get((*orientation, *spacing))
        if plane is None:
            row, column = axes(orientation)
            plane = Plane(
                reference, image.rows, image.columns, image.channels, row, column, spacing
            )
            known[*orientation, *spacing] = plane
        position = position_of(find)
        yield Slice(
            file,
            frame,
            series,
            plane,
            position if offsets is None else dose_position(position, plane.normal, offsets, frame),
            number[0] if number else 0,
            pitch_of(find),
            marks_of(header, find),
            distance(find, "SpacingBetweenSlices"),
        )


def dose_offsets(header: Dataset, frames: int) -> list[float] | None:
    """Grid Frame Offset Vector (3004,000C), millimetres, of a dose (PS3.3 C.8.8.3.2).

    None if frames do not lie by it. GEOMETRY_INVALID unless it has a number for each.
    """
    if value(header, "FrameIncrementPointer") != GRID_FRAME_OFFSETS:
        return None
    found = decimals(header, "GridFrameOffsetVector")
    if len(found) != frames or max(map(abs, found), default=0) > FAR_MM:
        raise unusable("Grid Frame Offset Vector has not one possible number for each frame.")
    return found


def dose_position(first: Vector, normal: Vector, offsets: list[float], frame: int) -> Vector:
    """Where a frame of a dose lies. first: Image Position (Patient), that of the first frame.

    GEOMETRY_INVALID if the offsets begin neither at 0 nor, across the patient, at the first frame.
    """
    start = offsets[0]
    upright = abs(abs(normal[2]) - 1) <= UNIT_TOLERANCE
    if start and not (upright and abs(start - first[2]) <= UNIT_TOLERANCE):
        raise unusable("Grid Frame Offset Vector does not begin at the first frame.")
    # Those that do not begin at 0 are positions, up or down the patient.
    along = offsets[frame] - start
    step = scaled(normal, along * normal[2] if start else along)
    return first[0] + step[0], first[1] + step[1], first[2] + step[2]


def position_of(find: Find) -> Vector:
    """Image Position (Patient) (0020,0032) of a frame."""
    found = decimals(find("PlanePositionSequence"), "ImagePositionPatient")
    # A position beyond the scanner would make one volume of kilometres.
    if len(found) != AXES or max(map(abs, found)) > FAR_MM:
        raise unusable("Image Position (Patient) is missing or impossible.")
    return found[0], found[1], found[2]


def orientation_of(find: Find) -> tuple[float, ...]:
    """Image Orientation (Patient) (0020,0037) of a frame: six numbers."""
    source = find("PlaneOrientationSequence")
    found = decimals(source, "ImageOrientationPatient")
    if len(found) != 2 * AXES:
        raise unusable("Image Orientation (Patient) is missing or not six numbers.")
    return tuple(found)


def axes(orientation: tuple[float, ...]) -> tuple[Vector, Vector]:
    """The two unit vectors of an orientation, at exactly a right angle."""
    row, column = orientation[:AXES], orientation[AXES:]
    if (
        abs(hypot(*row) - 1) > UNIT_TOLERANCE
        or abs(hypot(*column) - 1) > UNIT_TOLERANCE
        or abs(dot(row, column)) > UNIT_TOLERANCE
    ):
        raise unusable("Image Orientation (Patient) is not two unit vectors at a right angle.")
    first = scaled(row, 1 / hypot(*row))
    # Rounded cosines are not quite at a right angle. Taking the rest off the second axis makes the
    # affine a rigid one.
    along = dot(first, column)
    second = tuple(each - along * axis for each, axis in zip(column, first, strict=True))
    return first, scaled(second, 1 / hypot(*second))


def spacing_of(find: Find) -> tuple[float, float]:
    """Pixel Spacing (0028,0030) of a frame: millimetres between rows and between columns."""
    found = decimals(find("PixelMeasuresSequence"), "PixelSpacing")
    if len(found) != 2 or not all(NEAR_MM < each < FAR_MM for each in found):  # noqa: PLR2004 - rows, columns
        raise unusable("Pixel Spacing is missing or impossible.")
    return found[0], found[1]


def pitch_of(find: Find) -> float:
    """How far the next slice should be; 0 if the file does not say, or nonsense."""
    # Slices may overlap or leave room between them, so their thickness is the second choice.
    return distance(find, "SpacingBetweenSlices") or distance(find, "SliceThickness")


def distance(find: Find, keyword: str) -> float:
    """An attribute of the Pixel Measures in millimetres; 0 if it is absent, or nonsense."""
    found = decimals(find("PixelMeasuresSequence"), keyword)
    # Some writers give the distance a sign, for the direction.
    return abs(found[0]) if found and NEAR_MM < abs(found[0]) < FAR_MM else 0


def marks_of(header: Dataset, find: Find) -> tuple[Mark, ...]:
    """The marks of a frame, in the order of `MARKS`."""
    return tuple(
        mark_of(header, find(group), inside, outside) for group, inside, outside in MARKS.values()
    )


def mark_of(header: Dataset, source: Dataset, inside: str, outside: str) -> Mark:
    """A mark of a frame. source: its macro, or the header where there is none."""
    if source is header:
        return plain(header, outside)
    if inside:
        return plain(source, inside)
    # The gradient lies one sequence deeper (MR Diffusion Macro, PS3.3 C.8.13.5.9).
    direction = item(source, "DiffusionGradientDirectionSequence")
    return plain(direction, outside) if direction is not None else ""


def plain(source: Dataset, keyword: str) -> Mark:
    """The value of an attribute as numbers, or as text."""
    if keyword not in source:  # most have none of these, and to ask pydicom for it takes long
        return ""
    found = value(source, keyword)
    if isinstance(found, MultiValue) and any(isinstance(each, str) for each in found):
        return "\\".join(map(str, found))
    return tuple(decimals(source, keyword)) or text(source, keyword)


def place(header: Dataset, frame: int) -> Place | None:
    """Where a frame lies; None if it has no place, or an impossible one."""
    try:
        find = macros(header, frame)
        row, column = axes(orientation_of(find))
        return position_of(find), cross(row, column)
    except FluoroError:
        return None


def told(marks: Mapping[str, Mark]) -> dict[str, str]:
    """Marks as text for people.

    Without times of day, which may identify a patient, and text that is no code: nobody knows what
    stands in it.
    """
    shown = {
        name: mark if isinstance(mark, str) else " ".join(f"{each:g}" for each in mark)
        for name, mark in marks.items()
        if name != "acquisition_time"
    }
    return {name: coded(text) for name, text in shown.items()}


def coded(text: str) -> str:
    """The text if it is a code or numbers (CS, PS3.5 6.2), else ""."""
    return text if CODE.fullmatch(text) else ""


def dot(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """The scalar product."""
    return sum(a * b for a, b in zip(one, other, strict=True))


def cross(one: Vector, other: Vector) -> Vector:
    """The vector product."""
    return (
        one[1] * other[2] - one[2] * other[1],
        one[2] * other[0] - one[0] * other[2],
        one[0] * other[1] - one[1] * other[0],
    )


def scaled(vector: tuple[float, ...], factor: float) -> Vector:
    """The vector, so many times as long."""
    return vector[0] * factor, vector[1] * factor, vector[2] * factor


def unusable(message: str) -> FluoroError:
    """The frame cannot be put into a volume."""
    return FluoroError(Reason.GEOMETRY_INVALID, message)
