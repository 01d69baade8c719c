"""Writes a report in the formats asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fluoro.v1.export_pb2 import ExportReport, ReportStyle
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepContext
from PIL import Image

from export_worker import comparison
from export_worker.contents import contents
from export_worker.gathering import OWN, PLANS, gather
from export_worker.images import images_of
from export_worker.model import Report
from export_worker.settings import ReportSettings
from export_worker.style import look, style_of
from export_worker.typesetting import TEMPLATES, Typesetter, templates_in
from export_worker.webpage import webpage
from export_worker.words import words_of

Format = ExportReport.Format
WRITTEN: Final = frozenset(
    {
        Format.FORMAT_PDF,
        Format.FORMAT_PNG,
        Format.FORMAT_JPEG,
        Format.FORMAT_HTML,
    }
)
"""Formats that a template is for."""
JPEG_QUALITY: Final = 90


def write(
    name: str,
    formats: set["Format.ValueType"],
    context: StepContext,
    *,
    template: str,
    title: str,
    style: ReportStyle,
    compared: comparison.Compare | None = None,
) -> tuple[int, Sequence[str]]:
    """Leaves `{name}.pdf`, `{name}-001.png` and so on; returns pages and warnings.

    FluoroError INVALID_ARGUMENT for a style that cannot be, or an unknown template,
    NO_APPLICABLE_INPUT if the results cannot fill the template, REPORT_FAILED if it cannot be set.
    """
    folder = ReportSettings().folder
    # Before anything is fetched: a wrong style fails the attempt in its first moment.
    style = style_of(style, folder)
    words = words_of(style.language)
    template = template or TEMPLATES[0]
    known = templates_in(folder)
    if template not in known:
        raise FluoroError(
            Reason.INVALID_ARGUMENT,
            f"There is no template of that name; there are {', '.join(known)}.",
        )
    images = images_of(context.upstream)
    if template == "comparison" and compared is None:
        compared = comparison.compare(images, (), ())
    plan = PLANS.get(template, OWN)
    pictures = gather(plan, images, compared, context)
    kind = f"default_title_{template.replace('-', '_')}"
    report = contents(
        context.job,
        context.job_inputs,
        context.upstream,
        pictures,
        title=title or words.all.get(kind, ""),
        words=words,
        look=look(style, context.scratch),
        shown=plan.shown(images),
        ranked=plan.ranks(images),
        compared=compared,
        origins=context.origins,
    )
    # A template without what it is about would look as if nothing had been found.
    _refuse_empty(template, report)
    context.progress("typeset", 0, 1)
    pages = 0
    if formats & (WRITTEN - {Format.FORMAT_HTML}):
        setter = Typesetter(report, context.scratch, template, folder)
        # The setter names characters that no font holds. The web page is to say the same.
        report, pages = setter.report, setter.pages
        _put_set(name, formats, setter, context)
    if Format.FORMAT_HTML in formats:
        context.put(f"{name}.html", "report", "text/html", webpage(report, context.scratch))
    context.progress("store", 1, 1)
    return pages, report["warnings"]


def _refuse_empty(template: str, report: Report) -> None:
    lacking = {
        "skin-check": (
            not any(image["classes"] for image in report["images"]),
            "a skin check needs pictures that a model classified",
        ),
        "dermoscopy": (
            not any(image["classes"] or image["verdicts"] for image in report["images"]),
            "a dermoscopy needs pictures that a model classified, or lesions that were scored",
        ),
        "burn": (
            not any(image["findings"] for image in report["images"]),
            "a burn report needs pictures of which a model made label maps",
        ),
        "histopathology": (
            not report["images"],
            "a histopathology needs slides whose tiles a model classified",
        ),
        "comparison": (
            not (report["comparison"] and report["comparison"]["subjects"]),
            "a comparison needs two findings about the same image, or two images",
        ),
        "deidentification": (
            report["deidentification"] is None,
            "this template needs a step that de-identifies",
        ),
    }
    lacks, why = lacking.get(template, (False, ""))
    if lacks:
        raise FluoroError(
            Reason.NO_APPLICABLE_INPUT, f"The results cannot fill the template: {why}."
        )


def _put_set(
    name: str, formats: set["Format.ValueType"], setter: Typesetter, context: StepContext
) -> None:
    """What typst makes: the PDF, and pictures of its pages."""
    if Format.FORMAT_PDF in formats:
        context.progress("store", 0, 1)
        context.put(f"{name}.pdf", "report", "application/pdf", setter.pdf)
    if formats & {Format.FORMAT_PNG, Format.FORMAT_JPEG}:
        _put_pictures(name, formats, setter.pictures(), context)


def _put_pictures(
    name: str, formats: set["Format.ValueType"], pages: Sequence[Path], context: StepContext
) -> None:
    """One after the other; a cancelled attempt stops between two pages."""
    for number, path in enumerate(pages, 1):
        context.progress("store", number - 1, len(pages))
        if Format.FORMAT_PNG in formats:
            context.put(f"{name}-{number:03}.png", "report", "image/png", path)
        if Format.FORMAT_JPEG in formats:
            target = path.with_suffix(".jpg")
            with Image.open(path) as picture:
                # JPEG has no alpha, which typst's pages have.
                picture.convert("RGB").save(target, "JPEG", quality=JPEG_QUALITY)
            context.put(f"{name}-{number:03}.jpg", "report", "image/jpeg", target)
            target.unlink()
        # A report may have 100 pages in two formats, and the store has this one now.
        path.unlink()
