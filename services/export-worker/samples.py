"""Writes one of every export into out/samples, and an index.html of them: `make samples`."""

import html
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from export_worker.operations.archive import export_archive
from export_worker.operations.comparison import export_comparison
from export_worker.operations.dicom import export_dicom
from export_worker.operations.fhir import export_fhir
from export_worker.operations.infographic import export_infographic
from export_worker.operations.report import export_report
from export_worker.testing import (
    Study,
    ct_slices,
    dermoscopies,
    looks,
    photographs,
    verdicts,
    wounds,
)
from export_worker.testing_slides import slides
from fluoro.v1.deidentify_pb2 import (
    DeidentificationAction,
    DeidentifiedInstance,
    DeidentifyDicomResult,
)
from fluoro.v1.export_pb2 import (
    Chart,
    ChartPoint,
    ChartSeries,
    ExportArchive,
    ExportComparison,
    ExportDicom,
    ExportFhir,
    ExportInfographic,
    ExportReport,
    ReportStyle,
)
from fluoro.v1.job_pb2 import Item
from fluoro_jobs.testing import Attempt
from fluoro_jobs.worker.context import Upstream

OUT: Final = Path("out/samples")
FORMATS: Final = (
    ExportReport.FORMAT_PDF,
    ExportReport.FORMAT_PNG,
    ExportReport.FORMAT_JPEG,
    ExportReport.FORMAT_HTML,
    ExportReport.FORMAT_JSON,
)
CHARTS: Final = [kind for kind in ExportInfographic.Format.values() if kind]
KINDS: Final = [kind for kind in ExportDicom.Kind.values() if kind]


def main() -> None:
    """Runs every operation on a CT series of eight slices, and reports on photographs too."""
    made: dict[str, Attempt] = {}
    with tempfile.TemporaryDirectory(prefix="fluoro-samples-") as folder:
        study = Study.of_slices(Path(folder), ct_slices(8, 128))
        steps = [study.render(), study.analyze()]
        operations: tuple[tuple[str, Any, Any], ...] = (
            ("report", export_report, ExportReport(formats=FORMATS)),
            ("dicom", export_dicom, ExportDicom(kinds=KINDS)),
            ("fhir", export_fhir, ExportFhir()),
            ("archive", export_archive, ExportArchive(dicomdir=True)),
        )
        for name, operation, request in operations:
            made[name] = attempt = study.attempt(*steps)
            attempt.context.step = name
            result = operation(request, attempt.context)
            steps.append(attempt.as_upstream(result))
        photos = photographs(Path(folder), 12)
        looked = [*photographs(Path(folder), 3), *looks(Path(folder), 3)]
        twice = photographs(Path(folder), 4, steps=("first", "second"))
        others: tuple[tuple[str, Any, Any, list[Upstream]], ...] = (
            ("report-batch", export_report, report("batch", "de"), photos),
            ("report-skin-check", export_report, report("skin-check", "es"), photos),
            ("report-dermoscopy", export_report, report("dermoscopy"), looked),
            ("report-verdicts", export_report, report("skin-check"), verdicts(Path(folder))),
            ("report-abcd", export_report, report("dermoscopy", "de"), dermoscopies(Path(folder))),
            ("report-burn", export_report, report("burn", "de"), wounds(Path(folder), 3)),
            (
                "report-histopathology",
                export_report,
                report("histopathology"),
                slides(Path(folder)),
            ),
            ("report-comparison", export_report, report("comparison", "zh"), twice),
            ("report-deidentify", export_report, report("deidentification"), [deidentified()]),
            ("comparison", export_comparison, ExportComparison(), twice),
            ("dicom-verdicts", export_dicom, ExportDicom(), verdicts(Path(folder))),
            ("dicom-lesions", export_dicom, ExportDicom(), dermoscopies(Path(folder))),
            ("infographic", export_infographic, ExportInfographic(formats=CHARTS), photos[:3]),
            ("infographic-request", export_infographic, charts(), photos),
        )
        for name, operation, request, upstream in others:
            made[name] = attempt = study.attempt(*upstream)
            operation(request, attempt.context)
        rows = [row for name, attempt in made.items() for row in written(name, attempt)]
    (OUT / "index.html").write_text(
        "<!doctype html><meta charset=utf-8><title>Exports</title><h1>Exports</h1><table>"
        + "".join(rows)
        + "</table>\n",
        encoding="utf-8",
    )
    sys.stdout.write(f"{len(rows)} files in {OUT}, listed in {OUT}/index.html\n")


def report(template: str, language: str = "en") -> ExportReport:
    """A request for it in every format that a template is for."""
    style = ReportStyle(language=language, organization="Clinic of the Valley")
    return ExportReport(template=template, formats=FORMATS[:-1], style=style)


def deidentified() -> Upstream:
    """What DeidentifyDicom says of three instances."""
    actions = [
        DeidentificationAction(code=code, values=values)
        for code, values in (("K", 2), ("U", 15), ("X", 500), ("Z", 9))
    ]
    instances = [
        DeidentifiedInstance(
            input=number,
            item=str(number),
            changed_values=526,
            searched_identifiers=20 + number,
            method_codes=["113100", "113101", "113109"],
            pixels_cleaned=True,
            masked_regions=number,
            masked_pixels=2000 * number,
            key_id="0123456789ab",
            actions=actions,
        )
        for number in range(3)
    ]
    result = DeidentifyDicomResult(instances=instances, profile_edition="2024e")
    items = [Item(input=number, key=str(number), state=Item.STATE_SUCCEEDED) for number in range(3)]
    return Upstream("deidentify", result, items, [])


def charts() -> ExportInfographic:
    """Made-up figures of each kind."""
    cost = [
        series("Surgery", Imaging=420, Theatre=2900, Ward=1800),
        series("Medication", Imaging=420, Drugs=1450),
    ]
    recovery = [
        ChartSeries(
            name=name,
            points=[
                ChartPoint(
                    position=week,
                    value=force * week / 12,
                    low=force * week / 15,
                    high=force * week / 10,
                )
                for week in range(0, 13, 2)
            ],
        )
        for name, force in (("Early motion", 38), ("Splint", 30))
    ]
    stay = [series("2025", North=5.2, South=4.1), series("2026", North=4.4, South=4.3)]
    drawn = [
        Chart(title="Cost per patient", kind=Chart.KIND_BREAKDOWN, unit="EUR", series=cost),
        Chart(title="Grip", kind=Chart.KIND_COURSE, unit="kg", axis="Week", series=recovery),
        Chart(title="Risk", kind=Chart.KIND_RISK, series=[series("", Infection=0.08, Burn=0.03)]),
        Chart(title="Stay", kind=Chart.KIND_COMPARISON, unit="days", series=stay),
    ]
    for chart in drawn:
        chart.source = "Made up for this sample"
    return ExportInfographic(charts=drawn, formats=CHARTS)


def series(name: str, **values: float) -> ChartSeries:
    """Values by label."""
    points = [ChartPoint(label=label, value=value) for label, value in values.items()]
    return ChartSeries(name=name, points=points)


def written(name: str, attempt: Attempt) -> list[str]:
    """Writes what a step left; a line of the index for each file."""
    rows = []
    for artifact in attempt.context.artifacts.values():
        path = OUT / name / artifact.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(attempt.read(artifact.name))
        link = html.escape(f"{name}/{artifact.name}")
        rows.append(
            f'<tr><td><a href="{link}">{link}</a><td>{html.escape(artifact.media_type)}'
            f"<td>{artifact.size_bytes:,} bytes\n"
        )
    return rows


if __name__ == "__main__":
    main()
