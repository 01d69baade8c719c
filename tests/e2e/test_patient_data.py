"""Only the submitted file and the data set made of it say who a patient is."""

import base64
import hashlib
import io
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pypdf
import pytest
from dicom_worker.deidentify.painting import stamp
from dicom_worker.deidentify.reading_text import find_text
from fluoro.v1 import job_pb2
from fluoro.v1.deidentify_pb2 import DeidentifyDicom
from fluoro_client.jobs import imaging_report, step
from fluoro_local.services import SERVICES
from fluoro_local.testing import RunningFluoro, tool
from google.protobuf import json_format
from numpy.typing import NDArray
from PIL import Image

MARK = "Xq7Zk"
"""In every value that says who the patient is, and by chance nowhere else."""
IDENTITY = {
    "PatientName": f"{MARK}name^Ada",
    "PatientID": f"{MARK}id",
    "PatientAddress": f"{MARK}street 1",
    "OtherPatientIDs": f"{MARK}other",
    "AccessionNumber": f"{MARK}acc",
    "InstitutionName": f"{MARK}hospital",
    "ReferringPhysicianName": f"{MARK}doctor",
    "StudyDescription": f"{MARK}study",
    "PatientComments": f"{MARK}comment",
}


@dataclass(frozen=True)
class Traced:
    """A job on marked files, and everything it left by the door it left by."""

    fluoro: RunningFluoro
    job: job_pb2.Job
    updates: str
    artifacts: dict[str, bytes]
    folder: Path


def marked_files(ct: Path, folder: Path) -> Iterator[Path]:
    """A good file, and files that fail in ways that tempt a library to quote them."""
    study = pydicom.dcmread(ct)
    pixels = study.pixel_array.copy()
    ink = stamp(f"{MARK}NAME", 16, 0)
    pixels[4 : 4 + ink.shape[0], 8 : 8 + ink.shape[1]][ink > 0.5] = pixels.max()
    study.PixelData = pixels.tobytes()
    for keyword, value in IDENTITY.items():
        setattr(study, keyword, value)
    good = folder / f"{MARK}name.dcm"
    study.save_as(good)
    yield good
    data = good.read_bytes()
    # One value for another of the same length, so that the file is well-formed and its meaning is
    # not.
    for name, old, new in (
        ("intercept", b"DS\x06\x00-1024 ", b"DS\x06\x00" + MARK.encode() + b" "),
        ("date", b"DA\x08\x0020040119", b"DA\x08\x00" + MARK.encode().ljust(8)),
        ("uid", b"1.3.6.1.4.1.5962.1.1", MARK.encode() * 4),
    ):
        assert len(old) == len(new)
        assert old in data
        broken = folder / f"{MARK}{name}.dcm"
        broken.write_bytes(data.replace(old, new))
        yield broken
    truncated = folder / f"{MARK}truncated.dcm"
    truncated.write_bytes(data[: data.index(f"{MARK}doctor".encode()) + len(MARK)])
    yield truncated
    text = folder / f"{MARK}letter.txt"
    text.write_text(f"Dear {IDENTITY['PatientName']}")
    yield text


def trace(fluoro: RunningFluoro, ct: Path, folder: Path, *, deidentified: bool) -> Traced:
    """Runs the job, and keeps whatever comes of it."""
    files = list(marked_files(ct, folder))
    with fluoro.client() as client:
        asked = imaging_report([client.upload(path) for path in files])
        if deidentified:
            first = step(DeidentifyDicom(project="default", clean_pixel_data=True), "deidentify")
            asked.steps[0].after.append("deidentify")
            asked.steps[-1].after.append("deidentify")
            asked.steps.insert(0, first)
        name = client.submit(asked).name
        updates = "\n".join(json_format.MessageToJson(update) for update in client.watch(name))
        job = client.get(name)
        artifacts = {
            f"{step.name}/{artifact.name}": client.download(
                artifact, folder / "artifact"
            ).read_bytes()
            for step in job.steps
            for artifact in step.artifacts
        }
    assert job.state == job_pb2.Job.STATE_PARTIALLY_SUCCEEDED, fluoro.logs()
    return Traced(fluoro, job, updates, artifacts, folder)


