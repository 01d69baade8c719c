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
from fluoro_jobs.ledger import turn
from fluoro_jobs.ledger.connection import Ledger, LedgerConnection
from fluoro_jobs.ledger.turn import Turn
from fluoro_jobs.operations import QUEUES
from fluoro_jobs.pace import DONE, SHORTEST_WAIT_SECONDS, SOON, TURN_SECONDS, Look, Pace
from fluoro_jobs.redis_url import Breaker, connect

log = structlog.get_logger(__name__)

LOST_AFTER_SECONDS: Final = 5
"""A task queued this long ago whose message Redis does not hold is published again.

From receipt to claim a worker takes milliseconds.
"""

_QUEUED: Final = f"""
SELECT task_id, task_name, queue, attempt + 1 FROM open_tasks
WHERE queued_time < now() - interval '{LOST_AFTER_SECONDS} s' AND state = 'QUEUED'
  AND queue = ANY(%s)
"""
_QUEUED_AGAIN: Final = (
    "UPDATE open_tasks SET queued_time = now() WHERE task_id = ANY(%s) AND state = 'QUEUED'"
)


def take(connection: LedgerConnection, queues: Iterable[str] = QUEUES) -> list[Message]:
    """READY → QUEUED, as many as the queues have places for; what is due by now is READY first."""
    messages: list[Message] = []
    for queue in queues:
        after = turn.FIRST
        while True:
            one = turn.take(connection, queue, after)
            # Each turn continues where the one before stopped, or lines behind the first 256 would
            # never get a turn.
            after = one.last or after
            messages += one.taken
            if not one.goes_on:
                break
            if one.due:
                turn.promote(connection, queue)
    return messages


class Dispatcher(threading.Thread):
    """Dispatches what it is woken for, and takes turns with the other processes that do."""

    def __init__(self, ledger: Ledger, redis_url: str, queues: Iterable[str] = QUEUES) -> None:
        """queues: those that it looks after when it is not told which."""
        super().__init__(name="dispatcher", daemon=True)
        self._ledger = ledger
        self._queues = tuple(queues)
        self._sender = Sender(redis_url)
        self._redis = connect(redis_url)
        self._breaker = Breaker(redis_url)
        self._paces: dict[str, Pace] = {}
        self._asked: set[str] = set()
        self._with_plenty: set[str] = set()
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._closing = threading.Event()

    def wake(self, *queues: str) -> None:
        """There may be something to dispatch, or a place for it. Never blocks."""
        with self._lock:
            self._asked.update(queues or self._queues)
            # With short tasks that is once a task, and each time a switch of threads for nothing.
            # Every queue asked for holds plenty, and the next look will notice when that ends.
            if self._asked <= self._with_plenty:
                return
        if not self._woken.is_set():  # setting it again takes a lock, and tells nothing new
            self._woken.set()

    def close(self) -> None:
        """Ends the thread after what it is doing."""
        self._closing.set()
        self._woken.set()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        """Dispatches until closed."""
        looks: dict[str, Look] = {}
        while not self._closing.is_set():
            waits = [look.wait_seconds for look in looks.values() if look.wait_seconds is not None]
            self._woken.wait(min(waits, default=None))
            self._woken.clear()
            # Asked anew, even if it waits already: the turn that it waits for may have begun before
            # what it is asked for now.
            looks |= dict.fromkeys(self._take_asked(), SOON)
            looks = {queue: self._attend(queue, look) for queue, look in looks.items()}
            looks = {queue: look for queue, look in looks.items() if look != DONE}
            with self._lock:
                self._with_plenty = {queue for queue, look in looks.items() if look.holds_plenty}
            # Slots freed within these milliseconds share one turn.
            self._closing.wait(SHORTEST_WAIT_SECONDS)

    def dispatch(self) -> int:
        """Moves what fits to the queues, also to those that seem to need nothing; how many tasks.

        Nothing while Redis is away: what is READY stays so, in order.

        FluoroError LEDGER_UNAVAILABLE if the ledger is.
        """
        return sum(self._fill(queue) for queue in self._queues if self._breaker.admits())

    def _fill(self, queue: str) -> int:
        """Turn after turn while there is more to take, for about a second.

        Waits for a process that has the turn.
        """
        deadline, sent = time.monotonic() + TURN_SECONDS, 0
        while True:
            one, published = self._turn(queue)
            sent += published
            if not one.goes_on or time.monotonic() > deadline:
                return sent
            # The owner's row or the turn is held by another process, for milliseconds.
            waits = one.blocked or not one.mine
            self._closing.wait(SHORTEST_WAIT_SECONDS if waits else 0)

    def _take_asked(self) -> set[str]:
        with self._lock:
            asked, self._asked = self._asked, set()
            # What is asked for from here on may come too late for the look that follows.
            self._with_plenty = set()
        return asked

    def _attend(self, queue: str, look: Look) -> Look:
        """Looks at a queue that may have something to dispatch; takes its turn if that is free."""
        try:
            # What is READY stays so. The scheduler has every queue looked at again each second.
            if not self._breaker.admits():
                return DONE
            following = self._pace(queue).look(look.seen)
            if following.mine:
                one, _ = self._turn(queue)
                return SOON if one.goes_on else DONE
        except redis.RedisError as error:
            self._breaker.failed()
            log.warning("redis_unavailable", exception=type(error).__qualname__)
        except FluoroError as error:
            log.warning("dispatch_waits", reason=error.reason)
        # A thread that ended here would leave all dispatch to others, and nobody would know.
        except Exception:
            log.exception("dispatch_failed")
            self._closing.wait(1)
        else:
            return following
        return DONE

    def _turn(self, queue: str) -> tuple[Turn, int]:
        """One turn of a queue, and how many messages it sent."""
        pace, started = self._pace(queue), time.monotonic()
        with self._ledger.connection() as connection:
            one = turn.take(connection, queue, pace.after)
            if one.mine and one.due:
                turn.promote(connection, queue)
            # The queue holds more than its workers can take: what nobody has claimed goes back into
            # the order.
            if one.places is not None and one.places < 0:
                turn.recall(connection, queue, -one.places)
        seconds = time.monotonic() - started
        # Only after the COMMIT: a worker that got a message sooner would find its task not queued,
        # and drop the message.
        sent = self._publish(one.taken) if one.taken else 0
        try:
            # What this keeps in Redis are hints. The tasks are on their way without them.
            pace.over(one, seconds)
        except redis.RedisError:
            self._breaker.failed()
        return one, sent

    def _pace(self, queue: str) -> Pace:
        return self._paces.setdefault(queue, Pace(self._redis, queue))

    def reconcile(self) -> int:
        """Publishes again what the ledger calls queued and no queue holds.

        After a wipe, or the death of a worker that had taken the message.
        """
        # Without Redis every message looks lost. Sent again then, they would all come twice.
        if not self._breaker.admits():
            return 0
        with self._ledger.connection() as connection:
            queued = connection.execute(_QUEUED, (list(self._queues),)).fetchall()
        if not queued:
            return 0
        try:
            # A message that is taken between the two reads may look lost. Its second one is dropped
            # at the claim.
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
        # A message of the previous release names no attempt, and serves whichever is next.
        lost = [
            message
            for message in queued
            if held.isdisjoint({(str(message[0]), message[3]), (str(message[0]), None)})
        ]
        if not lost:
            return 0
        # Before they are sent: the next round must not take them for lost while they are on their
        # way.
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
