"""From a report's model to pages with typst.

Everything variable reaches the template as JSON, which typst reads as data: no text of a file or a
user is ever part of typst source.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

import structlog
import typst
from fluoro_jobs.errors import FluoroError, Reason

from export_worker.glyphs import missing_characters, named_throughout, script_of
from export_worker.model import Report

log = structlog.get_logger(__name__)

TEMPLATES: Final = (
    *("study", "batch", "skin-check", "dermoscopy", "burn", "histopathology", "comparison"),
    "deidentification",
)
"""Those that ship; the first one is the default."""

ARCHIVAL: Final = ("a-2a", "ua-1")
"""PDF/A-2a (ISO 19005-2) keeps for decades, PDF/UA-1 (ISO 14289-1) can be read aloud.

Both refuse a character no font holds.
"""

MOST_PAGES: Final = 500
"""Of a PDF: more take too much memory, and nobody reads them."""
MOST_PICTURED_PAGES: Final = 100
"""Of a report as pictures."""
PIXELS_PER_INCH: Final = 144
PACKAGE: Final = re.compile(rb"""\b(import|include)\s*\(?\s*"@""")
"""An import of a package, in a template."""
ROUNDS: Final = 4
"""How often characters without a font are looked for: typst need not tell all of them at once."""


def templates_in(folder: Path | None) -> list[str]:
    """Names of all templates: ours, and those in an organization's folder."""
    own = sorted(path.stem for path in folder.glob("*.typ")) if folder else []
    return [*TEMPLATES, *(name for name in own if name not in (*TEMPLATES, "frame", "parts"))]


class Typesetter:
    """One report in one template. Pictures are read from `folder`, the only place typst may read.

    The fonts are those inside typst; the system's fill in for characters they lack. What no font
    holds is named in brackets, and `report` says so in its warnings.
    """

    def __init__(
        self, report: Report, folder: Path, template: str = TEMPLATES[0], own: Path | None = None
    ) -> None:
        """own: an organization's folder with templates, which go before ours.

        FluoroError with REPORT_FAILED if typst refuses, or there are too many pages.
        """
        self.report = self._original = report
        self._folder = folder
        shipped = files("export_worker") / "templates"
        # Copied, because typst reads nothing outside of its root.
        for file in shipped.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        # After ours, so that an organization's file takes the place of one of the same name.
        for name, source in _sources(own):
            (folder / name).write_bytes(source)
        self._compiler = typst.Compiler(
            folder / f"{template}.typ", root=folder, font_paths=system_fonts()
        )
        self.pages = 0
        self.pdf = self._set()

    def _set(self) -> bytes:
        missing: frozenset[str] = frozenset()
        # Each round sets the whole report, so a text of many scripts must not have one for each of
        # them.
        for _ in range(ROUNDS):
            self._write(missing)
            # Before anything is written: a count needs the layout alone.
            self._refuse_books()
            try:
                data = self._compiler.compile(format="pdf", pdf_standards=[*ARCHIVAL])
            except typst.TypstError as error:
                more = missing_characters(error.diagnostic)
                # Nothing new: typst refuses for another reason, and one more round would not help.
                if more <= missing:
                    raise _failed(error) from None
                missing |= more
            else:
                assert isinstance(data, bytes), "a PDF is one file"
                return data
        raise _failed(None)

    def _write(self, missing: frozenset[str]) -> None:
        if missing:
            scripts = ", ".join(sorted({script_of(character) for character in missing}))
            warning = self._original["words"]["missing_script"].format(scripts=scripts)
            self.report = named_throughout(self._original, missing)
            self.report["warnings"].append(warning)
        # typst reads JSON, which has no NaN.
        text = json.dumps(self.report, allow_nan=False)
        (self._folder / "report.json").write_text(text, encoding="utf-8")

    def _refuse_books(self) -> None:
        self.pages = pages = self._count()
        if pages > MOST_PAGES:
            raise FluoroError(
                Reason.REPORT_FAILED,
                f"The report would have {pages} pages; {MOST_PAGES} are the most. Report on fewer "
                "inputs at a time, or ask for the template batch.",
            )

    def _count(self) -> int:
        try:
            return int(self._compiler.query("<page-count>", field="value", one=True))
        except (RuntimeError, ValueError) as error:  # TypstError is the former
            raise _failed(error) from None

    def pictures(self) -> list[Path]:
        """A PNG of each page, in the folder."""
        if self.pages > MOST_PICTURED_PAGES:
            raise FluoroError(
                Reason.REPORT_FAILED,
                f"The report has {self.pages} pages; {MOST_PICTURED_PAGES} are the most that can "
                "be written as pictures. Ask for FORMAT_PDF.",
            )
        try:
            self._compiler.compile(
                output=self._folder / "page-{0p}.png", format="png", ppi=PIXELS_PER_INCH
            )
        except typst.TypstError as error:
            raise _failed(error) from None
        # typst pads the numbers with zeros, so names sort as pages do.
        return sorted(self._folder.glob("page-*.png"))


def _sources(own: Path | None) -> Iterator[tuple[str, bytes]]:
    """The files of an organization's folder. Links may lead within it, as those of a ConfigMap do.

    FluoroError REPORT_FAILED if one leads out of it, cannot be read, or imports a package.
    """
    for path in sorted(own.glob("*.typ")) if own else ():
        try:
            inside = own is not None and path.resolve(strict=True).is_relative_to(own.resolve())
            source = path.read_bytes() if inside else None
        except OSError:
            source = None
        # Which path it was stays unsaid: it may tell how the operator's machine is laid out.
        if source is None:
            raise FluoroError(
                Reason.REPORT_FAILED,
                "A template in the operator's folder cannot be read, or is a link that leads out "
                "of the folder. Tell the operator.",
            )
        # The worker must not reach the network because of a template.
        if PACKAGE.search(source):
            raise FluoroError(
                Reason.REPORT_FAILED,
                "A template in the operator's folder imports a package, which typst would fetch "
                "from the network. The operator may put its files into the folder instead.",
            )
        yield path.name, source


def _failed(error: Exception | None) -> FluoroError:
    # typst's words may quote the document, so they stay out of logs and of what clients see.
    log.error("typst_failed", exception=type(error).__qualname__)
    return FluoroError(
        Reason.REPORT_FAILED, "The report could not be set from the results of the earlier steps."
    )


@cache
def system_fonts() -> typst.Fonts:
    """All that there are: those inside typst, and those of the system."""
    return typst.Fonts(include_system_fonts=True, include_embedded_fonts=True)
