"""Bytes per second of a 1 GiB blob through the gateway, both ways, and the growth of its memory.

Peer: a bare grpc.aio server that counts and forgets what is sent to it, and sends zeros out of
memory; the gateway hashes, stores durably and reads back. What hashing, writing and syncing a file
cost in a plain loop without gRPC is `disk_mib_per_second`; `ratio_disk` compares uploads with that.
Client, messages and chunks of 1 MiB are the same. Growth is the peak of resident memory (VmHWM)
over what was resident before. Last line: `ratio` = gateway / peer, the worse of upload and
download.
"""

import asyncio
import hashlib
import os
import re
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc.aio
from fluoro.v1.blob_service_pb2 import DownloadBlobRequest, UploadBlobHeader, UploadBlobRequest
from fluoro.v1.blob_service_pb2_grpc import BlobServiceStub
from rig.figures import quick, ratio, say
from rig.servers import servers

MIB: Final = 2**20
UNLIMITED: Final = [("grpc.max_receive_message_length", -1)]


def resident(pid: int, field: str) -> int:
    """VmRSS or VmHWM of a process, bytes (proc_pid_status(5))."""
    found = re.search(
        rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE
    )
    if found is None:
        raise SystemExit(f"/proc does not tell {field}")
    return int(found[1]) * 1024


class Memory:
    """Growth of a process since this was made."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
        self._before = resident(pid, "VmRSS")

    def growth_mib(self) -> float:
        """Peak over before."""
        return (resident(self._pid, "VmHWM") - self._before) / MIB


async def upload(stub: Any, size_mib: int) -> tuple[str, float]:
    """Name of the blob, and MiB per second. Every upload is another blob."""
    chunk = UploadBlobRequest(chunk=os.urandom(MIB))

    async def requests() -> AsyncIterator[UploadBlobRequest]:
        yield UploadBlobRequest(header=UploadBlobHeader(size_bytes=size_mib * MIB))
        for _ in range(size_mib):
            yield chunk

    started = time.perf_counter()
    response = await stub.UploadBlob(requests())
    seconds = time.perf_counter() - started
    if response.blob.size_bytes != size_mib * MIB:
        raise SystemExit("the server counted other bytes")
    return response.blob.name, size_mib / seconds


def to_disk(folder: Path, size_mib: int) -> float:
    """MiB per second of what a durable, hashed copy costs at least."""
    chunk, digest, path = os.urandom(MIB), hashlib.sha256(), folder / "plain"
    started = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(size_mib):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return size_mib / seconds


async def download(stub: Any, name: str, offset: int, size_mib: int) -> float:
    """MiB per second."""
    started, size = time.perf_counter(), 0
    async for response in stub.DownloadBlob(DownloadBlobRequest(name=name, offset=offset)):
        size += len(response.chunk)
    if size != size_mib * MIB:
        raise SystemExit("the server sent other bytes")
    return size_mib / (time.perf_counter() - started)


async def main(rounds: int, size_mib: int) -> None:
    """Rounds in turn, figures at the end."""
    rates: dict[str, list[float]] = {
        "up": [],
        "down": [],
        "peer up": [],
        "peer down": [],
        "disk": [],
    }
    grown = {"up": 0.0, "down": 0.0}
    with servers() as run, run.service("gateway") as gateway, run.peer("peers.grpc_server") as peer:
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}", options=UNLIMITED) as ours,
            grpc.aio.insecure_channel(f"127.0.0.1:{peer.port}", options=UNLIMITED) as theirs,
        ):
            stub, bare = BlobServiceStub(ours), BlobServiceStub(theirs)
            for warm_up in (stub, bare):
                await upload(warm_up, 1)
            for _ in range(rounds):
                memory = Memory(gateway.child.pid)
                name, rate = await upload(stub, size_mib)
                grown["up"] = max(grown["up"], memory.growth_mib())
                rates["up"].append(rate)
                rates["peer up"].append((await upload(bare, size_mib))[1])
                rates["disk"].append(to_disk(run.folder, size_mib))
                memory = Memory(gateway.child.pid)
                rates["down"].append(await download(stub, name, 0, size_mib))
                grown["down"] = max(grown["down"], memory.growth_mib())
                rates["peer down"].append(await download(bare, "", size_mib * MIB, size_mib))
    report(rates, grown, size_mib)


def report(rates: dict[str, list[float]], grown: dict[str, float], size_mib: int) -> None:
    """Prints."""
    ratios = {way: ratio(rates[way], rates[f"peer {way}"]) for way in grown}
    for way, title in (("up", "upload"), ("down", "download")):
        figures = {
            "mib_per_second": statistics.median(rates[way]),
            "peer_mib_per_second": statistics.median(rates[f"peer {way}"]),
            "ratio": ratios[way],
            "memory_growth_mib": grown[way],
        }
        say(title, **figures, size_mib=size_mib, rounds=len(rates[way]))
    say(
        "disk",
        disk_mib_per_second=statistics.median(rates["disk"]),
        ratio_disk=ratio(rates["up"], rates["disk"]),
        size_mib=size_mib,
    )
    say(
        "blobs",
        ratio=min(ratios.values()),
        memory_growth_mib=max(grown.values()),
        size_mib=size_mib,
        cpus=os.cpu_count(),
    )


if __name__ == "__main__":
    asyncio.run(main(1, 16) if quick(__doc__) else main(3, 1024))
