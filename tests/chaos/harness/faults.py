"""Does to a deployment what a plan says.

Each fault mends itself: when `play` returns everything is up again, or starting.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import redis
from fluoro_local.replication import fence

from harness.deployment import Deployment
from harness.plan import Fault, Kind, Round, Store
from harness.proxy import Proxy

REDIS_PATIENCE_SECONDS: Final = 5
"""How long a fault that needs Redis waits for it when another fault has taken it away."""
MESSAGE_SECONDS: Final = 2
"""How long a fault waits for messages to come by."""
DRAIN_SECONDS: Final = 15
"""How long a worker may take to end on SIGTERM before it is killed."""

RESET_EVERY_SECONDS: Final = 0.3
NOBODY: Final = 9
"""A port that nobody listens on: what a Valkey is a replica of that has lost its primary."""

DEAFENS: Final = frozenset(
    {
        Kind.FREEZE,
        Kind.SHORT_STOP,
        Kind.STOPPED,
        Kind.DEAF,
        Kind.HALF_OPEN,
        Kind.SLOW,
        Kind.RESET,
        Kind.READ_ONLY,
    }
)
"""Faults that keep a worker from hearing of a cancel while they befall it or the ledger."""
KILLS: Final = frozenset(
    {
        Kind.KILL_WORKER,
        Kind.KILL_WORKER_MAIN,
        Kind.KILL_CHILD,
        Kind.KILL_GATEWAY,
        Kind.KILL_SCHEDULER,
    }
)
"""Faults that are a SIGKILL of a process of Fluoro's own."""


@dataclass(frozen=True, slots=True)
class Done:
    """A fault that is over, and when it began and ended, in seconds of time.monotonic()."""

    fault: Fault
    began: float
    ended: float


async def play(deployment: Deployment, plan: Round, started: float) -> list[Done]:
    """Every fault of the round at its time; returns when the last one has ended.

    started: by time.monotonic().
    """
    return await asyncio.gather(*(_at(deployment, fault, started) for fault in plan.faults))


async def _at(deployment: Deployment, fault: Fault, started: float) -> Done:
    await asyncio.sleep(max(0, started + fault.at_seconds - time.monotonic()))
    began = time.monotonic()
    await _DOES[fault.kind](deployment, fault)
    return Done(fault, began, time.monotonic())


async def _kill(deployment: Deployment, fault: Fault) -> None:
    async with deployment.services[fault.target].lock:
        await asyncio.to_thread(
            deployment.kill, fault.target, whole=fault.kind is not Kind.KILL_WORKER_MAIN
        )
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(deployment.start_again, fault.target)


async def _kill_child(deployment: Deployment, fault: Fault) -> None:
    async with deployment.services[fault.target].lock:
        children = deployment.pool_children(fault.target)
        if children:
            child = children[fault.count % len(children)]
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                # Not one of the pool, but what cleans up after it: without that the pool makes no
                # more children, and the worker ends.
                if b"semaphore_tracker" in await asyncio.to_thread(
                    Path(f"/proc/{child}/cmdline").read_bytes
                ):
                    deployment.services[fault.target].excused = True
                os.kill(child, signal.SIGKILL)


async def _stop_for_a_while(deployment: Deployment, fault: Fault) -> None:
    async with deployment.services[fault.target].lock:
        deployment.send(fault.target, signal.SIGSTOP)
        await asyncio.sleep(fault.seconds)
        deployment.send(fault.target, signal.SIGCONT)


async def _drain(deployment: Deployment, fault: Fault) -> None:
    service = deployment.services[fault.target]
    async with service.lock:
        service.meant = True
        await asyncio.to_thread(service.child.stop, signal.SIGTERM, DRAIN_SECONDS)
        await asyncio.to_thread(deployment.start_again, fault.target)


async def _wrong_clock(deployment: Deployment, fault: Fault) -> None:
    async with deployment.services[fault.target].lock:
        for offset in (fault.amount, 0):
            deployment.services[fault.target].meant = True
            await asyncio.to_thread(
                deployment.services[fault.target].child.stop, signal.SIGTERM, DRAIN_SECONDS
            )
            await asyncio.to_thread(deployment.start_again, fault.target, offset)
            await asyncio.sleep(fault.seconds if offset else 0)


