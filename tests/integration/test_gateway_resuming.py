"""Uploads that go on: after broken streams, on other gateways, and never with mixed bytes."""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from pathlib import Path
from subprocess import Popen
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from fluoro.v1.blob_service_pb2 import (
    BeginUploadRequest,
    DownloadBlobRequest,
    UploadBlobHeader,
    UploadBlobRequest,
)
from fluoro_blobs import ResumableUpload
from fluoro_client import AsyncClient, Client
from fluoro_client.sending import send
from fluoro_jobs.errors import FluoroError
from fluoro_jobs.ledger import uploads
from fluoro_jobs.testing.rig import OWNER, Rig, until
from fluoro_local.folders import free_port
from gateway.testing import Client as Gateway
from gateway.testing import refused, serving

MIB = 2**20
DATA = os.urandom(3 * MIB + 5)
OTHER = (("fluoro-owner", "other"),)
IDLE_SECONDS = 2


@pytest.fixture
async def gateway(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Gateway]:
    async with serving(
        database_url,
        redis_url,
        blob_url,
        upload_idle_seconds=IDLE_SECONDS,
        collect_interval_seconds=0.02,
    ) as made:
        yield made


def announced(data: bytes = DATA) -> UploadBlobHeader:
    return UploadBlobHeader(
        size_bytes=len(data), sha256=hashlib.sha256(data).digest(), media_type="image/png"
    )


def begun(upload_id: str, data: bytes = DATA) -> BeginUploadRequest:
    return BeginUploadRequest(upload_id=upload_id, header=announced(data))


async def parts(
    upload_id: str, data: bytes, offset: int = 0, *, hold: asyncio.Event | None = None
) -> AsyncGenerator[UploadBlobRequest, None]:
    yield UploadBlobRequest(header=UploadBlobHeader(upload_id=upload_id, offset=offset))
    for start in range(0, len(data), MIB):
        yield UploadBlobRequest(chunk=data[start : start + MIB])
    if hold is not None:
        await hold.wait()


async def read(gateway: Gateway, name: str) -> bytes:
    call = gateway.blobs.DownloadBlob(DownloadBlobRequest(name=name))
    return b"".join([response.chunk async for response in call])


def segments(blob_url: str) -> list[Path]:
    folder = Path(urlsplit(blob_url).path) / "uploads"
    return [path for path in folder.rglob("*") if path.is_file()]


def sizes(blob_url: str) -> list[int]:
    return [path.stat().st_size for path in segments(blob_url)]


async def committed(gateway: Gateway, upload_id: str, least: int, data: bytes = DATA) -> int:
    """How far the upload is, once it is so far."""
    async with asyncio.timeout(30):
        while True:
            answer = await gateway.blobs.BeginUpload(begun(upload_id, data))
            if answer.committed_bytes >= least:
                return int(answer.committed_bytes)
            await asyncio.sleep(0.01)


