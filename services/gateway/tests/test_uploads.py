"""What an upload takes of the gateway's memory while its chunks are gathered."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from fluoro_blobs import BlobStore
from fluoro_jobs.ids import new_id
from gateway.uploads import LEAST_BYTES, Gathered

CHUNKS = 20_000


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.usefixtures("traced")
async def test_chunks_of_no_size_to_speak_of_take_no_memory_beside_their_bytes(
    tmp_path: Path, size: int
) -> None:
    store = BlobStore.from_url(tmp_path.as_uri())
    async with store.writer(f"blobs/{new_id()}") as writer:
        gathered = Gathered(writer)
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(CHUNKS):
            # As a message is read in place: a part of the message's own bytes.
            await gathered.write(memoryview(bytes(2 + size))[2:])
        after, _ = tracemalloc.get_traced_memory()
        assert gathered.size_bytes == size * CHUNKS
        await gathered.flush()
    assert writer.size_bytes == size * CHUNKS
    assert after - before < 4 * size * CHUNKS + 16 * LEAST_BYTES


async def test_small_and_large_chunks_are_written_in_the_order_in_which_they_came(
    tmp_path: Path,
) -> None:
    store, name = BlobStore.from_url(tmp_path.as_uri()), f"blobs/{new_id()}"
    sizes = [LEAST_BYTES, 1, 2 * LEAST_BYTES, 0, 5, LEAST_BYTES - 1, LEAST_BYTES, 3]
    chunks = [bytes([number]) * size for number, size in enumerate(sizes)]
    async with store.writer(name) as writer:
        gathered = Gathered(writer)
        for chunk in chunks:
            await gathered.write(chunk)
        await gathered.flush()
    read = [chunk async for chunk in store.stream(name, 0, 2**20)]
    assert b"".join(read) == b"".join(chunks)
