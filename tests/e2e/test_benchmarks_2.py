"""The second share of the benchmarks: each runs and ends with a figure.

What the figures are is not for tests on shared machines.
"""

from collections.abc import Callable

import pytest


@pytest.mark.timeout(250)
def test_a_quick_run_prints_json_and_the_ratio_last(
    assert_quick_run: Callable[[str], None], benchmark_2: str
) -> None:
    assert_quick_run(benchmark_2)
