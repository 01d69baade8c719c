"""InspectDicom: is it DICOM, is it whole, what is it."""

import hashlib
from pathlib import Path

from fluoro.v1.dicom_pb2 import DicomInstance, InspectDicom, InspectDicomResult
from fluoro_jobs.worker.context import StepContext, StepItem
from fluoro_jobs.worker.handler import handles

from dicom_worker.attributes import text
from dicom_worker.metadata import dicom_json
from dicom_worker.reading import DicomFile, open_dicom


@handles(InspectDicom)
def inspect_dicom(_request: InspectDicom, context: StepContext) -> InspectDicomResult:
    """Leaves an artifact `metadata-0000.json` for each input that is a complete DICOM instance."""
    result = InspectDicomResult()
    for item in context.each("inspect"):
        with item:
            path = item.fetch()
            file = open_dicom(path, item.folder)
            instance = instance_of(item, path, file)
            metadata = dicom_json(file)
            item.put("metadata", ".json", "metadata", "application/dicom+json", metadata)
            result.instances.append(instance)
    return result


def instance_of(item: StepItem, path: Path, file: DicomFile) -> DicomInstance:
    """What later steps rely on. path: the file as it came."""
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").digest()
    instance = DicomInstance(
        input=item.input,
        item=item.key,
        sop_class_uid=text(file.header, "SOPClassUID"),
        sop_instance_uid=text(file.header, "SOPInstanceUID"),
        study_instance_uid=text(file.header, "StudyInstanceUID"),
        series_instance_uid=text(file.header, "SeriesInstanceUID"),
        transfer_syntax_uid=file.transfer_syntax,
        modality=text(file.header, "Modality"),
        body_part_examined=text(file.header, "BodyPartExamined"),
        sha256=sha256,
    )
    if image := file.image:
        instance.rows, instance.columns, instance.number_of_frames = (
            image.rows,
            image.columns,
            image.frames,
        )
        instance.samples_per_pixel, instance.photometric_interpretation = (
            image.samples,
            image.photometric,
        )
        instance.bits_stored = image.bits_stored
    return instance
