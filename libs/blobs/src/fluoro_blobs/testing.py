"""For tests that need S3: moto's server on loopback, in a process of its own."""

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from uuid import uuid4

import obstore

from fluoro_blobs.backends import open_store

_SERVE: Final = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


ENVIRONMENT: Final = {
    "AWS_ACCESS_KEY_ID": "id",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}
"""Credentials for that server; AWS_ENDPOINT is beside them."""


@contextmanager
def serving_s3() -> Iterator[str]:
    """The endpoint of an S3 that is empty, takes any key, and is gone after the block."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVE],
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


def new_bucket(endpoint: str) -> str:
    """The name of a bucket made now."""
    name = f"bucket-{uuid4()}"
    request = urllib.request.Request(f"{endpoint}/{name}", method="PUT")  # noqa: S310 - an endpoint of serving_s3
    with urllib.request.urlopen(request):  # noqa: S310 - as above
        return name


def put_object(url: str, key: str, data: bytes) -> None:
    """Writes an object below `s3://bucket/prefix`, as another program would. As AWS_… say."""
    store, _ = open_store(url, 10, {})
    obstore.put(store, key, data)


def delete_object(url: str, key: str) -> None:
    """Removes it."""
    store, _ = open_store(url, 10, {})
    obstore.delete(store, key)
