"""A deployment per test: real PostgreSQL, Valkey and processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fluoro_jobs.testing.rig import Rig


@pytest.fixture
def rig(database_url: str, redis_url: str, blob_url: str, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(database_url, redis_url, blob_url, tmp_path)
    yield rig
    rig.close()
