"""Reports on what models together say of an image, and on lesions scored by the ABCD rule."""

import io
import re
import subprocess
from typing import Any

import pypdf
import pytest
from export_worker.operations.report import export_report
from export_worker.testing import JUDGED, dermoscopies, looks, verdicts
from export_worker.verdicts import is_suspicious
from export_worker.words import LANGUAGES, Words
from fluoro.v1 import job_pb2
from fluoro.v1.export_pb2 import ExportReport, ReportStyle
from fluoro_jobs.testing import Attempt
from fluoro_jobs.worker.context import Upstream
from google.protobuf import json_format

FORMATS = [ExportReport.FORMAT_PDF, ExportReport.FORMAT_HTML, ExportReport.FORMAT_JSON]
DEMONSTRATION = "Demonstration model"


def write(
    clinic: Any, upstream: list[Upstream], template: str, language: str = "en"
) -> tuple[Attempt, list[str], str]:
    """The attempt, the texts of the pages of its PDF, and the web page."""
    attempt = clinic.attempt(upstream)
    style = ReportStyle(language=language)
    export_report(ExportReport(template=template, formats=FORMATS, style=style), attempt.context)
    pages = pypdf.PdfReader(io.BytesIO(attempt.read("report.pdf"))).pages
    texts = [" ".join(page.extract_text().split()) for page in pages]
    return attempt, texts, attempt.read("report.html").decode()


def recorded(attempt: Attempt, step: str) -> job_pb2.Step:
    """What `result.json` says of that step."""
    job = json_format.Parse(attempt.read("result.json"), job_pb2.Job())
    return next(each for each in job.steps if each.name == step)


def test_a_skin_check_tells_verdicts_the_most_suspicious_ones_first(clinic: Any) -> None:
    attempt, pages, page = write(clinic, verdicts(clinic.folder), "skin-check")
    text = " ".join(pages)
    for told in (text, page):
        assert "The most suspicious images come first" in told
        at = [
            told.index(said)
            for said in (
                "melanoma, 83.0 %",
                "melanoma, 62.0 %",
                "No class: the models disagree",
                "No class: a model has not seen the like",
                "No class: too uncertain",
                "nevus, 91.0 %",
            )
        ]
        assert at == sorted(at)
        assert "agreement 50.0 %" in told
        assert "skin-demo 1.0.0, calibrated, novelty 7.25 (threshold 30)" in told
        assert "skin-demo-b 1.0.0, not calibrated" in told
        assert "skin-demo 1.0.0 has not seen the like: novelty 41.5, threshold 30." in told
        assert told.count("neither benign nor malignant") == 3
    assert all(DEMONSTRATION in each for each in [*pages, page])
    images = recorded(attempt, "ask").classify_images_result.images
    assert [(each.frames[0].verdict, each.frames[0].display_name) for each in images] == [
        (verdict, name) for verdict, name, _ in JUDGED
    ]


def test_codes_of_classes_stand_beside_their_model(clinic: Any) -> None:
    upstream = verdicts(clinic.folder, 3)
    images = upstream[1].result.images  # type: ignore[attr-defined]
    for one in images[2].frames[0].opinions[0].classes:
        if one.display_name == "melanoma":
            one.codes.add(value="93655004", scheme="SCT", meaning="#read(<b>Melanoma</b>)")
    attempt, pages, page = write(clinic, upstream, "skin-check")
    assert "Codes of classes melanoma = SCT 93655004 #read(<b>Melanoma</b>)" in " ".join(pages)
    assert "melanoma = SCT 93655004 #read(&lt;b&gt;Melanoma&lt;/b&gt;)" in page
    [*_, told] = recorded(attempt, "ask").classify_images_result.images
    codes = {one.display_name: one.codes for one in told.frames[0].opinions[0].classes}
    assert codes["melanoma"][0].value == "93655004"


def test_the_class_that_a_heat_map_explains_has_its_codes_beside_the_model(clinic: Any) -> None:
    upstream = looks(clinic.folder, 1)
    explained = upstream[0].result.maps[0].explained  # type: ignore[attr-defined]
    explained.codes.add(value="400010006", scheme="SCT", meaning="Melanocytic naevus of skin")
    _, pages, _ = write(clinic, upstream, "study")
    said = f"{explained.display_name} = SCT 400010006 Melanocytic naevus of skin"
    assert f"Codes of classes {said}" in " ".join(pages)


