"""The embedded servers, started for real."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import redis
from fluoro_jobs.testing.rig import until
from fluoro_local import folders
from fluoro_local.errors import StartError
from fluoro_local.servers import SOCKET_PATH_BYTES, PostgresServer, ValkeyServer


def test_what_postgres_committed_survives_kill_and_restart(server_folder: Path) -> None:
    with PostgresServer(server_folder) as server:
        address = server.url
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept (n int)")
            connection.execute("INSERT INTO kept VALUES (1)")
            assert connection.execute("SHOW fsync").fetchone() == ("on",)
        server.kill()
        assert not server.running
        server.start()
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute("INSERT INTO kept VALUES (2)")
        server.restart()
        assert server.url == address
        with psycopg.connect(address) as connection:
            assert connection.execute("SELECT n FROM kept ORDER BY n").fetchall() == [(1,), (2,)]


def test_postgres_comes_back_when_a_stranger_killed_it(server_folder: Path) -> None:
    with PostgresServer(server_folder) as server, psycopg.connect(server.url) as open_session:
        old = server.pid
        os.kill(old, signal.SIGKILL)
        with pytest.raises(psycopg.OperationalError):
            open_session.execute("SELECT pg_sleep(60)")
        until(lambda: not server.running, 30, "the end of the server")
        server.start()
        assert server.pid != old
        psycopg.connect(server.url).close()


def test_postgres_over_tcp_wants_the_password(server_folder: Path) -> None:
    with PostgresServer(server_folder, port=folders.free_port()) as server:
        psycopg.connect(server.url).close()
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(f"postgresql://postgres@127.0.0.1:{server.port}/postgres")


def test_a_deep_folder_gets_a_short_socket_path(server_folder: Path) -> None:
    deep = server_folder / ("d" * 60) / ("e" * 60)
    with PostgresServer(deep) as server, psycopg.connect(server.url) as connection:
        (path,) = connection.execute("SHOW unix_socket_directories").fetchone() or ("",)
        assert len(path) + len("/.s.PGSQL.5432") <= SOCKET_PATH_BYTES
    assert not Path(path).exists()


def test_valkey_keeps_its_address_and_its_appendonly_file_over_kill_and_restart(
    server_folder: Path,
) -> None:
    with ValkeyServer(server_folder) as server:
        address = server.url
        with redis.Redis.from_url(address) as client:
            client.set("kept", 1)
            client.execute_command("WAITAOF", 1, 0, 5000)
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            server.kill()
            server.start()
            assert client.get("kept") == b"1"
            server.restart()
            assert client.get("kept") == b"1"
            assert server.url == address


@pytest.mark.parametrize("server_type", [PostgresServer, ValkeyServer])
def test_a_taken_port_is_named_in_the_message(
    server_folder: Path, server_type: type[PostgresServer] | type[ValkeyServer]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(StartError, match=f"Port {port} .* is taken"):
            server_type(server_folder, port=port).start()


def test_a_second_fluoro_on_the_same_folder_is_refused_at_once_and_names_the_first(
    server_folder: Path,
) -> None:
    with ValkeyServer(server_folder) as first:
        second = subprocess.run(
            [
                sys.executable,
                "-c",
                (
                    "from pathlib import Path; from fluoro_local.servers import *; "
                    f"ValkeyServer(Path({str(server_folder)!r})).start()"
                ),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert second.returncode
        assert "Another Fluoro (process" in second.stderr
        assert first.running


def test_a_folder_that_cannot_be_written_is_refused_with_its_name(server_folder: Path) -> None:
    (server_folder / "file").touch()
    with pytest.raises(StartError, match=r"cannot write to .*file/postgres"):
        PostgresServer(server_folder / "file" / "postgres").start()


def test_a_full_disk_is_refused_before_anything_is_written(server_folder: Path) -> None:
    with pytest.raises(StartError, match="MiB left"):
        folders.prepare(server_folder, free_bytes=2**62)


def test_a_server_that_does_not_come_up_shows_the_end_of_its_log(server_folder: Path) -> None:
    with PostgresServer(server_folder) as server:
        server.stop()
        (server_folder / "data" / "postgresql.conf").write_text("no_such_setting = 1\n")
        with pytest.raises(StartError, match=r"(?s)ended at once.*no_such_setting"):
            server.start()


KILLED = """
import os, signal, sys
from pathlib import Path
from fluoro_local.servers import PostgresServer, ValkeyServer
base = Path(sys.argv[1])
PostgresServer(base / "postgres").start()
ValkeyServer(base / "valkey").start()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_servers_of_a_killed_process_end_and_the_next_one_takes_their_folders_over(
    server_folder: Path,
) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(server_folder)], check=False, timeout=60
    )
    assert killed.returncode == -9
    # Both locks are inherited by every server process: starting here means that none of the old
    # ones is left.
    with PostgresServer(server_folder / "postgres"), ValkeyServer(server_folder / "valkey"):
        assert (
            "was not properly shut down"
            not in (server_folder / "postgres" / "postgres.log").read_text()
        )
