"""Writes animations frame by frame, with memory bounded by a frame.

Pillow encodes each frame; its own writers of animations keep them all.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Protocol

from fluoro.v1.dicom_pb2 import Animation
from PIL import Image as PilImage
from PIL.GifImagePlugin import getdata

from dicom_worker.pixels.pictures import Pixels

FRAME_LIMIT: Final = 500
"""Most frames of an animation."""
PIXEL_LIMIT: Final = 500 * 512 * 512
"""Most pixels of all its frames: WebP takes half a second per million."""
SIDE_PX: Final = 512
"""Longest side unless the request says otherwise."""
WEBP_FLAGS: Final = bytes((2, 0, 0, 0))
"""VP8X: animated."""
OVERWRITE: Final = 2
"""ANMF: a frame is not blended with the one before."""


class AnimationWriter(Protocol):
    """An open file of a format."""

    def add(self, picture: Pixels) -> None:
        """Appends a frame, of the first one's size."""

    def finish(self) -> None:
        """Writes what is left."""


@dataclass(slots=True)
class WebpWriter:
    """WebP in its container (RFC 9649): VP8X, ANIM, then one ANMF for each frame, all lossy."""

    stream: BinaryIO
    frame_ms: int
    quality: int
    empty: bool = True

    def add(self, picture: Pixels) -> None:
        """Appends a frame."""
        rows, columns = picture.shape[:2]
        if self.empty:
            # The size stands at the front and is known at the end: `finish` writes it over these
            # zeros.
            self.stream.write(b"RIFF\0\0\0\0WEBP")
            self.stream.write(
                chunk(b"VP8X", WEBP_FLAGS + number(columns - 1, 3) + number(rows - 1, 3))
            )
            # Loop count 0 is forever (RFC 9649).
            self.stream.write(chunk(b"ANIM", bytes((0, 0, 0, 255)) + number(0, 2)))
            self.empty = False
        buffer = BytesIO()
        PilImage.fromarray(picture).convert("RGB").save(buffer, "WEBP", quality=self.quality)
        # Offset 0, 0: every frame covers the whole canvas, so none depends on the one before.
        head = number(0, 6) + number(columns - 1, 3) + number(rows - 1, 3)
        head += number(self.frame_ms, 3) + bytes((OVERWRITE,))
        # Pillow writes a whole file. ANMF holds a bare VP8 chunk, without the 12 bytes of the RIFF
        # header.
        self.stream.write(chunk(b"ANMF", head + buffer.getvalue()[12:]))

    def finish(self) -> None:
        """Writes the size of the whole."""
        size = self.stream.tell()
        # RIFF's size counts what follows the first 8 bytes.
        self.stream.seek(4)
        self.stream.write(number(size - 8, 4))


@dataclass(slots=True)
class GifWriter:
    """GIF89a: each frame has its own palette. Times are whole hundredths of a second."""

    stream: BinaryIO
    frame_ms: int
    quality: int
    empty: bool = True

    def add(self, picture: Pixels) -> None:
        """Appends a frame."""
        rows, columns = picture.shape[:2]
        if self.empty:
            # No global palette: a later frame may have colours that the first one has not.
            self.stream.write(b"GIF89a" + number(columns, 2) + number(rows, 2) + bytes(3))
            # Without this extension viewers play the frames once and stop.
            self.stream.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + number(0, 2) + b"\0")
            self.empty = False
        image = PilImage.fromarray(picture)
        # A grey frame has at most 256 values already. Quantizing would only lose some of them.
        if image.mode != "L":
            # A GIF has 256 colours at most. A palette for each frame keeps them close to the
            # frame's own.
            image = image.quantize(256)
        for block in getdata(image, duration=self.frame_ms, include_color_table=True):
            self.stream.write(block)

    def finish(self) -> None:
        """Writes the trailer."""
        self.stream.write(b"\x3b")


@dataclass(frozen=True, slots=True)
class AnimationFormat:
    """A format and what writes it."""

    suffix: str
    media_type: str
    writer: Callable[[BinaryIO, int, int], AnimationWriter]


WEBP: Final = AnimationFormat(".webp", "image/webp", WebpWriter)
FORMATS: Final = {
    Animation.FORMAT_UNSPECIFIED: WEBP,
    Animation.FORMAT_WEBP: WEBP,
    Animation.FORMAT_GIF: AnimationFormat(".gif", "image/gif", GifWriter),
}


class AnimationFile(AbstractContextManager["AnimationFile"]):
    """A file of one animation, written while the block runs."""

    def __init__(self, path: Path, format_: AnimationFormat, frame_ms: int, quality: int) -> None:
        """path: of a file that does not exist."""
        self._stream = path.open("wb")
        self._writer = format_.writer(self._stream, frame_ms, quality)

    def add(self, picture: Pixels) -> None:
        """Appends a frame, of the first one's size."""
        self._writer.add(picture)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finishes the file, unless something went wrong."""
        with self._stream:
            # A file without its size or trailer does not pass for a whole animation.
            if error is None:
                self._writer.finish()


def frames_within(longest_side: int, size: tuple[int, int]) -> int:
    """Most frames, 2 at least, of pictures of this size (rows, columns) made as small as that."""
    shrink = min(1.0, longest_side / max(size))
    pixels = max(1, round(size[0] * shrink)) * max(1, round(size[1] * shrink))
    # Two, because one frame is no animation.
    return max(2, min(FRAME_LIMIT, PIXEL_LIMIT // pixels))


def chunk(kind: bytes, data: bytes) -> bytes:
    """A RIFF chunk."""
    return kind + number(len(data), 4) + data + bytes(len(data) % 2)


def number(value: int, size: int) -> bytes:
    """An unsigned number, little endian."""
    return value.to_bytes(size, "little")