async def streams(database_url: str, number: int) -> None:
    """Returns once the only upload has had so many streams."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        async with asyncio.timeout(30):
            while True:
                rows = await connection.execute("SELECT cardinality(starts) FROM uploads")
                if await rows.fetchall() == [(number,)]:
                    return
                await asyncio.sleep(0.01)


async def test_an_upload_that_broke_off_goes_on_at_another_gateway(
    gateway: Gateway, database_url: str, redis_url: str, blob_url: str
) -> None:
    upload_id, hold = str(uuid4()), asyncio.Event()
    assert (await gateway.blobs.BeginUpload(begun(upload_id))).committed_bytes == 0
    broken = asyncio.create_task(
        send(gateway.blobs.UploadBlob(), parts(upload_id, DATA[: 2 * MIB], hold=hold))
    )
    there = await committed(gateway, upload_id, MIB)
    broken.cancel()
    async with serving(database_url, redis_url, blob_url) as other:
        there = await committed(other, upload_id, there)
        blob = (await other.blobs.UploadBlob(parts(upload_id, DATA[there:], there))).blob
        assert (blob.size_bytes, blob.media_type) == (len(DATA), "image/png")
        assert await read(other, blob.name) == DATA
    # The answer may have been lost: whoever asks again hears it, on either call.
    again = await gateway.blobs.BeginUpload(begun(upload_id))
    assert (again.blob, again.committed_bytes) == (blob, len(DATA))
    assert (await gateway.blobs.UploadBlob(parts(upload_id, b""))).blob == blob
    assert segments(blob_url) == []


async def test_a_stream_may_end_early_and_says_how_far_the_upload_is(
    gateway: Gateway, blob_url: str
) -> None:
    upload_id = str(uuid4())
    await gateway.blobs.BeginUpload(begun(upload_id))
    answer = await gateway.blobs.UploadBlob(parts(upload_id, DATA[:100]))
    assert (answer.HasField("blob"), answer.committed_bytes) == (False, 100)
    ended = await refused(gateway.blobs.UploadBlob(parts(upload_id, b"x", 101)))
    assert "100 bytes that are committed" in ended.violations["header.offset"]
    ended = await refused(send(gateway.blobs.UploadBlob(), parts(upload_id, DATA, 100)))
    assert ended.reason == "UPLOAD_MISMATCH"
    blob = (await gateway.blobs.UploadBlob(parts(upload_id, DATA[50:], 50))).blob
    assert await read(gateway, blob.name) == DATA
    assert segments(blob_url) == []


async def test_of_two_streams_of_an_upload_the_newer_one_goes_on_and_bytes_are_never_mixed(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    upload_id, hold = str(uuid4()), asyncio.Event()
    async with (
        serving(database_url, redis_url, blob_url) as gateway,
        serving(database_url, redis_url, blob_url) as elsewhere,
    ):
        await gateway.blobs.BeginUpload(begun(upload_id))
        # Not by `send`, which looks up from what it sends only when there is more.
        older = gateway.blobs.UploadBlob(parts(upload_id, bytes(2 * MIB), hold=hold))
        ended = asyncio.create_task(refused(older))
        await committed(gateway, upload_id, MIB)
        # Of the one at the other gateway, which looks only now and then, nothing counts either.
        there = elsewhere.blobs.UploadBlob(parts(upload_id, bytes(MIB), hold=hold))
        late = asyncio.create_task(refused(there))
        await streams(database_url, 2)
        newer = (await gateway.blobs.UploadBlob(parts(upload_id, DATA))).blob
        assert (await ended).reason == "UPLOAD_SUPERSEDED"
        there.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
        assert await read(gateway, newer.name) == DATA


@pytest.mark.parametrize("offset", [0, len(DATA)])
async def test_a_stream_that_comes_as_another_one_ends_the_upload_hears_of_the_blob(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    upload_id, real = str(uuid4()), ResumableUpload.committed_bytes
    await gateway.blobs.BeginUpload(begun(upload_id))
    names = []

    async def committed_later(upload: ResumableUpload, starts: list[int]) -> int:
        """The first who asks has found the upload open, and is answered once it is not any more."""
        monkeypatch.setattr(ResumableUpload, "committed_bytes", real)
        names.append((await gateway.blobs.UploadBlob(parts(upload_id, DATA))).blob.name)
        return await real(upload, starts)

    monkeypatch.setattr(ResumableUpload, "committed_bytes", committed_later)
    late = await gateway.blobs.UploadBlob(parts(upload_id, b"", offset))
    assert [late.blob.name] == names


def test_an_upload_that_is_closed_twice_has_one_blob(rig: Rig) -> None:
    upload_id = uuid4()
    with rig.connection() as connection:
        uploads.begin(connection, OWNER, upload_id, announced())
        upload = uploads.find(connection, OWNER, upload_id)
        first, again = (uploads.close(connection, OWNER, upload, uuid4()) for _ in range(2))
        assert first == again
        newer = uploads.begin(connection, OWNER, uuid4(), announced(b"others"))
        assert isinstance(newer, uploads.Upload)
        uploads.open_stream(connection, OWNER, newer, 0)
        with pytest.raises(FluoroError, match="Another stream"):
            uploads.close(connection, OWNER, newer, uuid4())


async def test_putting_an_upload_together_takes_the_memory_of_a_large_one(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    one, two, hold = str(uuid4()), str(uuid4()), asyncio.Event()
    settings = {"upload_memory_bytes": 1, "upload_idle_seconds": 2}
    async with serving(database_url, redis_url, blob_url, **settings) as gateway:
        await gateway.blobs.BeginUpload(begun(one))
        await gateway.blobs.UploadBlob(parts(one, DATA[:-1]))
        await gateway.blobs.BeginUpload(begun(two, DATA[1:]))
        other = gateway.blobs.UploadBlob(parts(two, DATA[1 : 2 * MIB], hold=hold))
        holds = asyncio.create_task(refused(other))
        await committed(gateway, two, MIB, DATA[1:])
        blob = (await gateway.blobs.UploadBlob(parts(one, DATA[-1:], len(DATA) - 1))).blob
        # It waited until the other one gave its memory back, which was silent for too long.
        assert holds.done()
        assert (await holds).reason == "UPLOAD_TOO_SLOW"
        assert await read(gateway, blob.name) == DATA


async def test_other_bytes_than_announced_are_dropped_as_a_whole(
    gateway: Gateway, blob_url: str
) -> None:
    upload_id = str(uuid4())
    await gateway.blobs.BeginUpload(begun(upload_id))
    await gateway.blobs.UploadBlob(parts(upload_id, DATA[:MIB]))
    ended = await refused(gateway.blobs.UploadBlob(parts(upload_id, bytes(len(DATA) - MIB), MIB)))
    assert ended.reason == "UPLOAD_MISMATCH"
    assert segments(blob_url) == []
    ended = await refused(gateway.blobs.UploadBlob(parts(upload_id, b"")))
    assert ended.reason == "UPLOAD_NOT_FOUND"


@pytest.mark.parametrize("signed", [False, True])
async def test_uploads_that_were_given_up_keep_nobody_from_beginning_others(
    gateway: Gateway, database_url: str, signed: bool
) -> None:
    """But those with a URL, which may bring bytes until the sweep has deleted them."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(
            "INSERT INTO uploads (owner, id, key, size_bytes, sha256, media_type, expired, signed)"
            " SELECT 'default', gen_random_uuid(), gen_random_uuid(), 1, '', '', true, %s"
            " FROM generate_series(1, %s)",
            (signed, uploads.MOST_OPEN),
        )
    begin = gateway.blobs.BeginUpload(begun(str(uuid4())))
    if signed:
        assert (await refused(begin)).reason == "UPLOADS_BUSY"
    else:
        assert (await begin).committed_bytes == 0


