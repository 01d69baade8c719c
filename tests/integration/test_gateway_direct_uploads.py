"""Bytes that go to a bucket past the gateway, and uploads that go on over a bucket."""

import asyncio
import hashlib
import os
import re
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from fluoro.v1.blob_service_pb2 import (
    BeginUploadRequest,
    CommitUploadRequest,
    DownloadBlobRequest,
    SignUploadRequest,
    SignUploadResponse,
    UploadBlobHeader,
    UploadBlobRequest,
)
from fluoro_blobs.testing import new_bucket, serving_s3
from fluoro_client import AsyncClient
from fluoro_client.errors import InvalidArgumentError
from fluoro_jobs.ledger import usage
from fluoro_jobs.testing.rig import until
from fluoro_local.folders import free_port
from gateway.testing import Client, refused, serving
from google.protobuf.duration_pb2 import Duration

MIB = 2**20
DATA = os.urandom(6 * MIB + 5)
OTHER = (("fluoro-owner", "other"),)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with serving_s3() as endpoint:
        yield endpoint


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in {
        "ENDPOINT": endpoint,
        "ACCESS_KEY_ID": "id",
        "SECRET_ACCESS_KEY": "secret",
        "REGION": "us-east-1",
        "ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return new_bucket(endpoint)


@pytest.fixture
async def client(
    database_url: str, redis_url: str, bucket: str, port: int
) -> AsyncIterator[Client]:
    url = f"s3://{bucket}/some/prefix"
    settings = {"grpc_port": port, "collect_interval_seconds": 0.1}
    async with serving(database_url, redis_url, url, **settings) as made:
        yield made


def begun(upload_id: str, data: bytes = DATA) -> BeginUploadRequest:
    sha256 = hashlib.sha256(data).digest()
    return BeginUploadRequest(
        upload_id=upload_id, header=UploadBlobHeader(size_bytes=len(data), sha256=sha256)
    )


def put(signed: SignUploadResponse, data: bytes) -> None:
    # urllib calls it a form otherwise, which moto would read.
    headers = {"Content-Type": "application/octet-stream"}
    headers |= {name.title(): value for name, value in signed.headers.items()}
    request = urllib.request.Request(signed.url, data=data, method="PUT", headers=headers)
    with urllib.request.urlopen(request, timeout=20):
        pass


async def read(client: Client, name: str) -> bytes:
    call = client.blobs.DownloadBlob(DownloadBlobRequest(name=name))
    return b"".join([response.chunk async for response in call])


async def test_bytes_sent_to_a_signed_url_become_a_blob_once_they_are_those_announced(
    client: Client,
) -> None:
    upload_id = str(uuid4())
    await client.blobs.BeginUpload(begun(upload_id))
    signed = await client.blobs.SignUpload(SignUploadRequest(upload_id=upload_id))
    assert dict(signed.headers) == {"content-length": str(len(DATA))}
    commit = CommitUploadRequest(upload_id=upload_id)
    assert (await refused(client.blobs.CommitUpload(commit))).reason == "UPLOAD_INCOMPLETE"
    for other in (bytes(len(DATA)), b"short"):
        await asyncio.to_thread(put, SignUploadResponse(url=signed.url), other)
        assert (await refused(client.blobs.CommitUpload(commit))).reason == "UPLOAD_MISMATCH"
    await asyncio.to_thread(put, signed, DATA)
    blob = (await client.blobs.CommitUpload(commit)).blob
    assert await read(client, blob.name) == DATA
    # What comes to the URL later changes nothing, and the answer can be had again.
    await asyncio.to_thread(put, signed, bytes(len(DATA)))
    assert (await client.blobs.CommitUpload(commit)).blob == blob
    assert await read(client, blob.name) == DATA
    assert (await client.blobs.BeginUpload(begun(str(uuid4())))).blob == blob


async def test_the_client_sends_files_past_the_gateway_and_what_the_owner_has_not_at_all(
    client: Client, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scan.dcm"
    path.write_bytes(DATA)
    async with AsyncClient(f"127.0.0.1:{port}", owner="default") as library:
        blob = await library.upload_directly(path)
        assert await read(client, blob.name) == DATA
        monkeypatch.setattr(urllib.request, "urlopen", None)
        assert await library.upload_directly(DATA) == blob
        with pytest.raises(InvalidArgumentError, match="SOURCE_NOT_ALLOWED"):
            await library.import_blob("https://images.example/one")


async def test_a_gateway_that_goes_before_the_commit_costs_the_client_a_pause(
    database_url: str, redis_url: str, bucket: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, gone, urlopen = threading.Event(), threading.Event(), urllib.request.urlopen

    def put_and_wait(*words: Any, **named: Any) -> Any:
        answer = urlopen(*words, **named)
        sent.set()
        assert gone.wait(20)
        return answer

    monkeypatch.setattr(urllib.request, "urlopen", put_and_wait)
    where = (database_url, redis_url, f"s3://{bucket}/some/prefix")
    async with AsyncClient(f"127.0.0.1:{port}", owner="default") as library:
        async with serving(*where, grpc_port=port):
            upload = asyncio.create_task(library.upload_directly(DATA))
            assert await asyncio.to_thread(sent.wait, 20)
        gone.set()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(upload), 0.5)
        async with serving(*where, grpc_port=port) as client:
            assert await read(client, (await upload).name) == DATA


async def test_urls_are_signed_for_the_owner_of_an_upload_and_for_an_hour_at_most(
    client: Client,
) -> None:
    upload_id = str(uuid4())
    await client.blobs.BeginUpload(begun(upload_id))
    for call, request in (
        (client.blobs.SignUpload, SignUploadRequest(upload_id=upload_id)),
        (client.blobs.CommitUpload, CommitUploadRequest(upload_id=upload_id)),
    ):
        assert (await refused(call(request, metadata=OTHER))).reason == "UPLOAD_NOT_FOUND"
    for bad in (Duration(), Duration(seconds=3601), Duration(seconds=-1)):
        request = SignUploadRequest(upload_id=upload_id, valid_for=bad)
        assert "valid_for" in (await refused(client.blobs.SignUpload(request))).violations


async def test_what_a_signed_url_brings_after_its_upload_was_given_up_is_deleted_in_time(
    client: Client, database_url: str, endpoint: str, bucket: str
) -> None:
    upload_id, other = str(uuid4()), bytes(len(DATA))

    def stream() -> Iterator[UploadBlobRequest]:
        yield UploadBlobRequest(header=UploadBlobHeader(upload_id=upload_id))
        for start in range(0, len(other), MIB):
            yield UploadBlobRequest(chunk=other[start : start + MIB])

    def objects() -> list[str]:
        with urllib.request.urlopen(f"{endpoint}/{bucket}?list-type=2", timeout=20) as page:
            keys: list[str] = re.findall("<Key>.*?uploads/(.*?)</Key>", page.read().decode())
            return keys

    await client.blobs.BeginUpload(begun(upload_id))
    signed = await client.blobs.SignUpload(SignUploadRequest(upload_id=upload_id))
    assert (await refused(client.blobs.UploadBlob(stream()))).reason == "UPLOAD_MISMATCH"
    assert objects() == []
    again = await refused(client.blobs.SignUpload(SignUploadRequest(upload_id=upload_id)))
    assert again.reason == "UPLOAD_NOT_FOUND"
    await asyncio.to_thread(put, signed, DATA)
    assert len(objects()) == 1
    with psycopg.connect(database_url) as ledger:
        assert usage.used_bytes(ledger, "default") == len(DATA), "it counts until it is deleted"
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        # As long as the URL is good there is a row by which the bytes are found.
        rows = await connection.execute("SELECT update_time > now() - interval '1 h' FROM uploads")
        assert await rows.fetchall() == [(True,)]
        await connection.execute("UPDATE uploads SET update_time = now() - interval '25 hours'")
        await asyncio.to_thread(until, lambda: objects() == [])
    with psycopg.connect(database_url, autocommit=True) as ledger:
        await asyncio.to_thread(until, lambda: usage.used_bytes(ledger, "default") == 0)


async def test_no_url_is_signed_for_an_upload_that_has_its_blob(client: Client) -> None:
    upload_id = str(uuid4())
    await client.blobs.BeginUpload(begun(upload_id))
    signed = await client.blobs.SignUpload(SignUploadRequest(upload_id=upload_id))
    await asyncio.to_thread(put, signed, DATA)
    await client.blobs.CommitUpload(CommitUploadRequest(upload_id=upload_id))
    ended = await refused(client.blobs.SignUpload(SignUploadRequest(upload_id=upload_id)))
    assert ended.reason == "UPLOAD_NOT_FOUND"


async def test_an_upload_over_a_bucket_goes_on_where_it_was(client: Client) -> None:
    upload_id = str(uuid4())
    await client.blobs.BeginUpload(begun(upload_id))

    def parts(data: bytes, offset: int) -> Iterator[UploadBlobRequest]:
        yield UploadBlobRequest(header=UploadBlobHeader(upload_id=upload_id, offset=offset))
        for start in range(0, len(data), MIB):
            yield UploadBlobRequest(chunk=data[start : start + MIB])

    answer = await client.blobs.UploadBlob(parts(DATA[: 2 * MIB], 0))
    assert answer.committed_bytes == 2 * MIB
    blob = (await client.blobs.UploadBlob(parts(DATA[2 * MIB :], 2 * MIB))).blob
    assert await read(client, blob.name) == DATA


async def test_a_folder_signs_no_urls(database_url: str, redis_url: str, blob_url: str) -> None:
    async with serving(database_url, redis_url, blob_url) as client:
        upload_id = str(uuid4())
        await client.blobs.BeginUpload(begun(upload_id))
        for call in (
            client.blobs.SignUpload(SignUploadRequest(upload_id=upload_id)),
            client.blobs.CommitUpload(CommitUploadRequest(upload_id=upload_id)),
        ):
            ended = await refused(call)
            assert (ended.code.name, ended.reason) == (
                "FAILED_PRECONDITION",
                "DIRECT_UPLOAD_UNSUPPORTED",
            )