async def _flushall(deployment: Deployment, _fault: Fault) -> None:
    await _with_redis(deployment, lambda client: client.flushall())


async def _take_messages(deployment: Deployment, fault: Fault) -> None:
    """Takes messages out of a queue before a worker does; they are gone, or come back twice."""
    copies = 0 if fault.kind is Kind.DROP_MESSAGES else 2

    def take(client: "redis.Redis") -> None:
        for _ in range(fault.count):
            taken: Any = client.blpop([fault.target], timeout=MESSAGE_SECONDS)
            if taken and copies:
                client.lpush(fault.target, *[taken[1]] * copies)

    await _with_redis(deployment, take)


async def _with_redis(deployment: Deployment, act: Callable[["redis.Redis"], object]) -> bool:
    """Whether it was done."""
    deadline = time.monotonic() + REDIS_PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            with redis.Redis.from_url(
                deployment.valkey.url, socket_timeout=2 * MESSAGE_SECONDS
            ) as client:
                await asyncio.to_thread(act, client)
        except redis.RedisError:  # another fault has it
            await asyncio.sleep(0.1)
        else:
            return True
    return False


async def _hurt_store(deployment: Deployment, fault: Fault) -> None:
    """Lets a store fail in one manner for a while."""
    store = Store(fault.target)
    async with deployment.locks[store], MANNERS[store, fault.kind](deployment, fault):
        await asyncio.sleep(fault.seconds)


async def _network(deployment: Deployment, fault: Fault, act: Callable[[Proxy], None]) -> None:
    for proxy in deployment.proxies[Store(fault.target)]:
        await asyncio.to_thread(act, proxy)


@asynccontextmanager
async def _killed(deployment: Deployment, fault: Fault) -> AsyncIterator[None]:
    server = deployment.valkey if fault.target == Store.VALKEY else deployment.postgres
    await asyncio.to_thread(server.stop if fault.kind is Kind.RESTARTED else server.kill)
    await _network(deployment, fault, Proxy.refuse)
    yield
    if fault.target == Store.VALKEY:
        deployment.swap_valkey(appendonly=fault.kind is Kind.KILLED)
        server = deployment.valkey
    await asyncio.to_thread(server.start)
    await _network(deployment, fault, Proxy.mend)


@asynccontextmanager
async def _failed_over(deployment: Deployment, _fault: Fault) -> AsyncIterator[None]:
    """Makes a synchronous standby first, so that it has all that was acknowledged."""
    await asyncio.to_thread(deployment.pair.rebuild)
    await asyncio.to_thread(fence, deployment.postgres)
    yield
    await asyncio.to_thread(deployment.pair.fail_over)


@asynccontextmanager
async def _stopped(deployment: Deployment, fault: Fault) -> AsyncIterator[None]:
    """Every process of the server, or the one alone that takes connections."""
    deployment.send_store(Store(fault.target), signal.SIGSTOP, whole=fault.kind is Kind.STOPPED)
    yield
    deployment.send_store(Store(fault.target), signal.SIGCONT)


@asynccontextmanager
async def _half_open(deployment: Deployment, fault: Fault) -> AsyncIterator[None]:
    await _network(deployment, fault, Proxy.half_open)
    yield
    await _network(deployment, fault, Proxy.mend)


@asynccontextmanager
async def _slow(deployment: Deployment, fault: Fault) -> AsyncIterator[None]:
    await _network(deployment, fault, lambda proxy: proxy.delay(fault.amount))
    yield
    await _network(deployment, fault, Proxy.mend)


@asynccontextmanager
async def _reset(deployment: Deployment, fault: Fault) -> AsyncIterator[None]:
    async def again_and_again() -> None:
        while True:
            await _network(deployment, fault, Proxy.reset)
            await asyncio.sleep(RESET_EVERY_SECONDS)

    resets = asyncio.create_task(again_and_again())
    yield
    resets.cancel()
    await asyncio.wait([resets])


