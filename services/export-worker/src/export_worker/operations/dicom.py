"""ExportDicom: segmentations, measurements, pictures and documents for a PACS."""

from fluoro.v1.export_pb2 import ExportDicom, ExportDicomResult
from fluoro_jobs.worker.context import StepContext
from fluoro_jobs.worker.handler import handles


@handles(ExportDicom)
def export_dicom(request: ExportDicom, context: StepContext) -> ExportDicomResult:
    """Leaves an artifact of role `instance` for each object; the same bytes in every attempt.

    Raises FluoroError with CHOICE_UNAVAILABLE if a report is about several studies.
    """
    # highdicom takes a second to import, which a worker that only writes reports does not need.
    from export_worker.dicom.export import Export  # noqa: PLC0415 - see above

    return Export(request, context).run()
