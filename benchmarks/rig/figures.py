"""Percentiles, medians and the lines a benchmark prints."""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from typing import Final

DIGITS: Final = 4
"""Significant digits of a printed figure: more than a shared machine can promise."""


def quick(description: str | None) -> bool:
    """Whether the command line asks for a smoke run of seconds, whose figures mean nothing."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few seconds, to see that it runs; the figures mean nothing",
    )
    return bool(parser.parse_args().quick)


def say(name: str, **figures: object) -> None:
    """Prints one line of JSON. Units stand in the keys."""
    print(
        json.dumps({"name": name} | {key: _rounded(value) for key, value in figures.items()}),
        flush=True,
    )


def _rounded(value: object) -> object:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def latencies(seconds: Sequence[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    return {"p50_ms": 1000 * percentile(seconds, 50), "p99_ms": 1000 * percentile(seconds, 99)}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratios of neighbouring rounds: what slows the machine slows both of a pair."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
