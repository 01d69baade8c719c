"""Decodes the slices of one series into an array for each of its volumes.

Files are decoded once each, frame by frame, and every frame goes to its place on disk: memory is
that of a frame, however large the volumes are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray

from dicom_worker import limits
from dicom_worker.convert.gather import EIGHT_BITS, Source
from dicom_worker.pixels.certificate import FrameCertificate
from dicom_worker.pixels.decoders import decode_frames
from dicom_worker.pixels.modality import narrow
from dicom_worker.pixels.npy import NpyWriter
from dicom_worker.studies.volumes import Volume, irregular

VALUE_BYTES: Final = 4
"""The most that a value takes; a colour is three."""

NARROWED: Final[dict[str, Callable[[NDArray[Any]], NDArray[Any]]]] = {
    "grey": narrow,
    EIGHT_BITS: lambda colours: colours.astype(np.uint8, copy=False),
}
"""What values are → their smallest dtype. Cells may have 16 bits for colours of 8."""


@dataclass(frozen=True, slots=True)
class Array:
    """The values of a volume, an NPY file of shape (slices, rows, columns), or with 3 for RGB.

    unit: `HU`, `Gy` or `1`. sha256: of the array's bytes. certificates: of each slice's stored
    values.
    """

    writer: NpyWriter
    sha256: bytes
    unit: str
    certificates: Sequence[FrameCertificate]


def arrays_of(
    volumes: Sequence[Volume],
    sources: Mapping[int, Source],
    folder: Path,
    check: Callable[[], None],
) -> list[Array]:
    """The arrays of the volumes of one series, written into the folder.

    check: called between frames; stops by raising. FluoroError as `decode_frames`, IMAGE_TOO_LARGE
    before anything is written, VOLUME_IRREGULAR if units differ within a volume.
    """
    check_size(volumes)
    places = {
        (each.file, each.frame): (number, at)
        for number, volume in enumerate(volumes)
        for at, each in enumerate(volume.slices)
    }
    writers = [NpyWriter(folder / f"volume-{number}.npy") for number in range(len(volumes))]
    certificates: list[dict[int, FrameCertificate]] = [{} for _ in volumes]
    units: list[set[str]] = [set() for _ in volumes]
    for file in dict.fromkeys(each.file for volume in volumes for each in volume.slices):
        source = sources[file]
        convert = source.convert()
        narrowed = NARROWED.get(source.values, np.asarray)
        for frame, decoded in enumerate(decode_frames(source.file)):
            check()
            # A frame of a series that was left out, in a file that other volumes need.
            if (place := places.get((file, frame))) is None:
                continue
            number, at = place
            values, unit = convert(frame, decoded.values)
            writers[number].put(at, narrowed(values))
            certificates[number][at] = decoded.certificate
            units[number].add(unit)
    if any(len(each) > 1 for each in units):
        raise irregular("The values of some slices have another unit than those of others.")
    return [
        Array(writer, writer.close(), one.pop(), [known[at] for at in range(len(known))])
        for writer, one, known in zip(writers, units, certificates, strict=True)
    ]


def check_size(volumes: Sequence[Volume]) -> None:
    """IMAGE_TOO_LARGE if a volume, or all of them, would take more than their limit."""
    sizes = [
        len(volume.slices) * plane.rows * plane.columns * plane.samples * VALUE_BYTES
        for volume in volumes
        for plane in [volume.plane]
    ]
    if max(sizes) > limits.ARRAY_LIMIT_BYTES or sum(sizes) > limits.SERIES_LIMIT_BYTES:
        raise FluoroError(
            Reason.IMAGE_TOO_LARGE,
            f"A volume would have more than {limits.ARRAY_LIMIT_BYTES} bytes, or those of its "
            f"series {limits.SERIES_LIMIT_BYTES}.",
        )