@asynccontextmanager
async def _read_only_postgres(deployment: Deployment, _fault: Fault) -> AsyncIterator[None]:
    def let(change: str) -> None:
        with psycopg.connect(deployment.postgres.url, autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM {change}".encode())
            connection.execute("SELECT pg_reload_conf()")

    await asyncio.to_thread(let, "SET default_transaction_read_only = on")
    yield
    await asyncio.to_thread(let, "RESET default_transaction_read_only")


@asynccontextmanager
async def _replica(deployment: Deployment, _fault: Fault) -> AsyncIterator[None]:
    await _with_redis(deployment, lambda client: client.replicaof("127.0.0.1", NOBODY))
    yield
    assert await _with_redis(deployment, lambda client: client.replicaof("NO", "ONE"))


@asynccontextmanager
async def _full_valkey(deployment: Deployment, _fault: Fault) -> AsyncIterator[None]:
    await _with_redis(deployment, lambda client: client.config_set("maxmemory", 1))
    yield
    assert await _with_redis(deployment, lambda client: client.config_set("maxmemory", 0))


@asynccontextmanager
async def _blobs_away(deployment: Deployment, _fault: Fault) -> AsyncIterator[None]:
    nowhere = deployment.folder / "nowhere"
    nowhere.touch()
    deployment.point_blobs_at(nowhere)
    yield
    deployment.point_blobs_at(deployment.disk.folder)


@asynccontextmanager
async def _hurt_disk(deployment: Deployment, fault: Fault) -> AsyncIterator[None]:
    """The disk below the blobs is full or read-only. Where that cannot be, the blobs are away."""
    disk = deployment.disk
    hurt, mend = (
        (disk.fill, disk.empty)
        if fault.kind is Kind.FULL
        else (disk.make_read_only, disk.make_writable)
    )
    try:
        await asyncio.to_thread(hurt)
    except OSError:  # somebody was stopped while writing
        async with _blobs_away(deployment, fault):
            yield
    else:
        yield
        await asyncio.to_thread(mend)


MANNERS: Final = {
    (Store.POSTGRES, Kind.KILLED): _killed,
    (Store.POSTGRES, Kind.RESTARTED): _killed,
    (Store.POSTGRES, Kind.STOPPED): _stopped,
    (Store.POSTGRES, Kind.DEAF): _stopped,
    (Store.POSTGRES, Kind.HALF_OPEN): _half_open,
    (Store.POSTGRES, Kind.SLOW): _slow,
    (Store.POSTGRES, Kind.RESET): _reset,
    (Store.POSTGRES, Kind.READ_ONLY): _read_only_postgres,
    (Store.POSTGRES, Kind.FAILED_OVER): _failed_over,
    (Store.VALKEY, Kind.KILLED): _killed,
    (Store.VALKEY, Kind.WIPED): _killed,
    (Store.VALKEY, Kind.STOPPED): _stopped,
    (Store.VALKEY, Kind.HALF_OPEN): _half_open,
    (Store.VALKEY, Kind.SLOW): _slow,
    (Store.VALKEY, Kind.RESET): _reset,
    (Store.VALKEY, Kind.READ_ONLY): _replica,
    (Store.VALKEY, Kind.FULL): _full_valkey,
    (Store.BLOBS, Kind.AWAY): _blobs_away,
    (Store.BLOBS, Kind.READ_ONLY): _hurt_disk,
    (Store.BLOBS, Kind.FULL): _hurt_disk,
}
"""What each row of `STORE_FAULTS` is: entered when the fault begins, left when it ends."""

_DOES: Final[dict[Kind, Callable[[Deployment, Fault], Awaitable[None]]]] = {
    Kind.KILL_WORKER: _kill,
    Kind.KILL_WORKER_MAIN: _kill,
    Kind.KILL_GATEWAY: _kill,
    Kind.KILL_SCHEDULER: _kill,
    Kind.KILL_CHILD: _kill_child,
    Kind.FREEZE: _stop_for_a_while,
    Kind.SHORT_STOP: _stop_for_a_while,
    Kind.DRAIN_WORKER: _drain,
    Kind.WRONG_CLOCK: _wrong_clock,
    Kind.FLUSHALL: _flushall,
    Kind.DROP_MESSAGES: _take_messages,
    Kind.DUPLICATE_MESSAGES: _take_messages,
    **{kind: _hurt_store for _, kind in MANNERS},
}
