"""The examples in the READMEs work as they stand."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fluoro.v1 import job_pb2

ROOT = Path(__file__).parents[3]
EXAMPLES = [
    example
    for readme in (ROOT / "README.md", ROOT / "clients/python/README.md")
    for example in re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
]


@pytest.mark.parametrize(
    "example", [example for example in EXAMPLES if "localhost:50051" in example]
)
async def test_an_example_runs_a_job_to_its_end(gateway, tmp_path, example):
    (tmp_path / "ct.dcm").write_bytes(b"\0" * 128 + b"DICM")
    script = example.replace("localhost:50051", gateway.endpoint)
    run = asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        running = group.create_task(run)
        while not gateway.jobs:  # noqa: ASYNC110 - the server's state is not ours to signal
            await asyncio.sleep(0.01)
        [job] = gateway.jobs.values()
        gateway.finish(job.name)
    done = running.result()
    assert done.returncode == 0
    assert done.stdout
    assert job.state == job_pb2.Job.STATE_SUCCEEDED
    assert [blob.media_type for blob in gateway.blobs.values()] == ["application/dicom"]


def test_the_example_of_a_test_passes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [example] = [example for example in EXAMPLES if "FakeGateway" in example]
    exec(example, {})
    assert (tmp_path / "report.pdf").read_bytes() == b"%PDF-"
