"""Encapsulated documents, which nobody can clean: refused, or replaced by an empty one."""

from typing import Final

from fluoro_jobs.errors import FluoroError, Reason

from dicom_worker.deidentify.elements import Element
from dicom_worker.deidentify.header import SOP_CLASS, Header
from dicom_worker.deidentify.profile import Options

DOCUMENT: Final = 0x00420011
DOCUMENT_LENGTH: Final = 0x00420015
PDF: Final = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
    b"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]>>endobj\n"
    b"trailer<</Root 1 0 R/Size 4>>\n%%EOF\n"
)
CDA: Final = b'<?xml version="1.0"?><ClinicalDocument xmlns="urn:hl7-org:v3"/>\n'
EMPTY: Final = {
    "1.2.840.10008.5.1.4.1.1.104.1": PDF,  # Encapsulated PDF
    "1.2.840.10008.5.1.4.1.1.104.2": CDA,  # Encapsulated CDA
}
"""SOP Class UID and a document of its kind that says nothing."""

SOUND: Final = frozenset(
    ("1.2.840.10008.5.1.4.1.1.9.4.1", "1.2.840.10008.5.1.4.1.1.9.4.2")  # Basic Voice, General Audio
)


def refuse_document(header: Header, options: Options) -> None:
    """DEIDENTIFICATION_REFUSED if there is a document that may not, or cannot be replaced."""
    # Before all else, because no option makes a voice anonymous.
    if header.text(SOP_CLASS) in SOUND:
        raise FluoroError(
            Reason.DEIDENTIFICATION_REFUSED,
            "The instance holds recorded sound, which cannot be cleaned: people say names, and "
            "their voices tell who they are.",
        )
    if DOCUMENT not in header:
        return
    if not options.replace_documents:
        raise FluoroError(
            Reason.DEIDENTIFICATION_REFUSED,
            "The instance holds a document, which cannot be cleaned. Leave it out, or set "
            "encapsulated_documents to have an empty one in its place.",
        )
    if header.text(SOP_CLASS) not in EMPTY:
        raise FluoroError(
            Reason.DEIDENTIFICATION_REFUSED,
            "The instance holds a document, and not one of a kind that can be replaced: "
            "PDF or CDA.",
        )


def replace_document(elements: list[Element], sop_class: str, *, little_endian: bool) -> None:
    """Puts the empty document in place of the one that is there."""
    for number, element in enumerate(elements):
        if element.tag == DOCUMENT:
            document = EMPTY[sop_class]
            elements[number] = Element(DOCUMENT, "OB", document + b"\0" * (len(document) % 2))
        elif element.tag == DOCUMENT_LENGTH:
            # Without the padding: that is what this attribute is for.
            length = len(EMPTY[sop_class])
            elements[number] = Element(
                DOCUMENT_LENGTH,
                "UL",
                length.to_bytes(4, "little" if little_endian else "big"),
            )
