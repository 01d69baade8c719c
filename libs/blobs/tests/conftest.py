"""The three kinds of store: a folder, memory, and S3 as moto's server on loopback."""

import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fluoro_blobs import BlobStore

SERVE = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@pytest.fixture
def s3_options(s3_endpoint: str) -> dict[str, Any]:
    return {
        "endpoint": s3_endpoint,
        "access_key_id": "id",
        "secret_access_key": "secret",
        "region": "us-east-1",
        "allow_http": True,
    }


@pytest.fixture
def bucket(s3_endpoint: str) -> str:
    name = f"bucket-{uuid4()}"
    with urllib.request.urlopen(
        urllib.request.Request(f"{s3_endpoint}/{name}", method="PUT")
    ) as reply:
        assert reply.status == 200
    return name


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "s3":
        return BlobStore.from_url(
            f"s3://{request.getfixturevalue('bucket')}/some/prefix",
            **request.getfixturevalue("s3_options"),
        )
    return BlobStore.from_url(
        "memory://" if request.param == "memory" else f"file://{tmp_path}/blob%20store"
    )


@pytest.fixture
def new_name() -> Callable[[], str]:
    return lambda: f"blobs/{uuid4()}"


@pytest.fixture
def name(new_name: Callable[[], str]) -> str:
    return new_name()
