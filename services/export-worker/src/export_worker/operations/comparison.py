"""ExportComparison: variants or time points side by side, with differences."""

from collections.abc import Sequence
from typing import Final

from fluoro.v1.export_pb2 import ExportComparison, ExportComparisonResult, ExportReport
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepContext
from fluoro_jobs.worker.handler import handles
from google.protobuf.json_format import MessageToJson

from export_worker.comparison import analyses, compare, differences
from export_worker.images import images_of
from export_worker.provenance import provenance
from export_worker.writing import WRITTEN, write

DEFAULT_FORMATS: Final = (ExportReport.FORMAT_PDF, ExportReport.FORMAT_JSON)
LISTED: Final = 10_000
"""Most differences in the result; `comparison.json` has all."""


@handles(ExportComparison)
def export_comparison(request: ExportComparison, context: StepContext) -> ExportComparisonResult:
    """Leaves `comparison.pdf` and `comparison.json`, or what was asked for.

    FluoroError INVALID_ARGUMENT for a format, step or image that is not there or a single one,
    NO_APPLICABLE_INPUT if no two findings can be compared, REPORT_FAILED if typst refused.
    """
    formats = set(request.formats or DEFAULT_FORMATS)
    if not formats <= {*WRITTEN, ExportReport.FORMAT_JSON}:
        raise FluoroError(Reason.INVALID_ARGUMENT, "There is no such format of a report.")
    images = images_of(context.upstream)
    # One step is enough where images are compared with each other.
    _refuse_unknown("steps", request.steps, analyses(images), alone=not request.items)
    _refuse_unknown("items", request.items, [image.key for image in images])
    compared = compare(images, request.steps, request.items)
    found = differences(compared)
    if not found:
        raise FluoroError(
            Reason.NO_APPLICABLE_INPUT,
            "There are no two findings to compare: name two steps in `after` that analysed the "
            "same images, or two images in `items`.",
        )
    result = ExportComparisonResult(differences=found)
    if formats & WRITTEN:
        pages, warnings = write(
            "comparison",
            formats,
            context,
            template="comparison",
            title=request.title,
            style=request.style,
            compared=compared,
        )
        result.pages = pages
        result.warnings.extend(warnings)
    if ExportReport.FORMAT_JSON in formats:
        whole = ExportComparisonResult()
        whole.CopyFrom(result)
        whole.provenance.CopyFrom(provenance(context.job, context.upstream, context.origins))
        text = MessageToJson(whole, indent=1) + "\n"
        context.put("comparison.json", "result", "application/json", text.encode())
    # After the files were written, which have them all: a result in the ledger has a limited size.
    del result.differences[LISTED:]
    result.artifacts.extend(context.artifacts)
    return result


def _refuse_unknown(
    field: str, asked: Sequence[str], there: Sequence[str], *, alone: bool = True
) -> None:
    if len(asked) == 1 and alone:
        raise FluoroError(Reason.INVALID_ARGUMENT, f"{field} names one; a comparison needs two.")
    if missing := len(set(asked) - set(there)):
        raise FluoroError(
            Reason.INVALID_ARGUMENT,
            f"{missing} of {len(asked)} {field} left no finding before this step.",
        )
