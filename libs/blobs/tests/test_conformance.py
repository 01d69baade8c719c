"""What every kind of store does, and does alike."""

import asyncio
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import pytest
from fluoro_blobs import BlobNotFoundError, BlobStore, StoredBlob

CLAIMS = 8
MIB = 1024 * 1024
SIZES = pytest.mark.parametrize(
    "size",
    [0, 1, 3 * MIB, 8 * MIB, 20 * MIB + 1],
    ids=["empty", "one_byte", "one_part", "exact_part", "three_parts"],
)


class StoppedError(Exception):
    """What a writer's body raises here."""


def stored(content: bytes) -> StoredBlob:
    return StoredBlob(len(content), hashlib.sha256(content).digest())


async def collect(
    store: BlobStore, name: str, offset: int = 0, chunk_bytes: int = MIB
) -> list[bytes]:
    return [chunk async for chunk in store.stream(name, offset, chunk_bytes)]


@SIZES
def test_bytes_put_come_back(store: BlobStore, name: str, size: int) -> None:
    content = os.urandom(size)
    assert store.put(name, content) == stored(content)
    assert store.read(name) == content
    assert store.size(name) == size


@SIZES
def test_a_file_put_is_fetched_byte_for_byte(
    store: BlobStore, name: str, size: int, tmp_path: Path
) -> None:
    content = os.urandom(size)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    assert store.put(name, source) == stored(content)
    store.fetch(name, target)
    assert target.read_bytes() == content


@pytest.mark.parametrize("chunk_bytes", [1000, 64 * 1024 - 1, MIB, 9 * MIB])
def test_chunks_put_come_back(store: BlobStore, name: str, chunk_bytes: int) -> None:
    content = os.urandom(20 * MIB + 1)
    starts = range(0, len(content), chunk_bytes)
    chunks = (memoryview(content)[start : start + chunk_bytes] for start in starts)
    assert store.put(name, chunks) == stored(content)
    assert store.read(name) == content


@pytest.mark.parametrize("error", [StoppedError(), FileNotFoundError("a file of the caller's")])
@pytest.mark.parametrize("mebibytes", [1, 20])
def test_what_chunks_raise_comes_as_it_is_and_leaves_nothing(
    store: BlobStore, name: str, mebibytes: int, error: Exception
) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(mebibytes):
            yield bytes(MIB)
        raise error

    with pytest.raises(type(error)) as caught:
        store.put(name, chunks())
    assert caught.value is error
    assert not store.exists(name)


