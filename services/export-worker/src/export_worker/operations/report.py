"""ExportReport: a PDF for people and a JSON file for programs about earlier steps."""

from typing import Final

from fluoro.v1.export_pb2 import ExportReport, ExportReportResult
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepContext
from fluoro_jobs.worker.handler import handles

from export_worker.contents import contents, has_results, picture_blobs
from export_worker.record import record
from export_worker.scaling import scale
from export_worker.typesetting import typeset

DEFAULT_FORMATS: Final = (ExportReport.FORMAT_PDF, ExportReport.FORMAT_JSON)


@handles(ExportReport)
def export_report(request: ExportReport, context: StepContext) -> ExportReportResult:
    """Writes `report.pdf` and `result.json`, or those of the two that were asked for.

    The same inputs give the same bytes.

    Raises FluoroError with INVALID_ARGUMENT for a format this worker does not know,
    NO_APPLICABLE_INPUT if no earlier step left a result that a report can tell about, and
    REPORT_FAILED if typst refused.
    """
    formats = set(request.formats or DEFAULT_FORMATS)
    if not formats <= set(DEFAULT_FORMATS):
        raise FluoroError(
            Reason.INVALID_ARGUMENT, "A report can be written as FORMAT_PDF or FORMAT_JSON."
        )
    if not has_results(context.upstream):
        raise FluoroError(
            Reason.NO_APPLICABLE_INPUT,
            "The report comes after no step that de-identifies, inspects, renders or analyses "
            "images. Name one in `after`.",
        )
    pages = 0
    if ExportReport.FORMAT_PDF in formats:
        pages = _put_pdf(request.title, context)
    if ExportReport.FORMAT_JSON in formats:
        path = context.scratch / "result.json"
        record(context.job, context.upstream, path)
        context.put("result.json", "result", "application/json", path)
    return ExportReportResult(artifacts=list(context.artifacts), pages=pages)


def _put_pdf(title: str, context: StepContext) -> int:
    """Leaves report.pdf; returns its number of pages."""
    wanted = picture_blobs(context.upstream)
    for done, blob in enumerate(wanted):
        context.progress("collect", done, len(wanted))
        scale(context.fetch(blob))
    context.progress("typeset", 0, 1)
    document = contents(
        title,
        context.job,
        context.job_inputs,
        context.upstream,
        {blob: context.fetch(blob).name for blob in wanted},
    )
    pdf = typeset(document, context.scratch)
    context.progress("store", 0, 1)
    context.put("report.pdf", "report", "application/pdf", pdf.data)
    context.progress("store", 1, 1)
    return pdf.pages
