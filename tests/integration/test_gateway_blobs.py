"""Bytes in and out through the gateway: whole, once, and with little memory."""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from fluoro.v1.blob_service_pb2 import (
    DownloadBlobRequest,
    GetBlobRequest,
    UploadBlobHeader,
    UploadBlobRequest,
)
from fluoro_client.sending import send
from gateway.testing import Client, refused, serving

MIB = 2**20
DATA = bytes(range(256)) * 10_000


@pytest.fixture
async def client(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Client]:
    async with serving(database_url, redis_url, blob_url) as made:
        yield made


def parts(data: bytes, chunk_bytes: int = MIB, **header: Any) -> Iterator[UploadBlobRequest]:
    yield UploadBlobRequest(header=UploadBlobHeader(**header))
    for start in range(0, len(data), chunk_bytes):
        yield UploadBlobRequest(chunk=data[start : start + chunk_bytes])


async def one_by_one(
    requests: Iterator[UploadBlobRequest],
) -> AsyncGenerator[UploadBlobRequest, None]:
    for request in requests:
        yield request


async def download(client: Client, name: str, offset: int = 0) -> list[bytes]:
    return [
        response.chunk
        async for response in client.blobs.DownloadBlob(
            DownloadBlobRequest(name=name, offset=offset)
        )
    ]


def stored(blob_url: str) -> list[Path]:
    """Every file in the blob store, finished or not."""
    return [path for path in Path(urlsplit(blob_url).path).rglob("*") if path.is_file()]


@pytest.mark.parametrize("data", [b"", b"x", DATA], ids=["nothing", "a byte", "2.5 MB"])
@pytest.mark.parametrize(
    "declared", [True, False], ids=["with what is to come", "without saying what comes"]
)
async def test_what_was_uploaded_is_what_is_downloaded(
    client: Client, data: bytes, declared: bool
) -> None:
    header = {"size_bytes": len(data), "sha256": hashlib.sha256(data).digest()} if declared else {}
    blob = (
        await client.blobs.UploadBlob(parts(data, media_type="application/dicom", **header))
    ).blob
    assert (blob.size_bytes, blob.sha256, blob.media_type) == (
        len(data),
        hashlib.sha256(data).digest(),
        "application/dicom",
    )
    assert (await client.blobs.GetBlob(GetBlobRequest(name=blob.name))).blob == blob
    chunks = await download(client, blob.name)
    assert b"".join(chunks) == data
    assert max(map(len, chunks), default=0) <= MIB


@pytest.mark.parametrize("offset", [0, 1, MIB, len(DATA) - 1, len(DATA)])
async def test_a_download_resumes_at_any_offset(client: Client, offset: int) -> None:
    blob = (await client.blobs.UploadBlob(parts(DATA))).blob
    assert b"".join(await download(client, blob.name, offset)) == DATA[offset:]


async def test_the_same_bytes_of_one_owner_are_one_blob_and_take_their_place_once(
    client: Client, blob_url: str
) -> None:
    first = (await client.blobs.UploadBlob(parts(DATA))).blob
    again = (await client.blobs.UploadBlob(parts(DATA))).blob
    assert again == first
    assert len(stored(blob_url)) == 1
    other = (await client.blobs.UploadBlob(parts(DATA), metadata=(("fluoro-owner", "ann"),))).blob
    assert other.name != first.name


@pytest.mark.parametrize(
    "header",
    [{"size_bytes": 7}, {"size_bytes": 8 * MIB}, {"sha256": bytes(32)}],
    ids=["more", "less", "other"],
)
async def test_a_mismatched_upload_leaves_nothing(
    client: Client, database_url: str, blob_url: str, header: dict[str, Any]
) -> None:
    # Not by the stub alone: grpc.aio puts a status of its own over that of a call that ends while
    # it is written to.
    assert (
        await refused(send(client.blobs.UploadBlob(), one_by_one(parts(DATA, **header))))
    ).reason == "UPLOAD_MISMATCH"
    assert stored(blob_url) == []
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM blobs").fetchone() == (0,)


@pytest.mark.parametrize("fast_store", [True, False], ids=["memory", "folder"])
async def test_a_caller_who_hangs_up_in_the_middle_leaves_nothing(
    database_url: str, redis_url: str, blob_url: str, fast_store: bool
) -> None:
    async with serving(database_url, redis_url, "memory://" if fast_store else blob_url) as client:
        for number in range(100):
            call = client.blobs.UploadBlob()
            await call.write(UploadBlobRequest(header=UploadBlobHeader()))
            await call.write(UploadBlobRequest(chunk=number.to_bytes(4) * 10_000))
            call.cancel()
        whole = (await client.blobs.UploadBlob(parts(DATA))).blob
    assert len(stored(blob_url)) == (0 if fast_store else 1)
    with psycopg.connect(database_url) as connection:
        assert [f"blobs/{row[0]}" for row in connection.execute("SELECT id FROM blobs")] == [
            whole.name
        ]
