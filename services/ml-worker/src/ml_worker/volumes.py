"""Where the slices of a series lie, and whether they make a volume that a model is made for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from fluoro.v1 import dicom_pb2
from numpy.typing import NDArray

from ml_worker.manifest import VolumeLimits
from ml_worker.prepare import NotForThisImageError

AXES: Final = 3
EVEN: Final = 0.05
"""How much gaps between slices may differ, relative to the largest: positions are rounded."""
UNIT: Final = 1e-2
"""How far direction cosines may be from unit vectors at a right angle."""


@dataclass(frozen=True, slots=True)
class Plane:
    """A frame of an image: its number among the series' images, and the frame's in there."""

    image: int
    frame: int


@dataclass(frozen=True, slots=True)
class Volume:
    """Planes in the order of their places.

    spacing_mm: of planes, rows and columns. turn: for each axis of the patient, from feet to head,
    front to back and right to left, the axis of the volume that lies along it, and whether it runs
    the other way.
    """

    planes: Sequence[Plane]
    spacing_mm: tuple[float, float, float]
    turn: Sequence[tuple[int, bool]]

    def to_patient(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Axes of planes, rows and columns, the last three, as the patient lies."""
        ahead = volume.ndim - AXES
        order = [*range(ahead), *(ahead + axis for axis, _ in self.turn)]
        back = [ahead + number for number, (_, is_back) in enumerate(self.turn) if is_back]
        turned: NDArray[Any] = np.flip(volume.transpose(order), tuple(back))
        return turned

    def to_slices(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Undoes `to_patient`."""
        ahead = volume.ndim - AXES
        back = [ahead + number for number, (_, is_back) in enumerate(self.turn) if is_back]
        # The inverse of a permutation.
        order = np.argsort([axis for axis, _ in self.turn]) + ahead
        turned: NDArray[Any] = np.flip(volume, tuple(back))
        return turned.transpose([*range(ahead), *order.tolist()])


def series_of(image: dicom_pb2.RenderedImage) -> tuple[object, ...]:
    """What the images of one volume have in common."""
    numbers = (*image.image_orientation, *image.pixel_spacing_mm)
    # Rounded, because slices of one series may differ in the last digit.
    place = tuple(f"{number:.4f}" for number in numbers)  # what is not a number equals itself
    own = image.series_instance_uid or image.sop_instance_uid or image.pixels
    certificate = image.certificate
    return own, image.modality, place, tuple(certificate.shape[1:]), certificate.unit


def volume_of(images: Sequence[dicom_pb2.RenderedImage], limits: VolumeLimits) -> Volume:
    """The volume of a series, which has at least one image.

    NotForThisImageError if its slices make none, or one beyond the limits.
    """
    directions = _directions(images[0])
    at = _heights(images, directions[0])
    # A model of volumes that sees a few slices says something all the same, and it means nothing.
    if len(at) < limits.planes:
        raise NotForThisImageError(f"it needs {limits.planes} slices of a series, or more")
    planes = sorted(at, key=at.__getitem__)
    gaps = np.diff([at[plane] for plane in planes])
    # A missing slice would move all that lies behind it.
    if gaps.min() <= 0 or np.ptp(gaps) > EVEN * gaps.max():
        raise NotForThisImageError("its series has slices missing, or several in one place")
    spacing = (float(gaps.mean()), *images[0].pixel_spacing_mm)
    if len(spacing) != AXES or not np.isfinite(spacing).all() or min(spacing) <= 0:
        raise NotForThisImageError("it needs a known Pixel Spacing")
    size = (len(planes), *images[0].certificate.shape[1:AXES])
    _check(spacing, size, limits)
    return Volume(planes, spacing, _turn(directions, limits))


def _directions(image: dicom_pb2.RenderedImage) -> NDArray[np.float64]:
    """Unit vectors from plane to plane, row to row and column to column, in DICOM's coordinates."""
    if len(image.image_orientation) != 2 * AXES:
        raise NotForThisImageError("it needs a known Image Orientation (Patient)")
    row, column = np.array(image.image_orientation, np.float64).reshape(2, AXES)
    normal = np.cross(row, column)
    vectors = np.stack([normal, column, row])
    # Vectors that are no rotation would mirror or shear the anatomy.
    if not np.allclose(vectors @ vectors.T, np.eye(AXES), atol=UNIT):
        raise NotForThisImageError("its Image Orientation (Patient) is impossible")
    return vectors


def _heights(
    images: Sequence[dicom_pb2.RenderedImage], normal: NDArray[np.float64]
) -> dict[Plane, float]:
    """How far along the normal each plane lies, millimetres."""

    def each() -> Iterator[tuple[Plane, float]]:
        for number, image in enumerate(images):
            frames = image.certificate.shape[0]
            if len(image.image_positions_mm) != frames * AXES:
                raise NotForThisImageError("it needs a known Image Position (Patient)")
            positions = np.array(image.image_positions_mm).reshape(frames, AXES)
            for frame, height in enumerate((positions @ normal).tolist()):
                yield Plane(number, frame), height

    return dict(each())


def _check(spacing: Sequence[float], size: Sequence[int], limits: VolumeLimits) -> None:
    low, high = limits.spacing_mm
    if min(spacing) < low or max(spacing) > high:
        raise NotForThisImageError(f"it needs voxels with sides of {low:g} to {high:g} mm")
    if max(spacing) > limits.anisotropy * min(spacing):
        raise NotForThisImageError(
            f"it needs voxels that are at most {limits.anisotropy:g} times as long as wide"
        )
    extents = [length * side for length, side in zip(size, spacing, strict=True)]
    low, high = limits.extent_mm
    if min(extents) < low or max(extents) > high:
        raise NotForThisImageError(f"it needs a volume with sides of {low:g} to {high:g} mm")


def _turn(directions: NDArray[np.float64], limits: VolumeLimits) -> list[tuple[int, bool]]:
    # In DICOM x runs to the left, y to the back and z to the head.
    turn: list[tuple[int, bool]] = []
    for axis in (2, 1, 0):
        along = directions[:, axis]
        nearest = int(np.abs(along).argmax())
        # Two axes of a slanted volume may be nearest to the same one of the patient, and then
        # nothing fits.
        if abs(along[nearest]) < np.cos(np.radians(limits.tilt_degrees)):
            raise NotForThisImageError(
                f"it needs slices within {limits.tilt_degrees:g} degrees of an axis of the patient"
            )
        turn.append((nearest, bool(along[nearest] < 0)))
    return turn