@SIZES
def test_a_piece_of_a_blob_is_as_long_as_asked_for_or_ends_with_it(
    store: BlobStore, name: str, size: int
) -> None:
    content = os.urandom(size)
    store.put(name, content)
    for offset in (0, 1, size // 2, size):
        assert store.piece(name, offset, 1000) == content[offset : offset + 1000]


@pytest.mark.parametrize("part_bytes", [MIB - 1, 3 * MIB, 4 * MIB, 9 * MIB])
def test_parts_have_the_size_that_was_asked_for(
    store: BlobStore, name: str, part_bytes: int
) -> None:
    content = os.urandom(20 * MIB + 1)
    store.put(name, content)
    parts = [bytes(part) for part in store.parts(name, part_bytes)]
    assert {len(part) for part in parts[:-1]} == {part_bytes}
    assert b"".join(parts) == content


@SIZES
async def test_chunks_written_are_streamed_back(store: BlobStore, name: str, size: int) -> None:
    content = os.urandom(size)
    async with store.writer(name) as writer:
        for start in range(0, size, 700_001):
            await writer.write(content[start : start + 700_001])
    assert StoredBlob(writer.size_bytes, writer.sha256) == writer.stored == stored(content)
    assert b"".join(await collect(store, name)) == content


async def test_a_stream_starts_at_its_offset_and_keeps_to_its_chunk_size(
    store: BlobStore, name: str
) -> None:
    content = os.urandom(10 * MIB)
    store.put(name, content)
    chunks = await collect(store, name, offset=9 * MIB - 5, chunk_bytes=300_000)
    assert b"".join(chunks) == content[9 * MIB - 5 :]
    assert max(map(len, chunks)) == 300_000


@pytest.mark.parametrize("offset", [3, 4])
async def test_a_stream_from_the_end_is_empty(store: BlobStore, name: str, offset: int) -> None:
    store.put(name, b"abc")
    assert await collect(store, name, offset) == []


async def test_a_flushed_writer_tells_the_digest_of_all_that_came(
    store: BlobStore, name: str
) -> None:
    content = os.urandom(2_500_000)
    async with store.writer(name) as writer:
        for start in range(0, len(content), 1_000_000):
            await writer.write(memoryview(content)[start : start + 1_000_000])
        await writer.flush()
        assert writer.stored == stored(content)
        await writer.write(b"more")
    assert store.read(name) == content + b"more"


@pytest.mark.parametrize(
    "size", [10, 20 * MIB], ids=["before_the_first_part", "after_the_first_part"]
)
async def test_a_writer_that_fails_leaves_nothing(store: BlobStore, name: str, size: int) -> None:
    async def upload() -> None:
        async with store.writer(name) as writer:
            await writer.write(bytes(size))
            raise StoppedError

    with pytest.raises(StoppedError):
        await upload()
    assert not store.exists(name)


@pytest.mark.parametrize(
    "size", [10, 20 * MIB], ids=["before_the_first_part", "after_the_first_part"]
)
async def test_a_writer_that_is_cancelled_leaves_nothing(
    store: BlobStore, name: str, size: int
) -> None:
    written = asyncio.Event()

    async def upload() -> None:
        async with store.writer(name) as writer:
            await writer.write(bytes(size))
            written.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(upload())
    await written.wait()
    assert not store.exists(name)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not store.exists(name)


def test_delete_removes_and_is_content_with_nothing_to_remove(store: BlobStore, name: str) -> None:
    store.put(name, b"abc")
    assert store.exists(name)
    store.delete(name)
    assert not store.exists(name)
    store.delete(name)


async def test_a_missing_blob_is_named_by_every_reader(
    store: BlobStore, name: str, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    readers = (
        store.read,
        store.size,
        lambda missing: next(store.parts(missing)),
        lambda missing: store.fetch(missing, target),
    )
    for act in readers:
        with pytest.raises(BlobNotFoundError) as caught:
            act(name)
        assert caught.value.name == name
        assert str(caught.value) == f"{name}: no such blob"
    with pytest.raises(BlobNotFoundError):
        await collect(store, name)
    assert not target.exists()
    assert not store.exists(name)


@pytest.mark.parametrize(
    "bad",
    [
        "blobs/../../etc/passwd",
        "jobs/0192b1a8-0000-7000-8000-000000000000",
        "blobs/0192B1A8-0000-7000-8000-000000000000",
        "",
    ],
)
def test_a_name_that_is_not_a_blobs_is_refused(store: BlobStore, bad: str) -> None:
    for act in (store.read, store.delete, store.exists, lambda bad: store.put(bad, b"")):
        with pytest.raises(ValueError, match=r"blobs/\{uuid\}"):
            act(bad)


def test_a_store_that_answers_passes_its_check(store: BlobStore) -> None:
    store.check()


def test_fetch_never_touches_a_file_that_was_there(
    store: BlobStore, name: str, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"mine")
    store.put(name, b"theirs")
    with pytest.raises(FileExistsError):
        store.fetch(name, target)
    assert target.read_bytes() == b"mine"


def test_a_listing_tells_names_sizes_and_times_of_one_folder(store: BlobStore) -> None:
    names = [
        f"blobs/0192b1a8-0000-7000-8000-00000000{number}{end}"
        for number in ("00", "01")
        for end in ("ab", "cd")
    ]
    for name in names:
        store.put(name, b"abc")
    [page] = store.pages("ab")
    assert sorted(found.name for found in page) == [names[0], names[2]]
    assert {found.size_bytes for found in page} == {3}
    assert all(abs(found.modified - datetime.now(UTC)) < timedelta(minutes=1) for found in page)
    assert list(store.pages("ef")) == []


def test_a_store_belongs_to_the_first_ledger_that_asks(store: BlobStore) -> None:
    assert [store.claim(ledger) for ledger in ("one", "two", "one")] == [True, False, True]


def test_of_many_ledgers_that_claim_a_store_at_the_same_time_one_gets_it(store: BlobStore) -> None:
    barrier = Barrier(CLAIMS)

    def claim(number: int) -> bool:
        barrier.wait()
        return store.claim(f"ledger {number}")

    with ThreadPoolExecutor(CLAIMS) as pool:
        claims = list(pool.map(claim, range(CLAIMS)))
    assert claims.count(True) == 1
    assert store.claim(f"ledger {claims.index(True)}")
