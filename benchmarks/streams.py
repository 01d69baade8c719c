"""10,000 watch streams on one gateway process: memory of each, and messages per second.

The client opens the streams with at most 200 calls under way, over a few connections. A round
writes one progress message per job to Redis and ends when each stream had its own. Peer: a bare
grpc.aio server with one Redis subscription that does the same fan-out; it knows no ledger, cursors,
snapshots or slow readers. The client does not parse what it counts. Bookmarks are off; the reads of
the ledger that make up for lost wake-ups are on. Last line: `ratio` = median rate of the gateway /
that of the peer, with progress; `kib_per_stream` is the growth of resident memory.
"""

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

import grpc.aio
from blobs import resident
from fluoro.v1.blob_service_pb2 import Blob
from fluoro.v1.event_pb2 import Progress
from fluoro.v1.job_pb2 import Job
from fluoro.v1.job_service_pb2 import SubmitJobRequest, WatchJobRequest
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import blobs
from fluoro_jobs.ledger.accept import accept, validate
from fluoro_jobs.ledger.connection import Ledger
from fluoro_jobs.wakeups import pack, shard_of, wakeups_channel
from peers.fanout import CHANNEL
from rig.figures import quick, say
from rig.servers import Process, Servers, servers

METHOD: Final = "/fluoro.v1.JobService/WatchJob"
OWNER: Final = "bench"
CONNECTIONS: Final = 8
"""gRPC shares one connection between channels that look alike; these do not."""
OPENING: Final = 200
"""Streams being opened at one time."""
IN_ONE_COMMIT: Final = 200
PATIENCE_SECONDS: Final = 60
"""How long opening all streams, or one round, may take."""


@dataclass
class Streams:
    """All streams to one server.

    arrived: messages since the round began, the opening ones apart.
    """

    expected: int
    arrived: int = 0
    complete: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self) -> None:
        """A new round."""
        self.arrived = 0
        self.complete.clear()

    async def follow(self, stream: AsyncIterator[bytes]) -> None:
        """Counts until cancelled."""
        async for _ in stream:
            self.arrived += 1
            if self.arrived == self.expected:
                self.complete.set()


async def main(rounds: int, streams: int) -> None:
    """One server after the other, so that neither has the other's streams beside it."""
    with servers() as run:
        jobs = submit(run, streams)
        with run.service("gateway", watch_bookmark_interval_seconds=3600) as gateway:
            ours = await measure(
                run, gateway, jobs, wakeups_channel(shard_of(OWNER)), rounds, _as_workers_do
            )
        with run.peer("peers.fanout") as peer:
            theirs = await measure(run, peer, jobs, CHANNEL, rounds, Progress.SerializeToString)
    for name, figures in (("gateway", ours), ("bare grpc.aio", theirs)):
        say(name, **figures, streams=streams, rounds=rounds)
    rate = ours["per_second"]
    say(
        "streams",
        ratio=rate / theirs["per_second"],
        kib_per_stream=ours["kib_per_stream"],
        per_second=rate,
        load=os.getloadavg()[0],
    )


def submit(run: Servers, count: int) -> list[str]:
    """So many jobs that nobody runs; their names."""
    ledger = Ledger(run.database_url)
    names: list[str] = []
    with ledger.connection() as connection:
        blob = blobs.add(
            connection,
            OWNER,
            Blob(name=f"blobs/{new_id()}", sha256=bytes(32), media_type="application/dicom"),
        )
        job = Job(inputs=[blob.name])
        job.steps.add(name="inspect").inspect_dicom.SetInParent()
        while len(names) < count:
            some = min(IN_ONE_COMMIT, count - len(names))
            answers = accept(
                connection, [validate(SubmitJobRequest(job=job), OWNER) for _ in range(some)]
            )
            names += [answer.name for answer in answers if isinstance(answer, Job)]
    ledger.close()
    return names


