"""What PDF/A-2a and PDF/UA-1 ask of a file, as far as pypdf can see it, for each template.

veraPDF is a Java program, and in no index that we use: docs/exports.md says what is checked here.
"""

import io
from collections.abc import Callable, Iterator
from typing import Any, Final

import pypdf
import pytest
from export_worker.gathering import PLANS
from export_worker.operations.comparison import export_comparison
from export_worker.operations.report import export_report
from export_worker.testing import dermoscopies, photographs, verdicts, wounds
from export_worker.testing_slides import slides
from fluoro.v1.export_pb2 import ExportComparison, ExportReport
from fluoro_jobs.worker.context import Upstream
from pypdf.generic import ArrayObject, DictionaryObject, IndirectObject

ACTIVE = ("/AA", "/OpenAction", "/JavaScript", "/EmbeddedFiles", "/XFA", "/NeedAppearances")


def compared(clinic: Any) -> list[Upstream]:
    """Two analyses of an image that differ."""
    changed = clinic.analyze("second")
    changed.result.findings[0].measurements[4].volume_ml += 1.25
    return [clinic.render(), clinic.analyze("first"), changed]


MADE: Final[dict[str, Callable[[Any], list[Upstream]]]] = {
    "study": lambda clinic: [clinic.inspect(), clinic.render(), clinic.analyze()],
    "batch": lambda clinic: photographs(clinic.folder, 7),
    "skin-check": lambda clinic: verdicts(clinic.folder),
    "dermoscopy": lambda clinic: dermoscopies(clinic.folder),
    "burn": lambda clinic: wounds(clinic.folder, 2),
    "histopathology": lambda clinic: slides(clinic.folder),
    "comparison": compared,
    "deidentification": lambda clinic: [clinic.deidentify(), clinic.render()],
}


def made(clinic: Any, template: str) -> bytes:
    attempt = clinic.attempt(MADE[template](clinic))
    request = ExportReport(template=template, formats=[ExportReport.FORMAT_PDF])
    export_report(request, attempt.context)
    return attempt.read("report.pdf")


def objects(document: pypdf.PdfReader) -> Iterator[DictionaryObject]:
    """Every dictionary of the file once, streams too."""
    waiting: list[Any] = [document.trailer["/Root"]]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, IndirectObject):
            if one.idnum in seen:
                continue
            seen.add(one.idnum)
            one = one.get_object()
        if isinstance(one, DictionaryObject):
            yield one
            waiting += one.values()
        elif isinstance(one, ArrayObject):
            waiting += one


def test_every_template_is_looked_at() -> None:
    assert set(MADE) == set(PLANS)


@pytest.mark.parametrize("template", MADE)
def test_a_report_can_be_kept_and_read_aloud(clinic: Any, reader: Any, template: str) -> None:
    assert_archival(made(clinic, template), reader)


def test_images_that_are_compared_can_be_kept_and_read_aloud(clinic: Any, reader: Any) -> None:
    clinic.inputs = 2
    attempt = clinic.attempt([clinic.render(), clinic.analyze()])
    request = ExportComparison(items=["0", "1"], formats=[ExportReport.FORMAT_PDF])
    export_comparison(request, attempt.context)
    pdf = attempt.read("comparison.pdf")
    assert len(reader.images(pdf)) == 2
    assert_archival(pdf, reader)


def assert_archival(pdf: bytes, reader: Any) -> None:
    document = pypdf.PdfReader(io.BytesIO(pdf))
    xmp = document.xmp_metadata
    assert xmp is not None
    assert (xmp.pdfaid_part, xmp.pdfaid_conformance) == ("2", "A")
    assert b"<pdfuaid:part>1</pdfuaid:part>" in pdf
    fonts = [line.split()[-5:-2] for line in reader._run("pdffonts", pdf).splitlines()[2:]]
    assert fonts
    assert all(one == ["yes", "yes", "yes"] for one in fonts), "embedded, a subset, with Unicode"
    root = document.trailer["/Root"]
    assert not document.is_encrypted
    assert document.pdf_header == "%PDF-1.7"
    [intent] = root["/OutputIntents"]
    profile = intent.get_object()["/DestOutputProfile"].get_object()
    assert intent.get_object()["/S"] == "/GTS_PDFA1"
    assert profile.get_data()[36:40] == b"acsp", "an ICC profile"
    assert root["/MarkInfo"]["/Marked"].value
    assert root["/ViewerPreferences"]["/DisplayDocTitle"].value
    assert root["/Lang"]
    assert all(page["/Tabs"] == "/S" for page in document.pages)
    every = list(objects(document))
    assert not [name for one in every for name in ACTIVE if name in one]
    descriptors = [one for one in every if one.get("/Type") == "/FontDescriptor"]
    assert descriptors
    for one in descriptors:
        assert {"/FontFile", "/FontFile2", "/FontFile3"} & set(one), "embedded"
    for one in every:
        if one.get("/Type") == "/Font" and one["/Subtype"] == "/Type0":
            assert "/ToUnicode" in one
        if one.get("/S") in ("/Figure", "/Formula"):
            assert one.get("/Alt")
        if one.get("/Subtype") == "/Image":
            assert not one.get("/Interpolate", False)
            assert one["/Filter"] not in ("/LZWDecode", "/Crypt")
    roles = {str(one["/S"]) for one in every if "/P" in one and "/S" in one}
    assert {"/H1", "/Table", "/TR", "/TH", "/TD"} <= roles
