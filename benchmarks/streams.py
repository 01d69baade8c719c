"""10,000 watch streams on one gateway process: opening, memory of each, messages per second.

The client opens the streams with at most 200 calls under way, over a few connections. A round of
fan-out writes one progress message per job to Redis and ends when each stream had its own. Peer: a
bare grpc.aio server with one Redis subscription that does the same fan-out; it knows no ledger,
cursors, snapshots or slow readers. It collects garbage as rarely as the gateway, and spares itself
the same work of redis-py's. Both run all the time, and blocks of streams that open, and rounds,
alternate: a ratio is the median over neighbours, so what else the machine does slows both. The
client does not parse what it counts. Bookmarks are off; the reads of the ledger that make up for
lost wake-ups are on. Last line: `ratio` = rate of the gateway / that of the peer, with progress;
`ratio_open` the same of opening; `kib_per_stream` is the growth of resident memory.
"""

import asyncio
import gc
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
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
from rig.figures import quick, ratio, say
from rig.servers import Process, Servers, servers

METHOD: Final = "/fluoro.v1.JobService/WatchJob"
OWNER: Final = "bench"
CONNECTIONS: Final = 16
"""gRPC shares one connection between channels that look alike; these do not."""
OPENING: Final = 200
"""Streams being opened at one time."""
BLOCKS: Final = 8
"""In which the streams open. One more, of CONNECTIONS streams, connects before."""
IN_ONE_COMMIT: Final = 200
PATIENCE_SECONDS: Final = 60
"""How long opening all streams, or one round, may take."""


class Streams:
    """All streams to one server. arrived: messages since the round began, without opening ones."""

    def __init__(self) -> None:
        self.arrived = 0
        self.complete = asyncio.Event()
        self._following: list[asyncio.Task[None]] = []

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._following)

    def add(self, streams: Sequence[AsyncIterator[bytes]]) -> None:
        """Has them counted."""
        self._following += [asyncio.create_task(self._follow(stream)) for stream in streams]

    def begin(self) -> None:
        """A new round."""
        self.arrived = 0
        self.complete.clear()

    async def close(self) -> None:
        """Ends them."""
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)

    async def _follow(self, stream: AsyncIterator[bytes]) -> None:
        async for _ in stream:
            self.arrived += 1
            if self.arrived == self.count:
                self.complete.set()


async def main(rounds: int, streams: int) -> None:
    """Blocks and rounds in turn, figures at the end."""
    gc.disable()  # a look at 20,000 streams would be the servers' delay
    with (
        servers() as run,
        run.service("gateway", watch_bookmark_interval_seconds=3600) as gateway,
        run.peer("peers.fanout") as peer,
    ):
        jobs = submit(run, streams)
        channel = wakeups_channel(shard_of(OWNER))
        async with AsyncExitStack() as stack:
            writer = await Writer.connect(run.redis_url)
            stack.callback(writer.close)
            ours = Measured(gateway, writer, channel, _as_workers_do)
            theirs = Measured(peer, writer, CHANNEL, Progress.SerializeToString)
            for one in (ours, theirs):
                await one.connect(stack, jobs[:CONNECTIONS])
            rest = jobs[CONNECTIONS:]
            size = -(-len(rest) // BLOCKS)
            for start in range(0, len(rest), size):
                for one in (ours, theirs):
                    await one.open(rest[start : start + size])
            for number in range(rounds + 1):
                for one in (ours, theirs):
                    await one.round(jobs, number)
    for name, one in (("gateway", ours), ("bare grpc.aio", theirs)):
        say(name, **one.figures(), streams=streams, rounds=rounds)
    say(
        "streams",
        ratio=ratio(ours.rates[1:], theirs.rates[1:]),
        ratio_open=ratio(ours.opened, theirs.opened),
        kib_per_stream=ours.figures()["kib_per_stream"],
        per_second=ours.figures()["per_second"],
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


class Measured:
    """One server: its streams, and how fast it was. opened: streams a second. rates: messages."""

    def __init__(
        self, server: Process, writer: "Writer", channel: str, packed: Callable[[Progress], bytes]
    ) -> None:
        self._server, self._writer = server, writer
        self._channel, self._packed = channel, packed
        self._connections: list[grpc.aio.Channel] = []
        self._state = Streams()
        self._grown = 0
        self.opened: list[float] = []
        self.rates: list[float] = []

    async def connect(self, stack: AsyncExitStack, jobs: Sequence[str]) -> None:
        """A stream on each connection."""
        for number in range(CONNECTIONS):
            options = [("grpc.primary_user_agent", f"connection-{number}")]
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{self._server.port}", options=options)
            self._connections.append(await stack.enter_async_context(channel))
        stack.push_async_callback(self._state.close)
        self._state.add(await open_all(self._connections, jobs))

    async def open(self, jobs: Sequence[str]) -> None:
        """More streams."""
        before, started = resident(self._server.child.pid, "VmRSS"), time.perf_counter()
        streams = await open_all(self._connections, jobs)
        self.opened.append(len(jobs) / (time.perf_counter() - started))
        self._grown += resident(self._server.child.pid, "VmRSS") - before
        self._state.add(streams)

    async def round(self, jobs: Sequence[str], number: int) -> None:
        """A message on each stream. The first round fills caches."""
        rate = await round_of(self._state, self._writer, self._channel, jobs, number, self._packed)
        self.rates.append(rate)

    def figures(self) -> dict[str, float]:
        """For printing."""
        return {
            "per_second": statistics.median(self.rates[1:]),
            "kib_per_stream": self._grown / 1024 / (self._state.count - CONNECTIONS),
            "opened_per_second": statistics.median(self.opened),
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
        raise SystemExit(f"{state.arrived} of {state.count} messages arrived") from None
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
    asyncio.run(main(1, 500) if quick(__doc__) else main(9, 10_000))
