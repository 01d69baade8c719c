"""A report's inputs: real pictures of pydicom's CT_small.dcm in a real blob store."""

import hashlib
import io
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from export_worker.operations.report import export_report
from fluoro.v1 import deidentify_pb2, dicom_pb2, export_pb2, ml_pb2
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.testing import Attempt, step_context
from fluoro_jobs.worker.context import Input, StepItem, Upstream
from PIL import Image
from pydicom.data import get_testdata_file

CLASSES = (
    ("unclassified", -10000, -1024, ""),
    ("air", -1024, -950, ""),
    ("lung", -950, -190, "#4fa3e3"),
    ("fat", -190, -29, "#f2c94c"),
    ("soft tissue", -29, 151, "#d9534f"),
    ("bone", 151, 3072, "#7fd1ae"),
)
CENTER, WIDTH = 40, 400
SPACING_MM = (0.661468, 0.661468)
THICKNESS_MM = 5.0


@cache
def hounsfield() -> npt.NDArray[np.int16]:
    """(128, 128) Hounsfield units of pydicom's CT_small.dcm."""
    path = get_testdata_file("CT_small.dcm")
    assert isinstance(path, str)
    data = pydicom.dcmread(path)
    values: npt.NDArray[np.int16] = (
        data.pixel_array * data.RescaleSlope + data.RescaleIntercept
    ).astype("<i2")
    return values


