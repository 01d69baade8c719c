"""The report as people see it, and what becomes of hostile, odd or missing input."""

import hashlib
import io
import json
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pypdf
import pytest
from export_worker.contents import Pictures, contents
from export_worker.operations import HANDLERS
from export_worker.operations.report import export_report
from export_worker.typesetting import Typesetter
from export_worker.wording import MINUS, NONE, TIMES
from export_worker.words import words_of
from fluoro.v1 import dicom_pb2, job_pb2, ml_pb2
from fluoro.v1.export_pb2 import ExportReport, ExportReportResult
from fluoro_jobs.errors import CancelledAttempt, FluoroError, Reason
from fluoro_jobs.worker.context import Upstream
from PIL import Image

HOSTILE = '#panic("no") #read("/etc/passwd") $x$ *bold* #import "@preview/x:1.0.0": * \\ " ] }'


def whole(clinic: Any) -> list[Upstream]:
    return [clinic.inspect(), clinic.render(), clinic.analyze()]


def test_the_worker_offers_the_operation() -> None:
    assert "export.report" in {handler.operation.task_name for handler in HANDLERS}


def test_pdf_tells_title_findings_instances_and_provenance(clinic: Any, reader: Any) -> None:
    text = reader.text(clinic.pdf(*whole(clinic)))
    assert "Chest CT, tissue classes" in text
    assert "Job …456789ab" in text
    assert "soft tissue 6,766 41.3 % 14.80 38.3" in text
    assert f"lung 3,743 22.8 % 8.19 {MINUS}753.1" in text
    assert f"air 0 0.0 % 0.00 {NONE}" in text
    assert "window center 40, width 400 HU" in text
    assert f"128 rows{TIMES}128 columns · 0.661{TIMES}0.661 mm pixels · 5 mm slice" in text
    assert "JPEG 2000 Image Compression" in text
    assert "CT Image Storage" in text
    assert "ct-tissue 1.0.0" in text
    assert hashlib.sha256(b"model").hexdigest() in text
    assert "ONNX Runtime 1.31.1" in text
    assert "CPUExecutionProvider" in text
    assert "pylibjpeg-openjpeg 2.6.0" in text


def test_every_page_says_its_number_and_that_it_is_not_for_diagnosis(clinic: Any) -> None:
    clinic.inputs = 5
    pages = pypdf.PdfReader(io.BytesIO(clinic.pdf(*whole(clinic)))).pages
    assert len(pages) > 2
    for number, page in enumerate(pages, start=1):
        assert "Not for diagnostic use" in page.extract_text()
        assert f"Page {number} of {len(pages)}" in page.extract_text()


def test_each_finding_has_its_preview_and_its_overlay(clinic: Any, reader: Any) -> None:
    assert reader.images(clinic.pdf(*whole(clinic))) == ["128x128", "128x128"]


def test_the_result_counts_the_pages(clinic: Any) -> None:
    attempt = clinic.attempt(whole(clinic))
    result = export_report(ExportReport(), attempt.context)
    assert result.pages == len(pypdf.PdfReader(io.BytesIO(attempt.read("report.pdf"))).pages)


def test_artifacts_have_the_roles_and_media_types_of_the_api(clinic: Any) -> None:
    artifacts = clinic.report(clinic.inspect()).context.artifacts
    assert {(name, artifact.role, artifact.media_type) for name, artifact in artifacts.items()} == {
        ("report.pdf", "report", "application/pdf"),
        ("result.json", "result", "application/json"),
    }


@pytest.mark.parametrize(
    ("format", "name"),
    [(ExportReport.FORMAT_PDF, "report.pdf"), (ExportReport.FORMAT_JSON, "result.json")],
)
def test_only_the_formats_asked_for_are_written(
    clinic: Any, format: ExportReport.Format.ValueType, name: str
) -> None:
    attempt = clinic.attempt([clinic.inspect()])
    result = export_report(ExportReport(formats=[format]), attempt.context)
    assert list(result.artifacts) == list(attempt.context.artifacts) == [name]
    assert bool(result.pages) == (name == "report.pdf")


def test_an_unknown_format_is_refused(clinic: Any) -> None:
    with pytest.raises(FluoroError) as refusal:
        export_report(
            ExportReport(formats=[ExportReport.FORMAT_UNSPECIFIED]),
            clinic.attempt([clinic.inspect()]).context,
        )
    assert refusal.value.reason is Reason.INVALID_ARGUMENT


