"""Turns counts and sums of voxels into measurements."""

import math
from collections.abc import Sequence
from typing import Any, Final

from fluoro.v1 import dicom_pb2, ml_pb2
from numpy.typing import NDArray

from ml_worker.manifest import Label

MM3_PER_ML: Final = 1000.0


def measure(
    labels: Sequence[Label],
    voxels: NDArray[Any],
    sums: NDArray[Any],
    image: dicom_pb2.RenderedImage,
) -> list[ml_pb2.Measurement]:
    """One measurement per label. voxels, sums: of its voxels and their values, both (labels,).

    The volume takes Slice Thickness (0018,0050) as the depth of a voxel, so gaps between slices do
    not count. A mean is absent if there are no voxels, or if values are NaN or infinite.
    """
    total = int(voxels.sum())
    volume = voxel_volume_ml(image)
    measurements = []
    for label, count, value_sum in zip(labels, voxels.tolist(), sums.tolist(), strict=True):
        measurement = ml_pb2.Measurement(
            label=label.value,
            display_name=label.display_name,
            voxels=count,
            fraction=count / total,
            color=label.color or "",
            codes=label.coded,
        )
        if volume is not None:
            measurement.volume_ml = count * volume
        # An image may hold infinities and NaN, and a mean of them says nothing.
        if count and math.isfinite(value_sum):
            measurement.mean_value = value_sum / count
        measurements.append(measurement)
    return measurements


def voxel_volume_ml(image: dicom_pb2.RenderedImage) -> float | None:
    """Volume of one voxel in millilitres, None when spacing or thickness is unknown."""
    # A volume from a guessed side would be wrong by its factor, and look like any other.
    sides = [*image.pixel_spacing_mm, image.slice_thickness_mm]
    if len(image.pixel_spacing_mm) != len(("rows", "columns")) or not all(
        math.isfinite(side) and side > 0 for side in sides
    ):
        return None
    return math.prod(sides) / MM3_PER_ML
