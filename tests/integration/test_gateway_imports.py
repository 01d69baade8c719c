"""Blobs by reference: from listed servers and buckets, and from nowhere else."""

import asyncio
import contextlib
import hashlib
import os
import socket
import ssl
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
from fluoro.v1.blob_service_pb2 import DownloadBlobRequest, ImportBlobRequest, UploadBlobHeader
from fluoro_blobs.testing import new_bucket, serving_s3
from fluoro_jobs.errors import FluoroError
from fluoro_jobs.outbound import Outbound
from gateway.importing import AT_ONCE, READ_BYTES
from gateway.settings import Settings
from gateway.testing import Client, refused, serving
from gateway.testing_identity import Authority
from pydantic import ValidationError

MIB = 2**20
DATA = os.urandom(3 * MIB + 5)
SHA256 = hashlib.sha256(DATA).digest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/study" else 404)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        self.wfile.write(DATA)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with serving_s3() as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "ENDPOINT": endpoint,
            "ACCESS_KEY_ID": "id",
            "SECRET_ACCESS_KEY": "secret",
            "REGION": "us-east-1",
            "ALLOW_HTTP": "true",
        }.items():
            patch.setenv(f"AWS_{name}", value)
        name = new_bucket(endpoint)
        for key in ("studies/one", "others/one"):
            request = urllib.request.Request(
                f"{endpoint}/{name}/{key}",
                data=DATA,
                method="PUT",
                headers={"Content-Type": "application/octet-stream"},
            )
            with urllib.request.urlopen(request, timeout=20):
                pass
        yield name


@pytest.fixture
async def client(
    database_url: str, redis_url: str, blob_url: str, server: str, bucket: str
) -> AsyncIterator[Client]:
    async with serving(
        database_url,
        redis_url,
        blob_url,
        import_sources=f"{server}, s3://{bucket}/studies",
        import_networks="127.0.0.1/32",
        max_blob_bytes=4 * MIB,
    ) as made:
        yield made


async def fetched(client: Client, uri: str, **header: object) -> bytes:
    request = ImportBlobRequest(uri=uri, header=UploadBlobHeader(**header))  # type: ignore[arg-type]  # fields by name
    blob = (await client.blobs.ImportBlob(request)).blob
    assert (blob.sha256, blob.media_type) == (SHA256, "application/dicom")
    call = client.blobs.DownloadBlob(DownloadBlobRequest(name=blob.name))
    return b"".join([response.chunk async for response in call])


async def test_blobs_are_fetched_from_listed_servers_and_buckets(
    client: Client, server: str, bucket: str
) -> None:
    kind = "application/dicom"
    assert await fetched(client, f"{server}/study", media_type=kind) == DATA
    known = {"media_type": kind, "size_bytes": len(DATA), "sha256": SHA256}
    assert await fetched(client, f"s3://{bucket}/studies/one", **known) == DATA


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("http://127.0.0.1:1/study", "SOURCE_NOT_ALLOWED"),
        ("http://169.254.169.254/latest/meta-data", "SOURCE_NOT_ALLOWED"),
        ("{server}@127.0.0.1/", "SOURCE_NOT_ALLOWED"),
        ("{server}/missing", "SOURCE_REFUSED"),
        ("s3://{bucket}/others/one", "SOURCE_NOT_ALLOWED"),
        ("s3://{bucket}/studies/../others/one", "SOURCE_NOT_ALLOWED"),
        ("s3://{bucket}/studies-of-others/one", "SOURCE_NOT_ALLOWED"),
        ("s3://{bucket}/studies/missing", "SOURCE_REFUSED"),
        ("s3://{bucket}", "SOURCE_NOT_ALLOWED"),
        ("file:///etc/passwd", "SOURCE_NOT_ALLOWED"),
        ("", "SOURCE_NOT_ALLOWED"),
    ],
)
async def test_other_sources_are_refused(
    client: Client, server: str, bucket: str, uri: str, reason: str
) -> None:
    request = ImportBlobRequest(uri=uri.format(server=server, bucket=bucket))
    assert (await refused(client.blobs.ImportBlob(request))).reason == reason


