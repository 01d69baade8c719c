"""Submits per second that are answered in time when more come than the gateway can take.

First a closed loop of callers finds what the gateway takes. Then an open loop sends submits at one,
two and four times that rate, whether or not they are answered. An answer counts if it is there
within a second. No workers run. Last line: `ratio` = the worst goodput / the best.
"""

import asyncio
import statistics
from collections.abc import Sequence
from typing import Any, Final
from uuid import uuid4

import grpc.aio
from accept import upload
from fluoro.v1 import job_pb2, job_service_pb2
from rig.figures import latencies, quick, say
from rig.flood import Connection, Seen, closed_loop, flood, headers
from rig.servers import Process, cpu_seconds, servers

CONNECTIONS: Final = 8
IN_FLIGHT: Final = 256
"""Callers of the closed loop; more do not make it faster."""
LOADS: Final = (1, 2, 4)
IN_TIME_SECONDS: Final = 1
RATE: Final = 1e6
"""Limits of the owner that are looked at and never met."""


async def main(rounds: int, seconds: float) -> None:
    """Rounds of all loads in turn, figures at the end."""
    with (
        servers() as run,
        run.service("gateway", owner_calls_per_second=RATE, owner_jobs_per_second=RATE) as gateway,
    ):
        connections = await connect(gateway.port)
        await closed_loop(connections, IN_FLIGHT, seconds / 2)
        taken = await closed_loop(connections, IN_FLIGHT, seconds)
        capacity = len(taken.seconds) / seconds
        say("capacity", per_second=capacity, in_flight=IN_FLIGHT, **latencies(taken.seconds))
        goodput: dict[int, list[float]] = {load: [] for load in LOADS}
        for _ in range(rounds):
            for load in LOADS:
                cpu = cpu_seconds(gateway.child.pid)[0]
                seen = await flood(connections, load * capacity, seconds, 2 * IN_TIME_SECONDS)
                goodput[load].append(told(load, seen, seconds, gateway, cpu))
        for each in connections:
            each.close()
    good = {load: statistics.median(each) for load, each in goodput.items()}
    say(
        "overload",
        ratio=min(good.values()) / max(good.values()),
        capacity=capacity,
        **{f"goodput_{load}x": rate for load, rate in good.items()},
        rounds=rounds,
    )


def told(load: int, seen: Seen, seconds: float, gateway: Process, cpu: float) -> float:
    """Prints a round; answers in time, a second."""
    good = sum(took <= IN_TIME_SECONDS for took in seen.seconds) / seconds
    say(
        f"{load}x",
        sent_per_second=seen.sent / seconds,
        goodput=good,
        late=sum(took > IN_TIME_SECONDS for took in seen.seconds),
        refused=seen.refused,
        not_sent_or_cut=seen.cut,
        cpu_share=(cpu_seconds(gateway.child.pid)[0] - cpu) / seconds,
        **(latencies(seen.seconds) if seen.seconds else {}),
    )
    return good


async def connect(port: int) -> Sequence[Connection]:
    """Connections whose calls are submits; every call is a new job."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        job = job_pb2.Job(inputs=[await upload(channel)], labels={"study": "benchmark"})
    job.steps.add(name="inspect").inspect_dicom.SetInParent()

    def message() -> bytes:
        request = job_service_pb2.SubmitJobRequest(job=job, request_id=str(uuid4()))
        return request.SerializeToString()

    block = headers("/fluoro.v1.JobService/SubmitJob", timeout=f"{2 * IN_TIME_SECONDS}S")
    loop = asyncio.get_running_loop()

    async def one() -> Any:
        made = await loop.create_connection(lambda: Connection(block, message), "127.0.0.1", port)
        return made[1]

    return [await one() for _ in range(CONNECTIONS)]


if __name__ == "__main__":
    asyncio.run(main(1, 0.6) if quick(__doc__) else main(2, 4))
