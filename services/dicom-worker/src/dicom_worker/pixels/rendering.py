"""From a DICOM file to the pictures a person looks at and the array a model sees.

In the order of PS3.3 C.7.6.3, C.11.1 and C.11.2.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_worker.attributes import decimals
from dicom_worker.pixels.animation import WEBP, AnimationFile, AnimationFormat, frames_within
from dicom_worker.pixels.certificate import FrameCertificate
from dicom_worker.pixels.colour import colour_bits, palette_of
from dicom_worker.pixels.decoders import check_budget, decode_frames
from dicom_worker.pixels.image import Image
from dicom_worker.pixels.modality import modality_of, narrow
from dicom_worker.pixels.npy import NpyWriter
from dicom_worker.pixels.overlays import overlays_of
from dicom_worker.pixels.pictures import PictureFormat, Pixels, encoded, fitted
from dicom_worker.pixels.presentation import Screen
from dicom_worker.pixels.suv import suv_of
from dicom_worker.pixels.voi import Choice, Window
from dicom_worker.reading import DicomFile

PNG: Final = PictureFormat("PNG", ".png", "image/png")
FRAME_MS: Final = 100
"""How long a frame of an animation is shown if nobody says."""


@dataclass(frozen=True, slots=True)
class Frames:
    """A choice of frames, by number from 1. last: 0 for the image's last one."""

    first: int = 1
    last: int = 0
    step: int = 1

    def of(self, image: Image) -> range:
        """Which frames of this image, 0-based. CHOICE_UNAVAILABLE if it ends before the first."""
        if self.first > image.frames:
            raise FluoroError(Reason.CHOICE_UNAVAILABLE, f"The image has no frame {self.first}.")
        return range(self.first - 1, min(self.last or image.frames, image.frames), self.step)


