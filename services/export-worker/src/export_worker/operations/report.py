"""ExportReport: documents for people and a JSON file for programs about earlier steps."""

from typing import Final

from fluoro.v1.export_pb2 import ExportReport, ExportReportResult
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepContext
from fluoro_jobs.worker.handler import handles

from export_worker.contents import has_results
from export_worker.record import record
from export_worker.writing import WRITTEN, write

DEFAULT_FORMATS: Final = (ExportReport.FORMAT_PDF, ExportReport.FORMAT_JSON)


@handles(ExportReport)
def export_report(request: ExportReport, context: StepContext) -> ExportReportResult:
    """Writes `report.pdf` and `result.json`, or what was asked for.

    The same inputs give the same bytes.

    Raises FluoroError with INVALID_ARGUMENT for a format, template or style this worker does not
    know, NO_APPLICABLE_INPUT if no earlier step left a result that the report can tell about, and
    REPORT_FAILED if typst refused.
    """
    formats = set(request.formats or DEFAULT_FORMATS)
    if not formats <= {*WRITTEN, ExportReport.FORMAT_JSON}:
        raise FluoroError(
            Reason.INVALID_ARGUMENT,
            "A report can be written as FORMAT_PDF, FORMAT_PNG, FORMAT_JPEG, FORMAT_HTML or "
            "FORMAT_JSON.",
        )
    # A report without any content would look as if nothing had been found.
    if not has_results(context.upstream):
        raise FluoroError(
            Reason.NO_APPLICABLE_INPUT,
            "The report comes after no step that de-identifies, inspects, renders or analyses "
            "images. Name one in `after`.",
        )
    result = ExportReportResult()
    if formats & WRITTEN:
        pages, warnings = write(
            "report",
            formats,
            context,
            template=request.template,
            title=request.title,
            style=request.style,
        )
        result.pages = pages
        result.warnings.extend(warnings)
    if ExportReport.FORMAT_JSON in formats:
        path = context.scratch / "result.json"
        record(context.job, context.upstream, context.origins, path)
        context.put("result.json", "result", "application/json", path)
    result.artifacts.extend(context.artifacts)
    return result
