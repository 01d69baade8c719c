"""`make demo` (`python -m fluoro_local demo`): what it leaves, and that it leaves nothing else."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pypdf
import pytest
from fluoro.v1 import job_pb2
from fluoro_local.demo import painted
from fluoro_local.services import SERVICES
from fluoro_local.testing import tool
from google.protobuf import json_format
from PIL import Image

DEMO_SECONDS = 110
"""How long a demonstration may take on a busy machine. Alone it takes ten."""
MARK = "FLUORO_TEST_MARK"
EVERY_PROCESS = {
    "fluoro_local",
    "guard.py",
    "postgres",
    "valkey-server",
    *(service.command[-1] for service in SERVICES),
}
"""A word of the command line of each process that a demonstration consists of."""


CELERY_SAYS = {"", "worker: Warm shutdown (MainProcess)"}
"""Written to standard output when a worker is asked to end; logs are on standard error."""


@dataclass(frozen=True)
class Demo:
    """A demonstration that has ended.

    seen: command lines of its processes while it ran; left: of those after it.
    """

    code: int
    output: str
    out: Path
    seen: set[str]
    left: set[str]


def processes_of(mark: str, data: Path) -> set[str]:
    """Command lines of all processes that have our mark, name the data folder, or work in it."""
    found = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            command = (
                (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
            environment = (process / "environ").read_bytes().decode(errors="replace")
            folder = str((process / "cwd").readlink())
        except (
            FileNotFoundError,
            ProcessLookupError,
            PermissionError,
        ):  # gone, a zombie, or another user's and so not ours
            continue
        if mark in environment or str(data) in command or folder.startswith(str(data)):
            found.add(command)
    return found


def demo(folder: Path, name: str, *arguments: object) -> Demo:
    data, out, log = folder / "data", folder / name, folder / f"{name}.txt"
    mark = f"{folder.name}-{name}"
    command = [
        sys.executable,
        "-m",
        "fluoro_local",
        "demo",
        "--data",
        str(data),
        "--out",
        str(out),
        *map(str, arguments),
    ]
    seen: set[str] = set()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | {MARK: mark}
        )
        try:
            deadline = time.monotonic() + DEMO_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                seen |= processes_of(mark, data)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.5)
        finally:
            if process.poll() is None:
                process.kill()
            code = process.wait()
    return Demo(code, log.read_text(), out, seen, processes_of(mark, data))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fluoro-test-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def first(folder: Path) -> Demo:
    """A demonstration as it comes."""
    return demo(folder, "first")


@pytest.fixture(scope="module")
def second(first: Demo, folder: Path, ct: Path, mr: Path) -> Demo:
    """Another one on the same data folder, with files of one's own, of which one is broken."""
    assert first.code == 0
    own = folder / "my own files" / "study"
    own.mkdir(parents=True)
    shutil.copy(ct, own / "1.dcm")
    (own / "2.dcm").write_bytes(ct.read_bytes()[:20_000])
    shutil.copy(mr, own.parent / "3.dcm")
    return demo(folder, "second", "--input", own.parent)


def test_it_exits_with_0_and_leaves_report_pictures_and_results(first: Demo) -> None:
    assert first.code == 0, first.output
    assert {path.name for path in first.out.iterdir()} == {
        "report.pdf",
        "preview.png",
        "preview-2.png",
        "overlay.png",
        "result.json",
    }
    pictures = [
        BytesIO((first.out / name).read_bytes())
        for name in ("preview.png", "overlay.png", "preview-2.png")
    ]
    assert [Image.open(picture).size for picture in pictures] == [(128, 128), (128, 128), (64, 64)]
    assert "SUCCEEDED" in first.output
    for name in first.out.iterdir():
        assert str(name) in first.output.replace("\n", ""), "it says where it put each file"


