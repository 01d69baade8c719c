"""reportlab and WeasyPrint: `python -m peers.documents NAME FOLDER`, run by their own Python.

For each title (JSON) on standard input it writes FOLDER/NAME.pdf with what stands in
FOLDER/report.json and the pictures beside it, and prints the seconds that took. Imports nothing of
ours: it runs where only the peers are installed.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

Write = Callable[[str], None]


def reportlab(folder: Path) -> Write:
    """With its layout engine, Platypus, and the fonts that come with it, embedded as ours are."""
    from reportlab import rl_config  # noqa: PLC0415 - only one of the two is needed
    from reportlab.platypus import SimpleDocTemplate  # noqa: PLC0415

    from peers.platypus import flowables, numbered, running  # noqa: PLC0415

    rl_config.useA85 = 0  # half as much again to write, and nobody reads it
    report = json.loads((folder / "report.json").read_text())

    def run(title: str) -> None:
        head = running(report, title)
        SimpleDocTemplate(
            str(folder / "reportlab.pdf"),
            pagesize=(595.3, 841.9),
            leftMargin=51,
            rightMargin=51,
            topMargin=62,
            bottomMargin=57,
            title=title,
            author="Fluoro",
        ).build(
            flowables(report, title, folder),
            onLaterPages=head,
            canvasmaker=numbered(report["words"], report["use"]),
        )

    return run


def weasyprint(folder: Path) -> Write:
    """Of the report as HTML."""
    from weasyprint import HTML  # noqa: PLC0415

    page = (folder / "report.html").read_text()

    def run(title: str) -> None:
        HTML(string=page.replace("TITLE", title)).write_pdf(
            folder / "weasyprint.pdf", pdf_variant="pdf/ua-1", pdf_tags=True
        )

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