def test_the_same_inputs_give_the_same_bytes_in_another_attempt(clinic: Any) -> None:
    first, second = clinic.report(*whole(clinic)), clinic.report(*whole(clinic))
    assert first.read("report.pdf") == second.read("report.pdf")
    assert first.read("result.json") == second.read("result.json")


def test_the_pdf_is_archival_accessible_and_dated_by_the_job(clinic: Any) -> None:
    pdf = clinic.pdf(*whole(clinic))
    document = pypdf.PdfReader(io.BytesIO(pdf))
    assert document.xmp_metadata is not None
    assert (document.xmp_metadata.pdfaid_part, document.xmp_metadata.pdfaid_conformance) == (
        "2",
        "A",
    )
    assert b"<pdfuaid:part>1</pdfuaid:part>" in pdf
    assert document.metadata is not None
    assert document.metadata.title == "Chest CT, tissue classes"
    assert document.metadata.creation_date == datetime(2025, 8, 19, 10, 49, 10, tzinfo=UTC)


def test_failures_are_told_once_per_cause_with_reason_and_message(clinic: Any, reader: Any) -> None:
    clinic.inputs = 3
    clinic.failing["1"] = (Reason.DICOM_TRUNCATED, "The file ends before its data does.")
    text = reader.text(clinic.pdf(*whole(clinic)))
    assert (
        "1 inspect, render, analyze failed DICOM_TRUNCATED The file ends before its data does."
        in text
    )
    assert "3 2 0 1 INPUTS SUCCEEDED SKIPPED FAILED" in text


def test_what_comes_from_no_single_input_is_named_by_its_key(clinic: Any, reader: Any) -> None:
    clinic.keys = ["3/0010", "series-10", "3/0009", "series-2", "17/4/7"]
    clinic.failing["3/0009"] = (Reason.NOT_DICOM, "Not DICOM.")
    pdf = clinic.pdf(*whole(clinic))
    text = reader.text(pdf)
    assert "3/0009 inspect, render, analyze failed NOT_DICOM Not DICOM." in text
    assert "5 4 0 1 INPUTS SUCCEEDED SKIPPED FAILED" in text
    assert "come from a step that split or joined inputs" in text
    headings = ("Input 3/0010", "Input series-2", "Input series-10")
    places = [text.index(heading) for heading in headings]
    assert places == sorted(places), "numbers in keys count as numbers"


def test_skipped_inputs_are_told_too(clinic: Any, reader: Any) -> None:
    attempt = clinic.step("analyze")
    for item in attempt.context.each("analyze"):
        with item:
            item.skip(Reason.MODEL_NOT_APPLICABLE, "The model is for CT.")
    text = reader.text(
        clinic.pdf(clinic.render(), attempt.as_upstream(ml_pb2.AnalyzeImagesResult()))
    )
    assert "0 analyze skipped MODEL_NOT_APPLICABLE The model is for CT." in text
    assert "1 0 1 0 INPUTS SUCCEEDED SKIPPED FAILED" in text


def test_inputs_that_no_step_reached_are_counted(clinic: Any, reader: Any) -> None:
    upstream = whole(clinic)
    clinic.inputs = 4
    assert "4 1 0 0 3 INPUTS SUCCEEDED SKIPPED FAILED NOT REACHED" in reader.text(
        clinic.pdf(*upstream)
    )


def test_without_analysis_there_is_a_report_without_findings(clinic: Any, reader: Any) -> None:
    pdf = clinic.pdf(clinic.inspect(), clinic.render())
    assert reader.images(pdf) == ["128x128"]
    assert "VOXELS" not in reader.text(pdf)


def test_without_pictures_there_is_still_a_report(clinic: Any, reader: Any) -> None:
    pdf = clinic.pdf(clinic.inspect())
    assert reader.images(pdf) == []
    assert "CT Image Storage" in reader.text(pdf)


def test_two_analyses_of_an_image_stand_together_under_their_models(
    clinic: Any, reader: Any
) -> None:
    pdf = clinic.pdf(clinic.render(), clinic.analyze("first"), clinic.analyze("second"))
    assert reader.images(pdf) == ["128x128"] * 3
    assert reader.text(pdf).count("soft tissue 6,766") == 2


