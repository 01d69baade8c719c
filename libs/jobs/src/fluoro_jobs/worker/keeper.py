"""Keeps what a worker process runs alive, and stops what nobody wants, in its main process.

Every five seconds, and at once when a cancel is announced, one statement renews the leases of
everything this process runs and brings back what the ledger says of it. What was cancelled, fenced
off or ran too long is stopped: a pool child is killed, a pool thread is told.
"""

import math
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final
from uuid import UUID

import redis
import structlog
from fluoro_telemetry import metrics

from fluoro_jobs.celery import DeafWatch, LedgerRequest, SlotWatch, received, running
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger import attempts, heartbeats, turn
from fluoro_jobs.ledger.attempts import Attempt, Worker
from fluoro_jobs.ledger.audience import Audience, audience
from fluoro_jobs.ledger.clock import Clock
from fluoro_jobs.ledger.connection import Ledger, LedgerConnection
from fluoro_jobs.ledger.heartbeats import Held, Standing, TaskAttempt
from fluoro_jobs.redis_url import connect, probe
from fluoro_jobs.states import Outcome
from fluoro_jobs.wakeups import Publisher, cancels_channel
from fluoro_jobs.worker.execute import Figures
from fluoro_jobs.worker.gate import Gate
from fluoro_jobs.worker.inventory import InventoryReports

log = structlog.get_logger(__name__)

HEARTBEAT_SECONDS: Final = 5
"""A third of a lease: two may be missed."""
MISSED_SECONDS: Final = 1
"""Pause before the next try after the ledger did not take a heartbeat."""
CATCH_UP_SECONDS: Final = 5
"""How long nothing is timed out after an outage of the ledger.

Work that waited for the ledger is about to be committed.
"""
ENDING_SECONDS: Final = 2
"""How long a beat goes on telling the ledger of ends. The last of them may take longer."""
LATE_SECONDS: Final = 10
"""How long a claim may still happen after the ledger said that it had not.

No statement takes longer.
"""
ECHO: Final = b""
ECHO_SECONDS: Final = 5
"""How often the listener sends itself a message.

If it does not arrive, the connection is dead, or leads to a replica that was left behind.
"""
DECLINED_SECONDS: Final = 1
"""Longest wait before a task of an operation that this process lacks is dispatched again.

The next message may reach a worker that has the operation.
"""
AVERAGE_OVER_TASKS: Final = 10
"""About how many of the last tasks the average run time covers."""
HANDFUL_SECONDS: Final = 0.1
"""How long a handful of tasks that a slot takes together should run."""
MAX_HANDFUL: Final = 16
"""Most tasks of a handful, however short they are."""


Ending = Callable[[LedgerConnection, Worker, TaskAttempt], list[UUID]]
"""Ends an attempt if this worker holds it. Returns the jobs that moved."""


@dataclass(slots=True)
class Left:
    """An attempt whose end the ledger does not know yet.

    looks_until: until when to ask, by the monotonic clock; None before the first time.
    """

    end: Ending
    looks_until: float | None = None


