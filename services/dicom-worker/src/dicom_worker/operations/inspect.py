"""InspectDicom: is it DICOM, is it whole, what is it."""

from pathlib import Path
from tempfile import TemporaryDirectory

from fluoro.v1.dicom_pb2 import DicomInstance, InspectDicom, InspectDicomResult
from fluoro_jobs.worker.context import StepContext
from fluoro_jobs.worker.handler import handles

from dicom_worker.attributes import text
from dicom_worker.metadata import dicom_json
from dicom_worker.reading import DicomFile, open_dicom


@handles(InspectDicom)
def inspect_dicom(_request: InspectDicom, context: StepContext) -> InspectDicomResult:
    """Leaves an artifact `metadata-0000.json` for each input that is a complete DICOM instance."""
    result = InspectDicomResult()
    for done, number in enumerate(context.numbers, 1):
        with context.item(number), TemporaryDirectory(dir=context.scratch) as folder:
            file = open_dicom(context.fetch(context.inputs[number]), Path(folder))
            instance = instance_of(number, file)
            context.put(
                f"metadata-{number:04}.json",
                "metadata",
                "application/dicom+json",
                dicom_json(file),
                input=number,
            )
            result.instances.append(instance)
        context.progress("inspect", done, len(context.numbers))
    return result


def instance_of(number: int, file: DicomFile) -> DicomInstance:
    """What later steps rely on. number: of the input."""
    instance = DicomInstance(
        input=number,
        sop_class_uid=text(file.header, "SOPClassUID"),
        sop_instance_uid=text(file.header, "SOPInstanceUID"),
        study_instance_uid=text(file.header, "StudyInstanceUID"),
        series_instance_uid=text(file.header, "SeriesInstanceUID"),
        transfer_syntax_uid=file.transfer_syntax,
        modality=text(file.header, "Modality"),
        body_part_examined=text(file.header, "BodyPartExamined"),
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
