"""Every kind of FLUORO_REDIS_URL, with real servers: TLS, users with few rights, Sentinels."""

import asyncio
import re
import selectors
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis
from fluoro_jobs.redis_url import RedisServer, connect
from fluoro_jobs.testing.rig import Rig
from fluoro_local.sentinel import MASTER_NAME, Sentinel
from fluoro_local.servers import ValkeyServer

RIGHTS = "~fluoro:* ~dicom ~ml ~export ~_kombu.* ~unacked* &fluoro:* +@all -@admin -@dangerous"
"""docs/operations/redis.md says the same."""


@pytest.fixture
def user(valkey: ValkeyServer) -> Iterator[str]:
    """User and password of the session's Valkey, with the rights that Fluoro needs."""
    with redis.Redis.from_url(valkey.url) as client:
        client.execute_command(
            "ACL", "SETUSER", "fluoro", "reset", "on", ">p@ss:word", *RIGHTS.split()
        )
        yield "fluoro:p%40ss%3Aword"
        client.execute_command("ACL", "DELUSER", "fluoro")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of 127.0.0.1 that is its own authority, and its key beside it."""
    certificate = tmp_path / "certificate.pem"
    names = ["-subj", "/CN=fluoro", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "1",
        *names,
    ]
    subprocess.run(
        [*command, "-out", certificate, "-keyout", tmp_path / "key.pem"],
        check=True,
        capture_output=True,
    )
    return certificate


@contextmanager
def _tls_in_front_of(port: int, certificate: Path) -> Iterator[int]:
    """A port that speaks TLS to clients with a certificate, and passes on to a plain port.

    The wheel's server has no TLS built in.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate))
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    context.verify_mode = ssl.CERT_REQUIRED

    def pass_on(client: socket.socket) -> None:
        with (
            suppress(OSError),
            context.wrap_socket(client, server_side=True) as outside,
            socket.create_connection(("127.0.0.1", port)) as inside,
            selectors.DefaultSelector() as ready,
        ):
            ready.register(outside, selectors.EVENT_READ, inside)
            ready.register(inside, selectors.EVENT_READ, outside)
            while True:
                for key, _ in ready.select():
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    if not data:
                        return
                    key.data.sendall(data)
                    while key.fileobj is outside and outside.pending():
                        key.data.sendall(outside.recv(65536))

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(
                        target=pass_on, args=(listener.accept()[0],), daemon=True
                    ).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_a_job_runs_over_tls_for_a_user_with_the_documented_rights(
    valkey: ValkeyServer,
    user: str,
    certificate: Path,
    database_url: str,
    redis_url: str,
    blob_url: str,
    tmp_path: Path,
) -> None:
    with (
        redis.Redis.from_url(redis_url) as client,
        _tls_in_front_of(valkey.port, certificate) as port,
    ):
        key = certificate.with_name("key.pem")
        files = f"ssl_ca_certs={certificate}&ssl_certfile={certificate}&ssl_keyfile={key}"
        rig = Rig(database_url, f"rediss://{user}@127.0.0.1:{port}/0?{files}", blob_url, tmp_path)
        try:
            rig.worker()
            rig.finished(
                rig.submit(rig.job_of({"do": "progress", "stage": "s", "done": 1, "total": 1}))
            )
            assert rig.dispatcher.reconcile() == 0
            assert {connection["user"] for connection in client.client_list()} == {
                "default",
                "fluoro",
            }
            denied = client.acl_log()
            assert not [entry for entry in denied if entry["username"] == "fluoro"], denied
            with pytest.raises(redis.ConnectionError, match="certificate"):
                connect(f"rediss://127.0.0.1:{port}/0").ping()
        finally:
            rig.close()


def test_sentinel_is_asked_with_its_own_password_and_redis_with_another(
    server_folder: Path, valkey: ValkeyServer, user: str
) -> None:
    with Sentinel(server_folder, valkey) as sentinel, redis.Redis(port=sentinel.port) as guarded:
        guarded.execute_command("ACL", "SETUSER", "default", "on", ">secret")
        base = f"sentinel://{user}@127.0.0.1:1,127.0.0.1:{sentinel.port}/0?master={MASTER_NAME}"
        with connect(f"{base}&sentinel_password=secret") as client:
            assert client.acl_whoami() == "fluoro"

        async def pinged() -> bool:
            async with RedisServer.from_url(
                f"{base}&sentinel_password=secret"
            ).aio_client() as client:
                return bool(await client.ping())

        assert asyncio.run(pinged())
        with connect(base) as client, pytest.raises(redis.ConnectionError, match="No master found"):
            client.ping()
        with redis.Redis(port=sentinel.port, password="secret") as guarded_again:
            guarded_again.execute_command("ACL", "SETUSER", "default", "nopass")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://:secret@host", "Use redis://"),
        ("redis://:secret@", "names no host"),
        ("redis://:secret@host:port", "host:6379"),
        ("redis://:secret@host/name", "number of a database"),
        ("redis://:secret@one,two/0", "Sentinel only"),
        ("redis://:secret@host/0?ssl_ca_certs=file", "does not take ssl_ca_certs"),
        (
            "rediss://:secret@host/0?ssl_ca_cert=file",
            "Known: ssl_ca_certs, ssl_certfile, ssl_check_hostname, ssl_keyfile",
        ),
        ("rediss://:secret@host/0?ssl_check_hostname=no", "true or false"),
        ("sentinel://:secret@host/0", "master=NAME"),
        ("sentinel://:secret@host/0?master=m&ssl_ca_certs=file", "does not take ssl_ca_certs"),
    ],
)
def test_a_wrong_url_is_refused_with_what_to_write_and_without_the_password(
    url: str, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        RedisServer.from_url(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("service", ["gateway", "scheduler", "dicom_worker"])
def test_a_service_refuses_a_wrong_url_at_its_start_in_one_line(service: str) -> None:
    environment = {
        "FLUORO_DATABASE_URL": "postgresql://host/db",
        "FLUORO_BLOB_URL": "file:///tmp",
        "FLUORO_REDIS_URL": "amqp://:secret@host",
        "FLUORO_GRPC_HOST": "127.0.0.1",
    }
    ended = subprocess.run(
        [sys.executable, "-m", service],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert re.fullmatch(
        r"FLUORO_REDIS_URL: .*This kind of URL is not known\. Use redis://.*\n", ended.stderr
    ), ended.stderr


def test_tls_goes_with_sentinel_for_both_and_addresses_for_logs_hold_no_password() -> None:
    server = RedisServer.from_url(
        "sentinels://u:secret@[::1]:1,b/2?master=m&sentinel_password=secret&ssl_ca_certs=/ca&ssl_check_hostname=false"
    )
    assert server.hosts == (("::1", 1), ("b", 26379))
    assert server.address == "::1:1,b:26379/2 (m)"
    assert "secret" not in repr(server)
    assert issubclass(server.connection_class, redis.SSLConnection)
    client = server.client()
    pool = client.connection_pool
    assert (
        pool.connection_kwargs["ssl_ca_certs"],
        pool.connection_kwargs["ssl_check_hostname"],
    ) == ("/ca", False)
    sentinels = pool.sentinel_manager.sentinels  # type: ignore[attr-defined]
    assert [type(one.connection_pool.make_connection()) for one in sentinels] == [
        redis.SSLConnection
    ] * 2
