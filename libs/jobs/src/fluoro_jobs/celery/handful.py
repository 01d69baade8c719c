"""A slot that runs short tasks takes a handful of messages at once (ADR 0033).

To fetch a message and to pass it to a pool child costs Celery more than a short task takes. The
first message is Celery's own. What it brings along comes from here, and travels as a header of the
first.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import redis
import structlog

from fluoro_jobs.celery.messages import attempt_of
from fluoro_jobs.celery.transport import is_ours
from fluoro_jobs.ledger.heartbeats import TaskAttempt
from fluoro_jobs.redis_url import connect

log = structlog.get_logger(__name__)

MORE: Final = "more"
"""The header with further attempts: [[task, number or null], ...]."""
TAKE_SECONDS: Final = 0.5
"""Longest wait for Redis's answer. Celery's main loop waits with it."""

# Half of what waits is left to the other slots, so none idles beside a slot with a handful. Length
# and pop are one script. Otherwise two workers could both count the same messages and take too
# many.
_TAKE: Final = """
local most = math.min(tonumber(ARGV[1]), math.floor(redis.call('LLEN', KEYS[1]) / ARGV[2]))
if most < 1 then return {} end
return redis.call('RPOP', KEYS[1], most)
"""


class Hand:
    """What takes further messages of a queue, for one worker process."""

    def __init__(self, redis_url: str, queue: str, slots: int) -> None:
        """Connects at the first message."""
        self._take = connect(redis_url, TAKE_SECONDS).register_script(_TAKE)
        self._queue = queue
        self._share = 2 * slots

    def take(self, most: int) -> list[tuple[str, TaskAttempt]]:
        """At most so many messages: Celery task name, and which attempt. Empty without Redis.

        Messages that are not ours are dropped.
        """
        if most < 1:
            return []
        try:
            found: Sequence[bytes] = self._take(keys=[self._queue], args=[most, self._share])
        except redis.RedisError as error:
            log.warning("redis_unavailable", exception=type(error).__qualname__)
            # Celery has already taken the first message, which runs in any case.
            return []
        return [one for one in map(_read, found or ()) if one is not None]


def attempts_of(task_id: str, headers: Mapping[str, Any]) -> list[TaskAttempt]:
    """The attempts that a request asks for, its own first."""
    more = [(UUID(task), number) for task, number in headers.get(MORE) or ()]
    return [(UUID(task_id), attempt_of(headers)), *more]


def _read(data: bytes) -> tuple[str, TaskAttempt] | None:
    try:
        message = json.loads(data)
    except ValueError:
        message = None
    if not is_ours(message):
        log.warning("foreign_message_dropped")
        return None
    headers = message["headers"]
    return str(headers.get("task")), (UUID(headers["id"]), attempt_of(headers))