async def test_ids_are_of_one_owner_each_and_hostile_ones_are_refused(gateway: Gateway) -> None:
    upload_id = str(uuid4())
    await gateway.blobs.BeginUpload(begun(upload_id))
    await gateway.blobs.UploadBlob(parts(upload_id, DATA[:100]))
    ended = await refused(gateway.blobs.UploadBlob(parts(upload_id, b""), metadata=OTHER))
    assert ended.reason == "UPLOAD_NOT_FOUND"
    theirs = await gateway.blobs.BeginUpload(begun(upload_id, b"theirs"), metadata=OTHER)
    assert theirs.committed_bytes == 0
    assert await committed(gateway, upload_id, 100) == 100
    for bad in ("", "../../etc/passwd", upload_id.upper(), "0" * 36, "x" * 10_000):
        assert "upload_id" in (await refused(gateway.blobs.BeginUpload(begun(bad)))).violations
        if bad:
            ended = await refused(send(gateway.blobs.UploadBlob(), parts(bad, b"x")))
            assert "header.upload_id" in ended.violations
    ended = await refused(gateway.blobs.BeginUpload(begun(upload_id, b"others")))
    assert "other bytes" in ended.violations["upload_id"]
    for missing in ("size_bytes", "sha256"):
        request = begun(upload_id)
        request.header.ClearField(missing)
        ended = await refused(gateway.blobs.BeginUpload(request))
        assert f"header.{missing}" in ended.violations


