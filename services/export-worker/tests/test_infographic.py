"""Charts."""

import io
from typing import Any

import pypdf
import pytest
from export_worker.charts import COLORS
from export_worker.operations.infographic import export_infographic
from export_worker.testing import photographs
from fluoro.v1 import ml_pb2
from fluoro.v1.export_pb2 import (
    Chart,
    ChartPoint,
    ChartSeries,
    ExportInfographic,
    ExportInfographicResult,
)
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.testing import Attempt
from PIL import Image

Format = ExportInfographic.Format


def chart(kind: Any, *values: float, title: str = "Cost", label: str = "a", **point: Any) -> Chart:
    points = [
        ChartPoint(label=f"{label}{number}", value=value, position=number, **point)
        for number, value in enumerate(values)
    ]
    series = [ChartSeries(name=name, points=points) for name in ("one", "two")]
    return Chart(title=title, kind=kind, unit="EUR", axis="Weeks", series=series, source="A book")


def draw(
    clinic: Any, *charts: Chart, upstream: Any = None, formats: Any = ()
) -> tuple[Attempt, ExportInfographicResult]:
    attempt = clinic.attempt(upstream or photographs(clinic.folder, 1))
    request = ExportInfographic(charts=charts, formats=formats)
    return attempt, export_infographic(request, attempt.context)


def test_every_kind_is_drawn_in_every_format_with_the_same_bytes(clinic: Any) -> None:
    charts = [
        chart(Chart.KIND_BREAKDOWN, 3, 2, 9000),
        chart(Chart.KIND_COURSE, 1, 4, 9, low=0.5, high=10),
        chart(Chart.KIND_RISK, 0.02, 0.5, 1, low=0, high=1),
        chart(Chart.KIND_COMPARISON, -3, 0, 8),
    ]
    formats = [Format.FORMAT_PNG, Format.FORMAT_JPEG, Format.FORMAT_SVG, Format.FORMAT_PDF]
    upstream = photographs(clinic.folder, 1)
    first, result = draw(clinic, *charts, upstream=upstream, formats=formats)
    second, _ = draw(clinic, *charts, upstream=upstream, formats=formats)
    assert len(result.artifacts) == 16
    for name in result.artifacts:
        assert first.read(name) == second.read(name), name
    for number in range(1, 5):
        page = pypdf.PdfReader(io.BytesIO(first.read(f"chart-0{number}.pdf"))).pages[0]
        text = page.extract_text()
        assert "Source: A book" in text
        assert "Demonstration model · Not for diagnostic use" in text
        with Image.open(io.BytesIO(first.read(f"chart-0{number}.png"))) as picture:
            assert picture.width == 1400


def test_without_charts_it_draws_what_models_found(clinic: Any) -> None:
    upstream = [*photographs(clinic.folder, 1), clinic.analyze()]
    attempt, result = draw(clinic, upstream=upstream, formats=[Format.FORMAT_PDF])
    texts = [
        pypdf.PdfReader(io.BytesIO(attempt.read(name))).pages[0].extract_text()
        for name in result.artifacts
    ]
    assert "Probabilities, input 0" in texts[0]
    assert "Composition, input 0" in texts[1]
    assert "soft tissue" in texts[1]


def test_of_a_model_with_very_many_classes_the_largest_are_drawn(clinic: Any) -> None:
    upstream = clinic.analyze()
    finding = upstream.result.findings[0]
    finding.measurements.extend(
        ml_pb2.Measurement(label=label, display_name=f"organ-{label}", voxels=1, fraction=1e-5)
        for label in range(6, 120)
    )
    attempt, _ = draw(clinic, upstream=[upstream], formats=[Format.FORMAT_PDF])
    text = pypdf.PdfReader(io.BytesIO(attempt.read("chart-01.pdf"))).pages[0].extract_text()
    assert "soft tissue" in text
    assert "organ-119" not in text


