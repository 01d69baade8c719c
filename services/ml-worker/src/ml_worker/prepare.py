"""Turns certified pixels into the tensor that a model takes, as its manifest says."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from fluoro.v1 import dicom_pb2
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray
from PIL import Image

from ml_worker.manifest import Input, Prepare

LUMA: Final = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in grey: ITU-R BT.601, as in JPEG."""
MAX_VOXELS: Final = 512 * 2**20
"""Most voxels of one tensor, all channels together: 2 GiB of float32."""

Box = tuple[slice, slice]
"""Rows and columns."""

_FILTERS: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


class NotForThisImageError(Exception):
    """The image lacks what the model needs; the text says what, without values of the image."""


def prepare(frames: NDArray[Any], image: dicom_pb2.RenderedImage, tensor: Input) -> NDArray[Any]:
    """The tensor of these frames, axes and dtype as its manifest has them.

    frames: (frames, rows, columns) or with 3 samples (red, green, blue) behind. Each is a sample of
    its own, or a plane of the only sample if the layout has D. NotForThisImageError if the image
    lacks spacing or depth that is needed. Memory is that of the tensor and a few planes.
    """
    how = tensor.image
    assert how is not None  # the caller looked
    if (taken := _as_they_are(frames, tensor, how)) is not None:
        return taken
    # Frames, channels, rows, columns. What is taken as it is, is copied once.
    volume: NDArray[np.float32] = (
        frames[:, np.newaxis].astype(np.float32)
        if how == Prepare() and frames.ndim == 3  # noqa: PLR2004 - frames, rows, columns
        else np.stack([_frame(one, image, tensor, how) for one in frames])
    )
    return (
        _as_volume(volume, image, tensor)
        if "D" in tensor.layout
        else _laid_out(volume, "NCHW", tensor)
    )


def prepare_planes(
    planes: Iterable[NDArray[Any]], image: dicom_pb2.RenderedImage, tensor: Input
) -> NDArray[Any]:
    """The same of a volume whose planes (rows, columns) come one by one.

    Memory is that of the planes in the size of the tensor. image: what all planes have in common.
    """
    how = tensor.image
    assert how is not None  # the caller looked
    return _as_volume(np.stack([_frame(one, image, tensor, how) for one in planes]), image, tensor)


def _as_volume(
    planes: NDArray[np.float32], image: dicom_pb2.RenderedImage, tensor: Input
) -> NDArray[Any]:
    """The tensor of one sample. planes: (planes, channels, rows, columns), each as it shall be."""
    how = tensor.image
    assert how is not None  # the caller looked
    depth = _depth(len(planes), image, tensor, how)
    return _laid_out(along_planes(planes, depth)[np.newaxis], "NDCHW", tensor)


def _laid_out(volume: NDArray[np.float32], axes: str, tensor: Input) -> NDArray[Any]:
    """Normalised, with the axes and the dtype of the tensor."""
    how = tensor.image
    assert how is not None  # the caller looked
    volume = _normalised(volume, how, axes.index("C"))
    if "C" not in tensor.layout:
        volume, axes = volume.squeeze(axes.index("C")), axes.replace("C", "")
    ordered: NDArray[Any] = volume.transpose([axes.index(letter) for letter in tensor.layout])
    if np.dtype(tensor.dtype).kind in "iu":
        limits = np.iinfo(tensor.dtype)
        # astype alone cuts off fractions and wraps around what does not fit.
        ordered = np.clip(np.rint(ordered), limits.min, limits.max)
    return np.ascontiguousarray(ordered, tensor.dtype)


def _as_they_are(frames: NDArray[Any], tensor: Input, how: Prepare) -> NDArray[Any] | None:
    """Colour frames for a tensor that holds just them, None for another one.

    Tiles of slides come by the thousand: this spares them a way through floats.
    """
    size = (tensor.axis("H"), tensor.axis("W"))
    same = frames.ndim == 4 and frames.dtype == tensor.dtype and frames.shape[1:3] == size  # noqa: PLR2004 - with samples
    plain = how.model_copy(update={"resize": None}) == Prepare(colour="rgb")
    return np.ascontiguousarray(frames) if same and plain and tensor.layout == "NHWC" else None


