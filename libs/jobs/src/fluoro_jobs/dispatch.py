"""The one door from the ledger to Redis: which tasks go to their queue next, and their messages.

A crash between the COMMIT and the publish costs latency, never a job: `reconcile` finds what Redis
does not hold.
"""

import threading
import time
from collections.abc import Iterable
from typing import Final

import redis
import structlog
from fluoro_telemetry import metrics

from fluoro_jobs.celery import Message, NotSentError, Sender, held_by_redis
from fluoro_jobs.errors import FluoroError
from fluoro_jobs.ledger.connection import Ledger, LedgerConnection
from fluoro_jobs.operations import QUEUES
from fluoro_jobs.redis_url import Breaker, connect

log = structlog.get_logger(__name__)

WINDOW_SECONDS: Final = 0.5
"""A queue holds this much work for each slot, but two tasks at least: short tasks do not starve the slots, and of long ones few are out of
the ledger's hands, so that order is decided late."""
MAX_WINDOW_TASKS: Final = 100
"""Most tasks a queue holds for each slot, however short they are."""
MAX_CANDIDATES: Final = 20_000
"""Most ready tasks of a queue that one dispatch chooses from, shared by their owners; what still fits then, the next one takes. It bounds
what a dispatch costs, however many wait: one that takes longer than a statement may would never happen."""
LOST_AFTER_SECONDS: Final = 5
"""A task queued this long ago whose message Redis does not hold is published again.

From receipt to claim a worker takes milliseconds.
"""

MAX_PROMOTED: Final = 5000
"""Most tasks that one dispatch makes READY because their time has come."""
MIN_PAUSE_SECONDS: Final = 0.005
MAX_PAUSE_SECONDS: Final = 0.1
PAUSE_FACTOR: Final = 20
"""After a dispatch, this many times as long as it took: what becomes free or ready meanwhile goes together."""

_PROMOTE: Final = f"""
UPDATE open_tasks SET state = 'READY', dispatch_order = order_time - priority * interval '1 minute' WHERE task_id IN (
  SELECT task_id FROM open_tasks
  WHERE dispatch_order IS NULL AND queued_time IS NULL AND due_time <= now() AND queue = ANY(%(queues)s)
  ORDER BY due_time LIMIT {MAX_PROMOTED} FOR UPDATE SKIP LOCKED)
"""
_DISPATCH: Final = f"""
WITH RECURSIVE open AS (
  SELECT q.queue, coalesce(sum(w.slots * least({MAX_WINDOW_TASKS}, greatest(2, ceil({WINDOW_SECONDS} / nullif(w.task_seconds, 0))))), 0)
    - (SELECT count(*) FROM open_tasks t WHERE t.queue = q.queue AND t.queued_time IS NOT NULL AND t.state = 'QUEUED') AS places
  FROM unnest(%(queues)s::text[]) q(queue) LEFT JOIN workers w ON w.queue = q.queue AND w.expire_time > now()
  GROUP BY q.queue
), owners_ AS (  -- the owners with ready tasks, by jumps along the index rather than a walk over every task
  SELECT o.queue, o.places, (SELECT min(t.owner) FROM open_tasks t WHERE t.queue = o.queue AND t.dispatch_order IS NOT NULL) AS owner
  FROM open o WHERE o.places > 0
  UNION ALL
  SELECT o.queue, o.places, (
    SELECT min(t.owner) FROM open_tasks t WHERE t.queue = o.queue AND t.dispatch_order IS NOT NULL AND t.owner > o.owner)
  FROM owners_ o WHERE o.owner IS NOT NULL
), shares AS (  -- what each owner has in flight here, and how many more its limit allows over all queues
  SELECT o.queue, o.places, o.owner, least(o.places, greatest(1, {MAX_CANDIDATES} / count(*) OVER (PARTITION BY o.queue))) AS most, (
    SELECT count(*) FROM open_tasks f WHERE f.queue = o.queue AND f.owner = o.owner AND f.queued_time IS NOT NULL) AS in_flight,
    l.max_tasks - (
      SELECT count(*) FROM open_tasks f
      WHERE l.max_tasks IS NOT NULL AND f.queue = ANY(%(all_queues)s) AND f.owner = o.owner AND f.queued_time IS NOT NULL) AS allowed
  FROM owners_ o LEFT JOIN owners l ON l.owner = o.owner WHERE o.owner IS NOT NULL
), candidates AS (
  SELECT c.task_id, s.queue, s.places, s.allowed, c.dispatch_order, c.nth + s.in_flight AS rank,
    row_number() OVER (PARTITION BY s.owner ORDER BY c.dispatch_order) AS of_owner
  FROM shares s CROSS JOIN LATERAL (
    SELECT t.task_id, t.dispatch_order, row_number() OVER (ORDER BY t.dispatch_order) AS nth FROM (
      SELECT t.task_id, t.dispatch_order FROM open_tasks t
      WHERE t.queue = s.queue AND t.dispatch_order IS NOT NULL AND t.owner = s.owner
      ORDER BY t.dispatch_order LIMIT s.most) t
  ) c
), ranked AS (  -- fair share: an owner's n-th task competes as the (in flight + n)-th; of one rank the older goes first
  SELECT c.task_id, c.places, row_number() OVER (PARTITION BY c.queue ORDER BY c.rank, c.dispatch_order) AS place
  FROM candidates c WHERE c.allowed IS NULL OR c.of_owner <= c.allowed
)
UPDATE open_tasks SET state = 'QUEUED', queued_time = now(), dispatch_order = NULL WHERE task_id IN (
  SELECT t.task_id FROM open_tasks t JOIN ranked r ON r.task_id = t.task_id AND r.place <= r.places
  WHERE t.state = 'READY' FOR UPDATE OF t SKIP LOCKED)
RETURNING task_id, task_name, queue, attempt + 1
"""

