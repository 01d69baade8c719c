"""Submits per second that are answered in time when more come than the gateway can take.

First a closed loop of callers finds what the gateway takes. Then an open loop sends submits at one,
two and four times that rate, whether or not they are answered. An answer counts if it is there
within a second. Beside it another owner makes a few calls, over its own connection. No workers run.
Callers make nothing of refusals, nor of how many streams a connection may have.
Last line: `ratio` = goodput at twice the load / the best; `worst` the same of the worst.
"""

import asyncio
import math
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
BURST, BURST_SECONDS = 2000, 0.2
"""Calls that come at once, when nothing else does."""
OTHERS_PER_SECOND: Final = 40
"""Calls of the other owner: few beside what the gateway can take."""
RATE: Final = 1e6
"""Limits of the owner that are looked at and never met."""


async def main(rounds: int, seconds: float) -> None:
    """Rounds of all loads in turn, figures at the end."""
    with (
        servers() as run,
        run.service("gateway", owner_calls_per_second=RATE, owner_jobs_per_second=RATE) as gateway,
    ):
        connections = await connect(gateway.port, "bench", CONNECTIONS)
        other = await connect(gateway.port, "other", 1)
        await closed_loop(connections, IN_FLIGHT, seconds / 2)
        taken = await closed_loop(connections, IN_FLIGHT, seconds)
        capacity = len(taken.seconds) / seconds
        say("capacity", per_second=capacity, in_flight=IN_FLIGHT, **latencies(taken.seconds))
        goodput: dict[int, list[float]] = {load: [] for load in LOADS}
        others: dict[str, Seen] = {}

        async def beside(name: str, per_second: float, flood_seconds: float) -> Seen:
            seen, other_seen = await asyncio.gather(
                flood(connections, per_second, flood_seconds, 2 * IN_TIME_SECONDS),
                flood(other, OTHERS_PER_SECOND, seconds, 2 * IN_TIME_SECONDS),
            )
            others.setdefault(name, Seen()).add(other_seen)
            return seen

        for _ in range(rounds):
            for load in LOADS:
                cpu = cpu_seconds(gateway.child.pid)[0]
                seen = await beside(f"{load}x", load * capacity, seconds)
                goodput[load].append(told(load, seen, seconds, gateway, cpu))
            await beside("burst", BURST / BURST_SECONDS, BURST_SECONDS)
        for each in (*connections, *other):
            each.close()
    good = {load: statistics.median(each) for load, each in goodput.items()}
    for name, seen in others.items():
        say(
            f"the other owner beside {name}",
            refused_share=seen.refused / seen.sent,
            **latencies(seen.seconds or [math.inf]),
        )
    say(
        "overload",
        ratio=good[2] / max(good.values()),
        worst=min(good.values()) / max(good.values()),
        other_refused=sum(seen.refused for seen in others.values()),
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


async def connect(port: int, owner: str, count: int) -> Sequence[Connection]:
    """Connections whose calls are submits of the owner; every call is a new job."""
    metadata = (("fluoro-owner", owner),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        blob = await upload(channel, metadata)
    job = job_pb2.Job(inputs=[blob], labels={"study": "benchmark"})
    job.steps.add(name="inspect").inspect_dicom.SetInParent()

    def message() -> bytes:
        request = job_service_pb2.SubmitJobRequest(job=job, request_id=str(uuid4()))
        return request.SerializeToString()

    path, timeout = "/fluoro.v1.JobService/SubmitJob", f"{2 * IN_TIME_SECONDS}S"
    block = headers(path, timeout=timeout, metadata=metadata)
    loop = asyncio.get_running_loop()

    async def one() -> Any:
        made = await loop.create_connection(lambda: Connection(block, message), "127.0.0.1", port)
        return made[1]

    return [await one() for _ in range(count)]


if __name__ == "__main__":
    asyncio.run(main(1, 0.6) if quick(__doc__) else main(2, 4))
