"""Bytes up and down across broken streams."""

import hashlib
import os
from pathlib import Path

import pytest
from fluoro_client import AsyncClient, aio
from fluoro_client.errors import (
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from fluoro_client.testing import Fault

DATA = os.urandom(1_500_000)


@pytest.fixture
async def client(gateway):
    async with AsyncClient(gateway.endpoint, owner="ada", patience_seconds=20) as client:
        yield client


def offsets(gateway):
    return [call.request.offset for call in gateway.calls]


async def test_a_file_goes_up_in_chunks_with_size_and_digest_announced(gateway, client, tmp_path):
    path = tmp_path / "report.pdf"
    path.write_bytes(DATA)
    blob = await client.upload(path)
    assert gateway.data[blob.name] == DATA
    [header] = [call.request for call in gateway.calls]
    assert (header.media_type, header.size_bytes, header.sha256) == (
        "application/pdf",
        len(DATA),
        hashlib.sha256(DATA).digest(),
    )


@pytest.mark.parametrize(
    ("name", "data", "media_type"),
    [
        ("IM0001", b"\0" * 128 + b"DICM" + b"rest", "application/dicom"),
        ("skin.jpg", b"\xff\xd8\xff", "image/jpeg"),
        ("unknown", b"", "application/octet-stream"),
    ],
)
async def test_the_media_type_is_told_from_prefix_or_suffix(
    client, tmp_path, name, data, media_type
):
    (tmp_path / name).write_bytes(data)
    blob = await client.upload(tmp_path / name)
    assert (blob.media_type, blob.size_bytes) == (media_type, len(data))


async def test_bytes_and_bytes_as_they_come_are_uploaded(gateway, client):
    async def source():
        yield DATA
        yield b"end"

    from_bytes = await client.upload(DATA, media_type="image/png")
    from_stream = await client.upload(source())
    assert gateway.data[from_bytes.name] == DATA
    assert gateway.data[from_stream.name] == DATA + b"end"
    assert from_bytes.media_type == "image/png"


@pytest.mark.parametrize("after", [0, 600_000])
async def test_an_upload_that_breaks_off_begins_again(gateway, client, tmp_path, after):
    path = tmp_path / "big.bin"
    path.write_bytes(DATA)
    gateway.fail("UploadBlob", Fault(after=after), Fault("BLOB_STORE_UNAVAILABLE", after=after))
    blob = await client.upload(path)
    assert gateway.data[blob.name] == DATA
    assert len(gateway.calls) == 3


async def test_a_large_upload_that_breaks_off_goes_on_where_it_broke(gateway, client, tmp_path):
    path, data = tmp_path / "large.bin", os.urandom(5_000_000)
    path.write_bytes(data)
    gateway.fail("UploadBlob", Fault(after=3_000_000), Fault(after=0), Fault(after=1_000_000))
    blob = await client.upload(path)
    assert gateway.data[blob.name] == data
    assert blob.media_type == "application/octet-stream"
    sent = [call.request for call in gateway.calls if call.method == "UploadBlob"]
    assert [header.offset for header in sent] == [0, 3 * 2**20, 3 * 2**20, 4 * 2**20]
    assert len({header.upload_id for header in sent}) == 1


async def test_an_upload_that_stalled_goes_on_or_begins_again(gateway, client):
    for data in (os.urandom(5_000_000), DATA):
        gateway.fail("UploadBlob", Fault("UPLOAD_TOO_SLOW", after=1_200_000))
        blob = await client.upload(data)
        assert gateway.data[blob.name] == data
    sent = [call.request.offset for call in gateway.calls if call.method == "UploadBlob"]
    assert sent == [0, 3 * 2**19, 0, 0]


async def test_large_bytes_that_the_owner_has_are_not_sent_again(gateway, client):
    data = os.urandom(5_000_000)
    blob = gateway.add_blob(data, owner="ada")
    assert await client.upload(data) == blob
    assert [call.method for call in gateway.calls] == ["BeginUpload"]
    gateway.add_blob(data[1:], owner="bob")
    assert (await client.upload(data[1:])).size_bytes == len(data) - 1
    assert [call.method for call in gateway.calls][1:] == ["BeginUpload", "UploadBlob"]


async def test_a_gateway_that_is_older_than_uploads_that_go_on_gets_them_in_one_stream(
    gateway, client
):
    data = os.urandom(5_000_000)
    gateway.fail("BeginUpload", Fault("METHOD_UNKNOWN"))
    gateway.fail("UploadBlob", Fault(after=1_000_000))
    blob = await client.upload(data)
    assert gateway.data[blob.name] == data
    sent = [call.request for call in gateway.calls if call.method == "UploadBlob"]
    assert [(header.upload_id, header.offset) for header in sent] == [("", 0)] * 2


async def test_bytes_as_they_come_cannot_be_sent_twice(gateway, client):
    async def source():
        yield DATA

    gateway.fail("UploadBlob", Fault(after=600_000))
    with pytest.raises(UnavailableError):
        await client.upload(source())
    assert len(gateway.calls) == 1


async def test_a_source_that_fails_fails_the_upload_with_its_own_error(gateway, client):
    async def source():
        yield DATA
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="the disk went away"):
        await client.upload(source())
    assert not gateway.blobs


