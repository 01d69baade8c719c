"""Some damaged files through every operation, and operations that do all wrong."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from fluoro.v1.dicom_pb2 import InspectDicom, InspectDicomResult
from fluoro_jobs.testing import operate
from fluoro_jobs.worker.context import StepContext
from fluoro_jobs.worker.handler import handles
from fuzzing import operations
from fuzzing.files import NAME, lettered, mutant, sources, written
from fuzzing.operations import identified, judged
from fuzzing.photographs import archive, photograph
from fuzzing.worker import findings_of_log

FOLDER: Final = Path(__file__).parent
FILES: Final = 60


def test_whatever_is_wrong_with_a_file_no_operation_hangs_dies_or_fails_without_a_reason() -> None:
    order = ["--files", str(FILES), "--seed", "9", "--jobs", "0", "--processes", "2"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(FOLDER / "dicom.py"), *order],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    targets = operations.OPERATIONS.values()
    assert summary["operations"] == sum(FILES // target.every for target in targets)
    assert summary["succeeded"] > FILES / 3
    kinds = ("untyped", "hangs", "lost", "memory", "identifiers", "log")
    assert {summary[kind] for kind in kinds} == {0}


@handles(InspectDicom)
def unforeseen(_request: InspectDicom, context: StepContext) -> InspectDicomResult:
    for item in context.each("inspect"):
        with item:
            raise KeyError(NAME)
    return InspectDicomResult()


@handles(InspectDicom)
def endless(_request: InspectDicom, context: StepContext) -> InspectDicomResult:
    while True:
        context.check()


@pytest.mark.parametrize(
    ("operation", "found"), [(unforeseen, "untyped"), (endless, "hang")], ids=["raises", "hangs"]
)
def test_an_operation_that_raises_or_hangs_is_found(
    operation: Any, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "FILE_SECONDS", 1)
    target = operations.Target(operation, InspectDicom())
    monkeypatch.setitem(operations.OPERATIONS, "inspect", target)
    _, findings = judged("inspect", sources()[0].data, 0, tmp_path)
    assert [finding.kind for finding in findings] == [found]


def test_undamaged_files_with_a_name_in_the_pixels_are_masked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = operations.OPERATIONS["mask"]
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / operations.PROJECT).write_bytes(bytes(32) + b"of a test alone, and long enough")
    monkeypatch.setenv("FLUORO_DEIDENTIFY_KEYS_FOLDER", str(keys))
    files = [source.data for source in lettered()]
    result, _ = operate(target.operation, target.request, tmp_path, files)
    assert len(result.instances) == len(files)
    assert all(instance.masked_regions for instance in result.instances)


def test_a_name_that_is_left_and_a_log_that_holds_one_are_found() -> None:
    source = sources()[0].data
    assert identified(source, source) == "Quixotic, Zebedee, ZQ77310042"
    assert identified(source, b"nobody") == ""
    bad = [f'{{"event": "no {NAME}", "level": "info"}}', '{"event": "x", "level": "error"}']
    log = "\n".join(['{"event": "ready", "level": "info"}', *bad])
    assert [finding.told for finding in findings_of_log(log)] == bad


@pytest.mark.parametrize("make", [mutant, written, photograph, archive])
def test_a_seed_and_a_number_always_make_the_same_file(make: Callable[[int, int], bytes]) -> None:
    assert make(3, 14) == make(3, 14) != make(3, 15)
