"""Memory is bounded by parts, not by the blob.

Measured as the peak resident size of a fresh process, over what it has after one small blob.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MIB = 1024 * 1024

MEASURE = """
import asyncio, json, sys
from pathlib import Path
from fluoro_blobs import BlobStore

url, options, way, name, small, source, target = json.loads(sys.argv[1])
store = BlobStore.from_url(url, **options)

async def write(name, count):
    async with store.writer(name) as writer:
        for _ in range(count):
            await writer.write(bytes(1 << 20))

async def stream(name):
    async for _ in store.stream(name):
        await asyncio.sleep(0)

def peak_kib():
    # Not ru_maxrss: it starts at the size of the process that forked this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].removesuffix("kB"))

asyncio.run(write(small, 1))
asyncio.run(stream(small))
base = peak_kib()
size = Path(source).stat().st_size
ways = {
    "put": lambda: store.put(name, Path(source)),
    "write": lambda: asyncio.run(write(name, size >> 20)),
    "fetch": lambda: store.fetch(name, Path(target)),
    "stream": lambda: asyncio.run(stream(name)),
}
ways[way]()
print((peak_kib() - base) * 1024)
"""

BLOB, SMALL = (
    "blobs/0192b1a8-0000-7000-8000-000000000001",
    "blobs/0192b1a8-0000-7000-8000-000000000002",
)


def peak_over_base_bytes(
    url: str, options: dict[str, Any], way: str, source: Path, target: Path
) -> int:
    arguments = json.dumps([url, options, way, BLOB, SMALL, str(source), str(target)])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_large_blob_costs_less_than_40_mib_whichever_way_it_goes(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate((256 if kind == "folder" else 128) * MIB)
    url, options = f"file://{tmp_path}/store", {}
    if kind == "s3":
        url, options = (
            f"s3://{request.getfixturevalue('bucket')}",
            request.getfixturevalue("s3_options"),
        )
    peaks = {
        way: peak_over_base_bytes(url, options, way, source, tmp_path / "target") // MIB
        for way in ("put", "fetch", "write", "stream")
    }
    assert max(peaks.values()) < 40, peaks
