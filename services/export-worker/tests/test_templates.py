"""Templates, formats, languages and looks of reports, and what becomes of hostile names in them."""

import io
import re
import subprocess
from pathlib import Path
from typing import Any

import pypdf
import pytest
from export_worker import typesetting
from export_worker.operations.report import export_report
from export_worker.style import contrast
from export_worker.testing import looks, photographs, wounds
from export_worker.testing_slides import slides
from export_worker.words import LANGUAGES, Words
from fluoro.v1 import job_pb2, ml_pb2
from fluoro.v1.export_pb2 import ExportReport, ExportReportResult, ReportStyle
from fluoro_jobs.errors import CancelledAttempt, FluoroError, Reason
from fluoro_jobs.testing import Attempt, step_context
from fluoro_jobs.worker.context import Upstream
from PIL import Image

Format = ExportReport.Format
DEMONSTRATION = "Demonstration model"
HOSTILE = '<script>alert(1)</script>#panic("no")&amp;$x$'


def write(
    clinic: Any, upstream: list[Upstream], template: str, *formats: Any, **fields: Any
) -> tuple[Attempt, ExportReportResult]:
    attempt = clinic.attempt(upstream)
    request = ExportReport(
        template=template, formats=formats or [Format.FORMAT_PDF], title="Check", **fields
    )
    return attempt, export_report(request, attempt.context)


def pdf_text(attempt: Attempt) -> list[str]:
    pages = pypdf.PdfReader(io.BytesIO(attempt.read("report.pdf"))).pages
    return [" ".join(page.extract_text().split()) for page in pages]


def refused(clinic: Any, upstream: list[Upstream], template: str, **fields: Any) -> FluoroError:
    with pytest.raises(FluoroError) as refusal:
        write(clinic, upstream, template, **fields)
    return refusal.value


def test_a_skin_check_shows_each_picture_with_its_probabilities(clinic: Any) -> None:
    attempt, result = write(clinic, photographs(clinic.folder, 3), "skin-check")
    text = " ".join(pdf_text(attempt))
    assert "melanoma" in text
    assert re.search(r"\d+\.\d %", text)
    assert "calibrated only if its card says so" in text
    assert any("demonstration model: skin-demo" in each for each in result.warnings)


@pytest.mark.parametrize("template", ["study", "skin-check", "dermoscopy"])
def test_heat_maps_and_like_images_stand_beside_the_lesion(clinic: Any, template: str) -> None:
    upstream = [*photographs(clinic.folder, 2), *looks(clinic.folder, 2)]
    formats = [Format.FORMAT_PDF, Format.FORMAT_HTML]
    attempt, _ = write(clinic, upstream, template, *formats)
    page = attempt.read("report.html").decode()
    for text in (" ".join(pdf_text(attempt)), page):
        assert "What the class hangs on" in text
        assert "Most similar images, by cosine" in text
        assert "0.80" in text  # of input 1 to input 0
    assert page.count("data:image/png") >= 4  # a photograph and a heat map of each


def test_a_heat_map_alone_says_that_a_demonstration_model_made_it(clinic: Any) -> None:
    attempt, _ = write(clinic, looks(clinic.folder, 1), "study")
    assert all(DEMONSTRATION in page for page in pdf_text(attempt))


def test_provenance_names_what_came_in_and_when_earlier_steps_ran(clinic: Any) -> None:
    formats = [Format.FORMAT_PDF, Format.FORMAT_HTML]
    attempt = step_context(clinic.folder, [b"a"], [clinic.render()])
    export_report(ExportReport(formats=formats), attempt.context)
    (source,) = attempt.context.origins.inputs
    for text in ("".join(pdf_text(attempt)), attempt.read("report.html").decode()):
        assert "2026-01-02 03:04:06" in text
        assert source.sha256.hex() in text


def test_a_burn_report_tells_areas_of_the_picture_and_no_body_surface(clinic: Any) -> None:
    attempt, _ = write(clinic, wounds(clinic.folder, 2), "burn")
    text = " ".join(pdf_text(attempt))
    assert "superficial" in text
    assert "not of the body surface" in text
    assert all(DEMONSTRATION in page for page in pdf_text(attempt))


def test_a_batch_shows_all_inputs_in_little_those_that_failed_too(clinic: Any) -> None:
    clinic.inputs, clinic.failing = 4, {"3": (Reason.NOT_DICOM, "Not DICOM.")}
    attempt, _ = write(clinic, [*photographs(clinic.folder, 3), clinic.inspect()], "batch")
    text = " ".join(pdf_text(attempt))
    assert "All inputs" in text
    assert "3 failed" in text
    assert "NOT_DICOM" in text