def size_in_space(
    frame: Sequence[int], image: dicom_pb2.RenderedImage, tensor: Input
) -> tuple[int, ...]:
    """Rows and columns of the tensor of frames of that size (rows, columns).

    As `prepare`: ask it first, because this costs no memory.
    """
    how, fixed = tensor.image, (tensor.axis("H"), tensor.axis("W"))
    assert how is not None  # the caller looked
    rows, columns = _at_spacing(frame, image, how)
    # The spacing comes from the file: a false one could ask for any amount of memory.
    if rows * columns * how.channels > MAX_VOXELS:
        raise FluoroError(
            Reason.IMAGE_TOO_LARGE,
            "At the spacing that the model needs, the image has more voxels than a run may have.",
        )
    return (
        fixed[0] if isinstance(fixed[0], int) else rows,
        fixed[1] if isinstance(fixed[1], int) else columns,
    )


def visible(frame: Sequence[int], image: dicom_pb2.RenderedImage, tensor: Input) -> tuple[Box, Box]:
    """Which box of the tensor shows which box of a frame of that size (rows, columns).

    Outside of it lie the padding of `fit` in the tensor, and what `cover` cuts off in the frame.
    """
    how, fixed = tensor.image, (tensor.axis("H"), tensor.axis("W"))
    assert how is not None  # the caller looked
    there = _at_spacing(frame, image, how)
    whole = slice(0, frame[0]), slice(0, frame[1])
    rows, columns = fixed
    if not isinstance(rows, int) or not isinstance(columns, int):
        return (slice(0, there[0]), slice(0, there[1])), whole
    if how.resize == "stretch":
        return (slice(0, rows), slice(0, columns)), whole
    size, ours, theirs = _placed(there, (rows, columns), how)
    down, across = (
        # Outwards to whole pixels, so that the box holds all that the model saw.
        slice(one.start * length // scaled, -(-one.stop * length // scaled))
        for one, length, scaled in zip(theirs, frame, size, strict=True)
    )
    return ours, (down, across)


def _frame(
    frame: NDArray[Any], image: dicom_pb2.RenderedImage, tensor: Input, how: Prepare
) -> NDArray[np.float32]:
    """Channels, rows and columns of one frame. Memory is that of a few of its planes."""
    size = _at_spacing(frame.shape[:2], image, how)[-2:]
    planes = []
    for plane in _channels(frame, how):
        mapped = _mapped(plane, frame.dtype, image, how)
        at_spacing = resized(mapped, size, how)
        planes.append(_to_size(at_spacing, tensor, how))
    return np.stack(planes)


def _channels(frame: NDArray[Any], how: Prepare) -> list[NDArray[np.float32]]:
    in_colour = frame.ndim == 3  # noqa: PLR2004 - rows, columns, samples
    if how.colour == "grey":
        return [frame.astype(np.float32) @ LUMA if in_colour else frame.astype(np.float32)]
    order = (2, 1, 0) if how.colour == "bgr" else (0, 1, 2)
    if in_colour:
        return [frame[..., sample].astype(np.float32) for sample in order]
    # The same plane thrice, not copied: nothing below changes it in place.
    return [frame.astype(np.float32)] * len(order)


def _mapped(
    plane: NDArray[np.float32], dtype: np.dtype[Any], image: dicom_pb2.RenderedImage, how: Prepare
) -> NDArray[np.float32]:
    values = how.values
    if values is None:
        return plane
    if values.source == "full":
        # `full` is what the image can hold. Signed values and floats have no such range.
        if dtype.kind != "u":
            raise NotForThisImageError("it needs pixels that are unsigned integers")
        # 12 bits in words of 16 would otherwise come out sixteen times too dark.
        bits = image.certificate.bits_stored or dtype.itemsize * 8
        low, high = 0.0, float(2**bits - 1)
    else:
        low, high = values.source
    to_low, to_high = values.target
    scaled = (np.clip(plane, low, high) - low) * ((to_high - to_low) / (high - low)) + to_low
    mapped: NDArray[np.float32] = scaled.astype(np.float32)
    return mapped


def _at_spacing(
    size: Sequence[int], image: dicom_pb2.RenderedImage, how: Prepare
) -> tuple[int, ...]:
    """Rows and columns of a frame once it has the spacing that the model needs."""
    if how.spacing_mm is None:
        return tuple(size)
    known = list(image.pixel_spacing_mm)
    if len(known) != len(size) or not all(np.isfinite(known)) or min(known) <= 0:
        raise NotForThisImageError("it needs a known Pixel Spacing")
    return tuple(
        _scaled(length, there / wanted)
        for length, there, wanted in zip(size, known, how.spacing_mm[-2:], strict=True)
    )


def _depth(planes: int, image: dicom_pb2.RenderedImage, tensor: Input, how: Prepare) -> int:
    """How many planes the tensor has."""
    if how.spacing_mm is not None:
        thickness = image.slice_thickness_mm
        # A guess at the depth would show the model an anatomy that is pressed or stretched.
        if not np.isfinite(thickness) or thickness <= 0:
            raise NotForThisImageError("it needs a known Slice Thickness")
        planes = _scaled(planes, thickness / how.spacing_mm[0])
    fixed = tensor.axis("D")
    return fixed if isinstance(fixed, int) else planes


def _scaled(length: int, factor: float) -> int:
    # Bounded before it is an integer: the factor comes from the file.
    return max(1, round(min(length * factor, MAX_VOXELS)))


def _to_size(plane: NDArray[np.float32], tensor: Input, how: Prepare) -> NDArray[np.float32]:
    """The plane in the tensor's fixed rows and columns, if it has such."""
    rows, columns = tensor.axis("H"), tensor.axis("W")
    if not isinstance(rows, int) or not isinstance(columns, int):
        return plane
    if how.resize == "stretch":
        return resized(plane, (rows, columns), how)
    size, ours, theirs = _placed(plane.shape, (rows, columns), how)
    scaled = resized(plane, size, how)
    # The padding of the manifest and not 0, which is a tissue in Hounsfield units.
    out = np.full((rows, columns), how.pad, np.float32)
    out[ours] = scaled[theirs]
    return out


def _placed(
    there: Sequence[int], fixed: tuple[int, int], how: Prepare
) -> tuple[tuple[int, int], Box, Box]:
    """The size that a plane is scaled to, and which box of the tensor shows which box of that."""
    factors = fixed[0] / there[0], fixed[1] / there[1]
    # `fit` shows all of the image and leaves room; `cover` leaves no room and cuts off.
    factor = min(factors) if how.resize == "fit" else max(factors)
    size = (_scaled(there[0], factor), _scaled(there[1], factor))
    rows, columns = (_centred(length, one) for length, one in zip(fixed, size, strict=True))
    return size, (rows[0], columns[0]), (rows[1], columns[1])


def _centred(length: int, there: int) -> tuple[slice, slice]:
    """Where the middle of one length lies in the other: in the target, and in the source."""
    shared = min(length, there)
    ours, theirs = (length - shared) // 2, (there - shared) // 2
    return slice(ours, ours + shared), slice(theirs, theirs + shared)


def resized(plane: NDArray[np.float32], size: Sequence[int], how: Prepare) -> NDArray[np.float32]:
    """Resampled by Pillow, which averages over what falls into a pixel when it shrinks."""
    if plane.shape == tuple(size):
        return plane
    rows, columns = size
    picture = Image.fromarray(plane).resize((columns, rows), _FILTERS[how.interpolation])
    return np.asarray(picture, np.float32)


def along_planes(volume: NDArray[np.float32], planes: int) -> NDArray[np.float32]:
    """(planes, channels, rows, columns) with another number of planes, linear between two."""
    there = len(volume)
    if there == planes:
        return volume
    # Centres of planes on centres: the first and the last half plane repeat.
    at = np.clip((np.arange(planes) + 0.5) * there / planes - 0.5, 0, there - 1)
    below = np.floor(at).astype(int)
    above = np.minimum(below + 1, there - 1)
    share = (at - below).astype(np.float32)[:, np.newaxis, np.newaxis, np.newaxis]
    blended: NDArray[np.float32] = volume[below] * (1 - share) + volume[above] * share
    return blended


def _normalised(volume: NDArray[np.float32], how: Prepare, axis: int) -> NDArray[np.float32]:
    shape = [1] * volume.ndim
    shape[axis] = how.channels
    if how.mean is not None:
        volume = volume - np.array(how.mean, np.float32).reshape(shape)
    if how.std is not None:
        volume = volume / np.array(how.std, np.float32).reshape(shape)
    return volume
