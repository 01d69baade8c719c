"""What a caller sees when the store or the machine lets it down.

Each in the process it would happen in.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest
from fluoro_blobs import BlobNotFoundError, BlobStore, BlobStoreError

MIB = 1024 * 1024


def run(script: str, *arguments: object) -> str:
    """What the script prints, run by a fresh interpreter."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def files_under(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


FULL = """
    import asyncio, resource, sys
    from pathlib import Path
    from fluoro_blobs import BlobStore, BlobStoreFullError
    folder, name, source = sys.argv[1:]
    store = BlobStore.from_url(f"file://{folder}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    async def write():
        async with store.writer(name) as writer:
            for _ in range(20):
                await writer.write(bytes(1 << 20))
    for act in (
        lambda: store.put(name, bytes(2 << 20)),
        lambda: store.put(name, Path(source)),
        lambda: asyncio.run(write()),
    ):
        try:
            act()
        except BlobStoreFullError as error:
            print(error, store.exists(name))
"""


def test_a_full_folder_says_so_and_keeps_nothing(tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(20 * MIB))
    folder = tmp_path / "store"
    assert (
        run(FULL, folder, name, source).splitlines()
        == [f"{name}: the blob store has no space left False"] * 3
    )
    assert files_under(folder) == []


async def test_a_blob_is_flushed_with_what_names_it_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        flushed.append(str(path).removeprefix(str(tmp_path)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    store = BlobStore.from_url(f"file://{tmp_path}")
    names = [f"blobs/01890a5d-ac96-774b-bcce-b302099a{n}" for n in ("107a", "207a", "307a")]
    files = [f"/blobs/7a/{name.removeprefix('blobs/')}" for name in names]
    store.put(names[0], b"first")
    assert flushed == [files[0], "/blobs/7a", "/blobs", ""]
    flushed.clear()
    store.put(names[1], b"second")
    assert flushed == [files[1], "/blobs/7a"]
    flushed.clear()
    async with store.writer(names[2]) as writer:
        await writer.write(b"third")
    assert flushed == [f"{files[2]}#1", "/blobs/7a"]


async def test_a_writer_that_is_cancelled_while_it_ends_leaves_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending, go_on, fsync = threading.Event(), threading.Event(), os.fsync

    def slow_disk(descriptor: int) -> None:
        ending.set()
        go_on.wait(30)
        fsync(descriptor)

    async def upload() -> None:
        async with BlobStore.from_url(f"file://{tmp_path}").writer(name) as writer:
            await writer.write(b"x")

    monkeypatch.setattr(os, "fsync", slow_disk)
    task = asyncio.create_task(upload())
    assert await asyncio.to_thread(ending.wait, 10)
    task.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert files_under(tmp_path) == []


UPLOAD_FOREVER = """
    import asyncio, sys
    from fluoro_blobs import BlobStore
    async def main():
        async with BlobStore.from_url(f"file://{sys.argv[1]}").writer(sys.argv[2]) as writer:
            for _ in range(20):
                await writer.write(bytes(1 << 20))
            print("written", flush=True)
            await asyncio.Event().wait()
    asyncio.run(main())
"""


def test_a_process_killed_in_mid_upload_leaves_nothing_to_see_and_the_rest_is_swept(
    tmp_path: Path, name: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(UPLOAD_FOREVER), tmp_path, name],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    store = BlobStore.from_url(f"file://{tmp_path}")
    assert not store.exists(name)
    [left] = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert store.remove_unfinished(older_than_seconds=3600) == 0
    os.utime(left, (time.time() - 7200, time.time() - 7200))
    assert store.remove_unfinished(older_than_seconds=3600) == 1
    assert files_under(tmp_path) == []


def test_sweeping_leaves_blobs_alone(tmp_path: Path, name: str) -> None:
    store = BlobStore.from_url(f"file://{tmp_path}")
    store.put(name, b"abc")
    assert store.remove_unfinished(older_than_seconds=-3600) == 0
    assert store.read(name) == b"abc"


FORK = """
    import os, sys
    from fluoro_blobs import BlobStore
    folder, name = sys.argv[1:]
    store = BlobStore.from_url(f"file://{folder}")
    store.put(name, b"abc")
    if os.fork() == 0:
        for act in (
            lambda: store.exists(name),
            store.check,
            lambda: BlobStore.from_url(f"file://{folder}").put(name, b"abc"),
        ):
            try:
                act()
            except RuntimeError as error:
                print(error, flush=True)
        os._exit(0)
    os.wait()
"""


def test_a_forked_child_is_told_instead_of_hanging(tmp_path: Path, name: str) -> None:
    assert run(FORK, tmp_path, name).count("spawn instead of fork") == 3


@pytest.mark.parametrize("replaced", [False, True], ids=["gone", "a file now"])
def test_a_folder_that_is_gone_fails_its_check(tmp_path: Path, replaced: bool) -> None:
    folder = tmp_path / "store"
    store = BlobStore.from_url(f"file://{folder}")
    folder.rmdir()
    if replaced:
        folder.touch()
    with pytest.raises(BlobStoreError) as caught:
        store.check()
    assert str(folder) not in str(caught.value)


CHECK_WITHOUT_ROOM = """
    import resource, sys
    from fluoro_blobs import BlobStore, BlobStoreFullError
    store = BlobStore.from_url(f"file://{sys.argv[1]}")
    store.check()
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        store.check()
    except BlobStoreFullError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.check()
"""


def test_a_check_tells_that_nothing_can_be_written_and_leaves_nothing(tmp_path: Path) -> None:
    assert run(CHECK_WITHOUT_ROOM, tmp_path) == "the blob store has no space left"
    assert files_under(tmp_path) == []


def test_many_check_a_folder_at_once_and_leave_nothing(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        for done in [
            threads.submit(BlobStore.from_url(f"file://{tmp_path}").check) for _ in range(200)
        ]:
            done.result()
    assert files_under(tmp_path) == []


def test_a_bucket_takes_a_check_and_keeps_nothing_of_it(
    bucket: str, s3_options: dict[str, Any]
) -> None:
    store = BlobStore.from_url(f"s3://{bucket}", **s3_options)
    store.check()
    store.check()
    with urllib.request.urlopen(f"{s3_options['endpoint']}/{bucket}?list-type=2") as reply:
        assert b"<Key>" not in reply.read()


async def test_no_answer_is_an_error_that_another_try_may_mend(
    name: str, s3_options: dict[str, Any], tmp_path: Path
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        store = BlobStore.from_url("s3://bucket/prefix", **{**s3_options, "endpoint": endpoint})
        for act in (
            store.check,
            lambda: store.put(name, b"abc"),
            lambda: store.read(name),
            lambda: store.fetch(name, tmp_path / "x"),
        ):
            with pytest.raises(BlobStoreError) as caught:
                await asyncio.to_thread(act)
            assert type(caught.value) is BlobStoreError
            assert "127.0.0.1" not in str(caught.value)
        with pytest.raises(BlobStoreError):
            async with store.writer(name) as writer:
                await writer.write(b"abc")
    assert not (tmp_path / "x").exists()


async def test_a_bucket_that_does_not_exist_is_no_missing_blob(
    name: str, s3_options: dict[str, Any]
) -> None:
    store = BlobStore.from_url("s3://no-such-bucket/prefix", **s3_options)

    async def write() -> None:
        async with store.writer(name) as writer:
            await writer.write(b"abc")

    for act in (
        store.check,
        lambda: store.put(name, b"abc"),
        lambda: store.read(name),
        lambda: asyncio.run(write()),
    ):
        with pytest.raises(BlobStoreError) as caught:
            await asyncio.to_thread(act)
        assert not isinstance(caught.value, BlobNotFoundError)


class Silent:
    """A real server on loopback that never answers, or answers a byte at a time without an end."""

    def __init__(self, trickles: bool) -> None:
        self._trickles, self._stop = trickles, threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(
                    target=self._serve, args=[self._socket.accept()[0]], daemon=True
                ).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            if self._trickles:
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nETag: x\r\nContent-Length: 99999\r\n"
                    b"Last-Modified: Thu, 26 Nov 2026 14:00:00 GMT\r\n\r\n"
                )
            while not self._stop.wait(0.2):
                if self._trickles:
                    connection.sendall(b"<")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._socket.close()


@pytest.mark.parametrize("trickles", [False, True], ids=["silent", "trickling"])
async def test_a_bucket_that_does_not_answer_ends_every_call_in_time(
    name: str, s3_options: dict[str, Any], tmp_path: Path, trickles: bool
) -> None:
    request_seconds = 0.5
    with Silent(trickles) as server:
        store = BlobStore.from_url(
            "s3://bucket",
            request_seconds=request_seconds,
            **{**s3_options, "endpoint": server.endpoint},
        )

        async def write() -> None:
            async with store.writer(name) as writer:
                for _ in range(12):
                    await writer.write(bytes(MIB))

        async def stream() -> None:
            async for _ in store.stream(name):
                pass

        source = tmp_path / "source"
        source.write_bytes(bytes(20 * MIB))
        calls: dict[str, Callable[[], object]] = {
            "check": store.check,
            "put": lambda: store.put(name, b"abc"),
            "put a file": lambda: store.put(name, source),
            "read": lambda: store.read(name),
            "fetch": lambda: store.fetch(name, tmp_path / "target"),
            "write": lambda: asyncio.run(write()),
            "stream": lambda: asyncio.run(stream()),
        }
        calls |= {
            "size": lambda: store.size(name),
            "exists": lambda: store.exists(name),
            "delete": lambda: store.delete(name),
        }
        if trickles:  # the others look at the answer's head alone, which is there at once
            calls = {what: calls[what] for what in ("read", "fetch", "stream")}

        async def seconds_of(call: Callable[[], object]) -> float:
            started = time.monotonic()
            with pytest.raises(BlobStoreError):
                await asyncio.to_thread(call)
            return time.monotonic() - started

        with ThreadPoolExecutor(len(calls)) as threads:
            asyncio.get_running_loop().set_default_executor(threads)
            took = dict(
                zip(calls, await asyncio.gather(*map(seconds_of, calls.values())), strict=True)
            )
    assert max(took.values()) < 12 * request_seconds, took


def parts_lie_in(bucket: str, endpoint: str) -> bool:
    with urllib.request.urlopen(f"{endpoint}/{bucket}?uploads") as reply:
        return b"<UploadId>" in reply.read()


async def test_an_upload_given_up_leaves_no_parts_in_the_bucket(
    name: str, bucket: str, s3_options: dict[str, Any]
) -> None:
    store = BlobStore.from_url(f"s3://{bucket}", **s3_options)

    async def upload() -> None:
        async with store.writer(name) as writer:
            for _ in range(20):
                await writer.write(bytes(MIB))
            assert parts_lie_in(bucket, s3_options["endpoint"])
            raise KeyError

    with pytest.raises(KeyError):
        await upload()
    assert not parts_lie_in(bucket, s3_options["endpoint"])


def test_a_fetch_that_breaks_off_leaves_no_file(tmp_path: Path, name: str) -> None:
    script = """
        import resource, sys
        from pathlib import Path
        from fluoro_blobs import BlobStore
        store = BlobStore.from_url("memory://")
        store.put(sys.argv[2], bytes(4 << 20))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            store.fetch(sys.argv[2], Path(sys.argv[1]) / "target")
        except OSError as error:
            print(error.strerror)
    """
    assert run(script, tmp_path, name) == "File too large"
    assert files_under(tmp_path) == []


@pytest.mark.parametrize(
    "url",
    ["", "/var/blobs", "file://host/path", "file:relative", "s3://", "gs://bucket", "memory://x"],
)
def test_a_url_of_no_store_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="file:///path, memory:// or s3://bucket/prefix"):
        BlobStore.from_url(url)


def test_an_option_that_would_be_ignored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes no options, got region"):
        BlobStore.from_url(f"file://{tmp_path}", region="us-east-1")


def test_an_option_no_store_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="no such option of an S3 store among end_point"):
        BlobStore.from_url("s3://bucket", end_point="x")


def test_a_bucket_is_configured_by_the_usual_variables(
    monkeypatch: pytest.MonkeyPatch, name: str, bucket: str, s3_options: dict[str, Any]
) -> None:
    variables = {
        "endpoint": "AWS_ENDPOINT_URL",
        "access_key_id": "AWS_ACCESS_KEY_ID",
        "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    }
    for option, variable in (variables | {"region": "AWS_REGION"}).items():
        monkeypatch.setenv(variable, s3_options[option])
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    store = BlobStore.from_url(f"s3://{bucket}")
    store.put(name, b"abc")
    assert store.read(name) == b"abc"


def test_blobs_of_one_moment_are_spread_over_folders(
    tmp_path: Path, new_name: Callable[[], str]
) -> None:
    store = BlobStore.from_url(f"file://{tmp_path}")
    names = [f"blobs/0192b1a8-0000-7000-8000-0000000000{end}" for end in ("ab", "cd")]
    for name in names:
        store.put(name, b"")
    assert sorted(path.name for path in (tmp_path / "blobs").iterdir()) == ["ab", "cd"]
    assert not store.exists(new_name())
