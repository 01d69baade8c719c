"""Redis pub/sub: wake-ups and live progress of the owners that somebody watches here.

Redis may go and come back at any time.
"""

import asyncio
import math
from collections import Counter
from typing import Any, Final, Protocol
from uuid import UUID, uuid4

import structlog
from fluoro_jobs.redis_url import RedisServer, probe_aio
from fluoro_jobs.wakeups import shard_of, unpack, wakeups_channel
from google.protobuf.message import DecodeError
from redis.exceptions import RedisError

log = structlog.get_logger(__name__)

RECONNECT_SECONDS: Final = 0.5
"""Pause between attempts to subscribe while Redis is down."""

ECHO_SECONDS: Final = 5
"""How often the subscription sends itself a message, and how long that and connecting may take.

This finds connections that died silently, and servers that are no longer the primary.
"""


class Listener(Protocol):
    """Gets the news. All methods are called on the event loop and must be quick."""

    def woken(self, job: UUID, owner: str) -> None:
        """The job has new events in the ledger."""

    def progressed(self, job: UUID, owner: str, progress: bytes) -> None:
        """A worker wrote progress: a serialized fluoro.v1.Progress.

        google.protobuf DecodeError if it is none.
        """

    def joined(self, shard: int) -> None:
        """From now on wake-ups of the shard's owners arrive. What happened before was missed."""

    def subscribed(self, now: bool) -> None:
        """From now on wake-ups arrive, of all that were asked for so far, or they do not.

        What happened in between was missed.
        """


class Tail:
    """The process's one subscription."""

    def __init__(self, redis_url: str, listener: Listener) -> None:
        self._redis = RedisServer.from_url(redis_url).aio_client()
        self._listener = listener
        self._up = False
        self._echo = f"fluoro:echo:{uuid4()}".encode()
        self._heard = 0
        self._wanted: Counter[int] = Counter()
        self._asked: set[int] = set()
        self._missing = asyncio.Event()

    @property
    def up(self) -> bool:
        """Whether wake-ups arrive."""
        return self._up

    def watch(self, owner: str) -> None:
        """Somebody here watches the owner.

        Sends nothing by itself: those who come together are subscribed for together.
        """
        shard = shard_of(owner)
        self._wanted[shard] += 1
        if shard not in self._asked:
            self._missing.set()

    def unwatch(self, owner: str) -> None:
        """Undoes one `watch`. The subscription stays for some seconds, for whoever comes next."""
        self._wanted[shard_of(owner)] -= 1

    async def run(self) -> None:
        """Listens until cancelled; tries again whenever Redis is gone."""
        while True:
            try:
                await self._listen()
            except Exception as error:  # noqa: BLE001 - a client library in trouble must not end the listening for good
                # Once, and not at each try.
                if self._up:
                    log.warning(
                        "redis_lost",
                        exception=type(error).__qualname__,
                        meaning="watches poll the ledger until it is back",
                    )
            self._set_up(False)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def close(self) -> None:
        """Closes the connections. Call it after `run` was cancelled."""
        await self._redis.aclose()

    async def _listen(self) -> None:
        async with self._redis.pubsub(push_handler_func=_as_it_is) as pubsub:
            # A new connection has no subscriptions yet.
            self._asked = {shard for shard, watchers in self._wanted.items() if watchers}
            async with asyncio.timeout(ECHO_SECONDS):
                # The echo comes last: its confirmation is that of all.
                await pubsub.subscribe(*map(wakeups_channel, self._asked), self._echo)
            async with asyncio.timeout(None) as patience:
                others = [
                    asyncio.create_task(self._keep_echoing(pubsub, patience)),
                    asyncio.create_task(self._join(pubsub, patience)),
                ]
                try:
                    # Not `listen`: it would do for each message what nobody asks for.
                    connection: Any = pubsub.connection
                    while True:
                        self._handle(
                            *await connection.read_response(timeout=math.inf, push_request=True)
                        )
                finally:
                    for other in others:
                        other.cancel()

    def _handle(self, kind: bytes, channel: bytes, data: bytes) -> None:
        self._heard += 1
        if channel == self._echo:
            if kind == b"subscribe":
                self._set_up(True)
        elif kind == b"message":
            try:
                job, owner, progress = unpack(data)
                if progress:
                    self._listener.progressed(job, owner, progress)
                else:
                    self._listener.woken(job, owner)
            except (DecodeError, ValueError) as error:
                log.warning(
                    "wakeup_unreadable",
                    channel=channel.decode(),
                    exception=type(error).__qualname__,
                )
        # Until the echo is subscribed to, `subscribed` will announce all of them at once.
        elif kind == b"subscribe" and self._up:
            self._listener.joined(int(channel.rpartition(b":")[2]))

    async def _join(self, pubsub: Any, patience: asyncio.Timeout) -> None:
        """Subscribes to what is asked for meanwhile."""
        while True:
            await self._missing.wait()
            self._missing.clear()
            more = {shard for shard, watchers in self._wanted.items() if watchers} - self._asked
            if more:
                self._asked |= more
                await self._or_end(pubsub.subscribe(*map(wakeups_channel, more)), patience)

    async def _keep_echoing(self, pubsub: Any, patience: asyncio.Timeout) -> None:
        """Ends the listening when what is published does not arrive.

        Leaves the shards that nobody watches any more.
        """
        loop = asyncio.get_running_loop()
        while True:
            heard = self._heard
            await self._or_end(self._publish_echo(), patience)
            await asyncio.sleep(ECHO_SECONDS)
            # Whatever arrived is a sign of life, not only the echo. Nothing arrived, not even our
            # own echo: the connection is dead or leads to a replica.
            if self._heard == heard:
                patience.reschedule(loop.time())
            if left := {shard for shard in self._asked if not self._wanted[shard]}:
                self._asked -= left
                await self._or_end(pubsub.unsubscribe(*map(wakeups_channel, left)), patience)

    async def _publish_echo(self) -> None:
        # A replica would pass the echo on. Only a write shows that this is the primary.
        await probe_aio(self._redis)
        await self._redis.publish(self._echo, b"")

    async def _or_end(self, call: Any, patience: asyncio.Timeout) -> None:
        """Awaits the call; the listening ends if it fails or takes too long."""
        try:
            async with asyncio.timeout(ECHO_SECONDS):
                await call
        except (RedisError, OSError, TimeoutError) as error:
            log.info("subscription_ended", exception=type(error).__qualname__)
            patience.reschedule(asyncio.get_running_loop().time())

    def _set_up(self, up: bool) -> None:
        if up != self._up:
            self._up = up
            self._listener.subscribed(up)


async def _as_it_is(message: Any) -> Any:
    """As the client library's own handler, which also formats each message for an unread log."""
    return message