class Keeper(threading.Thread):
    """The heartbeat of one worker process."""

    def __init__(
        self,
        ledger: Ledger,
        publisher: Publisher,
        redis_url: str,
        worker: Worker,
        stop_task: Callable[[LedgerRequest], None],
        on_slots: Callable[..., None],
        on_beat: Callable[[], None],
        deaf_watch: DeafWatch,
        slot_watch: SlotWatch,
        gate: Gate,
        *,
        handfuls: bool,
        inventory: InventoryReports | None = None,
    ) -> None:
        """stop_task: stops a Celery request's compute. handfuls: whether slots may take those.

        on_slots: called when slots are free and the ledger knows them; with names of queues, when
        these may have tasks. on_beat: called each time the loop turns.
        """
        super().__init__(name="keeper", daemon=True)
        self._ledger = ledger
        self._publisher = publisher
        self._worker = worker
        self._stop_task = stop_task
        self._on_slots = on_slots
        self._on_beat = on_beat
        self._deaf_watch = deaf_watch
        self._slot_watch = slot_watch
        self._gate = gate
        self._handfuls = handfuls
        self._inventory = inventory
        self._clock = Clock()
        self._woken = threading.Event()
        self._left: dict[TaskAttempt, Left] = {}
        self._missed_time = -math.inf
        self._task_seconds = self._told_task_seconds = 0.0
        self._stuck_seconds = 0.0
        self._draining = False
        self._closed = False
        self._listener = threading.Thread(
            target=self._listen, args=(redis_url,), name="cancel-listener", daemon=True
        )

    def more(self) -> int:
        """How many further tasks a slot may take together with one, going by the last ones."""
        # Tasks that hold every slot say more about now than those that ended.
        seconds = max(self._task_seconds, self._stuck_seconds)
        if not (self._handfuls and seconds and self._gate.is_open) or self._draining:
            return 0
        return min(MAX_HANDFUL, int(HANDFUL_SECONDS / seconds)) - 1

    def finished(self) -> None:
        """A slot is free. Called by Celery's main loop, or a thread of the pool; cheap."""
        self._on_slots()

    def returned(self, line: str) -> None:
        """An attempt ended in the pool: counted here, because only this process serves metrics."""
        figures = Figures.from_line(line)
        metrics.TASK_ATTEMPTS_FINISHED.labels(
            operation=figures.operation, outcome=figures.outcome
        ).inc()
        metrics.TASK_WAIT_SECONDS.labels(operation=figures.operation).observe(
            figures.waited_seconds
        )
        metrics.TASK_RUN_SECONDS.labels(operation=figures.operation).observe(figures.run_seconds)
        # A store may have failed it. Look at once, before the next task fails too.
        if figures.outcome == Outcome.RELEASED.lower():
            self._gate.look()
        if figures.unblocks:
            self._on_slots(*figures.unblocks.split(","))
        if figures.job_state:
            metrics.JOBS_FINISHED.labels(state=figures.job_state).inc()
        # One has ended, so not every slot is stuck.
        self._stuck_seconds = 0.0
        # The first one is the average; later ones move it a tenth of the way.
        self._task_seconds += (figures.run_seconds - self._task_seconds) / (
            AVERAGE_OVER_TASKS if self._task_seconds else 1
        )
        # Once for each halving and not for each task.
        if self._task_seconds < self._told_task_seconds / 2 or not self._told_task_seconds:
            # Tasks are shorter than dispatch knows: its window is too small for them.
            self._woken.set()

    def lost(self, attempts: Sequence[TaskAttempt], *, killed: bool) -> None:
        """The pool child that was to run these attempts is gone; killed: this process did it.

        Then whatever else it ran is not to blame.
        """
        for attempt in attempts:
            self._left[attempt] = Left(_give_back if killed else _lose)
        self._woken.set()

    def left(self, attempt: TaskAttempt) -> None:
        """It has not begun, and should not wait for this slot."""
        # An entry that is already there, such as a loss, takes precedence.
        self._left.setdefault(attempt, Left(_put_back))
        self._woken.set()

    def unreported(self, attempt: TaskAttempt) -> None:
        """The ledger may have claimed it without our knowing, or may not know of its end."""
        self._left[attempt] = Left(heartbeats.release_of_worker)
        # Most likely a store has failed it.
        self._gate.look()
        self._woken.set()

    def unknown(self, attempt: TaskAttempt) -> None:
        """Another worker should have this one, which has not been claimed."""
        self._left[attempt] = Left(_decline)
        self._woken.set()

    def wake(self) -> None:
        """The ledger should hear from this process soon."""
        self._woken.set()

    def run(self) -> None:
        """Beats until closed."""
        self._listener.start()
        while not self._closed:
            self._on_beat()
            pause = HEARTBEAT_SECONDS
            try:
                self._beat()
                self._end_what_is_left()
            except FluoroError as error:
                log.warning("heartbeat_missed", reason=error.reason)
                pause, self._missed_time = MISSED_SECONDS, time.monotonic()
                self._gate.look()
            except Exception:  # without heartbeats everything that runs here would be taken away
                log.exception("heartbeat_failed")
                pause = MISSED_SECONDS
            # A wake-up that comes during the beat is not lost: the event stays set until after the
            # wait.
            self._woken.wait(pause)
            self._woken.clear()

    def busy(self) -> bool:
        """Whether anything runs in this process's pool."""
        return bool(running())

    def drain(self) -> None:
        """This process takes no more tasks: the ledger hears at once that it has no slots."""
        self._draining = True
        self._woken.set()

    def hand_back(self) -> None:
        """Makes what this process still runs READY for another worker, and stops computing it."""
        try:
            # First in the ledger: a child that is killed is reported as lost, and a lost attempt
            # counts.
            with self._ledger.connection() as connection:
                told = audience(connection, heartbeats.release_all(connection, self._worker))
        except FluoroError as error:
            log.warning("not_handed_back", reason=error.reason)  # the leases expire
            told = []
        for request in running():
            self._stop_task(request)
        self._tell(told)
        self._on_slots()

    def close(self) -> None:
        """Hands back what is left and takes this process off the ledger's list of workers."""
        self._closed = True
        self._woken.set()
        # A beat writes the row of this process, so none may follow `leave`.
        self.join()
        self.hand_back()
        try:
            with self._ledger.connection() as connection:
                heartbeats.leave(connection, self._worker)
        except FluoroError as error:
            log.warning("not_signed_off", reason=error.reason)  # the row expires

    def _beat(self) -> None:
        requests = running()
        self._told_task_seconds = max(self._task_seconds, self._stuck_seconds)
        asked = {attempt for request in requests for attempt in request.attempts}
        with self._ledger.connection() as connection:
            held = {
                # By what was asked and not by number: a message of the previous release names no
                # attempt.
                one.asked: one
                for one in heartbeats.beat(
                    connection, self._as_listed(), list(asked), self._told_task_seconds
                )
            }
            # On the connection that is there: a look of its own would need a second one.
            self._clock.compare(connection)
            if self._inventory is not None:
                self._inventory.tell(connection)
        self._stuck_seconds = self._stuck(list(held.values()))
        metrics.LEASE_RENEWALS.inc(sum(one.outcome is None for one in held.values()))
        over = []
        for request in requests:
            # Without an answer its message is stale and about to be dropped, or about to be
            # claimed.
            ones = [held[attempt] for attempt in request.attempts if attempt in held]
            # Of a handful, one attempt runs at a time. Those before it are over for the child too.
            live = [one for one in ones if one.outcome is None]
            if ones and not live:
                # Celery should have freed this slot; the watch gives it some time.
                over.append(request.id)
            for one in live or ones:
                if one.standing in self._ACTIONS:
                    self._ACTIONS[one.standing](self, one, request)
        # The ledger may not have known them before; what waited for a worker starts now.
        self._on_slots()
        # Uses the slots that the ledger lists: behind a closed gate there is none, and the worker
        # is not deaf.
        self._deaf_watch.look(has_free_slot=len(requests) < self._as_listed().slots)
        self._slot_watch.look(over)

    def _stuck(self, held: Collection[Held]) -> float:
        """For how long no slot has become free; 0 if one is free.

        The average run time is that of tasks that ended. It says nothing of tasks that hold every
        slot. With this figure dispatch knows of them, and queues nothing behind them.
        """
        seconds = [one.seconds for one in held if one.outcome is None]
        # The attempt that began last counts: since then no slot has become free.
        return min(seconds) if len(seconds) >= self._worker.slots else 0.0

    def _as_listed(self) -> Worker:
        """Claims no slots in a drain or behind a closed gate: nothing is dispatched for them."""
        serves = self._gate.is_open and not self._draining
        return self._worker if serves else replace(self._worker, slots=0)

    def _time_out(self, held: Held, _request: LedgerRequest) -> None:
        """The ledger ends the attempt; the beat after that stops it."""
        if time.monotonic() > self._missed_time + CATCH_UP_SECONDS:
            self._left.setdefault(held.asked, Left(partial(_time_out, held)))

    def _stop_attempt(self, held: Held, request: LedgerRequest) -> None:
        log.warning(
            "attempt_stopped", task=str(held.asked[0]), attempt=held.attempt, outcome=held.outcome
        )
        try:
            self._stop_task(request)
        except Exception:  # the others get their turn all the same, and this one at the next beat
            log.exception("attempt_not_stopped", task=str(held.asked[0]), attempt=held.attempt)

    _ACTIONS: Final[dict[Standing, Callable[["Keeper", Held, LedgerRequest], None]]] = {
        Standing.OVERDUE: _time_out,
        Standing.TAKEN_AWAY: _stop_attempt,
    }
    """What to do with a request, by where its attempt stands. Otherwise it runs, or is ending."""

    def _end_what_is_left(self) -> None:
        """Tells the ledger of ends, for some seconds only: the next beat must not come too late.

        What fails is tried again at the next beat.
        """
        until = time.monotonic() + ENDING_SECONDS
        # Iterates over a copy, because other threads add entries meanwhile.
        for attempt, left in list(self._left.items()):
            if time.monotonic() > until:
                break
            if left.end is heartbeats.release_of_worker and any(
                _may_be(attempt, request) for request in received()
            ):
                continue  # another message asked for the same attempt, and may get it
            # Out first: a newer entry for the attempt that comes meanwhile must stay.
            del self._left[attempt]
            try:
                with self._ledger.connection() as connection:
                    told = audience(connection, left.end(connection, self._worker, attempt))
            except FluoroError as error:
                self._left.setdefault(attempt, left)  # now behind the others
                if error.reason != Reason.LEDGER_BUSY:  # busy may be this job alone
                    raise
                log.warning("attempt_not_ended", task=str(attempt[0]), reason=error.reason)
                continue
            except Exception:  # its job is broken; the lease expires
                log.exception("attempt_not_ended", task=str(attempt[0]))
                continue
            # It moved nothing: the claim may not have happened (yet).
            if not told and left.end is heartbeats.release_of_worker:
                self._look_again(attempt, left)
            elif told:
                self._tell(told)
                # The stop itself comes with the next beat, which is due at once.
                self._woken.set()

    def _look_again(self, attempt: TaskAttempt, left: Left) -> None:
        """Asks again for a while: PostgreSQL may do late a claim that it got before it hung."""
        if left.looks_until is None:
            left.looks_until = time.monotonic() + LATE_SECONDS
        if time.monotonic() < left.looks_until:
            self._left.setdefault(attempt, left)

    def _tell(self, told: Iterable[Audience]) -> None:
        for one in told:
            self._publisher.events(one.job, one.owner)

    def _listen(self, redis_url: str) -> None:
        """Wakes the heartbeat when a cancel is announced.

        Without Redis, cancels are seen at the next beat.
        """
        client, channel = connect(redis_url), cancels_channel(self._worker.name)
        while not self._closed:
            try:
                with client.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]  # redis-py left it out
                    pubsub.subscribe(channel)
                    asked = heard = 0.0
                    while not self._closed:
                        message, now = pubsub.get_message(timeout=1), time.monotonic()
                        if message is not None:
                            heard = now
                            if message["data"] != ECHO:
                                self._woken.set()
                        # Nothing may come for hours, and silence is also what a dead connection
                        # sounds like.
                        if now - asked > ECHO_SECONDS:
                            # The last echo has had ECHO_SECONDS to arrive.
                            if heard < asked:
                                raise redis.ConnectionError(
                                    "What is published does not arrive here."
                                )
                            asked = time.monotonic()
                            # A replica passes the echo on all the same. A write shows it.
                            probe(client)
                            client.publish(channel, ECHO)
            except redis.RedisError as error:
                log.debug("cancels_not_heard", exception=type(error).__qualname__)
                threading.Event().wait(1)


