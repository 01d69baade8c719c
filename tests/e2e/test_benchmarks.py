"""Every benchmark runs and ends with a figure.

What the figures are is not for tests on shared machines.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
MINUTES = {"cancel", "deidentify", "recovery", "streams"}
"""These take minutes even when quick, or install their peers, so here they only have to start."""


def ran(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=240, check=False
    )


def test_every_benchmark_is_explained() -> None:
    readme = (BENCHMARKS / "README.md").read_text()
    assert {"accept", "blobs", "noop", "startup", "watch"} <= set(NAMES)
    assert [name for name in NAMES if f"| `{name}.py` |" not in readme] == []


@pytest.mark.timeout(250)
@pytest.mark.parametrize("name", sorted(set(NAMES) - MINUTES))
def test_a_quick_run_prints_json_and_the_ratio_last(name: str) -> None:
    done = ran(str(BENCHMARKS / f"{name}.py"), "--quick")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(isinstance(line["name"], str) for line in lines)
    assert lines[-1]["name"] == name
    assert lines[-1]["ratio"] > 0
    if name == "accept":
        assert lines[-1]["ratio_echo"] > 0
    if name == "blobs":
        assert lines[-1]["memory_growth_mib"] >= 0


@pytest.mark.parametrize("name", sorted(MINUTES))
def test_a_long_benchmark_starts_and_explains_itself(name: str) -> None:
    assert "--quick" in ran(str(BENCHMARKS / f"{name}.py"), "--help").stdout


def test_a_benchmark_that_is_given_nonsense_says_so() -> None:
    done = ran(str(BENCHMARKS / "accept.py"), "--no-such-option")
    assert done.returncode == 2
    assert "--quick" in done.stderr
