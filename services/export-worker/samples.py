"""Writes one of every export into out/samples, and an index.html of them: `make samples`."""

import html
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from export_worker.operations.archive import export_archive
from export_worker.operations.dicom import export_dicom
from export_worker.operations.fhir import export_fhir
from export_worker.operations.report import export_report
from export_worker.testing import Study, ct_slices
from fluoro.v1.export_pb2 import ExportArchive, ExportDicom, ExportFhir, ExportReport
from fluoro_jobs.testing import Attempt

OUT: Final = Path("out/samples")
KINDS: Final = [kind for kind in ExportDicom.Kind.values() if kind]


def main() -> None:
    """Runs every operation on a CT series of eight slices."""
    with tempfile.TemporaryDirectory(prefix="fluoro-samples-") as folder:
        study = Study.of_slices(Path(folder), ct_slices(8, 128))
        steps = [study.render(), study.analyze()]
        made: dict[str, Attempt] = {}
        operations: tuple[tuple[str, Any, Any], ...] = (
            ("report", export_report, ExportReport()),
            ("dicom", export_dicom, ExportDicom(kinds=KINDS)),
            ("fhir", export_fhir, ExportFhir()),
            ("archive", export_archive, ExportArchive(dicomdir=True)),
        )
        for name, operation, request in operations:
            made[name] = attempt = study.attempt(*steps)
            attempt.context.step = name
            result = operation(request, attempt.context)
            steps.append(attempt.as_upstream(result))
        rows = [row for name, attempt in made.items() for row in written(name, attempt)]
    (OUT / "index.html").write_text(
        "<!doctype html><meta charset=utf-8><title>Exports</title><h1>Exports</h1><table>"
        + "".join(rows)
        + "</table>\n",
        encoding="utf-8",
    )
    sys.stdout.write(f"{len(rows)} files in {OUT}, listed in {OUT}/index.html\n")


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
