"""The three kinds of store: a folder, memory, and S3 as moto's server on loopback."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fluoro_blobs import BlobStore
from fluoro_blobs.testing import new_bucket, serving_s3


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    with serving_s3() as endpoint:
        yield endpoint


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
    return new_bucket(s3_endpoint)


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
