"""From plain data to PDF with typst.

Everything variable reaches the template as JSON, which typst reads as data: no text of a file or a
user is ever part of typst source.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

import structlog
import typst
from fluoro_jobs.errors import FluoroError, Reason

log = structlog.get_logger(__name__)

TEMPLATES: Final = ("report.typ", "parts.typ")
"""Files of the template, the main one first."""

ARCHIVAL: Final = ("a-2a", "ua-1")
"""PDF/A-2a (ISO 19005-2) keeps for decades, PDF/UA-1 (ISO 14289-1) can be read aloud.

Both refuse a character no font holds.
"""

PLAIN: Final = ("1.7",)
"""What is left when a title has such a character, which then shows as an empty box."""


@dataclass(frozen=True, slots=True)
class Pdf:
    """A finished document and its number of pages."""

    data: bytes
    pages: int


def typeset(document: Mapping[str, object], folder: Path) -> Pdf:
    """Sets what `contents` made. Pictures are read from `folder`, the only place typst may read.

    The fonts are those inside typst; the system's fill in for characters they lack. FluoroError
    with REPORT_FAILED if typst refuses.
    """
    for name in TEMPLATES:
        (folder / name).write_bytes((files("export_worker") / "templates" / name).read_bytes())
    (folder / "report.json").write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
    compiler = typst.Compiler(folder / TEMPLATES[0], root=folder, font_paths=_fonts())
    try:
        data = _compile(compiler)
        return Pdf(data, int(compiler.query("<page-count>", field="value", one=True)))
    except typst.TypstError as error:
        # typst's words may quote the document, so they stay out of logs and of what clients see.
        log.error("typst_failed", exception=type(error).__qualname__)
        raise FluoroError(
            Reason.REPORT_FAILED, "The PDF could not be set from the results of the earlier steps."
        ) from None


def _compile(compiler: typst.Compiler) -> bytes:
    try:
        data = compiler.compile(format="pdf", pdf_standards=[*ARCHIVAL])
    except typst.TypstError:
        data = compiler.compile(format="pdf", pdf_standards=[*PLAIN])
    assert isinstance(data, bytes), "a PDF is one file"
    return data


@cache
def _fonts() -> typst.Fonts:
    return typst.Fonts(include_system_fonts=True, include_embedded_fonts=True)
