"""The table of metrics, checked by Prometheus' own tool."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from fluoro_telemetry.document import markdown
from fluoro_telemetry.metrics import SPECS, MetricSpec

EXPOSE_ALL = """
from fluoro_telemetry import metrics
from prometheus_client import Counter, Gauge, Histogram, generate_latest
for metric in vars(metrics).values():
    if isinstance(metric, (Counter, Gauge, Histogram)) and metric._labelnames:
        metric.labels(*("x" for _ in metric._labelnames))
print(generate_latest().decode(), end="")
"""

OF_ONE_MACHINE_OR_JOB = {
    "job",
    "step",
    "task",
    "owner",
    "host",
    "hostname",
    "pod",
    "node",
    "instance",
    "worker",
    "pid",
    "blob",
    "patient",
}


@pytest.fixture(scope="module")
def exposition() -> str:
    return subprocess.run(
        [sys.executable, "-c", EXPOSE_ALL], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_promtool_has_nothing_to_say_about_the_exposition(exposition: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        assert "CI" not in os.environ, "promtool must be there in CI"
        pytest.skip("promtool is not installed")
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=exposition,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_declared_is_what_is_exposed(exposition: str) -> None:
    exposed = dict(re.findall(r"^# TYPE (fluoro_\w+) (\w+)$", exposition, re.MULTILINE))
    assert exposed == {spec.name: spec.kind for spec in SPECS}
    assert "_created" not in exposition


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_metric_keeps_to_the_conventions(spec: MetricSpec) -> None:
    assert spec.name.startswith("fluoro_")
    assert spec.name.endswith("_total") == (spec.kind == "counter")
    units = ("_seconds", "_bytes", "_jobs", "_samples")
    assert spec.kind != "histogram" or spec.name.endswith(units)
    assert list(spec.buckets) == sorted(set(spec.buckets))
    assert spec.meaning.endswith(".")
    assert OF_ONE_MACHINE_OR_JOB.isdisjoint(spec.labels)


def test_the_document_has_a_line_for_every_metric() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "fluoro_telemetry.document"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert printed == markdown() + "\n"
    assert re.findall(r"^\| `(\w+)` \|", printed, re.MULTILINE) == [spec.name for spec in SPECS]
