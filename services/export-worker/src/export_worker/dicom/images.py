"""What there is of each image, and which images make one object."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Final

import numpy as np
from fluoro.v1 import dermoscopy_pb2, dicom_pb2, ml_pb2
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import NO_INPUT, StepContext, StepItem
from google.protobuf.message import Message
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from export_worker.dicom.origin import identity
from export_worker.dicom.sources import Source
from export_worker.findings import Told, told_of
from export_worker.images import model_of

EVEN: Final = 0.01
"""How much gaps between slices may differ, relative to the largest."""

VOXELS_LIMIT: Final = 2**29
"""Most of one segmentation: 2,048 slices of 512 x 512.

As bits it takes 1.3 times as many bytes of memory, as a label map three times.
"""

LABELS: Final = np.uint8
"""Type of a label map's values."""


Volumes = Mapping[tuple[str, AbstractSet[str]], ml_pb2.VolumeFinding]


@dataclass(frozen=True, slots=True)
class Found:
    """What one step found in one image.

    label_map: the file, of the shape of the image. offset: of its voxels, if they lie as NumPy
    lays them by default (order C). sha256: of its voxels.
    """

    model: ml_pb2.ModelReference
    finding: ml_pb2.ImageFinding
    label_map: Path
    offset: int | None
    sha256: bytes

    def read_into(self, target: NDArray[np.uint8]) -> None:
        """Reads the voxels. target: (frames, rows, columns), in one piece of memory."""
        # In another order the bytes cannot be read straight into place.
        if self.offset is None:
            target[:] = open_map(self.label_map)
            return
        with self.label_map.open("rb", buffering=0) as file:
            file.seek(self.offset)
            left = target.data.cast("B")
            # The kernel may give less than was asked for, 2 GiB at most.
            while len(left) and (count := file.readinto(left)):
                left = left[count:]
        if len(left):
            raise mismatch("is not a whole NPY file")