def _lose(connection: LedgerConnection, worker: Worker, attempt: TaskAttempt) -> list[UUID]:
    # It may not have begun: then it is still queued, and goes to another worker uncounted.
    return heartbeats.lose_of_worker(connection, worker, attempt) or _put_back(
        connection, worker, attempt
    )


def _give_back(connection: LedgerConnection, worker: Worker, attempt: TaskAttempt) -> list[UUID]:
    return heartbeats.release_of_worker(connection, worker, attempt) or _put_back(
        connection, worker, attempt
    )


def _put_back(connection: LedgerConnection, _worker: Worker, attempt: TaskAttempt) -> list[UUID]:
    """If it has not begun, it is dispatched anew, at its place in the order."""
    turn.decline(connection, *attempt, 0)
    return []


def _decline(connection: LedgerConnection, _worker: Worker, attempt: TaskAttempt) -> list[UUID]:
    # Not all at once: the same worker may get them again.
    turn.decline(connection, *attempt, DECLINED_SECONDS * random.uniform(0.5, 1))  # noqa: S311 - spreads load, guards nothing
    return []


def _time_out(
    held: Held, connection: LedgerConnection, _worker: Worker, _attempt: TaskAttempt
) -> list[UUID]:
    attempt = Attempt(held.job_id, held.asked[0], held.attempt)
    return [held.job_id] if attempts.time_out(connection, attempt, held.timeout_seconds) else []


def _may_be(attempt: TaskAttempt, request: LedgerRequest) -> bool:
    """Whether the request asks for this attempt.

    Messages of the previous release do not say for which.
    """
    return any(
        task == attempt[0] and (number == attempt[1] or None in {number, attempt[1]})
        for task, number in request.attempts
    )
