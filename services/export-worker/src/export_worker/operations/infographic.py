"""ExportInfographic: charts of figures in the request, or of what models found."""

from collections.abc import Iterator
from typing import Any, Final

from fluoro.v1.export_pb2 import (
    Chart,
    ChartPoint,
    ChartSeries,
    ExportInfographic,
    ExportInfographicResult,
)
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepContext
from fluoro_jobs.worker.handler import handles

from export_worker import wording
from export_worker.contents import uses
from export_worker.glyphs import named, script_of
from export_worker.images import PICTURED, Finding, images_of
from export_worker.pictures import measured_name, model_name
from export_worker.settings import ReportSettings
from export_worker.style import style_of
from export_worker.words import Words, words_of

MOST: Final = 1e12
"""Largest figure, either way: beyond it axes have no room for numbers, and sums overflow."""
SHOWN_CLASSES: Final = 24
"""Most classes in a chart of what a model measured: the largest ones."""
DEFAULT_FORMATS: Final = (ExportInfographic.FORMAT_PNG, ExportInfographic.FORMAT_SVG)


@handles(ExportInfographic)
def export_infographic(request: ExportInfographic, context: StepContext) -> ExportInfographicResult:
    """Leaves `chart-01.png`, `chart-01.svg` and so on.

    FluoroError INVALID_ARGUMENT for a format or kind this worker does not know, a negative part of
    a sum, or an interval upside down; NO_APPLICABLE_INPUT if there is nothing to draw.
    """
    # matplotlib takes a second to import, which other operations need not wait for.
    from export_worker import charts  # noqa: PLC0415 - see above

    style = style_of(request.style, ReportSettings().folder)
    words = words_of(style.language)
    # Sorted and each once: the order of a request must not change the order of what is left.
    formats = sorted(set(request.formats or DEFAULT_FORMATS))
    if not set(formats) <= {*ExportInfographic.Format.values()} - {0}:
        raise FluoroError(Reason.INVALID_ARGUMENT, "There is no such format of a chart.")
    drawn = list(request.charts) or list(_of_models(context, words))
    if not drawn:
        raise FluoroError(
            Reason.NO_APPLICABLE_INPUT,
            "No model measured or classified an image before this step, and the request has no "
            "charts.",
        )
    result = ExportInfographicResult(charts=len(drawn))
    use, sentences = uses(context.upstream, words)
    last = " · ".join(filter(None, (words(use) if use else "", words("not_for_diagnosis"))))
    scripts: set[str] = set()
    for number, chart in enumerate(drawn, 1):
        context.progress("draw", number - 1, len(drawn))
        _refuse_impossible(chart)
        bars = sum(len(series.points) for series in chart.series)
        # Before drawing, which takes memory for each bar.
        if chart.kind in {Chart.KIND_RISK, Chart.KIND_COMPARISON} and bars > charts.MOST_BARS:
            raise FluoroError(
                Reason.INVALID_ARGUMENT, f"A chart has at most {charts.MOST_BARS} bars: split it."
            )
        if chart.kind == Chart.KIND_BREAKDOWN and len(charts.labels_of(chart)) > charts.MOST_PARTS:
            raise FluoroError(
                Reason.INVALID_ARGUMENT,
                f"A breakdown has more than {charts.MOST_PARTS} different labels: join some.",
            )
        # matplotlib would draw an empty box for each, and nobody would know what it was.
        missing = charts.missing_in_fonts([*_texts(chart), style.organization])
        scripts |= {script_of(character) for character in missing}
        shown = _renamed(chart, missing)
        source = words("source", source=shown.source) if shown.source else words("as_given")
        notes = [source, *sentences, named(style.organization, missing), last]
        targets: dict[Any, Any] = {}
        for kind in formats:
            suffix, _ = charts.extension(kind)
            targets[context.scratch / f"chart-{number:02}{suffix}"] = kind
        charts.draw(shown, [note for note in notes if note], words, targets)
        for path, kind in targets.items():
            context.put(path.name, "chart", charts.extension(kind)[1], path)
            # A request may have many charts in four formats, and the store has this one now.
            path.unlink()
    context.progress("draw", len(drawn), len(drawn))
    if scripts:
        result.warnings.append(words("missing_script", scripts=", ".join(sorted(scripts))))
    result.artifacts.extend(context.artifacts)
    return result