@pytest.fixture(scope="module")
def traced(fluoro: RunningFluoro, ct: Path, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return trace(fluoro, ct, tmp_path_factory.mktemp("marked"), deidentified=False)


@pytest.fixture(scope="module")
def clean(fluoro: RunningFluoro, ct: Path, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return trace(fluoro, ct, tmp_path_factory.mktemp("clean"), deidentified=True)


def test_the_data_set_is_kept_whole_as_metadata(traced: Traced) -> None:
    data_set = pydicom.Dataset.from_json(json.loads(traced.artifacts["inspect/metadata-0000.json"]))
    assert {keyword: str(data_set[keyword].value) for keyword in IDENTITY} == IDENTITY, (
        "or the other tests would find nothing anywhere"
    )


def test_after_a_step_that_deidentifies_nothing_at_all_says_who_the_patient_is(
    clean: Traced,
) -> None:
    assert {"deidentify/instance-0000.dcm", "inspect/metadata-0000.json"} <= set(clean.artifacts)
    assert [name for name, data in clean.artifacts.items() if MARK.encode() in data] == []
    original = hashlib.sha256((clean.folder / f"{MARK}name.dcm").read_bytes())
    hashes = [
        original.digest(),
        original.hexdigest().encode(),
        base64.b64encode(original.digest()),
    ]
    pdf = read_with("pdftotext", clean.artifacts["report/report.pdf"], clean.folder)
    written = {**clean.artifacts, "text of the report": "".join(pdf.split()).encode()}
    assert [name for name, data in written.items() if any(each in data for each in hashes)] == []
    told = [clean.updates, json_format.MessageToJson(clean.job)]
    assert MARK not in "".join((*told, *clean.artifacts))
    assert not [path for path in clean.fluoro.data.rglob("*") if MARK in path.name]
    report = json.loads(clean.artifacts["deidentify/deidentification-report-0000.json"])
    assert report["proof"]["residual_identifiers"] == 0
    assert report["pixels"]["masked_regions"] > 0


def test_no_picture_shows_the_name_that_was_burnt_into_the_pixels(
    traced: Traced, clean: Traced, tmp_path: Path
) -> None:
    assert texts_in(pictures_of(traced, tmp_path)) > 0, "or nobody could read it in the first place"
    shown = pictures_of(clean, tmp_path)
    assert {name.split("/")[0] for name in shown} == {"render", "analyze", "report"}
    assert texts_in(shown) == 0
    text = read_with("pdftotext", clean.artifacts["report/report.pdf"], tmp_path, "-layout")
    assert "IDENTIFIERS LEFT" in text
    assert MARK not in text


def pictures_of(job: Traced, folder: Path) -> dict[str, NDArray[np.uint8]]:
    """Previews, overlays, and the pictures in the report, as (rows, columns, 3)."""
    report = folder / "report.pdf"
    report.write_bytes(job.artifacts["report/report.pdf"])
    subprocess.run(
        [tool("pdfimages"), "-png", report, folder / job.job.name[-8:]], check=True, timeout=60
    )
    inside = {
        f"report/{path.name}": path.read_bytes() for path in folder.glob(f"{job.job.name[-8:]}*")
    }
    made = {name: data for name, data in job.artifacts.items() if name.endswith(".png")}
    return {
        name: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        for name, data in (made | inside).items()
    }


def texts_in(pictures: dict[str, NDArray[np.uint8]]) -> int:
    """Regions that read as text, by the networks of dicom-worker."""
    found = (find_text(each, lambda _: False, lambda: None) for each in pictures.values())
    return sum(region.confirmed for regions in found for region in regions)


def read_with(command: str, pdf: bytes, folder: Path, *options: str) -> str:
    """What poppler prints of a report."""
    path = folder / "read.pdf"
    path.write_bytes(pdf)
    target = ["-"] if command == "pdftotext" else []
    return subprocess.run(
        [tool(command), *options, path, *target],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


def test_no_artifact_but_the_metadata_says_who_the_patient_is(traced: Traced) -> None:
    roles = {
        f"{step.name}/{artifact.name}": artifact.role
        for step in traced.job.steps
        for artifact in step.artifacts
    }
    assert {roles[name] for name, data in traced.artifacts.items() if MARK.encode() in data} == {
        "metadata"
    }
    assert set(roles.values()) >= {"preview", "pixels", "overlay", "label-map", "report", "result"}
    assert not [name for name in roles if MARK in name]


def test_neither_the_job_nor_its_events_say_who_the_patient_is(traced: Traced) -> None:
    assert "NOT_DICOM" in traced.updates or "NOT_DICOM" in str(traced.job)
    assert MARK not in traced.updates
    assert MARK not in json_format.MessageToJson(traced.job)


def test_the_text_of_the_report_does_not_say_who_the_patient_is(
    traced: Traced, tmp_path: Path
) -> None:
    report = tmp_path / "report.pdf"
    report.write_bytes(traced.artifacts["report/report.pdf"])
    reader = pypdf.PdfReader(report)
    text = "".join(page.extract_text() for page in reader.pages)
    assert "soft tissue" in text
    assert MARK not in text
    assert MARK not in str(reader.metadata)
    for command in ("pdftotext", "pdfinfo"):
        assert MARK not in read_with(command, report.read_bytes(), tmp_path)


def test_the_command_does_not_say_who_the_patient_is_when_asked_about_the_job(
    traced: Traced,
) -> None:
    done = traced.fluoro.command("get", traced.job.name)
    assert "DICOM_TRUNCATED" in done.stdout
    assert MARK not in done.stdout + done.stderr


@pytest.mark.parametrize("service", [service.name for service in SERVICES])
def test_neither_logs_nor_metrics_say_who_the_patient_is(
    traced: Traced, clean: Traced, service: str
) -> None:
    assert clean.job.name != traced.job.name, "both have run"
    log = (traced.fluoro.data / "logs" / f"{service}.log").read_text()
    assert log, "something was logged"
    assert MARK not in log
    assert MARK not in traced.fluoro.get(service, "/metrics")[1]


def test_the_data_folder_holds_the_patient_in_inputs_and_metadata_alone(
    traced: Traced, clean: Traced
) -> None:
    known = {
        *traced.job.inputs,
        *clean.job.inputs,
        *(
            each.blob
            for step in traced.job.steps
            for each in step.artifacts
            if each.role == "metadata"
        ),
    }
    files = [path for path in traced.fluoro.data.rglob("*") if path.is_file()]
    assert {
        f"blobs/{path.name}" for path in files if MARK.encode() in path.read_bytes()
    } <= known, "no log of a server, no table, no scratch"