@dataclass(frozen=True, slots=True)
class Moving:
    """How an animation looks. frame_ms: None for what the file says."""

    format: AnimationFormat = WEBP
    longest_side: int = 512
    frame_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to make of a file.

    frames: that pictures show. every_frame: a picture of each of them. thumbnail_px: longest side
    of a thumbnail, 0 for none. tiles, tile_px: most tiles for a contact sheet, and their side.
    suv: whether values are SUV by body weight.
    """

    choice: Choice = field(default_factory=Choice)
    format: PictureFormat = PNG
    quality: int = 90
    frames: Frames = field(default_factory=Frames)
    every_frame: bool = False
    thumbnail_px: int = 0
    moving: Moving | None = None
    tiles: int = 0
    tile_px: int = 128
    overlays: bool = False
    suv: bool = False


@dataclass(slots=True)
class Pictures:
    """The pictures of one file. Frames are 0-based.

    first: of the preview. animation: None if none was wanted, or there is one frame.
    """

    first: int
    preview: bytes = b""
    thumbnail: bytes = b""
    animation: Path | None = None
    frames: list[tuple[int, Path]] = field(default_factory=list)
    tiles: list[tuple[int, Pixels]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Rendering:
    """What was made of one file.

    Pictures have one pixel per stored pixel unless made smaller; pixels that are not square are not
    resampled. array: an NPY file, (frames, rows, columns) of modality values, or (frames, rows,
    columns, 3) RGB at the depth of the file; the other fields describe it. bits: of a sample; in
    RGB the largest one is white. unit: `HU`, `{SUVbw}g/ml` or `1`. window: what the preview shows;
    None where a VOI LUT or colour leaves nothing to choose. certificates: of each frame's stored
    values.
    """

    pictures: Pictures
    array: Path
    sha256: bytes
    shape: tuple[int, ...]
    dtype: str
    bits: int
    unit: str
    minimum: float
    maximum: float
    window: Window | None
    certificates: list[FrameCertificate]


def render(file: DicomFile, array: Path, wanted: Wanted, tick: Callable[[], None]) -> Rendering:
    """Renders a file with memory bounded by a frame.

    array: path to write to; pictures of frames and the animation are written beside it. tick:
    called per frame.

    FluoroError: NO_PIXEL_DATA, TRANSFER_SYNTAX_UNSUPPORTED, PIXELS_UNDECODABLE, IMAGE_TOO_LARGE,
    DICOM_INVALID, CHOICE_UNAVAILABLE.
    """
    frames = decode_frames(file)
    assert file.image is not None
    value = values_of(file, suv=wanted.suv)
    bits = colour_bits(file)
    check_budget(file.image, bits)
    screen = Screen(file, bits, wanted.choice, overlays_of(file) if wanted.overlays else [])
    writer, units, certificates = NpyWriter(array), set(), []
    chosen, size = wanted.frames.of(file.image), (file.image.rows, file.image.columns)
    with Album(file.header, wanted, chosen, size, array.parent) as album:
        for index, frame in enumerate(frames):
            tick()
            certificates.append(frame.certificate)
            values, unit = value(index, frame.values)
            units.add(unit)
            # The screen has them before they are narrowed: 32-bit floats end at 2**24.
            writer.append(narrow(values) if is_grey(file.image) else values)
            if album.needs(index):
                album.add(index, screen.show(index, frame.values, values, unit))
    sha256 = writer.close()
    return Rendering(
        pictures=album.pictures,
        array=array,
        sha256=sha256,
        shape=(writer.frames, *writer.shape),
        dtype=writer.dtype.str if writer.dtype else "",
        bits=bits,
        # Each frame may have a rescale of its own. Where units differ, none is true of the whole
        # array.
        unit=units.pop() if len(units) == 1 else "1",
        minimum=writer.minimum,
        maximum=writer.maximum,
        window=screen.window,
        certificates=certificates,
    )


def values_of(
    file: DicomFile, *, suv: bool, wide: bool = False
) -> Callable[[int, NDArray[Any]], tuple[NDArray[Any], str]]:
    """What gives, of the stored values of a frame (0-based), modality values or RGB, and a unit.

    wide: palettes give 16 bits, also where fewer lose nothing.
    """
    image, header = file.image, file.header
    assert image is not None
    little_endian = file.little_endian
    if is_grey(image):

        def grey(frame: int, stored: NDArray[Any]) -> tuple[NDArray[Any], str]:
            modality = (
                suv_of(header, frame, stored, little_endian=little_endian)
                if suv
                else modality_of(header, frame, little_endian=little_endian)
            )
            return modality.exact(stored), modality.unit

        return grey
    # SUV are computed of activity, and colours are none.
    if suv:
        raise FluoroError(Reason.CHOICE_UNAVAILABLE, "A colour image has no SUV.")
    if image.photometric != "PALETTE COLOR":
        return lambda _frame, stored: (stored, "1")
    palette = palette_of(header, little_endian=little_endian, wide=wide)
    return lambda _frame, stored: (palette.apply(stored), "1")


def is_grey(image: Image) -> bool:
    """Whether its values are measurements, and not colours."""
    return image.photometric.startswith("MONOCHROME")


class Album(ExitStack):
    """Makes the pictures of one file out of its frames, while the block runs."""

    def __init__(
        self, header: Dataset, wanted: Wanted, chosen: range, size: tuple[int, int], folder: Path
    ) -> None:
        """chosen: frames that pictures show, 0-based; at least one. size: rows and columns."""
        super().__init__()
        self.pictures = Pictures(first=chosen[0])
        self._wanted, self._chosen, self._folder = wanted, chosen, folder
        # Decided before the first frame, because no frame is seen twice.
        self._tiles = spread(chosen, wanted.tiles) if wanted.tiles else frozenset()
        self._moving: frozenset[int] = frozenset()
        self._animation: AnimationFile | None = None
        if wanted.moving and len(chosen) > 1:
            moving, path = wanted.moving, folder / f"animation{wanted.moving.format.suffix}"
            self._moving = spread(chosen, frames_within(moving.longest_side, size))
            duration = moving.frame_ms or frame_ms(header)
            self._animation = self.enter_context(
                AnimationFile(path, moving.format, duration, wanted.quality)
            )
            self.pictures.animation = path

    def needs(self, frame: int) -> bool:
        """Whether a picture shows this frame."""
        return (
            frame == self._chosen[0]
            or frame in self._tiles
            or frame in self._moving
            or (self._wanted.every_frame and frame in self._chosen)
        )

    def add(self, frame: int, picture: Pixels) -> None:
        """Makes all pictures of a frame."""
        wanted = self._wanted
        if frame == self._chosen[0]:
            self.pictures.preview = encoded(picture, wanted.format, wanted.quality)
            if wanted.thumbnail_px:
                small = fitted(picture, wanted.thumbnail_px)
                self.pictures.thumbnail = encoded(small, wanted.format, wanted.quality)
        if wanted.every_frame and frame in self._chosen:
            path = self._folder / f"frame-{frame}{wanted.format.suffix}"
            path.write_bytes(encoded(picture, wanted.format, wanted.quality))
            self.pictures.frames.append((frame, path))
        if frame in self._tiles:
            # Tiles are made small at once, because they stay in memory until the last frame.
            self.pictures.tiles.append((frame, fitted(picture, wanted.tile_px)))
        if self._animation and wanted.moving and frame in self._moving:
            self._animation.add(fitted(picture, wanted.moving.longest_side))


def spread(chosen: range, most: int) -> frozenset[int]:
    """At most so many of these frames, the first and the last among them, evenly spaced."""
    if len(chosen) <= most:
        return frozenset(chosen)
    return frozenset(chosen[int(place)] for place in np.linspace(0, len(chosen) - 1, most))


def frame_ms(header: Dataset) -> int:
    """How long a frame is shown, as the file says (PS3.3 C.7.6.5), within 20 ms and 10 s."""
    found = float(FRAME_MS)
    if time := decimals(header, "FrameTime"):
        found = time[0]
    else:
        for keyword in ("RecommendedDisplayFrameRate", "CineRate"):
            if (rate := decimals(header, keyword)) and rate[0] > 0:
                found = 1000 / rate[0]
                break
    return round(min(max(found, 20), 10_000)) if found > 0 else FRAME_MS