@dataclass(slots=True)
class Image:
    """One item.

    number, key: of the input. found: by step. unit: of the values that were measured, UCUM.
    input: number of the job's input, or -1. artifacts: names of those that it has left by itself.
    told: what steps said of it, label maps aside, by step.
    """

    number: int
    key: str
    source: Source
    found: dict[str, Found] = field(default_factory=dict)
    unit: str = ""
    input: int = NO_INPUT
    artifacts: list[str] = field(default_factory=list)
    told: dict[str, list[Told]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stack:
    """Images of one series in one grid, in order of their places.

    One step has labelled them, with one model.
    """

    step: str
    images: Sequence[Image]

    @property
    def sources(self) -> list[Source]:
        """Of its images."""
        return [image.source for image in self.images]

    @property
    def found(self) -> list[Found]:
        """What the step found, by image."""
        return [image.found[self.step] for image in self.images]

    @property
    def spacing_mm(self) -> float | None:
        """Between neighbours; None of one image, or where it differs by more than a percent."""
        places = [source.position for source in self.sources if source.position is not None]
        gaps = np.diff(places)
        # Slices at one place, or uneven ones, have no spacing that would be true of all.
        if not len(gaps) or gaps.min() <= 0 or np.ptp(gaps) > EVEN * gaps.max():
            return None
        return float(gaps.mean())

    @property
    def model(self) -> ml_pb2.ModelReference:
        """What labelled them."""
        return self.found[0].model

    @property
    def digest(self) -> list[bytes]:
        """What tells it from any other of its step."""
        return [
            identity(self.model),
            *(
                part
                for image in self.images
                for part in (
                    image.source.encoded,
                    image.found[self.step].finding.SerializeToString(deterministic=True),
                    image.found[self.step].sha256,
                )
            ),
        ]

    def volume_ml(self, volumes: Volumes) -> Mapping[int, float]:
        """By label, of a model that saw these images as one volume: it counts gaps between them."""
        volume = volumes.get((self.step, frozenset(image.key for image in self.images)))
        measured = volume.measurements if volume else ()
        return {one.label: one.volume_ml for one in measured if one.HasField("volume_ml")}

    def label_map(self, most_voxels: int = VOXELS_LIMIT) -> NDArray[np.uint8]:
        """Of all images (frames, rows, columns). FluoroError IMAGE_TOO_LARGE over the limit."""
        voxels = sum(math.prod(source.shape) for source in self.sources)
        if voxels > most_voxels:
            raise FluoroError(
                Reason.IMAGE_TOO_LARGE,
                f"A series has more than {most_voxels:,} voxels. Export parts of it.",
            )
        counts = [source.frames for source in self.sources]
        # Filled in place: a list of maps that is joined afterwards would take twice the memory.
        whole = np.empty((sum(counts), *self.sources[0].shape[1:]), LABELS)
        for end, frames, found in zip(accumulate(counts), counts, self.found, strict=True):
            found.read_into(whole[end - frames : end])
        return whole


def findings_of(
    results: Mapping[str, Message],
) -> Mapping[tuple[str, str], tuple[ml_pb2.ModelReference, ml_pb2.ImageFinding]]:
    """Model and finding by step and name of the label map."""
    return {
        (step, finding.label_map): (model_of(result, finding), finding)
        for step, result in results.items()
        if isinstance(result, ml_pb2.AnalyzeImagesResult)
        for finding in result.findings
    }


def overlaid_by(results: Mapping[str, Message]) -> Mapping[tuple[str, str], ml_pb2.ModelReference]:
    """The model by step and name of the overlay."""
    analyzed = {
        (step, finding.overlay): model_of(result, finding)
        for step, result in results.items()
        if isinstance(result, ml_pb2.AnalyzeImagesResult)
        for finding in result.findings
    }
    assessed = {
        (step, lesion.overlay): lesion.model
        for step, result in results.items()
        if isinstance(result, dermoscopy_pb2.AssessDermoscopyResult)
        for lesion in result.lesions
    }
    return {**analyzed, **assessed}


def volumes_by(results: Mapping[str, Message]) -> Volumes:
    """What models of volumes measured, by step and keys of the images of the volume."""
    return {
        (step, frozenset(volume.items)): volume
        for step, result in results.items()
        if isinstance(result, ml_pb2.AnalyzeImagesResult)
        for volume in result.volumes
    }


def told_by(results: Mapping[str, Message]) -> Mapping[str, dict[str, list[Told]]]:
    """What steps said of images, by key of the image and step."""
    told: dict[str, dict[str, list[Told]]] = {}
    for step, result in results.items():
        for one in told_of(result):
            told.setdefault(one.item, {}).setdefault(step, []).append(one)
    return told


def references(told: Iterable[Mapping[str, list[Told]]]) -> set[str]:
    """Keys of the images that others are compared with."""
    ones = chain.from_iterable(steps.values() for steps in told)
    return {one.reference for one in chain.from_iterable(ones) if one.reference}


def units_of(context: StepContext) -> Mapping[str, str]:
    """Unit of the values by key of the image."""
    results = [*context.results.values(), *(step.result for step in context.upstream)]
    return {
        image.item: image.certificate.unit
        for result in results
        if isinstance(result, dicom_pb2.RenderDicomResult)
        for image in result.images
    }


def take_maps(
    item: StepItem,
    image: Image,
    findings: Mapping[tuple[str, str], tuple[ml_pb2.ModelReference, ml_pb2.ImageFinding]],
    context: StepContext,
) -> None:
    """Fetches its label maps. FluoroError LABEL_MAP_MISMATCH if one does not fit the image."""
    for part in item.parts:
        # The outline of a lesion is told in words: its values are no classes of a model.
        outline = isinstance(context.results.get(part.step), dermoscopy_pb2.AssessDermoscopyResult)
        if part.role != "label-map" or part.step in image.found or outline:
            continue
        if (known := findings.get((part.step, part.name))) is None:
            raise mismatch("has no findings beside it")
        path = context.fetch(part.blob)
        labels = open_map(path)
        if labels.shape != image.source.shape:
            raise mismatch("has other frames, rows or columns than the image")
        model, finding = known
        # 0 is the background, which models need not measure.
        values = {measurement.label for measurement in finding.measurements} | {0}
        if not has_only(labels, values):
            # highdicom would refuse them as well, and the whole series with them.
            raise mismatch("has values that are no class of the model")
        # Of the voxels, because two writers of NPY may differ in the header alone.
        digest = hashlib.sha256(np.ascontiguousarray(labels).data).digest()
        offset = labels.offset if labels.flags.c_contiguous else None
        image.found[part.step] = Found(model, finding, path, offset, digest)


def has_only(labels: NDArray[np.uint8], values: AbstractSet[int]) -> bool:
    """Whether there are no other values."""
    # Values of models have no gaps, and counting takes ten times as long as the largest.
    if max(values) == len(values) - 1:
        return int(labels.max(initial=0)) < len(values)
    return set(np.flatnonzero(np.bincount(labels.ravel())).tolist()) <= values


def open_map(path: Path) -> "np.memmap[Any, np.dtype[np.uint8]]":
    """Maps a label map into memory. FluoroError LABEL_MAP_MISMATCH if it is none."""
    try:
        labels = open_memmap(path, mode="r")
    except (ValueError, TypeError, SyntaxError, OverflowError, EOFError):
        raise mismatch("is not a whole NPY file") from None
    if labels.dtype != LABELS:
        raise mismatch("is not of type uint8")
    return labels


def mismatch(what: str) -> FluoroError:
    """The refusal. what: goes on after `The label map`."""
    return FluoroError(
        Reason.LABEL_MAP_MISMATCH,
        f"The label map {what}, so no object was made of it. Take both from one chain of steps.",
    )


def stacks_of(images: Sequence[Image]) -> Iterator[Stack]:
    """What one object each is made of, in the order of the items."""
    together: dict[tuple[object, ...], list[Image]] = {}
    for image in images:
        for step in image.found:
            model = identity(image.found[step].model)
            together.setdefault((step, model, *image.source.grid), []).append(image)
    for (name, *_), ones in together.items():
        yield Stack(str(name), sorted(ones, key=in_space))


def in_space(image: Image) -> tuple[float, int, str]:
    """Sorts images along their normal, then by Instance Number (0020,0013)."""
    source = image.source
    return source.position or 0.0, source.number, source.instance
