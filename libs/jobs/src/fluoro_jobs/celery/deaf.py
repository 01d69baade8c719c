"""Notices that Celery takes no more messages, or frees a slot no more, although it is connected."""

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import redis

from fluoro_jobs.redis_url import connect

ASK_SECONDS: Final = 0.5
"""Longest wait for Redis's answer. A heartbeat waits with it."""


class DeafWatch:
    """Looks at the message that a queue would hand out next.

    Celery has been seen to stay connected to Redis and to fetch nothing more. A worker that hears
    takes a message within milliseconds of a slot becoming free.
    """

    def __init__(
        self, redis_url: str, queue: str, after_seconds: float, on_deaf: Callable[[], None]
    ) -> None:
        """on_deaf: called at each look once one message has waited this long beside a free slot."""
        # A hanging Redis delays a heartbeat by this much at most.
        self._redis = connect(redis_url, timeout_seconds=ASK_SECONDS)
        self._queue = queue
        self._after_seconds = after_seconds
        self._on_deaf = on_deaf
        self._next_message: Any = None
        self._since = 0.0

    def look(self, *, has_free_slot: bool) -> None:
        """To be called every few seconds."""
        try:
            following = self._redis.lindex(self._queue, -1) if has_free_slot else None
        except redis.RedisError:
            # No worker can fetch anything while Redis is away.
            following = None
        now = time.monotonic()
        # A queue that moves shows another message each time. One that stays beside a free slot is
        # one that this worker does not hear of.
        if following is None or following != self._next_message:
            self._next_message, self._since = following, now
        elif now - self._since > self._after_seconds:
            self._on_deaf()


class SlotWatch:
    """Looks at requests whose attempts are over, but whose slots Celery has not freed.

    A slot that stays like that runs nothing ever again, and the worker looks alive.
    """

    def __init__(self, after_seconds: float, on_stuck: Callable[[], None]) -> None:
        """on_stuck: called at each look once a slot has stayed like that for this long."""
        self._after_seconds = after_seconds
        self._on_stuck = on_stuck
        self._since: dict[str, float] = {}

    def look(self, over: Iterable[str]) -> None:
        """To be called every few seconds. over: the ids of such requests."""
        now = time.monotonic()
        # Requests that are no longer over drop out here, so a freed slot starts from zero the next
        # time.
        self._since = {request: self._since.get(request, now) for request in over}
        if any(now - since > self._after_seconds for since in self._since.values()):
            self._on_stuck()
