"""reportlab and WeasyPrint: `python documents.py NAME FOLDER`, run by their own Python.

For each title (JSON) on standard input it writes FOLDER/NAME.pdf with what stands in
FOLDER/report.json and the pictures beside it, and prints the seconds that took. Imports nothing of
ours: it runs where only the peers are installed.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Write = Callable[[str], None]


def reportlab(folder: Path) -> Write:
    """With its layout engine, Platypus, and the fonts that come with it, embedded as ours are."""
    from reportlab.lib import colors  # noqa: PLC0415 - only one of the two is needed
    from reportlab.lib.pagesizes import A4  # noqa: PLC0415
    from reportlab.lib.styles import getSampleStyleSheet  # noqa: PLC0415
    from reportlab.pdfbase.pdfmetrics import registerFont  # noqa: PLC0415
    from reportlab.pdfbase.ttfonts import TTFont  # noqa: PLC0415
    from reportlab.platypus import (  # noqa: PLC0415
        Image,
        Paragraph,
        SimpleDocTemplate,
        Spacer,
        Table,
    )

    report = json.loads((folder / "report.json").read_text())
    words, styles = report["words"], getSampleStyleSheet()
    for name in ("Vera", "VeraBd"):  # the fonts every PDF reader has lack the minus sign
        registerFont(TTFont(name, f"{name}.ttf"))
    for style in ("Title", "Heading2"):
        styles[style].fontName = "VeraBd"
    lines = [
        ("FONTNAME", (0, 0), (-1, -1), "Vera"),
        ("LINEBELOW", (0, 0), (-1, -1), 0.4, colors.lightgrey),
        ("FONTSIZE", (0, 0), (-1, -1), 8),
    ]

    def table(rows: list[list[str]]) -> Any:
        return Table([[cell[:60] for cell in row] for row in rows], style=lines, hAlign="LEFT")

    def foot(canvas: Any, document: Any) -> None:
        canvas.setFont("Vera", 8)
        canvas.drawCentredString(A4[0] / 2, 30, words["not_for_diagnosis"])
        canvas.drawRightString(A4[0] - 50, 30, str(document.page))

    def run(title: str) -> None:
        counts = [[str(value), name] for name, value in report["counts"].items()]
        parts = [Paragraph(title, styles["Title"]), table(counts), table(report["steps"])]
        for image in report["images"]:
            parts.append(Paragraph(" ".join(image["facts"]), styles["Heading2"]))
            pictures = [Image(folder / one["file"][1:], 230, 180) for one in image["pictures"]]
            parts.append(Table([pictures, [one["caption"] for one in image["pictures"]]]))
            for finding in image["findings"]:
                keys = ("name", "voxels", "percent", "volume", "mean")
                parts.append(table([[row[key] for key in keys] for row in finding["rows"]]))
        parts.append(Spacer(1, 12))
        tables = (report["instances"]["rows"], *report["models"], report["certificates"]["rows"])
        parts += [table(rows) for rows in tables if rows]
        document = SimpleDocTemplate(str(folder / "reportlab.pdf"), pagesize=A4, title=title)
        document.build(parts, onFirstPage=foot, onLaterPages=foot)

    return run


def weasyprint(folder: Path) -> Write:
    """Of the report as HTML."""
    from weasyprint import HTML  # noqa: PLC0415

    page = (folder / "report.html").read_text()

    def run(title: str) -> None:
        HTML(string=page.replace("TITLE", title)).write_pdf(folder / "weasyprint.pdf")

    return run


def main() -> None:
    """Until standard input ends."""
    write = {"reportlab": reportlab, "weasyprint": weasyprint}[sys.argv[1]](Path(sys.argv[2]))
    for line in sys.stdin:
        title = json.loads(line)
        began = time.perf_counter()
        write(title)
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
