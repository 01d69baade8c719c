"""The doctor names what is wrong with real servers, and says what to do."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from fluoro.v1.deployment_service_pb2 import DiagnoseDeploymentRequest, Finding
from fluoro_jobs import doctor
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger.attempts import Worker
from fluoro_jobs.ledger.connection import Ledger
from fluoro_jobs.ledger.heartbeats import beat
from fluoro_jobs.operations import QUEUES
from fluoro_jobs.testing.rig import until
from fluoro_local.folders import free_port
from fluoro_local.pooler import PoolerServer
from fluoro_local.servers import PostgresServer
from gateway.testing import serving
from psycopg.conninfo import conninfo_to_dict

HOUR = 3600
SHIFTED = """
import runpy, sys, time
right = time.time
time.time = lambda: right() + 3600
sys.argv = ["doctor", "--json"]
runpy.run_module("fluoro_jobs.doctor", run_name="__main__", alter_sys=True)
"""
POWERLESS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""Runs root as somebody whom rights of files bind."""


@contextmanager
def postgresql(server: PostgresServer, **settings: str) -> Iterator[None]:
    """A PostgreSQL with these settings. Other tests share it, so they end with the block."""
    earlier = _changed(server, settings)
    try:
        yield
    finally:
        _changed(server, earlier)


