"""Redis pub/sub: wake-ups and live progress of every job. Redis may go and come back at any time."""

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol
from uuid import UUID

import structlog
from fluoro.v1 import event_pb2
from fluoro_jobs.redis_url import RedisServer
from fluoro_jobs.wakeups import EVENTS_CHANNEL, PROGRESS_CHANNEL, progress_key
from google.protobuf.message import DecodeError
from redis.exceptions import RedisError

log = structlog.get_logger(__name__)

RECONNECT_SECONDS: Final = 0.5
"""Pause between attempts to subscribe while Redis is down."""

PING_SECONDS: Final = 5
"""How often the subscription is pinged, and how long an answer may take: finds connections that died without a word."""

RECALL_SECONDS: Final = 0.5
"""How long a new watcher waits for the progress of before; without an answer it starts with the next one."""


class Listener(Protocol):
    """Who is told. All three are called on the event loop and must be quick."""

    def woken(self, job: UUID) -> None:
        """The job has new events in the ledger."""

    def progressed(self, progress: event_pb2.Progress) -> None:
        """A worker wrote progress."""

    def subscribed(self, now: bool) -> None:
        """From now on wake-ups arrive, or they do not. What happened in between was missed."""


class Tail:
    """The process's one subscription."""

    def __init__(self, redis_url: str, listener: Listener) -> None:
        self._redis = RedisServer.from_url(redis_url).aio_client()
        self._listener = listener
        self._up = False
        self._heard = 0.0
        self._hear: dict[bytes, Callable[[bytes], None]] = {
            EVENTS_CHANNEL.encode(): lambda data: listener.woken(UUID(bytes=data)),
            PROGRESS_CHANNEL.encode(): lambda data: listener.progressed(event_pb2.Progress.FromString(data)),
        }

    @property
    def up(self) -> bool:
        """Whether wake-ups arrive."""
        return self._up

    async def run(self) -> None:
        """Listens until cancelled; tries again whenever Redis is gone."""
        while True:
            try:
                await self._listen()
            except Exception as error:  # noqa: BLE001 - a client library in trouble must not end the listening for good
                if self._up:
                    log.warning("redis_lost", exception=type(error).__qualname__, meaning="watches poll the ledger until it is back")
            self._set_up(False)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def progress_of(self, job: UUID) -> list[event_pb2.Progress]:
        """Latest progress of each task of a job; nothing while Redis is down, because progress is not worth waiting for."""
        if not self._up:
            return []
        try:
            async with asyncio.timeout(RECALL_SECONDS):
                latest = await self._redis.hvals(progress_key(job))
            return [event_pb2.Progress.FromString(data) for data in latest if isinstance(data, bytes)]
        except (RedisError, OSError, TimeoutError, DecodeError) as error:
            log.info("progress_not_recalled", exception=type(error).__qualname__)
            return []

    async def close(self) -> None:
        """Closes the connections. Call it after `run` was cancelled."""
        await self._redis.aclose()

    async def _listen(self) -> None:
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(*self._hear)
            async with asyncio.timeout(None) as patience:
                pinger = asyncio.create_task(self._ping(pubsub, patience))
                try:
                    async for message in pubsub.listen():
                        self._handle(message)
                finally:
                    pinger.cancel()

    def _handle(self, message: dict[str, Any]) -> None:
        self._heard = asyncio.get_running_loop().time()
        if message["type"] == "message":
            try:
                self._hear[message["channel"]](message["data"])
            except (DecodeError, ValueError) as error:
                log.warning("wakeup_unreadable", channel=message["channel"].decode(), exception=type(error).__qualname__)
        elif message["type"] == "subscribe" and message["data"] == len(self._hear):
            self._set_up(True)

    async def _ping(self, pubsub: Any, patience: asyncio.Timeout) -> None:
        """Ends the listening when a whole round went by without an answer."""
        loop = asyncio.get_running_loop()
        while True:
            asked = loop.time()
            await pubsub.ping()
            await asyncio.sleep(PING_SECONDS)
            if self._heard < asked:
                patience.reschedule(loop.time())

    def _set_up(self, up: bool) -> None:
        if up != self._up:
            self._up = up
            self._listener.subscribed(up)
