"""What a report says of a slide."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_worker.operations.comparison import export_comparison
from export_worker.operations.infographic import export_infographic
from export_worker.operations.report import export_report
from export_worker.testing import png
from export_worker.testing_slides import slides
from fluoro.v1 import ml_pb2, slide_pb2
from fluoro.v1.export_pb2 import ExportComparison, ExportInfographic, ExportReport, ReportStyle
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.testing import step_context


def test_a_slide_has_its_heat_map_and_the_tiles_that_stand_out_of_each_class(
    clinic: Any, reader: Any, tmp_path: Path
) -> None:
    attempt = step_context(tmp_path, [b"slide"], step="score")
    told = slide_pb2.AnalyzedSlide(item="0", tiles=400, novel_tiles=60)
    for item in attempt.context.each("slides"):
        with item:
            picture = png(np.full((240, 240, 3), 200, np.uint8))
            told.heat_map = item.put("heat-map", ".png", "heat-map", "image/png", picture)
    for label, name in enumerate(("fibres", "crowded nuclei")):
        one = told.classes.add(label=label, display_name=name, color="#c03050", tiles=170)
        one.share = 0.425
        one.top.add(row=7, column=12 + label, probability=0.97)
        one.top.add(row=0, column=3, probability=0.5)
    model = ml_pb2.ModelReference(name="he-texture", version="1.0.0", sha256=bytes(32))
    scored = slide_pb2.AnalyzeSlideResult(model=model, slides=[told])
    pdf = clinic.pdf(attempt.as_upstream(scored))
    text = reader.text(pdf)
    assert reader.images(pdf) == ["240x240"]
    assert "Most probable tiles, fibres, he-texture 1.0.0" in text
    assert "Most probable tiles, crowded nuclei, he-texture 1.0.0" in text
    for place in ("row 7, column 12", "row 7, column 13", "row 0, column 3"):
        assert place in text
    assert "0.97" in text
    assert "no class: unlike the training data 60 15.0 %" in text


def test_a_report_of_slides_tells_their_size_tissue_and_shares_in_each_language(
    clinic: Any, reader: Any, tmp_path: Path
) -> None:
    told = {
        "": ("Histopathology", "6,144 columns", "0.5 µm pixels", "42.0 % tissue"),
        "de": ("Histopathologie", "ohne Klasse", "6.144", "Pixel von 0,5 µm", "42,0 % Gewebe"),
        "es": ("Histopatología", "sin clase", "6.144", "píxeles de 0,5 µm", "42,0 % de tejido"),
        "zh": ("组织病理学", "无类别", "6,144", "0.5 µm", "42.0 %"),
    }
    upstream = slides(tmp_path)
    for language, words in told.items():
        attempt = clinic.attempt(upstream)
        request = ExportReport(
            template="histopathology",
            formats=[ExportReport.FORMAT_PDF, ExportReport.FORMAT_HTML],
            style=ReportStyle(language=language),
        )
        export_report(request, attempt.context)
        pdf, page = attempt.read("report.pdf"), attempt.read("report.html").decode()
        text = reader.text(pdf)
        assert reader.images(pdf) == ["960x640"] + ["256x256"] * 12
        assert page.count("<img") == 13
        for each in (*words, "crowded nuclei", "0.97" if language in ("", "zh") else "0,97"):
            assert each in text
            assert each in page


def test_a_tile_whose_picture_is_not_there_stands_without_it(
    clinic: Any, reader: Any, tmp_path: Path
) -> None:
    upstream = slides(tmp_path)
    upstream[1].result.slides[0].classes[1].top[0].picture = "gone.jpg"  # type: ignore[attr-defined]
    attempt = clinic.attempt(upstream)
    request = ExportReport(template="histopathology", formats=[ExportReport.FORMAT_PDF])
    export_report(request, attempt.context)
    pdf = attempt.read("report.pdf")
    assert reader.images(pdf) == ["960x640"] + ["256x256"] * 11
    assert "row 5, column 10" in reader.text(pdf)


@pytest.mark.parametrize(
    ("language", "said"), [("", "no class"), ("de", "ohne Klasse"), ("zh", "无类别")]
)
def test_tiles_without_a_class_are_told_in_the_language_of_comparisons_and_charts(
    clinic: Any, reader: Any, tmp_path: Path, language: str, said: str
) -> None:
    upstream = slides(tmp_path)
    style = ReportStyle(language=language)
    attempt = clinic.attempt([*upstream, replace(upstream[1], step="again")])
    compared = export_comparison(
        ExportComparison(style=style, formats=[ExportReport.FORMAT_PDF]), attempt.context
    )
    assert said in reader.text(attempt.read("comparison.pdf"))
    # Programs are told one name in all languages.
    assert {one.display_name for one in compared.differences} >= {
        "no class: unlike the training data"
    }
    charts = ExportInfographic(style=style, formats=[ExportInfographic.FORMAT_PDF])
    attempt = clinic.attempt(upstream)
    export_infographic(charts, attempt.context)
    assert said in reader.text(attempt.read("chart-01.pdf"))


def test_a_report_of_slides_needs_a_slide(clinic: Any) -> None:
    attempt = clinic.attempt([clinic.render()])
    with pytest.raises(FluoroError) as refused:
        export_report(ExportReport(template="histopathology"), attempt.context)
    assert refused.value.reason == Reason.NO_APPLICABLE_INPUT