async def test_callers_who_leave_a_source_that_hangs_keep_nobody_else_from_theirs(
    database_url: str, redis_url: str, blob_url: str, server: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        url = f"http://127.0.0.1:{hangs.getsockname()[1]}"
        settings = {
            "import_sources": f"{server}, {url}",
            "import_networks": "127.0.0.1/32",
            "upload_memory_bytes": 1,  # for one upload at a time
        }
        async with serving(database_url, redis_url, blob_url, **settings) as client:
            request = ImportBlobRequest(uri=f"{url}/study")
            for _ in range(3):
                left = [client.blobs.ImportBlob(request, timeout=0.3) for _ in range(AT_ONCE)]
                for how in await asyncio.gather(*left, return_exceptions=True):
                    assert isinstance(how, grpc.aio.AioRpcError)
            waits = client.blobs.ImportBlob(request, metadata=(("fluoro-owner", "third"),))
            hangs.settimeout(20)
            hung = [(await asyncio.to_thread(hangs.accept))[0] for _ in range(AT_ONCE // 2 + 1)]
            other = (("fluoro-owner", "other"),)
            request = ImportBlobRequest(uri=f"{server}/study")
            answer = await client.blobs.ImportBlob(request, timeout=20, metadata=other)
            assert answer.blob.sha256 == SHA256
            waits.cancel()
            for connection in hung:
                connection.close()


async def test_a_source_that_trickles_is_given_up(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    ended = threading.Event()

    def trickle(server: socket.socket) -> None:
        connection, _ = server.accept()
        connection.recv(65536)
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
            while not ended.wait(0.2):
                connection.sendall(bytes(READ_BYTES))

    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        settings = {
            "import_sources": url,
            "import_networks": "127.0.0.1/32",
            "upload_idle_seconds": 1,
            "upload_min_bytes_per_second": 100 * MIB,
        }
        thread = threading.Thread(target=trickle, args=(server,))
        thread.start()
        async with serving(database_url, redis_url, blob_url, **settings) as client:
            call = client.blobs.ImportBlob(ImportBlobRequest(uri=f"{url}/study"), timeout=30)
            assert (await refused(call)).reason == "SOURCE_UNAVAILABLE"
        ended.set()
        thread.join(20)
        assert not thread.is_alive()


def test_an_encrypted_server_has_to_prove_that_it_is_the_one_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    certificate, key, _ = authority.issue("server")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda _, *args, **kwargs: real("127.0.0.1", *args, **kwargs)
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    known, other = (f"https://{name}:{server.server_port}" for name in ("localhost", "other"))
    out = Outbound([known, other], ["127.0.0.1/32"])
    answer = out.get(f"{known}/study", 5)
    assert answer.read(len(DATA)) == DATA
    answer.close()
    with pytest.raises(FluoroError) as caught:
        out.get(f"{other}/study", 5)
    assert caught.value.reason == "SOURCE_UNAVAILABLE"
    server.shutdown()
    server.server_close()


async def test_what_a_source_gives_has_to_be_what_was_announced_and_leaves_nothing_otherwise(
    client: Client, server: str, blob_url: str
) -> None:
    for header in (
        UploadBlobHeader(size_bytes=len(DATA) - 1),
        UploadBlobHeader(size_bytes=len(DATA) + 1),
        UploadBlobHeader(sha256=bytes(32)),
    ):
        request = ImportBlobRequest(uri=f"{server}/study", header=header)
        assert (await refused(client.blobs.ImportBlob(request))).reason == "UPLOAD_MISMATCH"
    folder = Path(urlsplit(blob_url).path) / "blobs"
    assert [path for path in folder.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "settings",
    [
        {"import_sources": "images.example"},
        {"import_sources": "s3://"},
        {"import_sources": "s3://blobs"},
        {"import_sources": "s3://blobs/prefix/blobs"},
        {"import_networks": "10.0.0.1/8"},
    ],
)
def test_lists_that_cannot_be_read_or_hold_our_own_blobs_are_refused_at_the_start(
    settings: dict[str, str],
) -> None:
    with pytest.raises(ValidationError, match="import_"):
        Settings(
            database_url="postgresql://x/y",
            redis_url="redis://x",
            blob_url="s3://blobs/prefix",
            grpc_host="127.0.0.1",
            **settings,
        )
