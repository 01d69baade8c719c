"""The examples of the Python client, each run as it is against real workers."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fluoro.v1 import job_pb2
from fluoro_client.jobs import inspect
from fluoro_jobs.testing.rig import until
from fluoro_local.testing import OWNER, RunningFluoro
from pydicom.data import get_testdata_file

EXAMPLES = Path(__file__).parents[2] / "clients/python/examples"
SECONDS = 60


def start(fluoro: RunningFluoro, name: str, *words: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, EXAMPLES / name, *map(str, words)],
        env=os.environ | {"FLUORO_ENDPOINT": fluoro.endpoint, "FLUORO_OWNER": OWNER},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(fluoro: RunningFluoro, name: str, *words: object) -> tuple[int, list[str]]:
    """Exit status and what it printed."""
    with start(fluoro, name, *words) as process:
        out, err = process.communicate(timeout=SECONDS)
    assert err == "", fluoro.logs()
    return process.returncode, out.splitlines()


def test_every_example_is_run_here_or_is_a_test_itself() -> None:
    here = Path(__file__).read_text()
    assert [
        path.name
        for path in EXAMPLES.glob("*.py")
        if f'"{path.name}"' not in here and not path.name.startswith("test_")
    ] == []


def test_submit_and_wait(fluoro: RunningFluoro, ct: Path) -> None:
    code, lines = run(fluoro, "submit_and_wait.py", ct)
    assert code == 0
    assert lines[1].startswith("STATE_SUCCEEDED")
    code, lines = run(fluoro, "submit_and_wait.py", get_testdata_file("MR_truncated.dcm"))
    assert code == 1
    assert lines[2].startswith("inspect: DICOM_TRUNCATED: ")


def test_run_folder(fluoro: RunningFluoro, ct: Path, mr: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    study.mkdir()
    for path in (ct, mr):
        (study / path.name).write_bytes(path.read_bytes())
    code, lines = run(fluoro, "run_folder.py", "imaging-report", study, tmp_path / "results")
    assert code == 0
    assert "report: STATE_SUCCEEDED " in lines
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"report.pdf", "result.json"}


def test_watch_and_resume(fluoro: RunningFluoro, ct: Path, tmp_path: Path) -> None:
    cursor = tmp_path / "cursor.txt"
    with fluoro.client() as client:
        job = job_pb2.Job(inputs=[client.upload(ct).name], steps=[inspect()])
        job.schedule_time.FromDatetime(datetime.now(UTC) + timedelta(days=1))
        name = client.submit(job).name
        with start(fluoro, "watch_and_resume.py", name, cursor) as first:
            assert first.stdout is not None
            assert first.stdout.readline() == "snapshot 1\n"
            until(cursor.exists, SECONDS)
            first.kill()
        client.cancel(name)
    _, lines = run(fluoro, "watch_and_resume.py", name, cursor)
    assert [line.split()[:2] for line in lines] == [["event", str(n)] for n in range(2, 5)]
    assert lines[-1].endswith(" job_changed")


def test_submit_many(fluoro: RunningFluoro, ct: Path, mr: Path) -> None:
    missing = "blobs/01a00000-0000-7000-8000-000000000000"
    code, lines = run(fluoro, "submit_many.py", ct, missing, mr)
    assert code == 1
    assert [line.partition(": ")[2].partition(":")[0][:5] for line in lines] == [
        "jobs/",
        "BLOB_",
        "jobs/",
    ]


def test_in_parallel(fluoro: RunningFluoro, ct: Path, mr: Path) -> None:
    code, lines = run(fluoro, "in_parallel.py", "dicom-intake", ct, mr, ct)
    assert code == 0
    expected = [f"{path}: STATE_SUCCEEDED " for path in (ct, ct, mr)]
    assert sorted(lines) == sorted(expected)
    _, lines = run(fluoro, "in_parallel.py", "no-such-pipeline", ct)
    assert lines[0].startswith(f"{ct}: refused: PIPELINE_NOT_FOUND: ")
