"""Does to a deployment what a plan says. Each fault mends itself: when `play` returns everything is up again, or starting."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import redis

from harness.deployment import Deployment
from harness.plan import Fault, Kind, Round

REDIS_PATIENCE_SECONDS: Final = 5
"""How long a fault that needs Redis waits for it when another fault has taken it away."""
MESSAGE_SECONDS: Final = 2
"""How long a fault waits for messages to come by."""
DRAIN_SECONDS: Final = 15
"""How long a worker may take to end on SIGTERM before it is killed."""

STOPS: Final = frozenset({Kind.LONG_STOP, Kind.SHORT_STOP})
KILLS: Final = frozenset({Kind.KILL_WORKER, Kind.KILL_WORKER_MAIN, Kind.KILL_CHILD, Kind.KILL_GATEWAY, Kind.KILL_SCHEDULER})
"""Faults that are a SIGKILL of a process of Fluoro's own."""


async def play(deployment: Deployment, plan: Round, started: float) -> None:
    """Every fault of the round at its time, in seconds of time.monotonic() since `started`; returns when the last has ended."""
    async with asyncio.TaskGroup() as group:
        for fault in plan.faults:
            group.create_task(_at(deployment, fault, started))


async def _at(deployment: Deployment, fault: Fault, started: float) -> None:
    await asyncio.sleep(max(0, started + fault.at_seconds - time.monotonic()))
    await _DOES[fault.kind](deployment, fault)


async def _kill(deployment: Deployment, fault: Fault) -> None:
    async with deployment.services[fault.target].lock:
        await asyncio.to_thread(deployment.kill, fault.target, whole=fault.kind is not Kind.KILL_WORKER_MAIN)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(deployment.start_again, fault.target)


async def _kill_child(deployment: Deployment, fault: Fault) -> None:
    async with deployment.services[fault.target].lock:
        children = deployment.pool_children(fault.target)
        if children:
            os.kill(children[fault.count % len(children)], signal.SIGKILL)


async def _stop_for_a_while(deployment: Deployment, fault: Fault) -> None:
    async with deployment.services[fault.target].lock:
        deployment.signal(fault.target, signal.SIGSTOP)
        await asyncio.sleep(fault.seconds)
        deployment.signal(fault.target, signal.SIGCONT)


async def _drain(deployment: Deployment, fault: Fault) -> None:
    service = deployment.services[fault.target]
    async with service.lock:
        service.meant = True
        await asyncio.to_thread(service.child.stop, signal.SIGTERM, DRAIN_SECONDS)
        await asyncio.to_thread(deployment.start_again, fault.target)


async def _flushall(deployment: Deployment, _fault: Fault) -> None:
    await _with_redis(deployment, lambda client: client.flushall())


async def _kill_valkey(deployment: Deployment, fault: Fault) -> None:
    async with deployment.valkey_lock:
        await asyncio.to_thread(deployment.valkey.kill)
        await asyncio.sleep(fault.seconds)
        deployment.swap_valkey(appendonly=fault.kind is Kind.KILL_VALKEY)
        await asyncio.to_thread(deployment.valkey.start)


async def _hurt_postgres(deployment: Deployment, fault: Fault) -> None:
    async with deployment.postgres_lock:
        await asyncio.to_thread(deployment.postgres.stop if fault.kind is Kind.RESTART_POSTGRES else deployment.postgres.kill)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(deployment.postgres.start)


async def _blob_outage(deployment: Deployment, fault: Fault) -> None:
    nowhere = deployment.folder / "nowhere"
    nowhere.touch()
    deployment.point_blobs_at(nowhere)
    await asyncio.sleep(fault.seconds)
    deployment.point_blobs_at(deployment.folder / "bytes")


async def _take_messages(deployment: Deployment, fault: Fault) -> None:
    """Takes messages out of a queue before a worker does; they are gone, or come back twice."""
    copies = 0 if fault.kind is Kind.DROP_MESSAGES else 2

    def take(client: "redis.Redis") -> None:
        for _ in range(fault.count):
            taken: Any = client.blpop([fault.target], timeout=MESSAGE_SECONDS)
            if taken and copies:
                client.lpush(fault.target, *[taken[1]] * copies)

    await _with_redis(deployment, take)


async def _with_redis(deployment: Deployment, act: Callable[["redis.Redis"], object]) -> None:
    deadline = time.monotonic() + REDIS_PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            with redis.Redis.from_url(deployment.valkey.url, socket_timeout=2 * MESSAGE_SECONDS) as client:
                await asyncio.to_thread(act, client)
        except redis.RedisError:  # another fault has it
            await asyncio.sleep(0.1)
        else:
            return


_DOES: Final[dict[Kind, Callable[[Deployment, Fault], Awaitable[None]]]] = {
    Kind.KILL_WORKER: _kill,
    Kind.KILL_WORKER_MAIN: _kill,
    Kind.KILL_GATEWAY: _kill,
    Kind.KILL_SCHEDULER: _kill,
    Kind.KILL_CHILD: _kill_child,
    Kind.LONG_STOP: _stop_for_a_while,
    Kind.SHORT_STOP: _stop_for_a_while,
    Kind.DRAIN_WORKER: _drain,
    Kind.FLUSHALL: _flushall,
    Kind.KILL_VALKEY: _kill_valkey,
    Kind.WIPE_VALKEY: _kill_valkey,
    Kind.RESTART_POSTGRES: _hurt_postgres,
    Kind.KILL_POSTGRES: _hurt_postgres,
    Kind.BLOB_OUTAGE: _blob_outage,
    Kind.DROP_MESSAGES: _take_messages,
    Kind.DUPLICATE_MESSAGES: _take_messages,
}