def test_findings_longer_than_a_page_go_on_on_the_next(clinic: Any, reader: Any) -> None:
    clinic.inputs = 14
    upstream = clinic.analyze()
    for finding in upstream.result.findings:
        finding.measurements.extend(
            ml_pb2.Measurement(label=label, display_name=f"organ-{label}", voxels=1)
            for label in range(6, 120)
        )
    pdf = clinic.pdf(upstream)
    text = reader.text(pdf)
    assert len(pypdf.PdfReader(io.BytesIO(pdf)).pages) > 2 * 14, (
        "what does not fit on a page would lie below its edge"
    )
    assert text.count("organ-6 ") == text.count("organ-60 ") == text.count("organ-119 ") == 14


def test_a_model_that_ran_twice_is_described_once(clinic: Any, reader: Any) -> None:
    text = reader.text(
        clinic.pdf(clinic.render(), clinic.analyze("first"), clinic.analyze("second"))
    )
    assert text.count(hashlib.sha256(b"model").hexdigest()) == 1


def test_sixty_inputs_give_a_dozen_pictured_images_and_complete_tables(
    clinic: Any, reader: Any
) -> None:
    clinic.inputs = 60
    pdf = clinic.pdf(*whole(clinic))
    text = reader.text(pdf)
    assert len(reader.images(pdf)) == 24
    assert "12 of 60 images are shown with pictures." in text
    assert text.count("soft tissue 6,766 41.3 % 14.80 38.3") == 60
    assert text.count("CT Image Storage") == 60
    assert len(pypdf.PdfReader(io.BytesIO(pdf)).pages) < 30
    assert "are listed" not in text


def test_a_study_of_thousands_of_images_makes_no_book_and_no_gibibyte(
    clinic: Any, reader: Any
) -> None:
    numbers = range(3000)
    instances = [dicom_pb2.DicomInstance(input=number, modality="CT") for number in numbers]
    images = [dicom_pb2.RenderedImage(input=number) for number in numbers]
    findings = [
        ml_pb2.ImageFinding(input=number, measurements=[ml_pb2.Measurement(display_name="bone")])
        for number in numbers
    ]
    failed = [
        job_pb2.Item(input=n, state=job_pb2.Item.STATE_FAILED, reason="NOT_DICOM") for n in numbers
    ]
    upstream = [
        Upstream("inspect", dicom_pb2.InspectDicomResult(instances=instances), [], []),
        Upstream("render", dicom_pb2.RenderDicomResult(images=images), failed, []),
        Upstream("analyze", ml_pb2.AnalyzeImagesResult(findings=findings), [], []),
    ]
    clinic.inputs = 3000
    attempt = clinic.report(*upstream)
    pdf = attempt.read("report.pdf")
    text = reader.text(pdf)
    assert text.count("The first 200 of 3,000 are listed.") == 4
    assert "3000 0 0 3000 INPUTS SUCCEEDED SKIPPED FAILED" in text
    assert len(pypdf.PdfReader(io.BytesIO(pdf)).pages) < 60
    step = json.loads(attempt.read("result.json"))["steps"][0]
    assert len(step["analyzeImagesResult"]["findings"]) == 3000


REPORT = """
import resource, sys
from fluoro.v1 import dicom_pb2, export_pb2, job_pb2, ml_pb2
from export_worker.operations.report import export_report
from fluoro_jobs.testing import step_context
from fluoro_jobs.worker.context import Upstream
from pathlib import Path

keys = [f"{number:05}/{'W' * 122}" for number in range(10_000)]
State = job_pb2.Item.State
items = [
    job_pb2.Item(input=-1, key=key, state=State.STATE_FAILED, reason="NOT_DICOM", message="x" * 200)
    for key in keys
]
arrays = [
    job_pb2.Artifact(name=f"pixels-{key.replace('/', '~')}.npy", key=key, role="pixels")
    for key in keys
]
rendered = dicom_pb2.RenderDicomResult(images=[{"item": key, "pixels": key} for key in keys])
found = [{"item": key, "measurements": [{"display_name": "bone"}] * 6} for key in keys]
inspected = dicom_pb2.InspectDicomResult(instances=[{"item": key} for key in keys])
upstream = [
    Upstream("inspect", inspected, items, []),
    Upstream("render", rendered, items, arrays),
    Upstream("analyze", ml_pb2.AnalyzeImagesResult(findings=found), items, arrays),
]
attempt = step_context(Path(sys.argv[1]), (), upstream, step="report")
attempt.context.job, attempt.context.job_inputs = sys.argv[2], len(keys)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = export_report(export_pb2.ExportReport(), attempt.context)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sizes = [artifact.size_bytes for artifact in attempt.context.artifacts.values()]
print(result.pages, (after - before) // 1024, *sizes)
"""


