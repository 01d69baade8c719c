"""Writes a file in another Transfer Syntax, and proves that nothing was lost."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fluoro.v1.convert_pb2 import ConvertDicom, ConvertDicomResult, ConvertedInstance
from fluoro.v1.dicom_pb2 import FrameCertificate as FrameMessage
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepItem
from numpy.typing import NDArray

from dicom_worker.attributes import text
from dicom_worker.convert.encoding import TARGETS, Target, encode, htj2k, impossible
from dicom_worker.convert.header import derive, describe, hides_overlay, tidy
from dicom_worker.convert.volumes import keys_of
from dicom_worker.convert.writing import (
    behind,
    native_bytes,
    native_frames,
    write_elements,
    write_encapsulated,
    write_head,
    write_native,
)
from dicom_worker.pixels.certificate import FrameCertificate
from dicom_worker.pixels.decoders import CODECS, JPEG, decode_frames, uncertified_frames
from dicom_worker.pixels.image import Image
from dicom_worker.reading import DicomFile, open_dicom

Check = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Transcoded:
    """A file that was written. ratio: native bytes by encoded ones; 1 where nothing is encoded."""

    sop_instance: str
    ratio: float
    frames: list[FrameCertificate]


def instances(item: StepItem, request: ConvertDicom, check: Check) -> ConvertDicomResult:
    """Leaves `instance-KEY.dcm` for each file. Skips an item whose one file has no image."""
    result = ConvertDicomResult()
    target = TARGETS[request.dicom.transfer_syntax]
    keys = keys_of(item.key, len(item.parts))
    for part, key in zip(item.parts, keys, strict=True):
        path = item.fetch(part)
        file = open_dicom(path, item.folder)
        if file.image is None:
            item.skip(Reason.NO_PIXEL_DATA, "The instance has no image.")
            return ConvertDicomResult()
        written = item.folder / "transcoded.dcm"
        made = transcode(file, path, written, target, request.dicom.lossy_quality, check)
        name = item.put("instance", ".dcm", "instance", "application/dicom", written, key)
        written.unlink()
        # An item may be a whole study: its files are on disk one after the other.
        path.unlink(missing_ok=True)
        result.instances.append(
            ConvertedInstance(
                input=item.input,
                item=item.key,
                key=key,
                instance=name,
                sop_instance_uid=made.sop_instance,
                source_transfer_syntax_uid=file.transfer_syntax,
                transfer_syntax_uid=target.syntax,
                compression_ratio=made.ratio,
                frames=[FrameMessage(**asdict(each)) for each in made.frames],
                lossy=bool(target.method),
            )
        )
    return result


def transcode(
    file: DicomFile, source: Path, written: Path, target: Target, quality: int, check: Check
) -> Transcoded:
    """Writes the file in the target's Transfer Syntax, reads it back, and compares.

    source: the file as it came. A file that is in that Transfer Syntax already is copied.

    FluoroError as `decode_frames`, and CHOICE_UNAVAILABLE.
    """
    image = file.image
    assert image is not None
    instance = text(file.header, "SOPInstanceUID")
    if file.transfer_syntax == target.syntax and not target.method:
        shutil.copyfile(source, written)
        return Transcoded(instance, 1, certificates(file, check))
    check_possible(file, image, target)
    before: list[FrameCertificate] = []
    ratio = write(file, image, written, target, quality, before, check)
    again = open_dicom(written, written.parent)
    after = certificates(again, check)
    # Some encoders take depths and signs that they do not know, and write other values without a
    # word.
    if not target.method and [each.sha256 for each in after] != [each.sha256 for each in before]:
        raise impossible()
    return Transcoded(text(again.header, "SOPInstanceUID"), ratio, after)


def certificates(file: DicomFile, check: Check) -> list[FrameCertificate]:
    """Of each frame."""
    found = []
    for frame in decode_frames(file):
        check()
        found.append(frame.certificate)
    return found


def check_possible(file: DicomFile, image: Image, target: Target) -> None:
    """CHOICE_UNAVAILABLE if the image has what the Transfer Syntax, or our encoder, has not."""
    if target.encoder is None and is_native(file) and file.little_endian:
        return  # the bytes stay as they are
    # Encoders keep the bits of the value alone, and the overlay would vanish without a word.
    if hides_overlay(file, image):
        raise FluoroError(
            Reason.CHOICE_UNAVAILABLE,
            "An overlay is kept in bits of pixels, which would be lost. Have it in an overlay of "
            "its own.",
        )
    # Conversion to RGB rounds, and frames without it are half as long as others.
    if is_native(file) and image.photometric == "YBR_FULL_422":
        raise impossible()
    if target.encoder is None:
        if image.bits_allocated == 1:
            raise impossible()
        return
    indices = image.photometric == "PALETTE COLOR" and target.method
    bits = image.bits_stored
    if image.is_float or image.bits_allocated == 1 or bits > target.bits or indices:
        raise impossible()
    # Its encoder transforms all colours as if they were RGB.
    if target.encoder is htj2k and colours_of(file, image, target) == "YBR_FULL":
        raise impossible()


def write(
    file: DicomFile,
    image: Image,
    written: Path,
    target: Target,
    quality: int,
    before: list[FrameCertificate],
    check: Check,
) -> float:
    """Writes the file, and adds what is certified of its frames; native bytes by encoded ones."""
    tidy(file)
    # Into a file of its own first: the header tells the ratio, which is known at the end.
    pixels = written.with_suffix(".pixels")
    ratio = 1.0
    with pixels.open("w+b") as stream:
        if target.encoder is None and is_native(file) and file.little_endian:
            before += certificates(file, check)
            write_native(stream, target, image, native_bytes(file, image), image.native_bytes)
        else:
            colours = colours_of(file, image, target)
            shown = replace(image, photometric=colours)
            values = stored_values(file, image, shown, before, check)
            if target.encoder is None:
                size = image.frames * image.decoded_frame_bytes
                write_native(stream, target, image, native_frames(values), size)
            else:
                encoded = (encode(target, each, shown, quality) for each in values)
                size = write_encapsulated(stream, encoded, image.frames)
                ratio = image.frames * image.decoded_frame_bytes / size
            describe(file.header, image, target.colour if colours == "RGB" else colours)
        if target.method:
            derive(file.header, target, quality, ratio)
        stream.seek(0)
        with written.open("wb") as whole:
            write_head(whole, file.header, target)
            shutil.copyfileobj(stream, whole)
            write_elements(whole, behind(file), target)
    pixels.unlink()
    return ratio


def colours_of(file: DicomFile, image: Image, target: Target) -> str:
    """The Photometric Interpretation of the values to encode.

    Colours come as RGB, except YBR_FULL that is to stay as it is: to convert it rounds. Lossy JPEG
    is RGB once it is decoded, and is encoded out of RGB.
    """
    if image.samples == 1:
        return image.photometric
    keeps = image.photometric == "YBR_FULL" and CODECS.get(file.transfer_syntax) is not JPEG
    return "YBR_FULL" if keeps and not target.method else "RGB"


def stored_values(
    file: DicomFile, image: Image, shown: Image, before: list[FrameCertificate], check: Check
) -> Iterator[NDArray[Any]]:
    """The values of each frame in the colours of `shown`, one frame in memory at a time.

    Adds to `before` what is certified of the frames in RGB.
    """
    raw: Iterator[NDArray[Any]] | None = None
    if shown.samples > 1 and shown.photometric != "RGB":
        # Called RGB, they are not converted.
        unconverted = replace(file, image=replace(image, photometric="RGB"))
        raw = (frame.values for frame in uncertified_frames(unconverted))
    for frame in decode_frames(file):
        check()
        before.append(frame.certificate)
        yield frame.values if raw is None else next(raw)


def is_native(file: DicomFile) -> bool:
    """Whether the pixel data is not encapsulated."""
    return file.pixels is not None and file.pixels.length is not None