async def test_what_an_owner_has_need_not_be_sent_again_and_others_never_hear_of_it(
    gateway: Gateway,
) -> None:
    first = str(uuid4())
    await gateway.blobs.BeginUpload(begun(first))
    blob = (await gateway.blobs.UploadBlob(parts(first, DATA))).blob
    assert (await gateway.blobs.BeginUpload(begun(str(uuid4())))).blob == blob
    other = await gateway.blobs.BeginUpload(begun(str(uuid4())), metadata=OTHER)
    assert (other.HasField("blob"), other.committed_bytes) == (False, 0)


async def test_a_silent_stream_ends_and_what_it_sent_stays_until_its_time_is_over(
    gateway: Gateway, database_url: str, blob_url: str
) -> None:
    upload_id, hold = str(uuid4()), asyncio.Event()
    await gateway.blobs.BeginUpload(begun(upload_id))
    silent = gateway.blobs.UploadBlob(parts(upload_id, DATA[: 2 * MIB], hold=hold))
    assert (await refused(silent)).reason == "UPLOAD_TOO_SLOW"
    assert await committed(gateway, upload_id, MIB) <= 2 * MIB
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        assert segments(blob_url)
        await connection.execute("UPDATE uploads SET update_time = now() - interval '25 hours'")
        await asyncio.to_thread(until, lambda: segments(blob_url) == [])
        async with asyncio.timeout(30):
            while await (await connection.execute("SELECT FROM uploads")).fetchone():  # noqa: ASYNC110 - another thread deletes it
                await asyncio.sleep(0.01)


async def test_however_many_uploads_are_given_up_they_go_within_a_round(rig: Rig) -> None:
    with rig.connection() as connection:
        connection.execute(
            "INSERT INTO uploads (owner, id, key, size_bytes, sha256, media_type, update_time)"
            " SELECT 'any', gen_random_uuid(), gen_random_uuid(), 1, '', '', '-infinity'"
            " FROM generate_series(1, %s)",
            (10 * uploads.SWEPT,),
        )
        async with serving(
            rig.database_url, rig.redis_url, rig.blob_url, collect_interval_seconds=1
        ):
            await asyncio.to_thread(
                until,
                lambda: connection.execute("SELECT FROM uploads LIMIT 1").fetchone() is None,
                6,
            )


def test_a_gateway_killed_in_the_middle_of_an_upload_costs_its_client_a_pause(
    rig: Rig, tmp_path: Path
) -> None:
    settings = {"grpc_host": "127.0.0.1", "grpc_port": free_port(), "http_port": free_port()}
    endpoint = f"127.0.0.1:{settings['grpc_port']}"
    sent = tmp_path / "sent"

    def upload_sync() -> str:
        with Client(endpoint, owner=OWNER) as client:
            return client.upload(sent).name

    async def upload_async() -> str:
        async with AsyncClient(endpoint, owner=OWNER) as client:
            return (await client.upload(sent.read_bytes())).name

    async def killed(gateway: Popen[bytes], upload: Awaitable[str]) -> Popen[bytes]:
        """Kills the gateway under an upload, and looks at what became of that with a new one."""
        uploading = asyncio.ensure_future(upload)
        await asyncio.to_thread(until, lambda: max(sizes(rig.blob_url), default=0) >= 4 * MIB)
        gateway.kill()
        gateway.wait()
        [left_bytes] = sizes(rig.blob_url)
        assert 4 * MIB <= left_bytes < sent.stat().st_size
        again = await asyncio.to_thread(rig.served, "gateway", **settings)
        name = await asyncio.wait_for(uploading, 60)
        assert rig.blobs.read(name) == sent.read_bytes()
        with rig.connection() as connection:
            newest = "SELECT starts FROM uploads ORDER BY update_time DESC LIMIT 1"
            assert connection.execute(newest).fetchall() == [([0, left_bytes],)]
        return again

    async def both() -> None:
        gateway = await asyncio.to_thread(rig.served, "gateway", **settings)
        for upload in (lambda: asyncio.to_thread(upload_sync), upload_async):
            sent.write_bytes(os.urandom(100 * MIB))
            gateway = await killed(gateway, upload())

    asyncio.run(both())
