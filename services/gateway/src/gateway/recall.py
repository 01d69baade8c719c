"""Progress from before a watch began: the latest of each task, which Redis keeps.

Nobody waits for it. Watches that begin together ask for it together: a request for each would cost
more than all else that they do.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import chain
from typing import Final

import structlog
from fluoro.v1 import event_pb2
from fluoro_jobs.redis_url import RedisServer
from fluoro_jobs.wakeups import progress_key
from google.protobuf.message import DecodeError
from redis.exceptions import RedisError

from gateway.watcher import Watcher

log = structlog.get_logger(__name__)

TOGETHER: Final = 64
"""Watchers whose jobs are asked for in one go."""

RECALL_SECONDS: Final = 0.5
"""How long that may take. Without an answer these watchers start with the next progress."""


class Recall:
    """Watchers that still need the progress from before they came."""

    def __init__(self, redis_url: str) -> None:
        self._redis = RedisServer.from_url(redis_url).aio_client()
        self._waiting: deque[Watcher] = deque()
        self._asked = asyncio.Event()

    def ask(self, watcher: Watcher) -> None:
        """Gives the watcher, soon, what was the latest progress when it came."""
        self._waiting.append(watcher)
        self._asked.set()

    async def run(self) -> None:
        """Asks Redis until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            while self._waiting:
                some = [self._waiting.popleft() for _ in range(min(TOGETHER, len(self._waiting)))]
                # Not strict: without an answer from Redis there is nothing for any of them.
                for watcher, latest in zip(some, await self._latest(some), strict=False):
                    for progress in latest:
                        # Progress that came by the hub meanwhile is newer.
                        watcher.put_progress(progress, replace=False)

    async def close(self) -> None:
        """Closes the connections. Call it after `run` was cancelled."""
        await self._redis.aclose()

    async def _latest(self, watchers: Sequence[Watcher]) -> list[list[bytes]]:
        """Of each watcher's job; nothing if Redis does not answer: progress is not worth more."""
        try:
            async with asyncio.timeout(RECALL_SECONDS), self._redis.pipeline(False) as pipeline:
                for watcher in watchers:
                    pipeline.hvals(progress_key(watcher.job))
                answers = await pipeline.execute()
            for data in chain.from_iterable(answers):
                event_pb2.Progress.FromString(data)  # a caller could not read what is none
        except (RedisError, OSError, TimeoutError, DecodeError) as error:
            log.info("progress_not_recalled", exception=type(error).__qualname__)
            return []
        return answers
