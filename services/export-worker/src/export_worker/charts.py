"""Draws charts with matplotlib: the only module that knows it.

The colours are Okabe and Ito's, which colour-blind readers tell apart. Series also differ by
hatching, or by line style and marker, so that grey keeps them apart.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Any, Final

import matplotlib as mpl
from fluoro.v1.export_pb2 import Chart, ChartPoint, ChartSeries, ExportInfographic
from matplotlib import font_manager
from matplotlib.figure import Figure

from export_worker.wording import printable
from export_worker.words import Words

Format = ExportInfographic.Format
COLORS: Final = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#f0e442",
    "#882255",
    "#56b4e9",
    "#d55e00",
    "#b0b0b0",
)
HATCHES: Final = ("", "///", "...", "xx", "\\\\\\", "--", "++", "oo")
LINES: Final = ("-", "--", "-.", ":", "-", "--", "-.", ":")
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")
INK: Final = "#16222c"
MUTED: Final = "#61717e"
ALERT: Final = "#b3261e"
FAMILIES: Final = ("DejaVu Sans", "Noto Sans", "Noto Sans Arabic", "Noto Sans CJK SC")
"""The first one comes with matplotlib."""
WIDTH_INCHES: Final = 7.0
PIXELS_PER_INCH: Final = 200
MOST_BARS: Final = 60
"""In a chart: more are too thin to be told apart."""
LABEL_CHARACTERS: Final = 28
TITLE_CHARACTERS: Final = 40
"""In a line of the title."""
LEGEND_CHARACTERS: Final = 16
"""Names up to here stand side by side."""
MOST_PARTS: Final = 24
"""Different labels in a breakdown: more have no room in the legend."""
NOTE_CHARACTERS: Final = 110
"""In a line of a note."""

WHOLE_FROM: Final = 10_000
"""From here on, digits after the point say nothing."""
# Risks have one scale in all charts: an axis that ends at the largest value makes any risk look
# large.
TICKS: Final = (0, 0.25, 0.5, 0.75, 1)

SETTINGS: Final[dict[Any, Any]] = {
    "figure.constrained_layout.w_pad": 0.15,
    "figure.constrained_layout.h_pad": 0.12,
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a title is a dollar
    "text.usetex": False,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "hatch.linewidth": 0.6,
    # A viewer need not have our fonts. The salt makes the ids in an SVG the same in every attempt.
    "svg.fonttype": "path",
    "svg.hashsalt": "fluoro",
    "pdf.fonttype": 42,
}


def extension(format: "Format.ValueType") -> tuple[str, str]:
    """Suffix and media type."""
    return {
        Format.FORMAT_PNG: (".png", "image/png"),
        Format.FORMAT_JPEG: (".jpg", "image/jpeg"),
        Format.FORMAT_SVG: (".svg", "image/svg+xml"),
        Format.FORMAT_PDF: (".pdf", "application/pdf"),
    }[format]


def draw(chart: Chart, notes: Sequence[str], words: Words, targets: Mapping[Path, Any]) -> None:
    """Writes the chart into each file. targets: formats by path. notes: what stands below.

    The same chart gives the same bytes.
    """
    # matplotlib's settings are global; these hold for this chart alone.
    with mpl.rc_context({**SETTINGS, "font.family": _families()}):
        # Not by pyplot, which keeps every figure until somebody closes it.
        figure = Figure(figsize=(WIDTH_INCHES, _height(chart)), layout="constrained")
        axes = figure.add_subplot()
        KINDS[chart.kind](axes, chart, words)
        # matplotlib wraps no lines: a long title would run out of the picture.
        title = "\n".join(wrap(printable(chart.title, 120), TITLE_CHARACTERS))
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=12)
        _write_notes(figure, notes)
        for path, kind in targets.items():
            _save(figure, path, kind)


def missing_in_fonts(texts: Sequence[str]) -> set[str]:
    """Characters that none of the fonts holds."""
    characters = {character for text in texts for character in text if not character.isspace()}
    return {each for each in characters if ord(each) not in _covered()}


@cache
def _families() -> list[str]:
    # matplotlib warns for every text of a family that is not installed.
    there = {font.name for font in font_manager.fontManager.ttflist}
    return [family for family in FAMILIES if family in there]


@cache
def _covered() -> frozenset[int]:
    found: set[int] = set()
    for family in _families():
        path = font_manager.findfont(family)
        # All families count: matplotlib looks into the next one for what the first has not.
        found |= set(font_manager.get_font(path).get_charmap())
    return frozenset(found)


def _height(chart: Chart) -> float:
    """Inches: as much as the bars and the legend need."""
    points = max(len(series.points) for series in chart.series)
    # Rows of the legend, or it would lie over the notes below.
    legend = 0.2 * -(-len(_entries(chart)) // _columns(_entries(chart)))
    if chart.kind == Chart.KIND_COURSE:
        return 4.2 + legend
    bars = {
        Chart.KIND_BREAKDOWN: len(chart.series) * 1.6,
        Chart.KIND_RISK: sum(len(series.points) for series in chart.series),
        Chart.KIND_COMPARISON: points * max(1, 0.6 * len(chart.series)),
    }[chart.kind]
    return 2.4 + 0.28 * bars + legend


def _entries(chart: Chart) -> list[str]:
    """Of the legend."""
    if chart.kind == Chart.KIND_BREAKDOWN:
        return labels_of(chart)
    return [series.name for series in chart.series]


def labels_of(chart: Chart) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys(point.label for series in chart.series for point in series.points))


def _columns(entries: Sequence[str]) -> int:
    """Long names stand below each other."""
    return 3 if max(map(len, entries)) <= LEGEND_CHARACTERS else 1


def _short(text: str, characters: int = LABEL_CHARACTERS) -> str:
    """Matplotlib keeps a label that begins with an underscore out of legends: a space hides it."""
    short = printable(text, characters)
    return f" {short}" if short.startswith("_") else short


def _value(value: float, unit: str, words: Words) -> str:
    written = f"{value:,.4g}" if abs(value) < WHOLE_FROM else f"{value:,.0f}"
    return f"{words.marked(written)} {unit}".strip()


def _breakdown(axes: Any, chart: Chart, words: Words) -> None:
    """A stacked bar per series; the same label has the same colour in all."""
    labels = labels_of(chart)
    names = [_short(series.name) or str(n + 1) for n, series in enumerate(chart.series)]
    totals = [sum(max(point.value, 0) for point in series.points) for series in chart.series]
    # Parts may all be 0, and widths below are shares of this.
    widest = max(totals) or 1
    starts = [0.0] * len(names)
    for place, label in enumerate(labels):
        values = [
            sum(max(point.value, 0) for point in series.points if point.label == label)
            for series in chart.series
        ]
        axes.barh(
            range(len(names)),
            values,
            left=starts,
            label=_short(label) or " ",
            **_bar_style(place),
        )
        for row, (start, value) in enumerate(zip(starts, values, strict=True)):
            # A thinner part has no room for its number.
            if value > 0.12 * widest:
                _boxed(axes, start + value / 2, row, _value(value, "", words))
        starts = [start + value for start, value in zip(starts, values, strict=True)]
    for row, total in enumerate(totals):
        text = _value(total, _short(chart.unit, 16), words)
        axes.text(total + 0.01 * widest, row, text, va="center", fontweight="bold")
    # Room for the totals behind the bars.
    axes.set_xlim(0, widest * 1.18)
    axes.xaxis.set_major_formatter(lambda value, _: words.marked(f"{value:,.6g}"))
    axes.set_yticks(range(len(names)), names if len(names) > 1 or chart.series[0].name else [""])
    # matplotlib counts rows from the bottom, readers from the top.
    axes.invert_yaxis()
    _legend(axes, labels)


def _course(axes: Any, chart: Chart, words: Words) -> None:
    """A line per series, and its interval as a band."""
    for place, series in enumerate(chart.series):
        # In the order of the axis, or the line would run back and forth.
        points = sorted(series.points, key=lambda point: point.position)
        at = [point.position for point in points]
        color = COLORS[place]
        axes.plot(
            at,
            [point.value for point in points],
            label=_short(series.name) or str(place + 1),
            color=color,
            linestyle=LINES[place],
            marker=MARKERS[place],
            markersize=4,
            # Twenty markers tell lines apart; hundreds would hide them.
            markevery=max(1, len(points) // 20),
        )
        # A band over some points would look as if the others were certain.
        if all(_has_interval(point) for point in points):
            low, high = [p.low for p in points], [p.high for p in points]
            axes.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_ylabel(_short(chart.unit, 16))
    axes.set_xlabel(_short(chart.axis, 60))
    axes.grid(axis="y", color="#e6ebee")
    _legend(axes, _entries(chart))
    _mark(axes, words)


def _risk(axes: Any, chart: Chart, words: Words) -> None:
    """A bar per point from 0 to 1, and its interval as a whisker."""
    rows = [
        (series, place, point)
        for place, series in enumerate(chart.series)
        for point in series.points
    ]
    labels = [_risk_label(series, point, len(chart.series)) for series, _, point in rows]
    for row, (_, place, point) in enumerate(rows):
        value = min(max(point.value, 0), 1)
        axes.barh(row, value, **_bar_style(place))
        end = value
        if _has_interval(point):
            low, high = (min(max(each, 0), 1) for each in (point.low, point.high))
            axes.plot([low, high], [row, row], color=INK, linewidth=1.2, marker="|", markersize=7)
            # The number stands behind the whisker, not on it.
            end = max(end, high)
        axes.text(end + 0.015, row, words.percent(point.value), va="center", fontsize=8)
    axes.set_xlim(0, 1.12)
    axes.set_xticks(TICKS, [words.percent(each) for each in TICKS])
    _label_rows(axes, labels)


def _risk_label(series: ChartSeries, point: ChartPoint, many: int) -> str:
    return _short(f"{series.name}: {point.label}" if many > 1 and series.name else point.label)


def _comparison(axes: Any, chart: Chart, words: Words) -> None:
    """Bars with the same label side by side."""
    labels = labels_of(chart)
    height = 0.8 / len(chart.series)
    for place, series in enumerate(chart.series):
        values = {point.label: point.value for point in series.points}
        # The bars of a label are centred on its tick.
        rows = [row + (place - (len(chart.series) - 1) / 2) * height for row in range(len(labels))]
        # A label that a series lacks still has its place, or the bars beside it would move up.
        drawn = [values.get(label, 0) for label in labels]
        style = _bar_style(place) | {"height": 0.9 * height}
        bars = axes.barh(rows, drawn, label=_short(series.name) or str(place + 1), **style)
        texts = [_value(value, _short(chart.unit, 16), words) for value in drawn]
        axes.bar_label(bars, texts, padding=3, fontsize=8)
    # Bars may go both ways, and without a line nobody sees where they begin.
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.margins(x=0.12)
    _label_rows(axes, [_short(label) for label in labels])
    _legend(axes, _entries(chart))
    _mark(axes, words)


def _label_rows(axes: Any, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()


def _mark(axes: Any, words: Words) -> None:
    """Numbers of the axes as the language writes them."""
    axis = axes.xaxis if axes.get_ylabel() == "" else axes.yaxis
    axis.set_major_formatter(lambda value, _: words.marked(f"{value:,.6g}"))


def _bar_style(place: int) -> dict[str, Any]:
    return {
        "height": 0.62,
        "color": COLORS[place % len(COLORS)],
        "hatch": HATCHES[place % len(HATCHES)],
        "edgecolor": "white",
        "linewidth": 0.8,
    }


def _boxed(axes: Any, x: float, y: float, text: str) -> None:
    box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    axes.text(x, y, text, ha="center", va="center", fontsize=8, bbox=box)


def _legend(axes: Any, entries: Sequence[str]) -> None:
    if len(entries) > 1:
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(0, -0.16),
            ncols=_columns(entries),
            frameon=False,
            fontsize=8,
            borderaxespad=0,
        )


def _has_interval(point: ChartPoint) -> bool:
    return point.HasField("low") and point.HasField("high")


def _write_notes(figure: Figure, notes: Sequence[str]) -> None:
    """Below the chart; matplotlib makes room for a label of the whole figure."""
    lines = [line for note in notes for line in wrap(printable(note), NOTE_CHARACTERS)]
    # In the colour of a warning, because the notes say that the figures are not for diagnosis.
    style: dict[str, Any] = {"fontsize": 7.5, "color": ALERT, "x": 0.02, "ha": "left"}
    figure.supxlabel("\n".join(lines), **style)


def _save(figure: Figure, path: Path, format: "Format.ValueType") -> None:
    """Without a date, which would differ in every attempt."""
    options: dict[int, dict[str, Any]] = {
        Format.FORMAT_PNG: {"metadata": {"Software": "Fluoro"}},
        Format.FORMAT_JPEG: {"pil_kwargs": {"quality": 90}},
        Format.FORMAT_SVG: {"metadata": {"Date": None, "Creator": "Fluoro"}},
        Format.FORMAT_PDF: {
            "metadata": {"CreationDate": None, "Creator": "Fluoro", "Producer": "Fluoro"}
        },
    }
    figure.savefig(path, dpi=PIXELS_PER_INCH, **options[format])


KINDS: Final = {
    Chart.KIND_BREAKDOWN: _breakdown,
    Chart.KIND_COURSE: _course,
    Chart.KIND_RISK: _risk,
    Chart.KIND_COMPARISON: _comparison,
}
