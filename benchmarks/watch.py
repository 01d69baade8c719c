"""Time from a worker writing progress to a watching client holding it.

A writer process (this file with arguments) publishes as a worker does and, in turn, to a bare Redis
channel; both messages carry the time of writing. The client holds WatchJob of the gateway and the
stream of a bare server that passes the channel on. Last line: `ratio` = p50 of the gateway / p50 of
the bare hop; smaller is better.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc.aio
from accept import upload
from fluoro.v1.event_pb2 import Progress
from fluoro.v1.job_pb2 import Job
from fluoro.v1.job_service_pb2 import GetJobRequest, SubmitJobRequest, WatchJobRequest
from fluoro.v1.job_service_pb2_grpc import JobServiceStub
from fluoro_jobs.redis_url import connect
from fluoro_jobs.wakeups import Publisher
from peers.pubsub import CHANNEL, METHOD
from rig.figures import latencies, quick, say
from rig.servers import servers

PACE_SECONDS: Final = 0.005
"""Between two messages to the same stream."""
WARM_UP: Final = 50
"""First messages, which are not counted."""
POLL_SECONDS: Final = 2.0
"""What a client that polls would wait between two looks."""
OWNER: Final = "bench"
"""Whose the job is: the rig's gateways serve one owner."""
GETS: Final = 200
PATIENCE_SECONDS: Final = 20
"""How long the client waits for a message: for the first one until the writer has started."""


def write(redis_url: str, job: str, messages: int) -> None:
    """The writer: both ways in turn, evenly spaced."""
    publisher, bare = Publisher(redis_url), connect(redis_url)
    progress = Progress(job=job, step="inspect", attempt=1, stage="decode")

    def stamped(number: int) -> Progress:
        progress.fraction = number / messages
        progress.time.FromNanoseconds(time.time_ns())
        return progress

    begin = time.monotonic()
    for number in range(1, messages + 1):
        _sleep_until(begin + number * PACE_SECONDS)
        publisher.progress(OWNER, stamped(number))
        _sleep_until(begin + (number + 0.5) * PACE_SECONDS)
        bare.publish(CHANNEL, stamped(number).SerializeToString())


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


async def main(messages: int) -> None:
    """Both streams are open before the writer starts."""
    with servers() as run, run.service("gateway") as gateway, run.peer("peers.pubsub") as bare:
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as ours,
            grpc.aio.insecure_channel(f"127.0.0.1:{bare.port}") as theirs,
        ):
            jobs: Any = JobServiceStub(ours)
            job = await submit(ours, jobs)
            subscribe: Any = theirs.unary_stream(METHOD)
            watching, hop = aiter(jobs.WatchJob(WatchJobRequest(name=job))), aiter(subscribe(b""))
            await anext(watching)
            await anext(hop)
            collecting = asyncio.gather(
                collect(watching, lambda response: response.progress, messages),
                collect(hop, Progress.FromString, messages),
            )
            writer = await asyncio.create_subprocess_exec(
                sys.executable, __file__, run.redis_url, job, str(messages)
            )
            await writer.wait()
            watched, hopped = await collecting
            gets = await get_seconds(jobs, job)
    report(messages - WARM_UP, watched, hopped, gets)


def report(sent: int, watched: list[float], hopped: list[float], gets: list[float]) -> None:
    """Prints."""
    say(
        "WatchJob",
        **latencies(watched),
        sent=sent,
        received=len(watched),
        pace_ms=1000 * PACE_SECONDS,
    )
    say("bare redis to grpc.aio", **latencies(hopped), sent=sent, received=len(hopped))
    get = latencies(gets)
    say(
        "polling GetJob",
        p50_ms=1000 * POLL_SECONDS * 0.5 + get["p50_ms"],
        p99_ms=1000 * POLL_SECONDS * 0.99 + get["p50_ms"],
        get_p50_ms=get["p50_ms"],
        interval_seconds=POLL_SECONDS,
        note="computed: evenly spread over the interval, plus the measured call",
    )
    say(
        "watch",
        ratio=latencies(watched)["p50_ms"] / latencies(hopped)["p50_ms"],
        **latencies(watched),
        messages=len(watched),
    )


async def submit(channel: grpc.aio.Channel, jobs: Any) -> str:
    """A job that nobody runs; its name."""
    job = Job(inputs=[await upload(channel)])
    job.steps.add(name="inspect").inspect_dicom.SetInParent()
    response = await jobs.SubmitJob(SubmitJobRequest(job=job))
    return str(response.job.name)


async def collect(
    stream: AsyncIterator[Any], parse: Callable[[Any], Progress], messages: int
) -> list[float]:
    """Age of each message once it is here and parsed, until the last, or until none comes."""
    ages: list[float] = []
    fraction = 0.0
    while fraction < 1:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                progress = parse(await anext(stream))
        except TimeoutError:
            break
        now = time.time_ns()
        fraction = progress.fraction
        if fraction * messages > WARM_UP:
            ages.append((now - progress.time.ToNanoseconds()) / 1e9)
    return ages


async def get_seconds(jobs: Any, job: str) -> list[float]:
    """What one look at the job takes, one after the other."""
    seconds = []
    for _ in range(GETS):
        started = time.perf_counter()
        await jobs.GetJob(GetJobRequest(name=job))
        seconds.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].startswith("redis://"):
        write(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        asyncio.run(main(200) if quick(__doc__) else main(4000))