_QUEUED: Final = f"""
SELECT task_id, task_name, queue, attempt + 1 FROM open_tasks
WHERE state = 'QUEUED' AND queue = ANY(%s) AND queued_time < now() - interval '{LOST_AFTER_SECONDS} s'
"""
_QUEUED_AGAIN: Final = (
    "UPDATE open_tasks SET queued_time = now() WHERE task_id = ANY(%s) AND state = 'QUEUED'"
)


def take(connection: LedgerConnection, queues: Iterable[str] = QUEUES) -> list[Message]:
    """READY → QUEUED, up to each queue's open window, by fair share and priority with ageing.

    What waited for its time is READY first, if that has come.
    """
    parameters = {"queues": list(queues), "all_queues": list(QUEUES)}
    with connection.pipeline():
        connection.execute(_PROMOTE, parameters)
        return connection.execute(_DISPATCH, parameters).fetchall()


class Dispatcher(threading.Thread):
    """Dispatches when woken; calls in between run together. Harmless to have in every process."""

    def __init__(
        self,
        ledger: Ledger,
        redis_url: str,
        queues: Iterable[str] = QUEUES,
        *,
        every_seconds: float | None = None,
    ) -> None:
        """every_seconds: also without being woken; None for never."""
        super().__init__(name="dispatcher", daemon=True)
        self._ledger = ledger
        self._queues = tuple(queues)
        self._sender = Sender(redis_url)
        self._redis = connect(redis_url)
        self._breaker = Breaker(redis_url)
        self._every = every_seconds
        self._woken = threading.Event()
        self._closing = threading.Event()

    def wake(self) -> None:
        """There may be something to dispatch. Never blocks."""
        self._woken.set()

    def close(self) -> None:
        """Ends the thread after what it is doing."""
        self._closing.set()
        self._woken.set()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        """Dispatches until closed."""
        while not self._closing.is_set():
            self._woken.wait(self._every)
            self._woken.clear()
            try:
                started = time.monotonic()
                self.dispatch()
                pause = PAUSE_FACTOR * (time.monotonic() - started)
                self._closing.wait(min(max(pause, MIN_PAUSE_SECONDS), MAX_PAUSE_SECONDS))
            except FluoroError as error:
                log.warning("dispatch_waits", reason=error.reason)
            except (
                Exception
            ):  # a thread that ended here would leave all dispatch to others, and nobody would know
                log.exception("dispatch_failed")
                self._closing.wait(1)

    def dispatch(self) -> int:
        """Moves what fits to the queues; how many tasks that were.

        Nothing while Redis is away: what is READY stays so, in order.

        FluoroError LEDGER_UNAVAILABLE if the ledger is.
        """
        if not self._breaker.admits():
            return 0
        with self._ledger.connection() as connection:
            messages = take(connection, self._queues)
        return self._publish(messages) if messages else 0

    def reconcile(self) -> int:
        """Publishes again what the ledger calls queued and no queue holds: after a wipe, or the death of a worker that had taken it."""
        if not self._breaker.admits():
            return 0
        with self._ledger.connection() as connection:
            queued = connection.execute(_QUEUED, (list(self._queues),)).fetchall()
        if not queued:
            return 0
        try:
            held = held_by_redis(self._redis, self._queues)
        except redis.RedisError as error:
            self._breaker.failed()
            log.warning("redis_unavailable", exception=type(error).__qualname__)
            return 0
        except TimeoutError:
            log.warning(
                "queues_not_compared",
                meaning="they hold too many messages; lost ones are found when they are shorter",
            )
            return 0
        lost = [
            message
            for message in queued
            if held.isdisjoint({(str(message[0]), message[3]), (str(message[0]), None)})
        ]
        if not lost:
            return 0
        with self._ledger.connection() as connection:
            connection.execute(_QUEUED_AGAIN, ([task for task, *_ in lost],))
        return self._publish(lost)

    def _publish(self, messages: list[Message]) -> int:
        try:
            sent = self._sender.send(messages)
        except NotSentError as error:
            self._breaker.failed()
            # They stay QUEUED in the ledger; reconcile publishes them once Redis is back.
            log.warning("publish_failed", exception=error.cause, tasks=len(messages))
            return 0
        for queue, count in sent.items():
            metrics.TASKS_DISPATCHED.labels(queue=queue).inc(count)
        return sent.total()