def test_its_results_are_a_job_of_the_api(first: Demo) -> None:
    job = json_format.Parse((first.out / "result.json").read_text(), job_pb2.Job())
    assert job.name in first.output
    steps = {step.name: step for step in job.steps}
    assert set(steps) == {"inspect", "render", "analyze"}
    assert [instance.modality for instance in steps["inspect"].inspect_dicom_result.instances] == [
        "CT",
        "MR",
    ]
    [finding] = steps["analyze"].analyze_images_result.findings
    assert sum(measured.voxels for measured in finding.measurements) == 128 * 128
    assert [item.reason for item in steps["analyze"].items] == ["", "MODEL_NOT_APPLICABLE"]


def test_its_report_shows_the_images_and_the_findings(first: Demo) -> None:
    report = pypdf.PdfReader(first.out / "report.pdf")
    assert [image.image.size for page in report.pages for image in page.images if image.image] == [
        (128, 128),
        (128, 128),
        (64, 64),
    ]
    text = "".join(page.extract_text() for page in report.pages)
    for word in ("soft tissue", "bone", "VOXELS", "Not for diagnostic use"):
        assert word in text


def test_another_reader_of_pdf_sees_the_same(first: Demo) -> None:
    report = first.out / "report.pdf"
    images = subprocess.run(
        [tool("pdfimages"), "-list", report], check=True, capture_output=True, text=True
    ).stdout
    assert [line.split()[3] for line in images.splitlines()[2:]] == ["128", "128", "64"]
    text = subprocess.run(
        [tool("pdftotext"), "-layout", report, "-"], check=True, capture_output=True, text=True
    ).stdout
    [row] = [line.split() for line in text.splitlines() if line.strip().startswith("soft tissue")]
    job = json_format.Parse((first.out / "result.json").read_text(), job_pb2.Job())
    [measured] = [
        each
        for step in job.steps
        for finding in step.analyze_images_result.findings
        for each in finding.measurements
        if each.display_name == "soft tissue"
    ]
    assert row[2] == f"{measured.voxels:,}"


def test_no_process_is_left_when_it_ends(first: Demo) -> None:
    missed = {word for word in EVERY_PROCESS if not any(word in command for command in first.seen)}
    assert not missed, "the search finds what runs, or finding nothing would mean nothing"
    assert not first.left


@pytest.mark.usefixtures("first")
def test_its_services_log_one_json_object_per_line_and_end_without_an_error(folder: Path) -> None:
    logs = {
        service.name: (folder / "data" / "logs" / f"{service.name}.log").read_text().splitlines()
        for service in SERVICES
    }
    for name, lines in logs.items():
        events = [json.loads(line) for line in lines if line not in CELERY_SAYS]
        assert {event["service"] for event in events} == {name}
        assert not [event for event in events if event["level"] in {"error", "critical"}]


def test_a_second_start_on_the_same_data_finds_the_first_job(second: Demo) -> None:
    assert "Jobs from earlier runs, still there: 1" in second.output


def test_a_folder_of_ones_own_with_a_broken_file_gives_results_for_the_others(second: Demo) -> None:
    assert second.code == 0, second.output
    assert "PARTIALLY_SUCCEEDED" in second.output
    [told] = [line for line in second.output.splitlines() if "DICOM_TRUNCATED" in line]
    assert "my own files/study/2.dcm" in told, "it says which file it was"
    assert {path.name for path in second.out.iterdir()} >= {
        "report.pdf",
        "preview.png",
        "preview-2.png",
        "overlay.png",
        "result.json",
    }
    assert not second.left


def test_an_input_that_does_not_exist_is_refused_with_a_sentence(folder: Path) -> None:
    refused = demo(folder, "refused", "--input", folder / "no" / "such" / "folder")
    assert refused.code == 1
    assert f"There is no file in {folder / 'no' / 'such' / 'folder'}" in refused.output.replace(
        "\n", ""
    )
    assert "Traceback" not in refused.output
    assert not refused.left


def test_the_painted_input_of_an_earlier_demonstration_is_not_taken_again(tmp_path: Path) -> None:
    (tmp_path / "painted-007.dcm").touch()
    found = painted("ml_worker.painting", "burns", tmp_path)
    assert [path.name for path in found] == [f"painted-burn-{number}.png" for number in (1, 2, 3)]
