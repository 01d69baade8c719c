"""What PDF/A-2a and PDF/UA-1 ask of a file, as far as pypdf can see it, for each template.

veraPDF is a Java program, and in no index that we use: docs/exports.md says what is checked here.
"""

import io
from collections.abc import Iterator
from typing import Any

import pypdf
import pytest
from export_worker.operations.report import export_report
from export_worker.testing import dermoscopies, photographs, verdicts, wounds
from fluoro.v1.export_pb2 import ExportReport
from pypdf.generic import ArrayObject, DictionaryObject, IndirectObject

ACTIVE = ("/AA", "/OpenAction", "/JavaScript", "/EmbeddedFiles", "/XFA", "/NeedAppearances")


def made(clinic: Any, template: str) -> pypdf.PdfReader:
    upstream = {
        "study": lambda: [clinic.inspect(), clinic.render(), clinic.analyze()],
        "batch": lambda: photographs(clinic.folder, 7),
        "skin-check": lambda: verdicts(clinic.folder),
        "dermoscopy": lambda: dermoscopies(clinic.folder),
        "burn": lambda: wounds(clinic.folder, 2),
    }[template]()
    attempt = clinic.attempt(upstream)
    request = ExportReport(template=template, formats=[ExportReport.FORMAT_PDF])
    export_report(request, attempt.context)
    return pypdf.PdfReader(io.BytesIO(attempt.read("report.pdf")))


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


@pytest.mark.parametrize("template", ["study", "batch", "skin-check", "dermoscopy", "burn"])
def test_a_report_can_be_kept_and_read_aloud(clinic: Any, template: str) -> None:
    document = made(clinic, template)
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