def png(array: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


@cache
def preview() -> bytes:
    grey = np.clip((hounsfield() - (CENTER - WIDTH / 2)) / WIDTH, 0, 1) * 255
    return png(grey.astype(np.uint8))


@cache
def overlay() -> bytes:
    picture = np.asarray(Image.open(io.BytesIO(preview())).convert("RGB")).astype(float)
    for _, low, high, color in CLASSES:
        if color:
            mask = (hounsfield() >= low) & (hounsfield() < high)
            picture[mask] = 0.55 * picture[mask] + 0.45 * np.array(
                [int(color[at : at + 2], 16) for at in (1, 3, 5)]
            )
    return png(picture.astype(np.uint8))


def measurements() -> list[ml_pb2.Measurement]:
    values = hounsfield()
    rows = []
    for label, (name, low, high, color) in enumerate(CLASSES):
        inside = values[(values >= low) & (values < high)]
        volume = inside.size * SPACING_MM[0] * SPACING_MM[1] * THICKNESS_MM / 1000
        row = ml_pb2.Measurement(
            label=label,
            display_name=name,
            voxels=inside.size,
            fraction=inside.size / values.size,
            volume_ml=volume,
            color=color,
        )
        if inside.size:
            row.mean_value = float(inside.mean())
        rows.append(row)
    return rows


@dataclass
class Clinic:
    """Runs the steps before a report by hand, and the report for real.

    inputs: of the job. keys: of what the steps work on; the job's inputs if empty.
    failing: keys of what fails in every step, with reason and message. files: bytes by key, where
    an input is another version of the instance that all of them are.
    """

    folder: Path
    inputs: int = 1
    keys: Sequence[str] = ()
    failing: dict[str, tuple[Reason, str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    job: str = "jobs/0198c1f2-7a3b-7c4d-9e5f-0123456789ab"

    def step(self, name: str) -> Attempt:
        attempt = step_context(self.folder, step=name)
        keys = self.keys or [str(number) for number in range(self.inputs)]
        heads = [key.split("/")[0] for key in keys]
        attempt.context.inputs = [
            Input(number, key, int(head) if head.isdecimal() else None, ())
            for number, (key, head) in enumerate(zip(keys, heads, strict=True))
        ]
        return attempt

    def good(self, attempt: Attempt) -> Iterator[StepItem]:
        """Those that succeed, while the step works on them."""
        for item in attempt.context.each("work"):
            with item:
                if item.key in self.failing:
                    raise FluoroError(*self.failing[item.key])
                yield item

    def picture(self) -> bytes:
        return preview()

    def cleaned(self, item: StepItem) -> bytes:
        return self.files.get(item.key, b"clean")

    def deidentify(self, **fields: Any) -> Upstream:
        attempt = self.step("deidentify")
        instances = [
            deidentify_pb2.DeidentifiedInstance(
                input=item.input,
                item=item.key,
                instance=item.put(
                    "instance", ".dcm", "instance", "application/dicom", self.cleaned(item)
                ),
                sop_instance_uid="2.25.1",
                study_instance_uid="2.25.2",
                **{
                    "changed_values": 60,
                    "searched_identifiers": 20 + item.input,
                    "method_codes": ["113100", "113101", "113109"],
                    "pixels_cleaned": True,
                    "masked_regions": item.input,
                    "masked_pixels": 2000 * item.input,
                    "key_id": "0123456789ab",
                    "actions": [
                        deidentify_pb2.DeidentificationAction(code="K", values=2),
                        deidentify_pb2.DeidentificationAction(code="U", values=15),
                        deidentify_pb2.DeidentificationAction(code="X", values=500),
                    ],
                    **fields,
                },
            )
            for item in self.good(attempt)
        ]
        return attempt.as_upstream(
            deidentify_pb2.DeidentifyDicomResult(instances=instances, profile_edition="2024e")
        )

    def inspect(self, **attributes: str) -> Upstream:
        attempt = self.step("inspect")
        instances = [
            dicom_pb2.DicomInstance(
                input=item.input,
                item=item.key,
                **{
                    "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
                    "sop_instance_uid": "1.2.3.4.5",
                    "study_instance_uid": "1.2.3.4.6",
                    "series_instance_uid": "1.2.3.4.7",
                    "transfer_syntax_uid": "1.2.840.10008.1.2.4.90",
                    "modality": "CT",
                    "photometric_interpretation": "MONOCHROME2",
                    "body_part_examined": "CHEST",
                    **attributes,
                },
                rows=128,
                columns=128,
                number_of_frames=1,
                samples_per_pixel=1,
                bits_stored=16,
                sha256=hashlib.sha256(self.files.get(item.key, b"original")).digest(),
            )
            for item in self.good(attempt)
        ]
        return attempt.as_upstream(dicom_pb2.InspectDicomResult(instances=instances))

    def render(self) -> Upstream:
        attempt = self.step("render")
        images = [
            dicom_pb2.RenderedImage(
                input=item.input,
                item=item.key,
                preview=item.put("preview", ".png", "preview", "image/png", preview()),
                window=dicom_pb2.VoiWindow(center=CENTER, width=WIDTH),
                modality="CT",
                pixel_spacing_mm=SPACING_MM,
                slice_thickness_mm=THICKNESS_MM,
                certificate=dicom_pb2.PixelCertificate(
                    sha256=hashlib.sha256(hounsfield().tobytes()).digest(),
                    shape=[1, 128, 128],
                    dtype="<i2",
                    unit="HU",
                    minimum=float(hounsfield().min()),
                    maximum=float(hounsfield().max()),
                    transfer_syntax_uid="1.2.840.10008.1.2.4.90",
                    decoder="pylibjpeg-openjpeg 2.6.0",
                ),
            )
            for item in self.good(attempt)
        ]
        return attempt.as_upstream(dicom_pb2.RenderDicomResult(images=images))

    def analyze(self, step: str = "analyze") -> Upstream:
        attempt = self.step(step)
        findings = [
            ml_pb2.ImageFinding(
                input=item.input,
                item=item.key,
                overlay=item.put("overlay", ".png", "overlay", "image/png", overlay()),
                measurements=measurements(),
            )
            for item in self.good(attempt)
        ]
        model = ml_pb2.ModelReference(
            name="ct-tissue",
            version="1.0.0",
            sha256=hashlib.sha256(b"model").digest(),
            execution_provider="CPUExecutionProvider",
            runtime_version="1.31.1",
        )
        return attempt.as_upstream(ml_pb2.AnalyzeImagesResult(model=model, findings=findings))

    def attempt(self, upstream: Sequence[Upstream]) -> Attempt:
        attempt = step_context(self.folder, (), upstream, step="report")
        attempt.context.job, attempt.context.job_inputs = self.job, self.inputs
        return attempt

    def report(self, *upstream: Upstream, title: str = "Chest CT, tissue classes") -> Attempt:
        attempt = self.attempt(upstream)
        result = export_report(export_pb2.ExportReport(title=title), attempt.context)
        assert list(result.artifacts) == ["report.pdf", "result.json"]
        return attempt

    def pdf(self, *upstream: Upstream, title: str = "Chest CT, tissue classes") -> bytes:
        return self.report(*upstream, title=title).read("report.pdf")


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path)


class Reader:
    """Reads a PDF with poppler, which had no part in writing it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "read.pdf"

    def text(self, pdf: bytes) -> str:
        return " ".join(self._run("pdftotext", pdf, "-layout", "-").split())

    def images(self, pdf: bytes) -> list[str]:
        """One line per image drawn, in order: `128x128`."""
        lines = self._run("pdfimages", pdf, "-list").splitlines()[2:]
        return [
            f"{line.split()[3]}x{line.split()[4]}" for line in lines if line.split()[2] == "image"
        ]

    def densities(self, pdf: bytes) -> tuple[float, float]:
        """Pixels per inch across and down of the first image."""
        line = self._run("pdfimages", pdf, "-list").splitlines()[2].split()
        return float(line[12]), float(line[13])

    def _run(self, command: str, pdf: bytes, *arguments: str) -> str:
        self.path.write_bytes(pdf)
        order = [command, *arguments[:1], str(self.path), *arguments[1:]]
        return subprocess.run(order, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    if shutil.which("pdftotext") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("poppler-utils is not installed")
    return Reader(tmp_path)