def test_a_comparison_tells_how_variants_differ(clinic: Any) -> None:
    changed = clinic.analyze("second")
    changed.result.findings[0].measurements[4].volume_ml += 1.25
    attempt, _ = write(clinic, [clinic.analyze("first"), changed], "comparison")
    text = " ".join(pdf_text(attempt))
    assert "Compared with first, the reference." in text
    assert "14.80 16.05 +1.25" in text


@pytest.mark.parametrize("template", ["study", "batch", "skin-check"])
def test_every_page_and_format_says_that_a_demonstration_model_made_it(
    clinic: Any, template: str
) -> None:
    formats = [Format.FORMAT_PDF, Format.FORMAT_HTML]
    attempt, _ = write(clinic, photographs(clinic.folder, 4), template, *formats)
    for page in pdf_text(attempt):
        assert DEMONSTRATION in page
        assert "Not for diagnostic use" in page
    assert DEMONSTRATION in attempt.read("report.html").decode()


def test_a_model_for_care_makes_no_demonstration(clinic: Any) -> None:
    upstream = photographs(clinic.folder, 1)
    upstream[1].result.model.intended_use = 3  # type: ignore[attr-defined]
    attempt, _ = write(clinic, upstream, "study")
    assert DEMONSTRATION not in " ".join(pdf_text(attempt))


def test_pictures_of_pages_are_numbered_and_of_the_size_of_paper(clinic: Any) -> None:
    formats = [Format.FORMAT_PNG, Format.FORMAT_JPEG]
    attempt, result = write(clinic, [clinic.render()], "study", *formats)
    names = list(result.artifacts)
    assert names[:2] == ["report-001.png", "report-001.jpg"]
    assert len(names) == 2 * result.pages
    for name in names[:2]:
        with Image.open(io.BytesIO(attempt.read(name))) as picture:
            assert picture.size == (1191, 1684)


