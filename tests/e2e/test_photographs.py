"""An archive of photographs goes the way of DICOM, and nothing that it tells is left."""

import io
import zipfile
from pathlib import Path

import numpy as np
from fluoro.v1 import job_pb2
from fluoro.v1.archive_pb2 import UnpackArchive
from fluoro.v1.photograph_pb2 import ImportImages
from fluoro_client.jobs import analyze, report, step
from fluoro_local.testing import JOB_SECONDS, RunningFluoro
from PIL import Image

NAMES = ["Doe^Jane/wound.jpg", "../../Doe^Jane.png", "Doe.txt", "C:\\Doe\\Jane.tif"]


def photograph(format_: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "Doe^Jane"
    y, x = np.mgrid[0:60, 0:90]
    buffer = io.BytesIO()
    picture = Image.fromarray(np.stack([x, y, x + y], axis=-1).astype(np.uint8))
    picture.save(buffer, format_, exif=exif)
    return buffer.getvalue()


def test_an_archive_of_photographs_becomes_certified_pixels_and_a_report(
    fluoro: RunningFluoro, tmp_path: Path
) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as target:
        content = [photograph("JPEG"), photograph("PNG"), b"Doe^Jane", photograph("TIFF")]
        for name, data in zip(NAMES, content, strict=True):
            target.writestr(name, data)
    with fluoro.client() as client:
        job = job_pb2.Job(
            inputs=[client.upload(archive.getvalue()).name],
            steps=[
                step(UnpackArchive(), "unpack"),
                step(ImportImages(), "import", after=["unpack"]),
                analyze("ct-tissue", after=["import"]),
                report(after=["import"]),
            ],
        )
        done = client.wait(client.submit(job).name, timeout_seconds=JOB_SECONDS)
        taken_in, analyzed, reported = done.steps[1:]
        left = [artifact for artifact in taken_in.artifacts if artifact.role == "preview"]
        pictures = [client.download(each.blob, tmp_path / each.name).read_bytes() for each in left]
    assert {item.key: item.reason for item in taken_in.items} == {
        **dict.fromkeys(("0/0000", "0/0001", "0/0003"), ""),
        "0/0002": "NOT_AN_IMAGE",
    }
    # The model has seen their certificates, and is made for CT alone.
    assert {item.reason for item in analyzed.items} == {"MODEL_NOT_APPLICABLE"}
    assert {artifact.role for artifact in reported.artifacts} == {"report", "result"}
    assert [Image.open(io.BytesIO(picture)).size for picture in pictures] == [(60, 90)] * 3
    assert not any(b"Doe" in picture for picture in pictures)
    assert not any(name in str(done) for name in ("Doe", "Jane"))
    assert not any(name in fluoro.logs() for name in ("Doe", "Jane"))