def test_ten_thousand_images_of_the_longest_keys_make_a_report_of_bounded_pages_and_memory(
    clinic: Any,
) -> None:
    command = [sys.executable, "-c", REPORT, str(clinic.folder), clinic.job]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    pages, more_mib, pdf_bytes, json_bytes = map(int, done.stdout.split())
    assert pages < 80
    assert pdf_bytes < 8 * 2**20
    assert json_bytes > 10_000 * 5 * 128, "it has them all"
    assert more_mib < 300, "most of it is what typst and its fonts take"


@pytest.mark.parametrize(
    "title", [HOSTILE, '#eval("1+1")', "]; #panic()", '"); read("/etc/passwd")']
)
def test_typst_in_a_title_is_shown_and_never_run(clinic: Any, reader: Any, title: str) -> None:
    text = reader.text(clinic.pdf(clinic.inspect(), title=title))
    assert " ".join(title.split())[:20] in text
    assert "root:" not in text


def test_typst_in_values_of_a_file_is_shown_and_never_run(clinic: Any, reader: Any) -> None:
    clinic.failing["0"] = (Reason.NOT_DICOM, HOSTILE)
    clinic.inputs = 2
    text = reader.text(
        clinic.pdf(
            clinic.inspect(
                modality="#panic()", body_part_examined='#read("/x")', sop_class_uid="#1.2"
            )
        )
    )
    assert "#panic()" in text
    assert '#read("/x")' in text
    assert "root:" not in text


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("Übersicht für Jürgen, naïve façade", "Übersicht für Jürgen, naïve façade"),
        ("Ελληνικά и кириллица", "Ελληνικά и кириллица"),
        ("胸部CT 报告", "CT"),
        ("emoji \U0001f600 and a mark \u200f of direction", "and a mark of direction"),
        ("", "Imaging report"),
        ("W" * 256, "WWWWW"),
        ("word " * 51, "word word"),
    ],
    ids=[
        "latin",
        "greek and cyrillic",
        "chinese",
        "emoji and marks",
        "empty",
        "long word",
        "long text",
    ],
)
def test_odd_titles_are_set_as_well_as_the_fonts_allow(
    clinic: Any, reader: Any, title: str, shown: str
) -> None:
    assert shown in reader.text(clinic.pdf(clinic.inspect(), title=title))


def test_typst_reads_nothing_outside_its_folder(clinic: Any) -> None:
    folder = clinic.folder / "typst"
    folder.mkdir()
    (clinic.folder / "outside.png").write_bytes(clinic.picture())
    upstream = [clinic.render()]
    blob = upstream[0].artifacts[0].blob

    def report_with(file: str) -> Any:
        words = words_of("en")
        look: Any = {"organization": "", "footer": "", "accent": "#0b6e7f", "logo": ""}
        pictures = Pictures({blob: file})
        return contents(clinic.job, 1, upstream, pictures, title="", words=words, look=look)

    for file in ("../outside.png", str(clinic.folder / "outside.png")):
        with pytest.raises(FluoroError) as failure:
            Typesetter(report_with(file), folder)
        assert failure.value.reason is Reason.REPORT_FAILED
    (folder / "inside.png").write_bytes(clinic.picture())
    assert Typesetter(report_with("inside.png"), folder).pages


def test_nothing_that_identifies_an_instance_is_printed(clinic: Any, reader: Any) -> None:
    text = reader.text(clinic.pdf(*whole(clinic)))
    assert "1.2.3.4" not in text
    assert "blobs/" not in text


@pytest.mark.parametrize(
    "spacing", [(), (0.5,), (float("nan"), 1.0), (1.0, float("inf")), (0.0, 1.0), (1e-300, 1e300)]
)
def test_impossible_spacings_are_left_out(
    clinic: Any, reader: Any, spacing: tuple[float, ...]
) -> None:
    upstream = clinic.render()
    del upstream.result.images[0].pixel_spacing_mm[:]
    upstream.result.images[0].pixel_spacing_mm.extend(spacing)
    text = reader.text(clinic.pdf(upstream))
    assert "mm pixels" not in text
    assert f"128 rows{TIMES}128 columns" in text


def test_values_that_are_no_numbers_are_dashes(clinic: Any, reader: Any) -> None:
    upstream = clinic.analyze()
    entry = upstream.result.findings[0].measurements[4]
    entry.fraction, entry.volume_ml, entry.mean_value, entry.color = (
        float("nan"),
        float("inf"),
        float("-inf"),
        "red; #panic()",
    )
    assert f"soft tissue 6,766 {NONE} {NONE} {NONE}" in reader.text(clinic.pdf(upstream))