def _as_workers_do(progress: Progress) -> bytes:
    return pack(UUID(progress.job.removeprefix("jobs/")), OWNER, progress.SerializeToString())


async def measure(
    run: Servers,
    server: Process,
    jobs: Sequence[str],
    channel: str,
    rounds: int,
    packed: Callable[[Progress], bytes],
) -> dict[str, float]:
    """Memory per stream, how fast they open, and the median rate of the rounds."""
    async with AsyncExitStack() as stack:
        options = [
            [("grpc.primary_user_agent", f"connection-{number}")] for number in range(CONNECTIONS)
        ]
        connections = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=one)
            )
            for one in options
        ]
        writer = await Writer.connect(run.redis_url)
        stack.callback(writer.close)
        warm = await open_all(connections, jobs[:CONNECTIONS])
        before, started = resident(server.child.pid, "VmRSS"), time.perf_counter()
        opened = await open_all(connections, jobs[CONNECTIONS:])
        seconds, grown = time.perf_counter() - started, resident(server.child.pid, "VmRSS") - before
        state = Streams(len(jobs))
        following = [asyncio.create_task(state.follow(stream)) for stream in warm + opened]
        rates = [
            await round_of(state, writer, channel, jobs, number, packed)
            for number in range(rounds + 1)
        ]
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
    return {
        "per_second": statistics.median(rates[1:]),  # the first one fills caches
        "kib_per_stream": grown / 1024 / len(opened),
        "opened_per_second": len(opened) / seconds,
    }


async def open_all(connections: Sequence[grpc.aio.Channel], jobs: Sequence[str]) -> list[Any]:
    """Streams that have given their first message."""
    room = asyncio.Semaphore(OPENING)

    async def open_one(number: int, job: str) -> Any:
        async with room:
            call: Any = connections[number % CONNECTIONS].unary_stream(METHOD)
            stream = aiter(call(WatchJobRequest(name=job).SerializeToString()))
            await anext(stream)
            return stream

    async with asyncio.timeout(PATIENCE_SECONDS):
        return list(
            await asyncio.gather(*(open_one(number, job) for number, job in enumerate(jobs)))
        )


async def round_of(
    state: Streams,
    writer: "Writer",
    channel: str,
    jobs: Sequence[str],
    number: int,
    packed: Callable[[Progress], bytes],
) -> float:
    """Messages per second of one round, from the first write to the last arrival."""
    progress = Progress(step="inspect", attempt=1, stage="decode", fraction=number / 100)
    messages = []
    for job in jobs:
        progress.job = job
        messages.append(packed(progress))
    state.begin()
    started = time.perf_counter()
    await writer.publish(channel, messages)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await state.complete.wait()
    except TimeoutError:
        raise SystemExit(f"{state.arrived} of {state.expected} messages arrived") from None
    return len(jobs) / (time.perf_counter() - started)


class Writer:
    """Publishes by the thousand: a Redis client library would take as long as the servers do."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, redis_url: str) -> "Writer":
        """To a Redis without a password."""
        address = urlsplit(redis_url)
        return cls(*await asyncio.open_connection(address.hostname, address.port))

    async def publish(self, channel: str, messages: Sequence[bytes]) -> None:
        """Sends all in one pipeline of the Redis protocol and waits for the answers."""
        head = f"*3\r\n$7\r\nPUBLISH\r\n${len(channel)}\r\n{channel}\r\n".encode()
        self._writer.write(
            b"".join(head + b"$%d\r\n%s\r\n" % (len(message), message) for message in messages)
        )
        await self._writer.drain()
        for _ in messages:
            answer = await self._reader.readline()
            if not answer.startswith(b":"):
                raise SystemExit(answer.decode())

    def close(self) -> None:
        """Closes the connection."""
        self._writer.close()


if __name__ == "__main__":
    asyncio.run(main(1, 500) if quick(__doc__) else main(7, 10_000))