def test_of_many_frames_the_most_suspicious_is_shown_and_counts(clinic: Any) -> None:
    upstream = verdicts(clinic.folder, 3)
    images = upstream[1].result.images  # type: ignore[attr-defined]
    for number in range(2, 9):
        images[0].frames.add(frame=number, verdict=1, display_name="nevus", mean_probability=0.7)
    images[0].frames.add(frame=9, verdict=1, display_name="melanoma", mean_probability=0.97)
    _, pages, page = write(clinic, upstream, "skin-check")
    for told in (" ".join(pages), page):
        assert told.index("melanoma, 97.0 %") < told.index("melanoma, 62.0 %")
        assert "frame 9" in told.lower()


def test_a_dermoscopy_tells_scores_with_weights_source_and_what_speaks_against(
    clinic: Any,
) -> None:
    attempt, pages, page = write(clinic, dermoscopies(clinic.folder), "dermoscopy")
    text = " ".join(pages)
    for told in (text, page):
        for said in (
            "highly suspicious of melanoma, 6.1",
            "below the threshold of suspicion, 3.4",
            "suspicious from 4.75, highly suspicious of melanoma above 5.45",
            "Nachbar 1994",
            "Ahnlide 2016: specificity 45 % in practice",
            "light brown, dark brown, blue-grey",
            "pigment network, dots, globules",
            "diameter 7.4 mm",
            "area 38.2 mm²",
        ):
            assert said in told
        assert told.count("no scale") == 1
        assert "benign" not in told
    assert "Asymmetry axes without symmetry, 0 to 2 2 1.3 2.6" in text
    assert page.count("data:image/png") == 4, "a photograph and an overlay of each"
    assert all(DEMONSTRATION in each for each in [*pages, page])
    result = recorded(attempt, "assess").assess_dermoscopy_result
    assert [each.total for each in result.lesions] == pytest.approx([6.1, 3.4])


@pytest.mark.parametrize("template", ["study", "batch"])
def test_other_templates_tell_the_verdict_too(clinic: Any, template: str) -> None:
    _, pages, _ = write(clinic, verdicts(clinic.folder, 3), template)
    text = " ".join(pages).lower()
    assert "no class" in text
    assert "melanoma" in text
    assert "62.0 %" in text
    _, pages, _ = write(clinic, dermoscopies(clinic.folder), template)
    text = " ".join(pages)
    assert "highly suspicious of melanoma" in text
    assert "Ahnlide 2016" in text


def test_long_names_and_markup_stay_on_the_page_and_are_never_run(clinic: Any, reader: Any) -> None:
    asked, scored = verdicts(clinic.folder, 2), dermoscopies(clinic.folder)
    for image in asked[1].result.images:  # type: ignore[attr-defined]
        image.frames[0].display_name = "W" * 64
        image.frames[0].opinions[0].model.name = "<script>#panic()"
    lesion = scored[1].result.lesions[0]  # type: ignore[attr-defined]
    lesion.colors[0] = lesion.structures[0] = "W" * 64
    for template in ("study", "skin-check", "dermoscopy"):
        attempt, pages, page = write(clinic, [*asked, scored[1]], template)
        assert "<script" not in page
        assert "#panic" in " ".join(pages)
        reader.path.write_bytes(attempt.read("report.pdf"))
        command = ["pdftotext", "-bbox", str(reader.path), "-"]
        boxes = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        edges = [float(each) for each in re.findall(r'<word[^>]*xMax="([\d.]+)"', boxes.stdout)]
        assert max(edges) < 595.3 - 40, template


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_verdicts_are_told_in_every_language(clinic: Any, language: str) -> None:
    words = Words(language)
    upstream = [*verdicts(clinic.folder, 2), dermoscopies(clinic.folder)[1]]
    _, _, page = write(clinic, upstream, "dermoscopy", language)
    for key in ("abstained_disagree", "abcd_highly_suspicious", "counter_evidence", "no_scale"):
        assert words(key) in page


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("Melanoma in situ", True),
        ("basal cell carcinoma", True),
        ("lesion", True),
        ("non-melanoma skin cancer", True),
        ("AKIEC", True),
        ("nevus", False),
        ("no lesion", False),
        ("non-melanoma", False),
        ("benign lesion", False),
        ("caramel", False),
    ],
)
def test_names_of_classes_tell_what_comes_first(name: str, first: bool) -> None:
    assert is_suspicious(name) is first


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("de", ("hellbraun, dunkelbraun, blaugrau", "Pigmentnetz, Punkte, Schollen")),
        ("es", ("marrón claro, marrón oscuro, gris azulado", "red de pigmento, puntos, glóbulos")),
        ("zh", ("浅褐色, 深褐色, 蓝灰色", "色素网, 点, 球")),
    ],
)
def test_colours_and_structures_are_in_the_language_of_the_report(
    clinic: Any, language: str, words: tuple[str, ...]
) -> None:
    _, pages, page = write(clinic, dermoscopies(clinic.folder), "dermoscopy", language)
    for each in words:
        assert each in page
        assert each in " ".join(pages)
