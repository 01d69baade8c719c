"""What operators see: probes and figures of every service, read by a real Prometheus."""

import contextlib
import json
import math
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fluoro.v1 import job_pb2
from fluoro_client.jobs import imaging_report
from fluoro_jobs.testing.rig import until
from fluoro_local.folders import free_port
from fluoro_local.services import SERVICES
from fluoro_local.testing import RunningFluoro, tool
from prometheus_client.parser import text_string_to_metric_families

NAMES = [service.name for service in SERVICES]

FIGURES = {
    "gateway": [
        ("fluoro_jobs_accepted_total", {}),
        ("fluoro_rpc_requests_total", {"method": "fluoro.v1.JobService.SubmitJob", "code": "OK"}),
        ("fluoro_submit_seconds_count", {}),
        ("fluoro_blob_received_bytes_total", {}),
    ],
    "dicom-worker": [
        (
            "fluoro_task_attempts_finished_total",
            {"operation": "dicom.inspect", "outcome": "succeeded"},
        ),
        (
            "fluoro_task_attempts_finished_total",
            {"operation": "dicom.render", "outcome": "succeeded"},
        ),
        ("fluoro_task_run_seconds_count", {"operation": "dicom.inspect"}),
        ("fluoro_task_wait_seconds_count", {"operation": "dicom.inspect"}),
    ],
    "ml-worker": [
        (
            "fluoro_task_attempts_finished_total",
            {"operation": "ml.analyze", "outcome": "succeeded"},
        ),
        ("fluoro_task_run_seconds_count", {"operation": "ml.analyze"}),
    ],
    "export-worker": [
        (
            "fluoro_task_attempts_finished_total",
            {"operation": "export.report", "outcome": "succeeded"},
        ),
        ("fluoro_jobs_finished_total", {"state": "succeeded"}),
    ],
    "scheduler": [
        (name, {"queue": queue})
        for name in ("fluoro_workers", "fluoro_worker_slots")
        for queue in ("dicom", "ml", "export")
    ],
}
"""Figures of each service that are at least 1 once a job has run."""


@pytest.fixture(scope="module")
def worked(fluoro: RunningFluoro, ct: Path) -> RunningFluoro:
    """The Fluoro, after a job has run."""
    job = fluoro.run([ct])
    assert job.state == job_pb2.Job.STATE_SUCCEEDED, fluoro.logs()
    return fluoro


@pytest.mark.parametrize("service", NAMES)
def test_every_service_is_alive_and_ready(fluoro: RunningFluoro, service: str) -> None:
    assert fluoro.get(service, "/healthz")[0] == 200
    assert fluoro.readiness(service) == (200, set())


@pytest.mark.parametrize("service", NAMES)
def test_every_service_has_its_main_figures_once_a_job_has_run(
    worked: RunningFluoro, service: str
) -> None:
    def missing() -> list[tuple[str, dict[str, str]]]:
        """Of the figures. A worker counts an attempt a moment after the job is seen to end."""
        status, text = worked.get(service, "/metrics")
        assert status == 200
        samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]
        return [
            (name, labels)
            for name, labels in FIGURES[service]
            if not any(
                sample.name == name and sample.labels == labels and sample.value >= 1
                for sample in samples
            )
        ]

    with contextlib.suppress(AssertionError):  # the next line says it better
        until(lambda: not missing(), 20)
    assert not missing()


def test_a_job_is_counted_as_cancelled_once_however_often_it_is_cancelled(
    fluoro: RunningFluoro, ct: Path
) -> None:
    def cancelled() -> float:
        families = text_string_to_metric_families(fluoro.get("gateway", "/metrics")[1])
        samples = [
            sample
            for family in families
            for sample in family.samples
            if sample.name == "fluoro_jobs_finished_total"
        ]
        return sum(sample.value for sample in samples if sample.labels == {"state": "cancelled"})

    before = cancelled()
    with fluoro.client() as client:
        job = imaging_report([client.upload(ct)])
        job.schedule_time.FromSeconds(4_000_000_000)
        name = client.submit(job).name
        assert [client.cancel(name).state for _ in range(2)] == [job_pb2.Job.STATE_CANCELLED] * 2
    assert cancelled() == before + 1


def test_a_submit_that_is_repeated_counts_as_one_accepted_job(
    worked: RunningFluoro, ct: Path
) -> None:
    def accepted() -> float:
        families = text_string_to_metric_families(worked.get("gateway", "/metrics")[1])
        return next(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == "fluoro_jobs_accepted_total"
        )

    before = accepted()
    with worked.client() as client:
        job = imaging_report([client.upload(ct)])
        assert len({client.submit(job, request_id="counted-once").name for _ in range(3)}) == 1
    assert accepted() == before + 1


@pytest.mark.parametrize("service", NAMES)
def test_promtool_finds_nothing_wrong_with_the_exposition(
    worked: RunningFluoro, service: str
) -> None:
    _, text = worked.get(service, "/metrics")
    done = subprocess.run(
        [tool("promtool"), "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    complaints = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if "fluoro_" in line or done.returncode not in {0, 3}
    ]
    assert not complaints


class Prometheus:
    """A Prometheus that scrapes every service once a second."""

    def __init__(self, address: str) -> None:
        self._address = address

    def query(self, expression: str) -> dict[str, float]:
        """Values by the label `job`; empty until it listens."""
        query = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(
                f"http://{self._address}/api/v1/query?{query}", timeout=30
            ) as response:
                answer: dict[str, Any] = json.load(response)
        except OSError:
            return {}
        return {
            result["metric"].get("job", ""): float(result["value"][1])
            for result in answer["data"]["result"]
        }


@pytest.fixture(scope="module")
def prometheus(
    worked: RunningFluoro, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    command, folder, address = (
        tool("prometheus"),
        tmp_path_factory.mktemp("prometheus"),
        f"127.0.0.1:{free_port()}",
    )
    targets = {
        name: urllib.parse.urlsplit(url).netloc
        for name, url in worked.supervisor.metrics_urls.items()
    }
    jobs = [
        {"job_name": name, "static_configs": [{"targets": [target]}]}
        for name, target in targets.items()
    ]
    config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(json.dumps(config))  # YAML is a superset of JSON
    subprocess.run(
        [tool("promtool"), "check", "config", folder / "prometheus.yml"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    options = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([command, *options], stdout=log, stderr=subprocess.STDOUT)
    try:
        yield Prometheus(address)
    finally:
        process.kill()
        process.wait()


def test_a_real_prometheus_scrapes_every_service(prometheus: Prometheus) -> None:
    until(
        lambda: prometheus.query("up") == dict.fromkeys(NAMES, 1), 60, "up == 1 for every service"
    )


@pytest.mark.parametrize(
    ("expression", "service"),
    [
        ("sum by (job) (fluoro_jobs_accepted_total) >= 1", "gateway"),
        (
            "histogram_quantile(0.95, sum by (job, le) (fluoro_submit_seconds_bucket)) > 0",
            "gateway",
        ),
        (
            (
                "fluoro_task_attempts_finished_total"
                '{operation="dicom.inspect",outcome="succeeded"} >= 1'
            ),
            "dicom-worker",
        ),
        ('fluoro_workers{queue="ml"} == 1', "scheduler"),
    ],
)
def test_prometheus_answers_questions_about_the_work(
    prometheus: Prometheus, expression: str, service: str
) -> None:
    until(lambda: service in prometheus.query(expression), 60, expression)
    assert math.isfinite(prometheus.query(expression)[service])
