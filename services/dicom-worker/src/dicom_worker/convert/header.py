"""What a header has to say of pixels that are written in another way."""

from typing import Final
from uuid import NAMESPACE_OID, uuid5

import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_worker.attributes import text, value
from dicom_worker.blame import blame_file
from dicom_worker.convert.encoding import Target
from dicom_worker.pixels.image import Image
from dicom_worker.pixels.overlays import GROUPS
from dicom_worker.reading import DicomFile

WORDS: Final = {"OW": "u2", "OF": "u4", "OL": "u4", "OD": "u8", "OV": "u8"}
"""VRs of bytes that have an order, and their words."""
LOSSY_BY_NATURE: Final = frozenset(("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"))
"""Transfer Syntaxes of frames that have lost something already."""
OFFSET_TABLES: Final = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")


def hides_overlay(file: DicomFile, image: Image) -> bool:
    """Whether an overlay may be kept in bits of pixel cells (retired; PS3.3-2004 C.9.2.1.1)."""
    return image.bits_allocated > image.bits_stored and any(
        (group, 0x0102) in file.header and (group, 0x3000) not in file.header for group in GROUPS
    )


def tidy(file: DicomFile) -> None:
    """Changes the header of `file` to what it has to be in any other Transfer Syntax."""
    header = file.header
    if not file.little_endian:
        swap(header)
    for keyword in OFFSET_TABLES:
        # They are offsets into the old encoding, and a reader would look for frames there.
        header.pop(keyword, None)
    # What was lost stays lost in every later encoding (PS3.3 C.7.6.1.1.5).
    if file.transfer_syntax in LOSSY_BY_NATURE and text(header, "LossyImageCompression") != "01":
        header.LossyImageCompression = "01"
        header.LossyImageCompressionMethod = "ISO_10918_1"


def describe(header: Dataset, image: Image, photometric: str) -> None:
    """Makes the header say what decoded values are: in the lowest bits, and colours together."""
    if not image.is_float:
        header.HighBit = image.bits_stored - 1
    header.PhotometricInterpretation = photometric
    if image.samples > 1:
        header.PlanarConfiguration = 0


def derive(header: Dataset, target: Target, quality: int, ratio: float) -> None:
    """Makes it another instance, which says what it lost (PS3.3 C.7.6.1.1.5, C.12.4).

    The same source and request give the same SOP Instance UID.
    """
    source = text(header, "SOPInstanceUID")
    made = uuid5(NAMESPACE_OID, f"{source} {target.syntax} {quality}")
    header.SOPInstanceUID = f"2.25.{made.int}"
    kind = list(value(header, "ImageType") or ["ORIGINAL", "PRIMARY"])
    # Value 1 says whether the pixels are those of the acquisition (PS3.3 C.7.6.1.1.2).
    header.ImageType = ["DERIVED", *kind[1:]]
    reference = Dataset()
    reference.ReferencedSOPClassUID = text(header, "SOPClassUID")
    reference.ReferencedSOPInstanceUID = source
    reference.PurposeOfReferenceCodeSequence = Sequence(
        [code("121320", "Uncompressed predecessor")]
    )
    header.SourceImageSequence = Sequence([reference])
    header.DerivationCodeSequence = Sequence([code("113040", "Lossy Compression")])
    header.DerivationDescription = "Lossy compression"
    ratios = known(header, "LossyImageCompressionRatio")
    methods = known(header, "LossyImageCompressionMethod")
    # The two lists go together, one value for each compression.
    if len(ratios) != len(methods):
        ratios, methods = [], []
    header.LossyImageCompression = "01"
    header.LossyImageCompressionRatio = [*ratios, f"{ratio:.4g}"]
    header.LossyImageCompressionMethod = [*methods, target.method]


def known(header: Dataset, keyword: str) -> list[str]:
    """The values of an attribute, as text."""
    found = value(header, keyword)
    if found is None:
        return []
    return [str(found)] if isinstance(found, str | float) else [str(each) for each in found]


def code(number: str, meaning: str) -> Dataset:
    """A code of DICOM's own terminology (PS3.16 annex D)."""
    made = Dataset()
    made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = number, "DCM", meaning
    return made


def swap(dataset: Dataset) -> None:
    """Turns the words of binary values round, as for the other byte order.

    Of UN nobody knows what its words are: they stay.
    """
    with blame_file(Reason.DICOM_INVALID, "The data set cannot be read."):
        for element in dataset:
            if element.VR == "SQ":
                for item in element.value:
                    swap(item)
            elif (word := WORDS.get(element.VR)) and isinstance(element.value, bytes):
                size = np.dtype(word).itemsize
                if len(element.value) % size:
                    raise FluoroError(Reason.DICOM_INVALID, "A binary value has part of a word.")
                element.value = np.frombuffer(element.value, word).byteswap().tobytes()