def test_pixels_that_are_not_square_are_shown_in_the_proportions_of_the_body(
    clinic: Any, reader: Any
) -> None:
    upstream = clinic.render()
    upstream.result.images[0].pixel_spacing_mm[:] = [0.5, 1.0]
    wide = reader.densities(clinic.pdf(upstream))
    square = reader.densities(clinic.pdf(clinic.render()))
    assert wide[0] / wide[1] == pytest.approx(0.5, rel=0.02)
    assert square[0] / square[1] == pytest.approx(1.0, rel=0.02)


def test_after_nothing_there_is_nothing_to_report(clinic: Any) -> None:
    for upstream in ([], [Upstream("report", ExportReportResult(), [], [])]):
        with pytest.raises(FluoroError) as refusal:
            export_report(ExportReport(), clinic.attempt(upstream).context)
        assert refusal.value.reason is Reason.NO_APPLICABLE_INPUT


@pytest.mark.parametrize("broken", ["no picture", "torn picture", "sound head"])
def test_a_broken_picture_fails_the_report_without_telling_paths(clinic: Any, broken: str) -> None:
    sound = clinic.picture()
    data = {
        "no picture": b"no picture",
        "torn picture": sound[:40],
        "sound head": sound[: len(sound) // 2],
    }[broken]
    attempt = clinic.step("render")
    attempt.context.put("preview-0000.png", "preview", "image/png", data)
    image = dicom_pb2.RenderedImage(preview="preview-0000.png")
    upstream = attempt.as_upstream(dicom_pb2.RenderDicomResult(images=[image]))
    with pytest.raises(FluoroError) as failure:
        export_report(ExportReport(), clinic.attempt([upstream]).context)
    assert failure.value.reason is Reason.REPORT_FAILED
    assert "/" not in failure.value.message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_large_pictures_are_scaled_to_what_paper_shows(kind: str, clinic: Any, reader: Any) -> None:
    large = io.BytesIO()
    Image.new("L", (3000, 2000)).save(large, kind)
    attempt = clinic.step("render")
    attempt.context.put("preview-0000.png", "preview", "image/png", large.getvalue())
    upstream = attempt.as_upstream(
        dicom_pb2.RenderDicomResult(images=[dicom_pb2.RenderedImage(preview="preview-0000.png")])
    )
    assert reader.images(clinic.pdf(upstream)) == ["1200x800"]


def test_a_picture_that_is_gone_is_named_as_such(clinic: Any) -> None:
    upstream = clinic.render()
    attempt = clinic.attempt([upstream])
    attempt.context.blobs.delete(upstream.artifacts[0].blob)
    with pytest.raises(FluoroError) as failure:
        export_report(ExportReport(), attempt.context)
    assert failure.value.reason is Reason.BLOB_NOT_FOUND


def test_a_cancelled_attempt_leaves_nothing(clinic: Any) -> None:
    attempt = clinic.attempt(whole(clinic))
    attempt.context.cancelled.set()
    with pytest.raises(CancelledAttempt):
        export_report(ExportReport(), attempt.context)
    assert not attempt.context.artifacts


def test_an_attempt_cancelled_while_it_is_set_leaves_nothing(clinic: Any) -> None:
    attempt = clinic.attempt(whole(clinic))
    send = attempt.context.send_progress

    def cancel_at_typesetting(progress: Any) -> None:
        send(progress)
        if progress.stage == "typeset":
            attempt.context.cancelled.set()

    attempt.context.send_progress = cancel_at_typesetting
    with pytest.raises(CancelledAttempt):
        export_report(ExportReport(), attempt.context)
    assert not attempt.context.artifacts


def test_progress_goes_through_its_stages(clinic: Any) -> None:
    attempt = clinic.report(*whole(clinic))
    stages = [progress.stage for progress in attempt.progress]
    assert list(dict.fromkeys(stages)) == ["collect", "typeset", "store"]
    assert attempt.progress[-1].fraction == 1.0


def test_an_image_of_one_row_is_no_trouble(clinic: Any, reader: Any) -> None:
    upstream = clinic.render()
    upstream.result.images[0].certificate.shape[:] = [3, 1, 4096]
    assert "first of 3 frames" in reader.text(clinic.pdf(upstream))