async def test_an_upload_that_is_refused_midway_always_tells_the_reason_and_is_not_repeated(
    gateway, client
):
    # Whether the refusal or the failure of the next write is seen first is a race; many rounds meet
    # both orders.
    for _ in range(100):
        gateway.fail("UploadBlob", Fault(after=1, reason="UPLOAD_MISMATCH"))
        with pytest.raises(InvalidArgumentError) as caught:
            await client.upload(DATA)
        assert caught.value.reason == "UPLOAD_MISMATCH"
    assert len(gateway.calls) == 100


async def test_a_download_is_whole_and_leaves_nothing_else_behind(gateway, client, tmp_path):
    blob = gateway.add_blob(DATA)
    path = await client.download(blob.name, tmp_path / "out.bin")
    assert path.read_bytes() == DATA
    assert list(tmp_path.iterdir()) == [path]


async def test_a_broken_download_resumes_where_it_broke(gateway, client, tmp_path):
    blob = gateway.add_blob(DATA)
    gateway.fail("DownloadBlob", Fault(after=3), Fault(after=0), Fault(after=5))
    path = await client.download(blob, tmp_path / "out.bin")
    assert path.read_bytes() == DATA
    assert offsets(gateway) == [0, 3 * 65536, 3 * 65536, 8 * 65536]


async def test_a_download_survives_a_connection_that_is_cut(gateway, relay, tmp_path):
    data = os.urandom(8_000_000)
    blob = gateway.add_blob(data)
    async with AsyncClient(f"127.0.0.1:{relay.port}", owner="ada") as client:
        relay.cut_after(3_000_000)
        path = await client.download(blob, tmp_path / "out.bin")
    assert path.read_bytes() == data
    assert len(offsets(gateway)) == 2
    assert offsets(gateway)[1] > 0


async def test_a_damaged_download_never_gets_its_name(gateway, client, tmp_path):
    blob = gateway.add_blob(DATA)
    gateway.data[blob.name] = DATA[:-1] + bytes([DATA[-1] ^ 1])
    with pytest.raises(DataLossError, match="another SHA-256"):
        await client.download(blob, tmp_path / "out.bin")
    assert list(tmp_path.iterdir()) == []


async def test_a_failed_download_keeps_the_file_that_was_there(gateway, client, tmp_path):
    path = tmp_path / "out.bin"
    path.write_bytes(b"earlier")
    blob = gateway.add_blob(DATA)
    gateway.fail("DownloadBlob", Fault(after=2, reason="BLOB_NOT_FOUND"))
    with pytest.raises(NotFoundError):
        await client.download(blob, path)
    assert {found.name: found.read_bytes() for found in tmp_path.iterdir()} == {
        "out.bin": b"earlier"
    }


async def test_a_download_into_a_folder_that_is_not_there_is_an_oserror(gateway, client, tmp_path):
    with pytest.raises(FileNotFoundError):
        await client.download(gateway.add_blob(b"x"), Path(tmp_path, "no", "out.bin"))


async def test_a_file_that_becomes_shorter_while_it_is_sent_is_no_blob(
    client, tmp_path, monkeypatch
):
    path = tmp_path / "file"
    path.write_bytes(bytes(5 * 2**20))
    prepare = aio.prepare

    async def prepared(*args):
        found = await prepare(*args)
        os.truncate(path, 2**20)
        return found

    monkeypatch.setattr(aio, "prepare", prepared)
    with pytest.raises(InvalidArgumentError, match="UPLOAD_MISMATCH"):
        await client.upload(path)