@pytest.mark.parametrize("template", typesetting.TEMPLATES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_template_is_set_in_every_language(clinic: Any, template: str, language: str) -> None:
    photos = photographs(clinic.folder, 2, steps=("one", "two"))
    upstream = [clinic.deidentify(), *photos, *looks(clinic.folder, 2), wounds(clinic.folder, 2)[1]]
    upstream += slides(clinic.folder)
    style = ReportStyle(language=language)
    attempt, result = write(clinic, upstream, template, style=style)
    text = " ".join(pdf_text(attempt))
    assert Words(language)("not_for_diagnosis").split()[0][:3] in text
    assert result.pages == len(pdf_text(attempt))


def test_languages_say_the_same_things() -> None:
    first = Words(LANGUAGES[0]).all
    for language in LANGUAGES[1:]:
        other = Words(language).all
        assert other.keys() == first.keys()
        for key, phrase in first.items():
            assert set(re.findall(r"\{\w+\}", phrase)) == set(re.findall(r"\{\w+\}", other[key])), (
                language,
                key,
            )


def test_numbers_are_written_as_the_language_does(clinic: Any) -> None:
    style = ReportStyle(language="de")
    attempt, _ = write(clinic, [clinic.render(), clinic.analyze()], "study", style=style)
    assert "soft tissue 6.766 41,3 % 14,80 38,3" in " ".join(pdf_text(attempt))


def test_markup_in_names_and_labels_is_shown_and_never_run(clinic: Any) -> None:
    upstream = photographs(clinic.folder, 1)
    result: Any = upstream[1].result
    result.findings[0].classes[0].display_name = HOSTILE
    result.model.name = HOSTILE
    formats = [Format.FORMAT_PDF, Format.FORMAT_HTML]
    style = ReportStyle(organization=HOSTILE, footer=HOSTILE)
    for template in ("skin-check", "batch"):
        attempt, _ = write(clinic, upstream, template, *formats, style=style)
        page = attempt.read("report.html").decode()
        assert "<script" not in page
        assert "&lt;script&gt;" in page
        assert "default-src 'none'" in page
        assert "#panic" in "".join(pdf_text(attempt)).replace(" ", "")


def test_forty_unbroken_characters_stay_on_the_page(clinic: Any, reader: Any) -> None:
    upstream = photographs(clinic.folder, 2, keys=["W" * 40, "w" * 128], steps=("a", "b"))
    result: Any = upstream[1].result
    result.findings[0].classes[0].display_name = "W" * 64
    for template in ("study", "batch", "skin-check", "comparison"):
        attempt, _ = write(clinic, upstream, template)
        reader.path.write_bytes(attempt.read("report.pdf"))
        command = ["pdftotext", "-bbox", str(reader.path), "-"]
        boxes = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        edges = [float(each) for each in re.findall(r'<word[^>]*xMax="([\d.]+)"', boxes.stdout)]
        assert max(edges) < 595.3 - 40, template


@pytest.mark.parametrize(
    "name",
    ["Ελληνικά", "кириллица", "مرحبا", "שלום", "胸部检查", "ひらがな", "한국어"],
    ids=["greek", "cyrillic", "arabic", "hebrew", "han", "kana", "hangul"],
)
def test_names_in_any_script_are_shown_in_fonts_that_are_embedded(
    clinic: Any, reader: Any, name: str
) -> None:
    if not {"Noto Naskh Arabic", "Noto Serif CJK SC"} <= set(typesetting.system_fonts().families()):
        pytest.skip("the Noto fonts are not installed")
    upstream = photographs(clinic.folder, 1)
    result: Any = upstream[1].result
    result.findings[0].classes[0].display_name = name
    attempt, written = write(clinic, upstream, "skin-check")
    assert not any("Characters" in each for each in written.warnings)
    pdf = attempt.read("report.pdf")
    found = reader.text(pdf)
    assert name in found or name[::-1] in found
    fonts = reader._run("pdffonts", pdf).splitlines()[2:]
    assert fonts
    assert all(line.split()[-5] == "yes" for line in fonts), "embedded"


def test_a_script_without_a_font_is_named_and_the_report_says_so(clinic: Any) -> None:
    upstream = photographs(clinic.folder, 1)
    result: Any = upstream[1].result
    result.findings[0].classes[0].display_name = "a\U00010570\U00010571b"
    attempt, written = write(clinic, upstream, "skin-check")
    text = " ".join(pdf_text(attempt))
    assert "a[Vithkuqi]b" in text.replace("\u200b", "")
    assert any("[" not in each and "Vithkuqi" in each for each in written.warnings)
    assert "Characters that no installed font holds" in text
    assert b"<pdfuaid:part>1</pdfuaid:part>" in attempt.read("report.pdf"), "still archival"


def test_a_report_of_more_than_ten_pages_has_a_table_of_contents(clinic: Any) -> None:
    clinic.inputs = 40
    upstream = [clinic.inspect(), clinic.render(), clinic.analyze()]
    long, _ = write(clinic, upstream, "study")
    assert len(pdf_text(long)) > 10
    assert "Contents Images" in " ".join(pdf_text(long)[:2])
    short, _ = write(clinic, photographs(clinic.folder, 2), "study")
    assert "Contents" not in " ".join(pdf_text(short))


def test_the_same_inputs_give_the_same_bytes_in_every_format(clinic: Any) -> None:
    upstream = photographs(clinic.folder, 3)
    formats = [Format.FORMAT_PDF, Format.FORMAT_PNG, Format.FORMAT_JPEG, Format.FORMAT_HTML]
    first, result = write(clinic, upstream, "batch", *formats)
    second, _ = write(clinic, upstream, "batch", *formats)
    for name in result.artifacts:
        assert first.read(name) == second.read(name), name


def test_a_template_that_is_not_there_is_refused_with_those_that_are(clinic: Any) -> None:
    refusal = refused(clinic, [clinic.render()], "scar")
    assert refusal.reason is Reason.INVALID_ARGUMENT
    assert "skin-check" in refusal.message


@pytest.mark.parametrize("template", ["skin-check", "comparison", "deidentification"])
def test_a_template_that_the_results_cannot_fill_is_refused(clinic: Any, template: str) -> None:
    refusal = refused(clinic, [clinic.render(), clinic.analyze()], template)
    assert refusal.reason is Reason.NO_APPLICABLE_INPUT


def test_a_report_that_would_be_a_library_is_refused(
    clinic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(typesetting, "MOST_PAGES", 2)
    clinic.inputs = 12
    refusal = refused(clinic, [clinic.render(), clinic.analyze()], "study")
    assert refusal.reason is Reason.REPORT_FAILED
    assert "2 are the most" in refusal.message


def test_an_organization_has_its_logo_colour_footer_and_templates(
    clinic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "organization"
    folder.mkdir()
    (folder / "style.toml").write_text(
        'organization = "Clinic of the Valley"\nfooter = "Tel. 17"\naccent_color = "#5b2a86"\n'
    )
    (folder / "logo.png").write_bytes(clinic.picture())
    (folder / "letter.typ").write_text(
        '#import "frame.typ": *\n#show: report\n= A letter\n#data.title\n'
    )
    monkeypatch.setenv("FLUORO_REPORT_FOLDER", str(folder))
    attempt, _ = write(clinic, [clinic.render()], "letter")
    text = pdf_text(attempt)[0]
    for said in ("CLINIC OF THE VALLEY", "Tel. 17", "A letter Check", "Not for diagnostic use"):
        assert said in text
    styled, _ = write(clinic, [clinic.render()], "study", style=ReportStyle(organization="Other"))
    assert "OTHER" in pdf_text(styled)[0]
    (folder / "style.toml").write_text("colour = 1\n")
    assert refused(clinic, [clinic.render()], "study").reason is Reason.REPORT_FAILED


@pytest.mark.parametrize("what", ["link", "gone", "folder", "package", "elsewhere"])
def test_a_template_reads_nothing_from_outside_of_its_folder(
    clinic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    folder, secret = tmp_path / "organization", tmp_path / "secret"
    folder.mkdir()
    secret.write_text("secret")
    line = ""
    match what:
        case "link":
            (folder / "other.typ").symlink_to(secret)
        case "gone":
            (folder / "other.typ").symlink_to(tmp_path / "nothing")
        case "folder":
            (folder / "other.typ").mkdir()
        case "package":
            line = '#import "@preview/cetz:0.3.4"'
        case "elsewhere":
            line = f'#read("{secret}") #read("../secret")'
    (folder / "letter.typ").write_text(f'#import "frame.typ": *\n#show: report\n{line}\n')
    monkeypatch.setenv("FLUORO_REPORT_FOLDER", str(folder))
    assert refused(clinic, [clinic.render()], "letter").reason is Reason.REPORT_FAILED


def test_templates_may_be_links_within_their_folder_as_in_a_config_map(
    clinic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "organization"
    (folder / "..2026").mkdir(parents=True)
    (folder / "..data").symlink_to("..2026")
    source = '#import "frame.typ": *\n#show: report\n= A letter\n'
    (folder / "..data" / "letter.typ").write_text(source)
    (folder / "letter.typ").symlink_to("..data/letter.typ")
    monkeypatch.setenv("FLUORO_REPORT_FOLDER", str(folder))
    attempt, _ = write(clinic, [clinic.render()], "letter")
    assert "A letter" in pdf_text(attempt)[0]


@pytest.mark.parametrize(
    "style",
    [
        ReportStyle(accent_color="#ffff00"),
        ReportStyle(accent_color="red"),
        ReportStyle(language="fr"),
        ReportStyle(logo=b"<svg/>"),
        ReportStyle(logo=b"\x89PNG\r\n\x1a\n"),
    ],
    ids=["too light", "no colour", "no language", "svg", "torn"],
)
def test_a_look_that_cannot_be_is_refused(clinic: Any, style: ReportStyle) -> None:
    refusal = refused(clinic, [clinic.render()], "study", style=style)
    assert refusal.reason is Reason.INVALID_ARGUMENT
    assert contrast("#000000") == pytest.approx(21)


def test_pages_after_a_cancel_are_not_stored(clinic: Any) -> None:
    clinic.inputs = 6
    attempt = clinic.attempt([clinic.render()])
    send = attempt.context.send_progress

    def cancel_at_the_second_page(progress: Any) -> None:
        send(progress)
        if progress.stage == "store" and progress.fraction > 0:
            attempt.context.cancelled.set()

    attempt.context.send_progress = cancel_at_the_second_page
    with pytest.raises(CancelledAttempt):
        export_report(ExportReport(formats=[Format.FORMAT_PNG]), attempt.context)
    assert len(attempt.context.artifacts) == 1, "and none of them is ever seen"


def test_ten_thousand_items_make_a_batch_of_bounded_pages(clinic: Any) -> None:
    keys = [f"{number}/{'k' * 40}" for number in range(10_000)]
    items = [job_pb2.Item(input=-1, key=key, state=job_pb2.Item.STATE_SUCCEEDED) for key in keys]
    scores = [ml_pb2.ClassScore(frame=1, display_name="nevus", probability=0.5)]
    found = [ml_pb2.ImageFinding(input=-1, item=key, classes=scores) for key in keys]
    upstream = [Upstream("analyze", ml_pb2.AnalyzeImagesResult(findings=found), items, [])]
    clinic.inputs = 1
    attempt, result = write(clinic, upstream, "batch")
    assert "The first 1,000 of 10,000 are listed." in " ".join(pdf_text(attempt))
    assert result.pages < 60


def test_a_volume_is_told_as_a_whole_and_pictured_from_end_to_end(clinic: Any, reader: Any) -> None:
    clinic.inputs = 24
    upstream = clinic.analyze()
    keys = [finding.item or str(finding.input) for finding in upstream.result.findings]
    total = ml_pb2.Measurement(display_name="brain", voxels=123_456, fraction=0.5, volume_ml=1234.5)
    upstream.result.volumes.add(items=keys, measurements=[total])
    text = reader.text(clinic.pdf(clinic.render(), upstream))
    assert "Input 0 … 23" in text
    assert "brain 123,456 50.0 % 1,234.50" in text
    # Every second slice; the others are in the table.
    assert "Input 1 " in text
    assert "Input 23 " in text
    assert "Input 0 CT" not in text
