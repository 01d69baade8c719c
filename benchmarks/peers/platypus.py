"""The study report as reportlab's Platypus draws it: every part that ours has, in the same place.

Runs where only the peers are installed. Cells are plain strings, which Platypus sets fastest;
what may take more than a line is a paragraph.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

from reportlab.lib.colors import HexColor, white
from reportlab.lib.styles import ParagraphStyle
from reportlab.pdfbase.pdfmetrics import registerFont
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable, Image, KeepTogether, Paragraph, Spacer, Table

INK, MUTED, FAINT, WASH = map(HexColor, ("#16222c", "#61717e", "#d9e0e5", "#f3f6f8"))
GOOD, FAIR, BAD, PINK, GREY = map(HexColor, ("#1d7a4f", "#8a6d1a", "#b3261e", "#fdf3f2", "#e6ebee"))
LEFT, RIGHT, WIDTH = 51.0, 544.3, 493.3

for name in ("Vera", "VeraBd"):
    registerFont(TTFont(name, f"{name}.ttf"))
BODY: Final = ParagraphStyle("body", fontName="Vera", fontSize=9, leading=12, textColor=INK)
SMALL: Final = ParagraphStyle("small", BODY, fontSize=8, leading=10, textColor=MUTED)
TITLE: Final = ParagraphStyle("title", BODY, fontName="VeraBd", fontSize=22, leading=28)
CELL: Final = ParagraphStyle("cell", BODY, fontSize=7, leading=9)
HEAD: Final = ParagraphStyle(
    "head", BODY, fontName="VeraBd", fontSize=13, leading=20, spaceBefore=14
)


class Outlined(Paragraph):  # type: ignore[misc]  # reportlab has no types
    """A heading that stands in the outline, as ours do."""

    def draw(self) -> None:
        """On the page."""
        name = str(id(self))
        self.canv.bookmarkPage(name)
        self.canv.addOutlineEntry(self.getPlainText(), name, 0)
        super().draw()


class Strip(Flowable):  # type: ignore[misc]  # likewise
    """Shares of classes in the colours of the overlay."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        """rows: of the model."""
        super().__init__()
        self.rows, self.width, self.height = rows, WIDTH, 8

    def draw(self) -> None:
        """On the page."""
        at = 0.0
        for row in self.rows:
            self.canv.setFillColor(HexColor(row["color"]) if row["color"] else GREY)
            self.canv.rect(at, 0, row["share"] * WIDTH, 5, stroke=0, fill=1)
            at += row["share"] * WIDTH


class Swatch(Flowable):  # type: ignore[misc]  # likewise
    """The colour of a class."""

    def __init__(self, color: str | None) -> None:
        """color: `#rrggbb`, or none."""
        super().__init__()
        self.color, self.width, self.height = color, 7, 7

    def draw(self) -> None:
        """On the page."""
        self.canv.setFillColor(HexColor(self.color) if self.color else white)
        self.canv.setStrokeColor(MUTED)
        self.canv.roundRect(0, 0, 7, 7, 1.5, stroke=1, fill=1)


def cell(text: str) -> str | Paragraph:
    """As a string if it fits on a line."""
    return text if len(text) <= 40 else Paragraph(escape(text), CELL)


def ruled(head: Sequence[str], rows: Sequence[Sequence[Any]], widths: Sequence[float]) -> Table:
    """A table with a ruled head, numbers to the right."""
    lines = [
        ("FONT", (0, 0), (-1, 0), "VeraBd", 6.5),
        ("TEXTCOLOR", (0, 0), (-1, 0), MUTED),
        ("FONT", (0, 1), (-1, -1), "Vera", 8),
        ("LINEBELOW", (0, 0), (-1, 0), 0.8, INK),
        ("LINEBELOW", (0, 1), (-1, -1), 0.4, FAINT),
        ("ALIGN", (2, 0), (-1, -1), "RIGHT"),
        ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
    ]
    data = [[each.upper() for each in head], *rows]
    return Table(data, widths, style=lines, repeatRows=1)


def facts(rows: Sequence[Sequence[str]]) -> Table:
    """Names and values."""
    lines = [
        ("FONT", (0, 0), (-1, -1), "Vera", 7.5),
        ("TEXTCOLOR", (0, 0), (0, -1), MUTED),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 1),
        ("TOPPADDING", (0, 0), (-1, -1), 1),
    ]
    return Table([[name, cell(value)] for name, value in rows], (91, WIDTH - 91), style=lines)


def masthead(report: dict[str, Any], title: str) -> Iterator[Flowable]:
    """Whose it is, what it is about, and what one must know first."""
    words, accent = report["words"], HexColor(report["look"]["accent"])
    created = words["job_created"].replace("{date}", report["created_text"])
    lines = [
        ("FONT", (0, 0), (0, 0), "VeraBd", 9),
        ("FONT", (1, 0), (1, 0), "Vera", 8),
        ("TEXTCOLOR", (0, 0), (0, 0), accent),
        ("TEXTCOLOR", (1, 0), (1, 0), MUTED),
        ("ALIGN", (1, 0), (1, 0), "RIGHT"),
        ("LINEBELOW", (0, 0), (-1, 0), 1.2, accent),
    ]
    yield Table([["FLUORO", created]], (WIDTH / 2,) * 2, style=lines)
    yield Spacer(1, 8)
    yield Paragraph(escape(title), TITLE)
    yield Paragraph(f"{words['job']} …{report['short_job']}", SMALL)
    yield Spacer(1, 8)
    if report["warnings"]:
        told = [
            Paragraph(f'<font color="#b3261e"><b>{words["warnings"].upper()}</b></font>', SMALL)
        ]
        told += [Paragraph(escape(each), BODY) for each in report["warnings"]]
        marks = [("BACKGROUND", (0, 0), (-1, -1), PINK), ("LINEBEFORE", (0, 0), (0, -1), 2.5, BAD)]
        yield Table([[told]], (WIDTH,), style=marks)
        yield Spacer(1, 10)
    yield tiles(report["counts"], words)
    yield Spacer(1, 8)


def tiles(counts: dict[str, int], words: dict[str, str]) -> Table:
    """The counts, each in its colour."""
    colors = {"inputs": INK, "succeeded": GOOD, "skipped": MUTED, "failed": MUTED}
    lines: list[Any] = [("BACKGROUND", (0, 0), (-1, -1), WASH)]
    for column, color in enumerate(colors.values()):
        lines += [
            ("LINEBEFORE", (column, 0), (column, -1), 2.5, color),
            ("FONT", (column, 0), (column, 0), "VeraBd", 19),
            ("FONT", (column, 1), (column, 1), "VeraBd", 6.5),
            ("TEXTCOLOR", (column, 0), (column, 0), color),
            ("TEXTCOLOR", (column, 1), (column, 1), MUTED),
        ]
    rows = [[str(counts[name]) for name in colors], [words[name].upper() for name in colors]]
    return Table(rows, (WIDTH / 4,) * 4, (28, 16), style=lines)


def image_of(image: dict[str, Any], words: dict[str, str], folder: Path) -> Flowable:
    """Pictures, shares and measures of one image, on one page."""
    parts: list[Flowable] = []
    title = f"<b>{words['input']} {escape(image['input'])}</b>"
    parts.append(Paragraph(f"{title} {escape(' · '.join(image['facts']))}", BODY))
    pictures = [Image(folder / one["file"][1:], 243, 187) for one in image["pictures"]]
    said = [
        Paragraph(", ".join(filter(None, (f"<b>{one['kind']}</b>", one["caption"]))), SMALL)
        for one in image["pictures"]
    ]
    parts.append(Table([pictures, said], (WIDTH / 2,) * len(pictures)))
    for finding in image["findings"]:
        parts.append(Strip(finding["rows"]))
        keys = ("voxels", "percent", "volume", "mean")
        rows = [
            [Swatch(row["color"]), cell(row["name"]), *(row[key] for key in keys)]
            for row in finding["rows"]
        ]
        mean = f"{words['mean']} {finding['unit']}"
        head = ("", words["class"], words["voxels"], words["share"], words["volume"], mean)
        parts.append(ruled(head, rows, (16, 205, 62, 62, 74, 74)))
    return KeepTogether(parts)


def flowables(report: dict[str, Any], title: str, folder: Path) -> list[Flowable]:
    """All of the report."""
    words = report["words"]
    parts = list(masthead(report, title))
    named = ("step", "operation", "succeeded", "skipped", "failed")
    parts.append(ruled([words[each] for each in named], report["steps"], (170, 170, 51, 51, 51)))
    parts.append(Paragraph(escape(report["naming"]), SMALL))
    parts.append(Outlined(words["images"], HEAD))
    parts += [image_of(image, words, folder) for image in report["images"]]
    parts.append(Outlined(words["provenance"], HEAD))
    parts += [facts(rows) for rows in report["models"]]
    parts += [
        facts(
            [
                (words["job"], report["job"]),
                (words["created"], report["created_text"]),
                *report["software"],
            ]
        ),
        Spacer(1, 8),
    ]
    for rows, columns, widths in (
        ("runs", ("step", "begun", "ended", "attempts"), (210, 115, 115, 53)),
        ("sources", ("input", "bytes", "input_sha"), (50, 90, 353)),
        (
            "certificates",
            ("input", "array", "range", "decoder", "pixel_sha"),
            (40, 90, 90, 70, 203),
        ),
    ):
        if there := report[rows]["rows"]:
            cells = [[cell(each) for each in row] for row in there]
            parts.append(ruled([words[each] for each in columns], cells, widths))
            parts.append(Spacer(1, 8))
    return parts


def running(report: dict[str, Any], title: str) -> Callable[[Canvas, Any], None]:
    """The head of all pages but the first."""

    def head(canvas: Canvas, _document: Any) -> None:
        canvas.setFont("Vera", 8)
        canvas.setFillColor(MUTED)
        canvas.drawString(LEFT, 800, title)
        canvas.drawRightString(RIGHT, 800, f"{report['words']['job']} …{report['short_job']}")
        canvas.setStrokeColor(FAINT)
        canvas.line(LEFT, 795, RIGHT, 795)

    return head


def numbered(words: dict[str, str], use: str) -> type[Canvas]:
    """A canvas that knows at its end how many pages there are, for their feet."""

    class Numbered(Canvas):  # type: ignore[misc]  # likewise
        def __init__(self, *of: Any, **options: Any) -> None:
            super().__init__(*of, **options)
            self.kept: list[dict[str, Any]] = []

        def showPage(self) -> None:  # noqa: N802 - reportlab's
            self.kept.append(dict(self.__dict__))
            self._startPage()

        def save(self) -> None:
            for number, page in enumerate(self.kept, 1):
                self.__dict__.update(page)
                self.setStrokeColor(FAINT)
                self.line(LEFT, 50, RIGHT, 50)
                self.setFillColor(MUTED)
                self.setFont("Vera", 8)
                self.drawString(LEFT, 38, "Fluoro")
                of = words["page_of"].replace("{page}", str(number))
                self.drawRightString(RIGHT, 38, of.replace("{pages}", str(len(self.kept))))
                self.setFillColor(BAD)
                self.setFont("VeraBd", 8)
                told = [words[use]] if use else []
                self.drawCentredString(297, 38, " · ".join([*told, words["not_for_diagnosis"]]))
                super().showPage()
            super().save()

    return Numbered
