"""Sorts slices in space into volumes, and says what is wrong with those that make none.

Plain data in, plain data out: nothing here reads a file.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import atan2, degrees
from typing import Any, Final

import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray

from dicom_worker.studies.slices import MARKS, Mark, Place, Plane, Slice, Vector, dot, scaled

SAME_PLACE_MM: Final = 0.01
"""Slices that are not further apart lie at one place."""
COSINE_TOLERANCE: Final = 1e-3
"""How far direction cosines of parallel slices may differ: over 300 mm, 0.3 mm."""
SPACING_TOLERANCE: Final = 1e-3
"""How far the pixel spacings of one volume may differ, of 1."""
UNEVEN: Final = 0.05
"""How far a slice may lie from where even spacing puts it, of that spacing."""
ASIDE: Final = 0.1
"""How far it may lie aside, and a volume be sheared unnoticed, in pixels."""
DRIFT: Final = 0.05
"""Stacks whose direction cosines differ by no more were one, before something turned it."""
ORIENTATION_LIMIT: Final = 1000
"""Directions, or sizes, of the slices of one series."""
SEGMENT: Final = list(MARKS).index("segment")


@dataclass(frozen=True, slots=True)
class Volume:
    """Slices of one size, parallel, one at each place, in the order of the normal.

    step: millimetres from one slice to the next; None if there is one slice and nobody says how
    thick. shear_degrees: angle between step and normal. missing: places without a slice; gaps:
    (number of slice, places missing behind it). uneven: whether slices lie off even places, by
    more than `UNEVEN` or `ASIDE`. phase: what tells it from other volumes of the same places.
    """

    series: str
    plane: Plane
    slices: tuple[Slice, ...]
    step: tuple[float, float, float] | None
    shear_degrees: float = 0.0
    missing: int = 0
    gaps: tuple[tuple[int, int], ...] = ()
    uneven: bool = False
    phase: Mapping[str, Mark] = field(default_factory=dict)

    @property
    def affine(self) -> NDArray[np.float64]:
        """From (column, row, slice, 1) to millimetres left, posterior, superior (LPS+), 4 by 4.

        PS3.3 C.7.6.2.1.1. GEOMETRY_INVALID without a step.
        """
        if self.step is None:
            raise FluoroError(
                Reason.GEOMETRY_INVALID, "There is one slice, and nothing says how thick it is."
            )
        between_rows, between_columns = self.plane.spacing
        affine = np.eye(4)
        affine[:3, 0] = np.array(self.plane.row) * between_columns
        affine[:3, 1] = np.array(self.plane.column) * between_rows
        affine[:3, 2] = self.step
        affine[:3, 3] = self.slices[0].position
        return affine

    def check(self) -> None:
        """VOLUME_IRREGULAR if no affine says where all slices lie, or some are missing."""
        if self.missing:
            where = ", ".join(f"{count} behind slice {at + 1}" for at, count in self.gaps[:5])
            raise irregular(
                f"Of {len(self.slices) + self.missing} slices, {self.missing} are missing"
                + (f": {where}." if where else ", which other phases have.")
            )
        if self.uneven:
            raise irregular("The slices are not evenly spaced along a line.")


@dataclass(frozen=True, slots=True)
class Left:
    """Slices that make no volume, and why."""

    series: str
    count: int
    reason: Reason
    message: str


@dataclass(slots=True)
class Study:
    """What slices make."""

    volumes: list[Volume] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)


def study_of(slices: Iterable[Slice]) -> Study:
    """The volumes of these slices, by series and in the order in which they came."""
    study = Study()
    series: dict[tuple[str, Mark], list[Slice]] = {}
    whole, torn = without_torn(list(slices))
    for uid, count in torn.items():
        fault = irregular("A frame of a segmentation does not say which segment it belongs to.")
        study.left.append(Left(uid, count, Reason(fault.reason), fault.message))
    for each in whole:
        # Segments may lie beside each other, and then no place would tell that they are several.
        series.setdefault((each.series, each.marks[SEGMENT]), []).append(each)
    segmented: dict[str, list[Slice]] = {}
    for each in whole:
        if each.marks[SEGMENT]:
            segmented.setdefault(each.series, []).append(each)
    for (uid, segment), members in series.items():
        try:
            stacks = parallel(members)
            check_drift(stacks)
        except FluoroError as error:
            study.left.append(Left(uid, len(members), Reason(error.reason), error.message))
            continue
        for stack in stacks:
            try:
                unit = segments_apart(stack[0], segmented[uid]) if segment else 0
                study.volumes += volumes_of(stack, unit)
            except FluoroError as error:
                study.left.append(Left(uid, len(stack), Reason(error.reason), error.message))
    return study


def without_torn(slices: Sequence[Slice]) -> tuple[list[Slice], Counter[str]]:
    """The slices of sound series, and how many those have in which a frame has no segment.

    A segment that lacks one of its frames would look complete.
    """
    segmented = {each.file for each in slices if each.marks[SEGMENT]}
    torn = {each.series for each in slices if each.file in segmented and not each.marks[SEGMENT]}
    whole = [each for each in slices if each.series not in torn]
    return whole, Counter(each.series for each in slices if each.series in torn)


def parallel(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Groups of slices of one size and direction: a localizer has two or three."""
    exact: dict[Plane, list[Slice]] = {}
    for each in slices:
        exact.setdefault(each.plane, []).append(each)
    # Below, each is compared with every group: a hostile series would take quadratic time.
    if len(exact) > ORIENTATION_LIMIT:
        raise irregular(f"The slices have more than {ORIENTATION_LIMIT} directions or sizes.")
    groups: list[tuple[Plane, list[Slice]]] = []
    for plane, members in exact.items():
        near = (group for known, group in groups if alike(plane, known))
        if (group := next(near, None)) is None:
            groups.append((plane, list(members)))
        else:
            group.extend(members)
    return [group for _, group in groups]


