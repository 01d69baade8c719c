"""Secondary Capture (PS3.3 A.8.1) of a picture that a step made of an image."""

from pathlib import Path
from typing import Final

import numpy as np
from fluoro.v1 import ml_pb2
from fluoro_jobs.errors import FluoroError, Reason
from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from PIL import Image, UnidentifiedImageError
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from export_worker.dicom.origin import (
    Origin,
    equipment_fields,
    identity,
    reference,
    series_description,
    statement,
    subject_fields,
)
from export_worker.dicom.sources import Source

SERIES_NUMBER: Final = {"preview": 9003, "overlay": 9004}
"""Series Number (0020,0011) by role, far from those of a scanner."""
PIXELS_LIMIT: Final = 128 * 10**6
"""Most pixels of a picture: it is in memory three times."""
GREY: Final = frozenset(("1", "L"))


def capture(
    picture: Path,
    role: str,
    step: str,
    number: int,
    source: Source,
    model: ml_pb2.ModelReference | None,
    origin: Origin,
) -> SCImage:
    """The picture, 8 bits grey or RGB. number: Instance Number.

    FluoroError PIXELS_UNDECODABLE if it is none, IMAGE_TOO_LARGE.
    """
    header = source.header
    pixels = pixels_of(picture)
    written = SCImage(
        pixel_array=pixels,
        photometric_interpretation="MONOCHROME2" if pixels.ndim == 2 else "RGB",  # noqa: PLR2004 - no samples
        bits_allocated=8,
        coordinate_system="PATIENT",
        # highdicom insists on one. It is taken back below, because nobody knows it.
        patient_orientation=("L", "P"),
        series_instance_uid=origin.uid("pictures", step, role, *source.subject, source.series),
        series_number=SERIES_NUMBER[role],
        sop_instance_uid=origin.instance_uid(
            "picture",
            [step] if model else [],
            # Another picture is another instance, or an archive would see one UID with two
            # contents.
            *(step, role, source.encoded, pixels.tobytes()),
            *([identity(model)] if model else []),
        ),
        instance_number=number,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        contributing_equipment=origin.equipment([(step, model)] if model else []),
        series_description=series_description(role.capitalize(), model),
        **subject_fields(header),
        **equipment_fields(),
    )
    written.copy_patient_and_study_information(header)
    written.PatientOrientation = []  # unknown (Type 2C): pictures lie as the image does
    written.Laterality = header.get("Laterality", "")  # Type 2C of paired body parts
    # A workstation made it (PS3.3 C.8.6.1), not a scanner of film.
    written.ConversionType = "WSD"
    del written.DateOfSecondaryCapture, written.TimeOfSecondaryCapture  # of a scanner of film
    written.DerivationDescription = f"{role.capitalize()} of the source image, for display."
    source_image = reference(header)
    # A viewer that has the capture finds the image by this.
    source_image.PurposeOfReferenceCodeSequence = [
        CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
    ]
    written.SourceImageSequence = [source_image]
    if told := statement(model):
        written.ImageComments = told
    copy_loss(header, written)
    origin.stamp(written, header.get("TimezoneOffsetFromUTC", ""))
    return written


def copy_loss(source: Dataset, target: Dataset) -> None:
    """Lossy Image Compression (PS3.3 C.7.6.1.1.5): what was lost once stays lost."""
    for keyword in (
        *("LossyImageCompression", "LossyImageCompressionRatio"),
        "LossyImageCompressionMethod",
    ):
        if keyword in source:
            target[keyword] = source[keyword]


def pixels_of(picture: Path) -> "np.typing.NDArray[np.uint8]":
    """The first frame of a PNG, JPEG or WebP: uint8 (rows, columns), or with three samples."""
    try:
        with Image.open(picture) as image:
            # Known from the header, before a pixel is decoded.
            if image.width * image.height > PIXELS_LIMIT:
                raise FluoroError(
                    Reason.IMAGE_TOO_LARGE, "A picture has more pixels than a capture may have."
                )
            return np.asarray(image.convert("L" if image.mode in GREY else "RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError):
        raise undecodable() from None
    except OSError as error:
        # An errno is the disk's fault, and another attempt may help.
        if error.errno is not None:
            raise
        raise undecodable() from None  # Pillow's word for a file that ends too soon


def undecodable() -> FluoroError:
    """The refusal."""
    return FluoroError(
        Reason.PIXELS_UNDECODABLE, "A picture that a step left cannot be read. Run the step again."
    )
