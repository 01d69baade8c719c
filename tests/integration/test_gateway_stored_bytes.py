"""No way past an owner's quota of bytes."""

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from fluoro.v1.blob_service_pb2 import BeginUploadRequest, UploadBlobHeader, UploadBlobRequest
from fluoro_jobs.testing.rig import until
from gateway.testing import Client, refused, serving

QUOTA = 10_000
PATIENCE_SECONDS = 20
MADE_BY_A_JOB: Final = """
INSERT INTO blobs (id, owner, size_bytes, sha256, media_type, uploaded)
VALUES (gen_random_uuid(), 'ada', %s, '', '', false)
"""
ADA: Any = (("fluoro-owner", "ada"),)


@pytest.fixture
async def client(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Client]:
    async with serving(database_url, redis_url, blob_url, owner_max_stored_bytes=QUOTA) as made:
        yield made


def on_disk(blob_url: str) -> int:
    files = (path for path in Path(urlsplit(blob_url).path).rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files)


async def send(client: Client, data: bytes, **header: Any) -> Any:
    parts = [
        UploadBlobRequest(header=UploadBlobHeader(**header)),
        UploadBlobRequest(chunk=data),
    ]
    return await client.blobs.UploadBlob(iter(parts), metadata=ADA)


async def begin(client: Client, size_bytes: int, digest: bytes = bytes(32)) -> str:
    request = BeginUploadRequest(
        upload_id=str(uuid4()), header=UploadBlobHeader(size_bytes=size_bytes, sha256=digest)
    )
    await client.blobs.BeginUpload(request, metadata=ADA)
    return request.upload_id


async def test_bytes_that_an_owner_has_take_room_if_they_are_announced_in_another_size(
    client: Client,
) -> None:
    full = bytes(QUOTA)
    await send(client, full)
    how = await refused(begin(client, 10 * QUOTA, sha256(full).digest()))
    assert how.reason == "BYTE_QUOTA_EXCEEDED"
    await begin(client, QUOTA, sha256(full).digest())


@pytest.mark.parametrize("step", [0, 1])
async def test_streams_of_one_upload_do_not_pile_up_what_they_wrote(
    client: Client, blob_url: str, step: int
) -> None:
    size_bytes, upload_id = QUOTA, await begin(client, QUOTA)
    for number in range(6):
        offset = step * min(number, 3)
        sending = send(client, bytes(size_bytes - offset - 1), upload_id=upload_id, offset=offset)
        if number < 3 or not step:
            await sending
        else:
            how = await refused(sending)
            assert (how.reason, *how.violations) == ("INVALID_ARGUMENT", "header.upload_id")
        assert on_disk(blob_url) <= 3 * size_bytes
    if not step:
        assert on_disk(blob_url) == size_bytes - 1


async def test_an_upload_under_way_sees_what_jobs_and_other_gateways_store(
    client: Client, database_url: str
) -> None:
    upload = client.blobs.UploadBlob(metadata=ADA)
    await upload.write(UploadBlobRequest(header=UploadBlobHeader()))
    await upload.write(UploadBlobRequest(chunk=b"a"))

    with psycopg.connect(database_url, autocommit=True) as db:

        def is_counted() -> bool:
            query = "SELECT FROM pg_stat_activity WHERE query LIKE '%stored_bytes%uploads%'"
            return db.execute(query + " AND pid <> pg_backend_pid()").fetchone() is not None

        await asyncio.to_thread(until, is_counted)
        db.execute(MADE_BY_A_JOB, (QUOTA,))

    async def grow() -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not upload.done():
                await upload.write(UploadBlobRequest(chunk=b"a"))
                await asyncio.sleep(0.1)
        await upload

    assert (await refused(grow())).reason == "BYTE_QUOTA_EXCEEDED"