def check_drift(stacks: Sequence[Sequence[Slice]]) -> None:
    """VOLUME_IRREGULAR if a stack goes on where another ends, and is turned a little.

    Then one volume was cut in two. Phases that are turned lie at the same places.
    """
    ends = [
        (stack[0].plane, min(along), max(along))
        for stack in stacks
        for along in [[dot(stacks[0][0].plane.normal, each.position) for each in stack]]
    ]
    for at, (plane, low, high) in enumerate(ends):
        for other, least, most in ends[:at]:
            apart = low > most or high < least
            turned = is_near(plane.row, other.row, DRIFT)
            turned = turned and is_near(plane.column, other.column, DRIFT)
            if apart and turned and same_size(plane, other):
                raise irregular("The direction of the slices drifts from one to the next.")


def order_in_space(places: Sequence[Place]) -> list[int]:
    """Numbers of these places: parallel ones together, along the normal of the first of them.

    What lies at one place stays in the order in which it came.
    """
    normals: list[Vector] = []
    ranks = []
    for number, (position, normal) in enumerate(places):
        near = (at for at, known in enumerate(normals) if is_near(normal, known))
        group = next(near, len(normals))
        # Past the limit all share the last group, so that the search above stays short.
        if group == len(normals) < ORIENTATION_LIMIT:
            normals.append(normal)
        group = min(group, len(normals) - 1)
        # Rounded to `SAME_PLACE_MM`, so that images of one place keep the order of their numbers.
        ranks.append((group, round(dot(normals[group], position), 2), number))
    return [number for *_, number in sorted(ranks)]


def is_near(one: Vector, other: Vector, tolerance: float = COSINE_TOLERANCE) -> bool:
    """Whether two unit vectors are the same, but for rounding."""
    return all(abs(a - b) <= tolerance for a, b in zip(one, other, strict=True))


def alike(one: Plane, other: Plane) -> bool:
    """Whether slices of the two planes may be of one volume."""
    return (
        same_size(one, other) and is_near(one.row, other.row) and is_near(one.column, other.column)
    )


def same_size(one: Plane, other: Plane) -> bool:
    """Whether slices of the two planes have as many pixels of one size, in one space."""
    sizes = [
        (each.frame_of_reference, each.rows, each.columns, each.samples) for each in (one, other)
    ]
    return sizes[0] == sizes[1] and all(
        abs(a - b) <= SPACING_TOLERANCE * b for a, b in zip(one.spacing, other.spacing, strict=True)
    )


def segments_apart(first: Slice, segmented: Sequence[Slice]) -> float:
    """Millimetres between slices of a segmentation, which may leave out those that are empty.

    first: of a segment. segmented: all frames of its series. 0 if nobody says.
    """
    normal = first.plane.normal
    along = np.unique([dot(normal, each.position) for each in segmented])
    steps = np.diff(along)
    least = float(min(steps[steps > SAME_PLACE_MM], default=0))
    # A segment with an empty slice behind each other one has no two that are neighbours.
    times = least / first.apart if first.apart else 0
    regular = abs(times - round(times)) <= UNEVEN and times > 1 - UNEVEN
    return first.apart if regular or not least else least


def volumes_of(stack: Sequence[Slice], unit: float = 0) -> Iterator[Volume]:
    """The volumes of parallel slices: one, or one for each phase.

    unit: millimetres between slices; 0 to take what most of them have.
    VOLUME_IRREGULAR if several slices lie at one place and nothing tells which belongs to which.
    """
    places = places_of(stack)
    phases = phases_of(places)
    if phases is None:
        crowded = sum(len(each) > 1 for each in places)
        raise irregular(
            f"At {crowded} of {len(places)} places there are several slices, and nothing in the "
            "files says which belongs to which volume."
        )
    varying = [
        number
        for number in range(len(MARKS))
        if len({phase[0].marks[number] for phase in phases}) > 1
    ]
    names = list(MARKS)
    for phase in phases:
        volume = fitted(phase, unit)
        # Where another phase has a slice and this one has none, one is missing, also at the ends.
        missing = max(volume.missing, len(places) - len(phase))
        told = {names[number]: phase[0].marks[number] for number in varying}
        if segment := phase[0].marks[SEGMENT]:
            told["segment"] = segment
        yield replace(volume, missing=missing, phase=told)


