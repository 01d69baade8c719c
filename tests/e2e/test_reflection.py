"""Tools that know nothing of Fluoro but its address."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fluoro_local.testing import OWNER, RunningFluoro

BUF = Path(sys.executable).with_name("buf")


def curl(url: str, *words: str) -> str:
    command = [str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *words, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_buf_curl_finds_the_methods_and_lists_jobs_by_reflection(
    fluoro: RunningFluoro, ct: Path
) -> None:
    name = fluoro.run([ct]).name
    assert set(curl(f"http://{fluoro.endpoint}", "--list-methods").split()) >= {
        "fluoro.v1.BlobService/UploadBlob",
        "fluoro.v1.JobService/ListJobs",
        "fluoro.v1.JobService/SubmitJob",
        "fluoro.v1.JobService/WatchJob",
        "grpc.health.v1.Health/Check",
    }
    url = f"http://{fluoro.endpoint}/fluoro.v1.JobService/ListJobs"
    jobs = json.loads(
        curl(url, "-H", f"fluoro-owner: {OWNER}", "-d", '{"states": ["STATE_SUCCEEDED"]}')
    )["jobs"]
    assert name in [job["name"] for job in jobs]
    assert json.loads(curl(url, "-H", "fluoro-owner: nobody", "-d", "{}")) == {}


@pytest.mark.parametrize("service", ["", "fluoro.v1.JobService"])
def test_the_standard_health_service_says_serving(fluoro: RunningFluoro, service: str) -> None:
    answer = curl(
        f"http://{fluoro.endpoint}/grpc.health.v1.Health/Check",
        "-d",
        json.dumps({"service": service}),
    )
    assert json.loads(answer) == {"status": "SERVING"}
