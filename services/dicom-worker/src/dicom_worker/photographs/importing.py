"""From a photograph's file to its certified array and its picture; the child decodes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray
from PIL import Image as PilImage

from dicom_worker import limits
from dicom_worker.photographs.child import fits, understood
from dicom_worker.photographs.faces import Face, mask_faces
from dicom_worker.photographs.found import Format, Found
from dicom_worker.photographs.refusals import Refusal, RefusedError
from dicom_worker.pixels.certificate import FrameCertificate, StoredFrame, certified
from dicom_worker.pixels.colour import eight_bits
from dicom_worker.pixels.npy import NpyWriter
from dicom_worker.pixels.pictures import Pixels
from dicom_worker.pixels.sandbox import sandbox

RUN_LENGTHS: Final = 3
"""zlib's strategy Z_RLE: a photograph takes a sixth of the time, and no more room."""


@dataclass(slots=True)
class Photograph:
    """What was made of one file.

    found: what was in it. array: an NPY file, (pictures, rows, columns) grey or (…, 3) sRGB, uint8
    or uint16; the fields after it describe it. preview: the first picture, a PNG. converted,
    on_white: whether a profile changed colours, whether there was alpha. faces: that were masked,
    with the number of their picture, 0-based.
    """

    found: Found
    array: Path
    preview: bytes
    sha256: bytes
    shape: tuple[int, ...]
    dtype: str
    minimum: float
    maximum: float
    certificates: list[FrameCertificate]
    converted: bool
    on_white: bool
    faces: list[tuple[int, Face]]

    @property
    def decoder(self) -> str:
        """Who decoded it, with version."""
        if self.found.format is Format.HEIC:
            return f"libheif of pi-heif {version('pi-heif')}"
        library = "imagecodecs" if self.found.bits > 8 else "pillow"  # noqa: PLR2004 - bits of a byte
        return f"{DECODERS[self.found.format]} of {library} {version(library)}"


DECODERS: Final = {
    Format.JPEG: "libjpeg-turbo",
    Format.PNG: "PNG decoder",
    Format.WEBP: "libwebp",
    Format.TIFF: "TIFF decoder",
}
"""Format → what decodes it in its library."""


def take_in(
    path: Path, array: Path, tick: Callable[[], None], *, without_faces: bool = False
) -> Photograph:
    """Takes in the photograph at `path`, with memory bounded by a few of its pictures.

    array: path to write to. tick: called per picture. without_faces: masks them.

    FluoroError: NOT_AN_IMAGE, IMAGE_UNSUPPORTED, IMAGE_TOO_LARGE (before anything is allocated),
    PIXELS_UNDECODABLE.
    """
    found = examined(path)
    writer, certificates, preview = NpyWriter(array), list[FrameCertificate](), b""
    converted = on_white = False
    faces: list[tuple[int, Face]] = []
    for index, (values, facts) in enumerate(pictures(path, found)):
        tick()
        # Before the certificate and the preview, so that no face is in either.
        if without_faces:
            values, masked = mask_faces(values, found.bits)  # noqa: PLW2901 - nobody needs the other
            faces += ((index, face) for face in masked)
        frame = certified(StoredFrame(values, found.bits))
        converted |= bool(facts["converted"])
        on_white |= bool(facts["composited"])
        certificates.append(frame.certificate)
        if not preview:
            preview = png(eight_bits(frame.values, found.bits))
        writer.append(frame.values)
    return Photograph(
        found=found,
        array=array,
        preview=preview,
        sha256=writer.close(),
        shape=(writer.frames, *writer.shape),
        dtype=writer.dtype.str if writer.dtype else "",
        minimum=writer.minimum,
        maximum=writer.maximum,
        certificates=certificates,
        converted=converted,
        on_white=on_white,
        faces=faces,
    )


def examined(path: Path) -> Found:
    """What the file holds, once its size and what its header claims are within the budget."""
    if path.stat().st_size > limits.PHOTOGRAPH_FILE_LIMIT_BYTES:
        raise Refusal.FILE_BYTES.error()
    reply, _ = asked(path, None, 0)
    found = understood(reply["found"])
    try:
        # Once more: the child has seen hostile bytes, and room is made by what it says.
        found.check_budget()
    except RefusedError as error:
        raise error.refusal.error() from None
    return found


def pictures(path: Path, found: Found) -> Iterator[tuple[NDArray[Any], dict[str, Any]]]:
    """Each picture, little endian, and what the child says of it."""
    room = found.rows * found.columns * 3 * (found.bits // 8)
    shape = None
    for index in range(found.frames):
        facts, array = asked(path, index, room)
        if array is None or not fits(array, found) or shape not in (None, array.shape):
            raise Refusal.PAGES.error() if index else Refusal.BROKEN.error()
        shape = array.shape
        yield array.astype(array.dtype.newbyteorder("<"), copy=False), facts


def asked(path: Path, picture: int | None, room: int) -> tuple[dict[str, Any], NDArray[Any] | None]:
    """What the child answers. FluoroError if it refuses."""
    reply, array = sandbox().call({"path": str(path), "picture": picture}, b"", room)
    if reply["decoded"]:
        return reply, array
    if "refusal" in reply:
        raise Refusal[reply["refusal"]].error()
    raise FluoroError(Reason.IMAGE_TOO_LARGE, "The picture takes more memory than a decoder may.")


def png(picture: Pixels) -> bytes:
    """The picture as a PNG."""
    buffer = BytesIO()
    PilImage.fromarray(picture).save(buffer, "PNG", compress_type=RUN_LENGTHS)
    return buffer.getvalue()
