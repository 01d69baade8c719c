"""Every benchmark runs and ends with a figure.

What the figures are is not for tests on shared machines.
"""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
Run = Callable[..., "CompletedProcess[str]"]


def test_every_benchmark_is_explained() -> None:
    readme = (BENCHMARKS / "README.md").read_text()
    names = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
    assert {"accept", "blobs", "noop", "startup", "watch"} <= set(names)
    assert [name for name in names if f"| `{name}.py` |" not in readme] == []


@pytest.mark.timeout(250)
def test_a_quick_run_prints_json_and_the_ratio_last(
    assert_quick_run: Callable[[str], None], benchmark_1: str
) -> None:
    assert_quick_run(benchmark_1)


def test_a_long_benchmark_starts_and_explains_itself(benchmark: Run, long_benchmark: str) -> None:
    assert "--quick" in benchmark(long_benchmark, "--help").stdout


def test_a_benchmark_that_is_given_nonsense_says_so(benchmark: Run) -> None:
    done = benchmark("accept", "--no-such-option")
    assert done.returncode == 2
    assert "--quick" in done.stderr
