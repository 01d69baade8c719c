"""The examples in the README work as they stand."""

import asyncio
import re
import sys
from pathlib import Path

import pytest
from fluoro.v1 import job_pb2

EXAMPLES = re.findall(r"```python\n(.*?)```", Path(__file__).parents[1].joinpath("README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
async def test_an_example_runs_a_job_to_its_end(gateway, tmp_path, example):
    (tmp_path / "ct.dcm").write_bytes(b"\0" * 128 + b"DICM")
    script = example.replace("localhost:50051", gateway.endpoint)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, cwd=tmp_path, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(30):
        while not gateway.jobs:  # noqa: ASYNC110 - the server's state is not ours to signal
            await asyncio.sleep(0.01)
        [job] = gateway.jobs.values()
        await gateway.finish(job.name)
        out, _ = await process.communicate()
    assert process.returncode == 0
    assert out
    assert job.state == job_pb2.Job.STATE_SUCCEEDED
    assert [blob.media_type for blob in gateway.blobs.values()] == ["application/dicom"]