def test_markup_in_labels_is_shown_and_never_run(clinic: Any) -> None:
    hostile = chart(Chart.KIND_RISK, 0.5, title="<script>x</script> $\\frac{1}{2}$ 5 % of $3")
    attempt, _ = draw(clinic, hostile, formats=[Format.FORMAT_SVG, Format.FORMAT_PDF])
    assert b"<script" not in attempt.read("chart-01.svg")
    text = pypdf.PdfReader(io.BytesIO(attempt.read("chart-01.pdf"))).pages[0].extract_text()
    assert "$\\frac{1}{2}$ 5 % of $3" in " ".join(text.split())


def test_names_that_begin_with_an_underscore_are_in_the_legend(clinic: Any) -> None:
    hidden = chart(Chart.KIND_BREAKDOWN, 1, 2, label="_part")
    attempt, _ = draw(clinic, hidden, formats=[Format.FORMAT_PDF])
    text = pypdf.PdfReader(io.BytesIO(attempt.read("chart-01.pdf"))).pages[0].extract_text()
    assert "_part0" in text
    assert "_part1" in text


def test_a_script_without_a_font_is_named(clinic: Any) -> None:
    _, result = draw(clinic, chart(Chart.KIND_RISK, 0.5, title="x\U00010570"))
    assert result.warnings == [
        "Characters that no installed font holds are replaced by a name in brackets: Vithkuqi."
    ]


@pytest.mark.filterwarnings("error:constrained_layout")
@pytest.mark.parametrize(
    ("kind", "count"),
    [
        (Chart.KIND_BREAKDOWN, 24),
        (Chart.KIND_COURSE, 200),
        (Chart.KIND_RISK, 7),
        (Chart.KIND_COMPARISON, 7),
    ],
)
def test_long_unbroken_names_and_many_figures_leave_room_for_the_chart(
    clinic: Any, kind: Any, count: int
) -> None:
    many = chart(kind, *[0.5] * count, label="W" * 40, title="W" * 120)
    del many.series[1]
    many.series.extend(ChartSeries(name="W" * 60, points=many.series[0].points) for _ in range(7))
    attempt, _ = draw(clinic, many, formats=[Format.FORMAT_PNG])
    with Image.open(io.BytesIO(attempt.read("chart-01.png"))) as picture:
        blue = tuple(int(COLORS[0][at : at + 2], 16) for at in (1, 3, 5))
        pixels = {color: count for count, color in picture.convert("RGB").getcolors(2**24)}
        assert pixels.get(blue, 0) > (0 if kind == Chart.KIND_COURSE else 2_000)


@pytest.mark.parametrize(
    "wrong",
    [
        chart(Chart.KIND_UNSPECIFIED, 1),
        chart(Chart.KIND_BREAKDOWN, -1),
        chart(Chart.KIND_RISK, 1.5),
        chart(Chart.KIND_COURSE, 1, low=2, high=1),
        chart(Chart.KIND_COURSE),
        chart(Chart.KIND_BREAKDOWN, 1e308, 1e308),
        chart(Chart.KIND_COURSE, 1, low=-1e13, high=2),
        chart(Chart.KIND_BREAKDOWN, *[1] * 25),
        chart(Chart.KIND_RISK, *[1] * 31),
    ],
    ids=[
        "no kind",
        "negative part",
        "no probability",
        "interval upside down",
        "no points",
        "sum overflows",
        "no room",
        "too many parts",
        "too many bars",
    ],
)
def test_figures_that_cannot_be_are_refused(clinic: Any, wrong: Chart) -> None:
    with pytest.raises(FluoroError) as refusal:
        draw(clinic, wrong)
    assert refusal.value.reason is Reason.INVALID_ARGUMENT


def test_without_figures_there_is_nothing_to_draw(clinic: Any) -> None:
    with pytest.raises(FluoroError) as refusal:
        draw(clinic, upstream=[clinic.render()])
    assert refusal.value.reason is Reason.NO_APPLICABLE_INPUT


def test_colours_differ_in_lightness_where_they_stand_side_by_side() -> None:
    """Grey must keep the first four apart; hatching helps the others."""
    grey = [
        0.299 * int(color[1:3], 16) + 0.587 * int(color[3:5], 16) + 0.114 * int(color[5:7], 16)
        for color in COLORS[:4]
    ]
    gaps = [abs(one - other) for number, one in enumerate(grey) for other in grey[:number]]
    assert min(gaps) > 15
