"""What models say of DICOM photographs comes back as DICOM, abstentions too."""

import io
from pathlib import Path

import numpy as np
import pydicom
from fluoro.v1 import job_pb2
from fluoro.v1.classify_pb2 import ClassifyImages, ModelChoice
from fluoro.v1.dermoscopy_pb2 import AssessDermoscopy
from fluoro.v1.export_pb2 import ExportDicom
from fluoro_client.jobs import render, step
from fluoro_local.testing import JOB_SECONDS, RunningFluoro
from pydicom.data import get_testdata_file
from pydicom.uid import VLPhotographicImageStorage

KINDS = ("lesion-kind-color", "lesion-kind-shape", "lesion-kind-texture")


def photograph() -> bytes:
    """A brown spot on skin, as a camera for DICOM has it."""
    y, x = np.mgrid[-1:1:256j, -1:1:256j]
    inside = (np.hypot(x, y) < 0.4)[..., None]
    pixels = np.where(inside, [98, 58, 40], [226, 182, 158]).astype(np.uint8)
    data = pydicom.dcmread(str(get_testdata_file("SC_rgb.dcm")))
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = VLPhotographicImageStorage
    data.Modality = "XC"
    data.Rows, data.Columns, data.PixelData = *pixels.shape[:2], pixels.tobytes()
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def test_verdicts_and_scores_become_reports_that_refer_to_the_image(
    fluoro: RunningFluoro, tmp_path: Path
) -> None:
    models = [ModelChoice(model=name) for name in KINDS]
    outline = ModelChoice(model="lesion-outline")
    with fluoro.client() as client:
        job = job_pb2.Job(
            inputs=[client.upload(photograph()).name],
            steps=[
                render(),
                step(ClassifyImages(models=models), "ask", after=["render"]),
                step(AssessDermoscopy(outline=outline), "assess", after=["render"]),
                step(
                    ExportDicom(kinds=[ExportDicom.KIND_MEASUREMENTS]),
                    "export",
                    after=["render", "ask", "assess"],
                ),
            ],
        )
        done = client.wait(client.submit(job).name, timeout_seconds=JOB_SECONDS)
        exported = done.steps[-1]
        written = {
            one.step: pydicom.dcmread(client.download(artifact, tmp_path / artifact.name))
            for one, artifact in zip(
                exported.export_dicom_result.objects, exported.artifacts, strict=True
            )
        }
    assert [item.reason for item in exported.items] == [""], fluoro.logs()
    assert set(written) == {"ask", "assess"}
    for step_name, data in written.items():
        assert data.SeriesDescription.endswith("DEMONSTRATION")
        devices = {
            one.get("ManufacturerModelName"): one for one in data.ContributingEquipmentSequence
        }
        assert (
            "The job has one input, SHA-256"
            in devices["Fluoro export-worker"].ContributionDescription
        )
        ran = set(KINDS) if step_name == "ask" else {"lesion-outline"}
        assert ran < set(devices)
        assert all("attempts: 1" in devices[name].ContributionDescription for name in ran)
        assert all(devices[name].ContributionDateTime for name in ran)
