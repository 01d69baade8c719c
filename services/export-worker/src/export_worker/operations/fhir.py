"""ExportFhir: what models found, for an electronic record."""

from fluoro.v1.dicom_pb2 import InspectDicomResult
from fluoro.v1.export_pb2 import ExportFhir, ExportFhirResult
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepContext
from fluoro_jobs.worker.handler import handles


@handles(ExportFhir)
def export_fhir(request: ExportFhir, context: StepContext) -> ExportFhirResult:
    """Leaves `fhir.json`. The same inputs give the same bytes.

    FluoroError NO_APPLICABLE_INPUT if no earlier step inspected or analysed images.
    """
    # Its codes are highdicom's, which takes a second to import.
    from export_worker.fhir import FOUND, write_bundle  # noqa: PLC0415 - see above

    if not any(isinstance(step.result, (InspectDicomResult, *FOUND)) for step in context.upstream):
        raise FluoroError(
            Reason.NO_APPLICABLE_INPUT,
            "It comes after no step that inspects or analyses images. Name one in `after`.",
        )
    path = context.scratch / "fhir.json"
    resources = write_bundle(
        path, context.job, context.upstream, request.subject, context.check, context.origins
    )
    context.put("fhir.json", "fhir", "application/fhir+json", path)
    return ExportFhirResult(artifacts=list(context.artifacts), resources=resources)
