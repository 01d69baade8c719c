"""The JSON beside a volume: where it lies, and nothing of the patient."""

import json
from typing import Any, Final

import numpy as np

from dicom_worker.convert.arrays import Array
from dicom_worker.convert.nifti import ras
from dicom_worker.studies.slices import told
from dicom_worker.studies.volumes import Volume

BIDS_PHASE: Final = {"echo_time_ms": ("EchoTime", 1000), "trigger_time_ms": ("TriggerDelayTime", 1)}
"""Marks that BIDS has a name for, and how much of ours makes one of its units."""


def geometry(volume: Volume, array: Array, modality: str, thickness: float) -> dict[str, Any]:
    """What is known of a volume.

    axes: what the dimensions of the array are, first to last, a colour's red, green and blue being
    the last; shape, spacing and the columns of direction are in this order. origin_mm: centre of
    the first voxel, direction: unit vectors, both in DICOM's coordinates (LPS+). affine_lps,
    affine_ras: from (column, row, slice, 1) to millimetres. Names in capitals are those of BIDS.
    """
    affine = volume.affine
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / sides
    assert array.writer.dtype is not None
    found = {
        "axes": ["slice", "row", "column", "channel"][: len(array.writer.shape) + 1],
        "shape": [array.writer.frames, *array.writer.shape],
        "dtype": array.writer.dtype.str,
        "unit": array.unit,
        # The affine takes (column, row, slice); the array has them the other way round.
        "spacing_mm": sides[::-1].tolist(),
        "origin_mm": affine[:3, 3].tolist(),
        "direction": directions[:, ::-1].tolist(),
        "affine_lps": affine.tolist(),
        # Adding 0 makes 0 of -0, which JSON would show.
        "affine_ras": (ras(affine) + 0.0).tolist(),
        "shear_degrees": volume.shear_degrees,
        "phase": told(volume.phase),
        "Modality": modality,
        "ImageOrientationPatientDICOM": [*volume.plane.row, *volume.plane.column],
        "SpacingBetweenSlices": float(sides[2]),
        "ConversionSoftware": "Fluoro",
    }
    if thickness > 0:
        found["SliceThickness"] = thickness
    for name, (key, units) in BIDS_PHASE.items():
        mark = volume.phase.get(name)
        if isinstance(mark, tuple) and len(mark) == 1:
            found[key] = mark[0] / units
    return found


def as_json(found: dict[str, Any]) -> bytes:
    """For the artifact."""
    return json.dumps(found, indent=2).encode() + b"\n"
