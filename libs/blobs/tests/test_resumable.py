"""Blobs that come in several streams: what counts, whatever older streams still write."""

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from fluoro_blobs import BlobStore, PartsWriter, ResumableUpload, StoredBlob

MIB = 1024 * 1024
CONTENT = os.urandom(12 * MIB + 1)


class BrokenOffError(Exception):
    """What ends a stream here."""


@pytest.fixture
def key() -> UUID:
    return uuid4()


@pytest.fixture
def upload(store: BlobStore, key: UUID) -> ResumableUpload:
    return store.resumable(key)


def stored(content: bytes) -> StoredBlob:
    return StoredBlob(len(content), hashlib.sha256(content).digest())


async def send(
    upload: ResumableUpload, starts: Sequence[int], content: bytes, *, breaks: bool = False
) -> StoredBlob:
    """What one stream wrote; it breaks off after the content if it `breaks`."""
    writer = upload.writer(starts)
    with pytest.raises(BrokenOffError) if breaks else nullcontext():
        async with writer:
            await write(writer, content)
            if breaks:
                raise BrokenOffError
    return writer.stored


async def write(writer: PartsWriter, content: bytes) -> None:
    for start in range(0, len(content), MIB):
        await writer.write(content[start : start + MIB])


async def test_a_stream_goes_on_where_the_one_before_broke_off(
    store: BlobStore, upload: ResumableUpload, key: UUID, name: str
) -> None:
    assert await upload.committed_bytes([]) == 0
    await send(upload, [0], CONTENT[: 11 * MIB], breaks=True)
    # Another process, which knows no more than the store and where the streams began.
    there = await store.resumable(key).committed_bytes([0])
    assert 5 * MIB <= there <= 11 * MIB
    await send(upload, [0, there], CONTENT[there:])
    assert await upload.committed_bytes([0, there]) == len(CONTENT)
    assert await upload.finish(name, [0, there], stored(CONTENT), None)
    assert store.read(name) == CONTENT
    await upload.remove()
    await upload.remove()
    assert await upload.committed_bytes([0]) == 0
    assert store.read(name) == CONTENT


async def test_bytes_of_one_stream_become_the_blob(
    store: BlobStore, upload: ResumableUpload, name: str
) -> None:
    seen = await send(upload, [0], CONTENT)
    assert seen == stored(CONTENT)
    assert not await upload.finish(name, [0], stored(b"other"), seen)
    assert not store.exists(name)
    assert await upload.finish(name, [0], stored(CONTENT), seen)
    await upload.remove()
    assert store.read(name) == CONTENT


async def test_what_older_streams_write_late_is_never_mixed_in(
    store: BlobStore, upload: ResumableUpload, name: str
) -> None:
    old = upload.writer([0])
    async with old:
        await old.write(CONTENT[: 6 * MIB])
        await old.flush()
        there = await upload.committed_bytes([0])
        assert there == 6 * MIB
        await send(upload, [0, there], CONTENT[there : 12 * MIB])
        await old.write(bytes(6 * MIB))
    assert await upload.committed_bytes([0, there]) == 12 * MIB
    # Goes on from before that, as a caller may.
    starts = [0, there, 5 * MIB]
    assert await upload.committed_bytes(starts) == 5 * MIB
    await send(upload, starts, CONTENT[5 * MIB :])
    assert await upload.finish(name, starts, stored(CONTENT), None)
    assert store.read(name) == CONTENT


async def test_what_a_newer_stream_writes_anew_is_deleted(
    store: BlobStore, upload: ResumableUpload, name: str
) -> None:
    await send(upload, [0], CONTENT)
    await send(upload, [0, MIB], CONTENT[MIB:])
    starts = [0, MIB, MIB]
    left = await upload.drop_covered(starts)
    assert MIB <= left <= len(CONTENT), "the first stream has the byte at 0"
    assert await upload.drop_covered(starts) == left
    assert await upload.committed_bytes([0, MIB]) == MIB
    await send(upload, starts, CONTENT[MIB:])
    assert await upload.drop_covered(starts) == left
    assert await upload.finish(name, starts, stored(CONTENT), None)
    assert store.read(name) == CONTENT


async def test_other_bytes_than_those_wanted_become_no_blob(
    store: BlobStore, upload: ResumableUpload, new_name: Callable[[], str]
) -> None:
    await send(upload, [0], CONTENT[: 6 * MIB])
    await send(upload, [0, 6 * MIB], bytes(len(CONTENT) - 6 * MIB))
    for wanted in (stored(CONTENT), stored(CONTENT[:-1])):
        name = new_name()
        assert not await upload.finish(name, [0, 6 * MIB], wanted, None)
        assert not store.exists(name)


async def test_a_file_system_without_links_moves_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    store = BlobStore.from_url(f"file://{tmp_path}")
    upload = store.resumable(uuid4())
    seen = await send(upload, [0], CONTENT)
    assert await upload.finish(name, [0], stored(CONTENT), seen)
    await upload.remove()
    assert store.read(name) == CONTENT
    assert list((tmp_path / "uploads").rglob("*")) == []
