"""Encapsulated PDF (PS3.3 A.45.1) of a report."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fluoro.v1 import ml_pb2
from fluoro_jobs.errors import FluoroError, Reason
from highdicom import SOPClass
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from export_worker.dicom.origin import (
    Origin,
    equipment_fields,
    identity,
    least_cleared,
    reference,
    series_description,
    statement,
    subject_fields,
)
from export_worker.dicom.sources import Source

SERIES_NUMBER: Final = 9005
"""Series Number (0020,0011) of ours, far from those of a scanner."""
DOCUMENT_LIMIT_BYTES: Final = 128 * 2**20
"""Largest report: it is in memory twice."""


def encapsulated(
    pdf: Path,
    number: int,
    sources: Sequence[Source],
    made: Sequence[tuple[str, ml_pb2.ModelReference]],
    origin: Origin,
) -> SOPClass:
    """The report as an instance of the study. number: Instance Number.

    sources: the images that it is about. made: steps with the models that they ran.

    FluoroError CHOICE_UNAVAILABLE if the sources are of several studies or patients: a report that
    tells about two must not be filed under one. IMAGE_TOO_LARGE for a large PDF.
    """
    # Whoever opens the file of one patient would read about another.
    if len({source.subject for source in sources}) > 1:
        raise FluoroError(
            Reason.CHOICE_UNAVAILABLE,
            "The report is about several studies or patients, so it is no document of any. "
            "Export one study per job, or leave out KIND_DOCUMENT.",
        )
    if pdf.stat().st_size > DOCUMENT_LIMIT_BYTES:
        raise FluoroError(Reason.IMAGE_TOO_LARGE, "The report is larger than 128 MiB.")
    data = pdf.read_bytes()
    header = sources[0].header
    models = [model for _, model in made]
    told = least_cleared(models)
    # Sorted, so that the order of the items does not make another document.
    digests = sorted(hashlib.sha256(source.encoded).digest() for source in sources)
    written = SOPClass(
        series_instance_uid=origin.uid("documents", *sources[0].subject),
        series_number=SERIES_NUMBER,
        sop_instance_uid=origin.instance_uid(
            "document", [step for step, _ in made], data, *map(identity, models), *digests
        ),
        sop_class_uid=EncapsulatedPDFStorage,
        instance_number=number,
        modality="DOC",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description=series_description("Report", told),
        **subject_fields(header),
        **equipment_fields(),
    )
    written.copy_patient_and_study_information(header)
    written.ContributingEquipmentSequence = origin.equipment(made)
    # Type 2: present, and empty, because a report is about several moments.
    written.AcquisitionDateTime = None
    written.ConversionType = "WSD"
    written.BurnedInAnnotation = "NO"
    written.DocumentTitle = f"Imaging report. {statement(told)}".strip()
    written.ConceptNameCodeSequence = []
    written.MIMETypeOfEncapsulatedDocument = "application/pdf"
    written.EncapsulatedDocumentLength = len(data)
    # Values have even lengths (PS3.5 7.1.1). The length above tells the document from the padding.
    written.EncapsulatedDocument = data + b"\0" * (len(data) % 2)
    written.SourceInstanceSequence = [reference(source.header) for source in sources]
    origin.stamp(written, header.get("TimezoneOffsetFromUTC", ""))
    return written
