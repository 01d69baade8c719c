"""Machines whose clock is wrong: they say so, and jobs do not mind."""

import textwrap
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from fluoro.v1 import job_pb2
from fluoro_jobs.testing.rig import Rig, until
from fluoro_local.folders import free_port
from prometheus_client.parser import text_string_to_metric_families

HOUR, DAY = 3600, 86400
WORKER = ("fluoro_jobs.testing.worker", "dicom", "threads")

SHIFTED = textwrap.dedent("""\
    import runpy, sys, time

    if __name__ == "__main__":
        seconds, sys.argv = int(sys.argv[1]), sys.argv[2:]
        right, right_ns = time.time, time.time_ns
        time.time, time.time_ns = lambda: right() + seconds, lambda: right_ns() + seconds * 10**9
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
""")
"""Runs a service whose clock is so many seconds ahead."""


def offset(port: int) -> float:
    """`fluoro_clock_offset_seconds` of the service; 0 as long as it has not looked."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
            families = text_string_to_metric_families(response.read().decode())
    except OSError:
        return 0
    return next(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "fluoro_clock_offset_seconds"
    )


def shifted(rig: Rig, port: int, seconds: int, *service: str) -> None:
    (rig.folder / "shifted.py").write_text(SHIFTED)
    rig.start("shifted", str(seconds), *service, http_port=port, grpc_port=0)
    until(lambda: abs(offset(port) - seconds) < 5, 60, f"an offset of {seconds} s")
    until(lambda: '"clock_wrong"' in rig.logs(), 30, "a warning")


@pytest.fixture(autouse=True)
def _path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.parametrize("service", ["gateway", "scheduler"])
def test_a_service_whose_clock_is_wrong_says_so(rig: Rig, service: str) -> None:
    shifted(rig, free_port(), HOUR, service)


@pytest.mark.parametrize("seconds", [HOUR, -DAY])
def test_jobs_run_as_ever_on_a_worker_whose_clock_is_wrong(rig: Rig, seconds: int) -> None:
    rig.start("scheduler", sweep_interval_seconds=0.1)
    shifted(rig, free_port(), seconds, *WORKER)
    job = rig.finished(rig.submit(rig.job_of({"do": "sleep", "seconds": 1})))
    assert job.state == job_pb2.Job.STATE_SUCCEEDED, rig.logs()
    (attempt,) = job.steps[0].tasks[0].attempts
    assert (
        job.create_time.seconds
        <= attempt.start_time.seconds
        <= attempt.end_time.seconds
        <= job.create_time.seconds + 60
    )
