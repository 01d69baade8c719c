"""A study goes from a real PACS through a whole Fluoro and back, with real workers."""

import io
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from fluoro.v1 import job_pb2
from fluoro.v1.dicom_pb2 import RenderDicom
from fluoro.v1.dicomweb_pb2 import FetchDicomweb
from fluoro_client.jobs import step
from fluoro_local.folders import free_port
from fluoro_local.orthanc import PASSWORD, USER, Orthanc, orthanc
from fluoro_local.services import SERVICES
from fluoro_local.testing import RunningFluoro, running

STUDY = "2.25.77"
REFERENCE = f"dicomweb://pacs/studies/{STUDY}"
NAMES = {"gateway", "dicom-worker", "scheduler"}
SECONDS = 60


@pytest.fixture(scope="module")
def place() -> Orthanc:
    """Where the PACS will be. Nobody is there yet."""
    return Orthanc(free_port())


@pytest.fixture(scope="module")
def fluoro(place: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFluoro]:
    """A Fluoro that knows the PACS."""
    secrets = tmp_path_factory.mktemp("secrets")
    (secrets / "pacs").write_text(f"Basic {USER}:{PASSWORD}")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in place.variables.items():
            patch.setenv(name, value)
        patch.setenv("FLUORO_DICOMWEB_CREDENTIALS_FOLDER", str(secrets))
        with running([service for service in SERVICES if service.name in NAMES]) as fluoro:
            yield fluoro


def slices(ct: Path) -> list[bytes]:
    """Three slices of a study, of a patient with a name."""
    made = []
    for number in range(1, 4):
        data = pydicom.dcmread(ct)
        data.StudyInstanceUID, data.SeriesInstanceUID = STUDY, f"{STUDY}.1"
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{STUDY}.1.{number}"
        data.InstanceNumber, data.PatientName = number, "Xq7Zkname^Ada"
        written = io.BytesIO()
        data.save_as(written)
        made.append(written.getvalue())
    return made


def test_a_fetch_waits_for_a_server_that_is_away_and_a_clean_study_goes_back(
    fluoro: RunningFluoro, place: Orthanc, ct: Path, tmp_path: Path
) -> None:
    fetch = step(FetchDicomweb(references=[REFERENCE]), "fetch")
    fetch.retry_policy.max_attempts = 10
    # The attempts last for as long as a busy machine takes to start the server.
    fetch.retry_policy.initial_backoff.FromMilliseconds(500)
    fetch.retry_policy.max_backoff.FromSeconds(8)
    files = slices(ct)
    with orthanc(tmp_path, HttpPort=place.port):
        for file in files:
            place.add(file)
    with fluoro.client() as client:
        job = client.submit(
            job_pb2.Job(steps=[fetch, step(RenderDicom(), "render", after=["fetch"])])
        )
        for update in client.watch(job.name):
            if "PACS_UNAVAILABLE" in str(update):
                break
        # It has all of the study from its start on, or an attempt might find a part of it.
        with orthanc(tmp_path, HttpPort=place.port):
            done = client.wait(job.name, timeout_seconds=SECONDS)
            assert done.state == job_pb2.Job.STATE_SUCCEEDED, fluoro.logs()
            assert [item.key for item in done.steps[0].items] == [
                f"series-1/{number:04}" for number in range(3)
            ]
            assert done.steps[0].counts.succeeded_items == 3
            previews = [one.key for one in done.steps[1].artifacts if one.role == "preview"]
            assert previews == [item.key for item in done.steps[0].items]
            ran = fluoro.command(
                "run",
                "study-deidentify-and-export",
                *("--param", f"study={REFERENCE}", "--param", "destination=pacs"),
                *("--param", "clean_pixel_data=false"),
                *("--to", str(tmp_path / "results")),
            )
            assert ran.returncode == 0, ran.stderr + fluoro.logs()
            told = {"destination": "pacs", "clean_pixel_data": False}
            exported = client.run("deidentify-and-export", files, told)
            assert exported.state == job_pb2.Job.STATE_SUCCEEDED, fluoro.logs()
            results = [one.store_dicomweb_result for one in exported.steps]
            clean = {one.sop_instance_uid for one in results[1].instances}
            # The same project makes the same UIDs of them, so the PACS has three more, not six.
            assert len(place.ask("/instances").decode().split(",")) == 6
            study = exported.steps[0].deidentify_dicom_result.instances[0].study_instance_uid
            again = step(FetchDicomweb(references=[f"dicomweb://pacs/studies/{study}"]))
            name = client.submit(job_pb2.Job(steps=[again])).name
            back = client.wait(name, timeout_seconds=SECONDS)
            for one in back.steps[0].artifacts:
                data = client.download(one, tmp_path / "clean").read_bytes()
                assert b"Xq7Zk" not in data
                assert pydicom.dcmread(io.BytesIO(data)).SOPInstanceUID in clean
            assert len(back.steps[0].artifacts) == 3
    assert STUDY not in fluoro.logs(), "UIDs are the patient's"
