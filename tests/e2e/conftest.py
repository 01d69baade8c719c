"""Whole Fluoros, as people run them: real processes, asked through the doors everybody uses."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fluoro_local.services import SERVICES
from fluoro_local.testing import RunningFluoro, running
from pydicom.data import get_testdata_file

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MINUTES = {"cancel", "deidentify", "recovery", "streams"}
"""These take minutes even when quick, or install their peers, so here they only have to start."""
SHARES = 3
"""Files that the quick runs are dealt to: a file of tests stays in one process."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Deals benchmarks to the tests that ask for some."""
    names = {path.stem for path in BENCHMARKS.glob("*.py")}
    quick = sorted(names - MINUTES)
    shares = {f"benchmark_{share + 1}": quick[share::SHARES] for share in range(SHARES)}
    for argument, some in (shares | {"long_benchmark": sorted(MINUTES)}).items():
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, some)


@pytest.fixture(scope="session")
def benchmark() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs a benchmark, given its name and arguments."""

    def ran(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)

    return ran


@pytest.fixture(scope="session")
def assert_quick_run(
    benchmark: Callable[..., "subprocess.CompletedProcess[str]"],
) -> Callable[[str], None]:
    """Fails unless the quick run of a benchmark ends with a figure."""

    def ran(name: str) -> None:
        done = benchmark(name, "--quick")
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert all(isinstance(line["name"], str) for line in lines)
        assert lines[-1]["name"] == name
        assert lines[-1]["ratio"] > 0
        if name == "accept":
            assert lines[-1]["ratio_echo"] > 0
        if name == "blobs":
            assert lines[-1]["memory_growth_mib"] >= 0

    return ran


@pytest.fixture(scope="session")
def fluoro() -> Iterator[RunningFluoro]:
    """One whole Fluoro for all tests that leave it as it was."""
    with running(SERVICES) as fluoro:
        yield fluoro


@pytest.fixture(scope="module")
def core() -> Iterator[RunningFluoro]:
    """Gateway, one worker and scheduler, for tests that take their servers away."""
    with running(
        [
            service
            for service in SERVICES
            if service.name in {"gateway", "dicom-worker", "scheduler"}
        ]
    ) as fluoro:
        yield fluoro


@pytest.fixture(scope="session")
def ct() -> Path:
    """A CT slice, which the model is made for."""
    return Path(str(get_testdata_file("CT_small.dcm")))


@pytest.fixture(scope="session")
def mr() -> Path:
    """An MR slice, which it is not made for."""
    return Path(str(get_testdata_file("MR_small.dcm")))