def _refuse_impossible(chart: Chart) -> None:
    points = [point for series in chart.series for point in series.points]
    if chart.kind not in {*Chart.Kind.values()} - {0} or not points:
        raise FluoroError(Reason.INVALID_ARGUMENT, "A chart has no known kind, or no points.")
    if any(
        abs(figure) > MOST
        for point in points
        for figure in (point.value, point.position, point.low, point.high)
    ):
        raise FluoroError(
            Reason.INVALID_ARGUMENT, "A figure is over 10^12. Choose a larger unit for the chart."
        )
    if chart.kind == Chart.KIND_BREAKDOWN and any(point.value < 0 for point in points):
        raise FluoroError(Reason.INVALID_ARGUMENT, "A part of a breakdown is negative.")
    if chart.kind == Chart.KIND_RISK and any(not 0 <= point.value <= 1 for point in points):
        raise FluoroError(Reason.INVALID_ARGUMENT, "A risk is a probability, 0 to 1.")
    if any(
        point.HasField("low") and point.HasField("high") and point.low > point.high
        for point in points
    ):
        raise FluoroError(Reason.INVALID_ARGUMENT, "An interval ends before it begins.")


def _of_models(context: StepContext, words: Words) -> Iterator[Chart]:
    """Of the first images."""
    made = 0
    for image in images_of(context.upstream):
        for finding in image.findings:
            if made == PICTURED:
                return
            key = wording.key(wording.printable(image.key, 64))
            if chart := _of_finding(finding, key, words):
                made += 1
                yield chart


def _of_finding(finding: Finding, key: str, words: Words) -> Chart | None:
    source = words("found_in", model=model_name(finding.model), key=key)
    if finding.classes:
        # Probabilities of several frames in one chart would look like those of one image.
        first = finding.classes[0].frame
        points = [
            ChartPoint(
                label=wording.printable(score.display_name, 60) or str(score.label),
                value=wording.share(score.probability),
            )
            for score in finding.classes
            if score.frame == first
        ]
        kind, title, unit = Chart.KIND_RISK, words("chart_probabilities", key=key), ""
    elif finding.measurements:
        there = [entry for entry in finding.measurements if entry.voxels > 0]
        largest = sorted(there, key=lambda entry: -entry.voxels)[:SHOWN_CLASSES]
        points = [
            ChartPoint(
                label=wording.printable(measured_name(entry, words), 60),
                value=100 * wording.share(entry.fraction),
            )
            for entry in largest
        ]
        kind, title, unit = Chart.KIND_BREAKDOWN, words("chart_composition", key=key), "%"
    else:
        return None
    if not points:
        return None
    series = [ChartSeries(name="", points=points)]
    return Chart(title=title, kind=kind, unit=unit, series=series, source=source)


def _texts(chart: Chart) -> list[str]:
    texts = [chart.title, chart.unit, chart.axis, chart.source]
    for series in chart.series:
        texts += [series.name, *(point.label for point in series.points)]
    return texts


def _renamed(chart: Chart, missing: set[str]) -> Chart:
    """With characters that no font holds named in brackets."""
    shown = Chart()
    # The request is not ours to change.
    shown.CopyFrom(chart)
    for field in ("title", "unit", "axis", "source"):
        setattr(shown, field, named(getattr(shown, field), missing))
    for series in shown.series:
        series.name = named(series.name, missing)
        for point in series.points:
            point.label = named(point.label, missing)
    return shown