def _changed(server: PostgresServer, settings: dict[str, str]) -> dict[str, str]:
    """What they were."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        earlier = {name: _setting(connection, name) for name in settings}
        for name, value in settings.items():
            connection.execute(f"ALTER SYSTEM SET {name} = {value}".encode())
        connection.execute("SELECT pg_reload_conf()")

    def are_new() -> bool:
        with psycopg.connect(server.url, autocommit=True) as connection:
            return all(_setting(connection, name) == value for name, value in settings.items())

    until(are_new, 30, "the new settings")
    return earlier


def _setting(connection: psycopg.Connection, name: str) -> str:
    row = connection.execute("SELECT current_setting(%s)", (name,)).fetchone()
    assert row is not None
    return str(row[0])


@pytest.fixture
def stores(
    postgres: PostgresServer, database_url: str, redis_url: str, blob_url: str
) -> Iterator[dict[str, str]]:
    """The environment of a durable deployment with a worker for each queue."""
    ledger = Ledger(database_url)
    with ledger.connection() as connection:
        for queue in QUEUES:
            beat(connection, Worker(new_id(), f"host:{queue}", queue, 2, doctor.RELEASE), [])
    ledger.close()
    with postgresql(postgres, fsync="on"):
        yield {
            "FLUORO_DATABASE_URL": database_url,
            "FLUORO_REDIS_URL": redis_url,
            "FLUORO_BLOB_URL": blob_url,
        }


def asked(stores: dict[str, str], *command: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code of the doctor's own command, and what it finds amiss by check."""
    done = subprocess.run(
        command or (sys.executable, "-m", "fluoro_jobs.doctor", "--json"),
        env={**os.environ, **stores},
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    found = json.loads(done.stdout)["findings"]
    return done.returncode, {one["check"]: one for one in found if one["level"] != "OK"}


@contextmanager
def policy(redis_url: str, value: str) -> Iterator[None]:
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", value)
        try:
            yield
        finally:
            client.config_set("maxmemory-policy", "noeviction")


async def test_an_operator_hears_of_every_fault_at_once_and_what_to_do(
    stores: dict[str, str], postgres: PostgresServer
) -> None:
    urls = [stores[f"FLUORO_{name}_URL"] for name in ("DATABASE", "REDIS", "BLOB")]
    async with serving(*urls, shutdown_grace_seconds=25) as client:
        answer = await client.deployment.DiagnoseDeployment(DiagnoseDeploymentRequest())
        assert [one for one in answer.findings if one.level != Finding.LEVEL_OK] == []
        assert answer.version == doctor.RELEASE
        with (
            policy(urls[1], "allkeys-lru"),
            postgresql(postgres, fsync="off", full_page_writes="off", synchronous_commit="off"),
        ):
            answer = await client.deployment.DiagnoseDeployment(DiagnoseDeploymentRequest())
    faults = {one.found: one.advice for one in answer.findings if one.level == Finding.LEVEL_FAULT}
    assert set(faults) == {
        "maxmemory-policy is allkeys-lru",
        "fsync is off",
        "full_page_writes is off",
        "synchronous_commit is off",
    }
    assert "CONFIG SET maxmemory-policy noeviction" in faults["maxmemory-policy is allkeys-lru"]
    assert "ALTER SYSTEM SET fsync = on" in faults["fsync is off"]


def test_the_probe_of_the_blob_store_leaves_nothing(stores: dict[str, str], blob_url: str) -> None:
    assert asked(stores) == (0, {})
    blobs = Path(blob_url.removeprefix("file://"))
    assert [path for path in blobs.rglob("*") if path.is_file()] == []


def test_a_folder_without_rights_is_named(stores: dict[str, str], tmp_path: Path) -> None:
    shut = tmp_path / "shut"
    shut.mkdir(mode=0o555)
    command = (sys.executable, "-m", "fluoro_jobs.doctor", "--json")
    if os.geteuid() == 0:
        command = (*POWERLESS, *command)
    code, amiss = asked({**stores, "FLUORO_BLOB_URL": shut.as_uri()}, *command)
    assert (code, amiss["blob store"]["level"]) == (1, "FAULT")
    assert amiss["blob store"]["found"] == "may not write"


def test_an_old_schema_and_queues_without_workers_are_named(stores: dict[str, str]) -> None:
    with psycopg.connect(stores["FLUORO_DATABASE_URL"], autocommit=True) as connection:
        connection.execute("DELETE FROM workers WHERE queue = 'ml'")
        connection.execute("UPDATE workers SET version = '0.0.9' WHERE queue = 'dicom'")
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    code, amiss = asked(stores)
    assert (code, amiss.keys()) == (1, {"queue ml", "queue dicom", "schema"})
    assert amiss["queue ml"]["found"] == "no worker is alive"
    assert amiss["queue dicom"]["level"] == "WARNING"
    assert "fluoro_jobs.ledger.migrate" in amiss["schema"]["advice"]


def test_a_clock_that_is_wrong_is_named(stores: dict[str, str]) -> None:
    code, amiss = asked(stores, sys.executable, "-c", SHIFTED)
    assert (code, list(amiss)) == (0, ["clock"])
    assert "3600.0 s ahead" in amiss["clock"]["found"]


def test_stores_that_are_away_are_findings(stores: dict[str, str]) -> None:
    away = f"127.0.0.1:{free_port()}"
    code, amiss = asked(
        {
            **stores,
            "FLUORO_REDIS_URL": f"redis://{away}/0",
            "FLUORO_DATABASE_URL": f"postgresql://fluoro:secret@{away}/fluoro",
        }
    )
    assert (code, amiss.keys()) == (1, {"ledger", "redis"})
    assert "secret" not in str(amiss)


def test_what_never_was_set_up_is_said_in_words(postgres: PostgresServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with postgresql(postgres, fsync="on"), socket.create_server(("127.0.0.1", 0)) as silent:
        code, amiss = asked(
            {
                "FLUORO_DATABASE_URL": postgres.url,  # without a schema
                "FLUORO_REDIS_URL": f"redis://127.0.0.1:{silent.getsockname()[1]}/0",
                "FLUORO_BLOB_URL": (tmp_path / "file").as_uri(),
            }
        )
    assert (code, amiss.keys()) == (1, {"schema", "redis", "blob store"})
    assert amiss["schema"]["found"].startswith("none; this release needs ")
    assert "fluoro_jobs.ledger.migrate" in amiss["schema"]["advice"]
    assert amiss["redis"]["found"] == "cannot be asked: no answer in time"
    assert amiss["blob store"]["found"] == "cannot be asked: File exists"


def test_redis_may_keep_its_settings_to_itself(stores: dict[str, str], redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        rule = "narrow on >pw ~* &* +@all -@admin -@dangerous"
        client.execute_command("ACL", "SETUSER", *rule.split())
        url = redis_url.replace("redis://", "redis://narrow:pw@")
        code, amiss = asked({**stores, "FLUORO_REDIS_URL": url})
        client.execute_command("ACL", "DELUSER", "narrow")
    assert (code, list(amiss)) == (0, ["redis"]), amiss
    assert "+info" in amiss["redis"]["advice"]


def test_a_pooler_is_seen(stores: dict[str, str], pooler: PoolerServer) -> None:
    pooler.start()
    url = pooler.url_of(conninfo_to_dict(stores["FLUORO_DATABASE_URL"])["dbname"])
    done = subprocess.run(
        [sys.executable, "-m", "fluoro_jobs.doctor"],
        env={**os.environ, **stores, "FLUORO_DATABASE_URL": url},
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert b"through a pooler" in done.stdout