def places_of(stack: Sequence[Slice]) -> list[list[Slice]]:
    """The slices of each place, in the order of the normal, and there of their numbers."""
    plane = stack[0].plane
    # Pixels of microscopes are smaller than `SAME_PLACE_MM`, and so are their slices' distances.
    normal, near = plane.normal, min(SAME_PLACE_MM, 0.1 * min(plane.spacing))
    along = {id(each): dot(normal, each.position) for each in stack}
    places: list[list[Slice]] = []
    last = float("-inf")
    for each in sorted(stack, key=lambda each: along[id(each)]):
        if along[id(each)] - last > near:
            places.append([])
        last = along[id(each)]
        places[-1].append(each)
    for place in places:
        place.sort(key=lambda each: (each.number, each.file, each.frame))
    return places


def phases_of(places: Sequence[Sequence[Slice]]) -> list[list[Slice]] | None:
    """Groups with one slice at each place, told apart by their marks; None if these do not.

    A mark counts if each of its values is at more than half of the places: the time of acquisition
    may tell phases, or every slice from the next.
    """
    groups: list[list[tuple[int, Slice]]] = [
        [(place, each) for place, members in enumerate(places) for each in members]
    ]
    for mark in range(len(MARKS)):
        finer: list[list[tuple[int, Slice]]] = []
        for group in groups:
            parts = by_mark(group, mark) if is_crowded(group) else [group]
            half = len({place for place, _ in group}) / 2
            telling = all(len({place for place, _ in part}) > half for part in parts)
            finer += parts if telling else [group]
        groups = finer
    if any(map(is_crowded, groups)):
        return None
    return [[each for _, each in group] for group in groups]


def is_crowded(group: Sequence[tuple[int, Slice]]) -> bool:
    """Whether two slices of the group lie at one place."""
    return len({place for place, _ in group}) < len(group)


def by_mark(group: Sequence[tuple[int, Slice]], mark: int) -> list[list[tuple[int, Slice]]]:
    """The group by values of a mark, in their order, each part in the order of places."""
    parts: dict[Mark, list[tuple[int, Slice]]] = {}
    for place, each in group:
        parts.setdefault(each.marks[mark], []).append((place, each))
    return [parts[value] for value in sorted(parts, key=rank)]


def rank(value: Mark) -> tuple[Any, ...]:
    """Numbers before texts."""
    # One slice may have a mark that another lacks, and Python does not compare text with numbers.
    return (1, value) if isinstance(value, str) else (0, *value)


def fitted(slices: Sequence[Slice], unit: float) -> Volume:
    """The volume of slices in order, one at each place, and how well they keep to a line.

    unit: as of `volumes_of`.
    """
    first, plane = slices[0], slices[0].plane
    normal = np.array(plane.normal)
    if len(slices) == 1:
        pitch = unit or first.pitch
        only = scaled(plane.normal, pitch) if pitch else None
        return Volume(first.series, plane, tuple(slices), only)
    points = np.array([each.position for each in slices])
    steps = np.diff(points @ normal)
    known = unit > 0
    # A step over a missing slice is twice as long at least. The median of the short steps is the
    # spacing, however many slices are missing.
    counts = np.rint(steps / (unit or float(np.median(steps[steps < 1.5 * steps.min()]))))
    # So many gaps mean that two slices lie close to each other rather than that others are missing.
    sparse = not known and counts.sum() > 2 * len(steps)
    if sparse:
        counts = np.ones_like(counts)
    index = np.concatenate(([0.0], np.cumsum(counts)))
    vector = (points[-1] - points[0]) / index[-1]
    off = points - (points[0] + index[:, None] * vector)
    along, forward = off @ normal, float(vector @ normal)
    pixel = min(plane.spacing)
    aside = np.linalg.norm(off - along[:, None] * normal, axis=1).max()
    uneven = sparse or np.abs(along).max() > UNEVEN * forward or aside > ASIDE * pixel
    sideways = float(np.linalg.norm(vector - forward * normal))
    # Less than that over the whole stack is rounding of positions, and the step follows the normal.
    sheared = sideways * index[-1] > ASIDE * pixel
    step = vector if sheared else normal * forward
    return Volume(
        first.series,
        plane,
        tuple(slices),
        (float(step[0]), float(step[1]), float(step[2])),
        shear_degrees=degrees(atan2(sideways, forward)) if sheared else 0.0,
        missing=int(counts.sum()) - len(steps),
        gaps=tuple((at, int(count) - 1) for at, count in enumerate(counts) if count > 1),
        uneven=bool(uneven),
    )


def irregular(message: str) -> FluoroError:
    """The slices make no volume."""
    return FluoroError(Reason.VOLUME_IRREGULAR, message)
