"""Runs one attempt: claim, the operation's plain function, commit.

In a pool child or a pool thread.
"""

import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

import structlog
from fluoro.v1 import event_pb2
from fluoro_blobs import NO_SPACE, BlobStore
from google.protobuf.message import Message

from fluoro_jobs.celery import STALE, UNREPORTED
from fluoro_jobs.errors import LEDGER_OUTAGES, CancelledAttempt, FluoroError, Reason
from fluoro_jobs.ledger import attempts, models
from fluoro_jobs.ledger.attempts import Claim, Following, Worker
from fluoro_jobs.ledger.connection import Ledger, LedgerConnection
from fluoro_jobs.ledger.heartbeats import TaskAttempt
from fluoro_jobs.ledger.records import ItemResult, TaskResult
from fluoro_jobs.named_models import models_of_step
from fluoro_jobs.skew import read_request
from fluoro_jobs.states import JobState, Outcome, is_terminal
from fluoro_jobs.wakeups import Publisher
from fluoro_jobs.worker.context import Scratch, StepContext
from fluoro_jobs.worker.earlier import EarlierSteps, inputs_of
from fluoro_jobs.worker.elsewhere import handed_on
from fluoro_jobs.worker.handler import Handler
from fluoro_jobs.worker.results import kept

log = structlog.get_logger(__name__)

Answer = TypeVar("Answer")

PROGRESS_INTERVAL_SECONDS: Final = 0.1
"""Least time between two progress messages of a task."""
FENCED: Final = "fenced"
"""Outcome in the figures of an attempt whose end the ledger did not take.

It was over already, and counts as lost or cancelled there.
"""
MOST_SECONDS: Final = 0.2
"""After which no further attempt of a handful is begun."""
COMMIT_PATIENCE_SECONDS: Final = 60
"""How long a finished attempt waits for the ledger to come back.

Its lease has long expired then.
"""


class Figures(NamedTuple):
    """What a pool child tells its main process about an attempt, for the metrics.

    They cross as a line of words.

    operation: Celery task name. waited_seconds: from READY to the claim. job_state: set if this
    ended the job. unblocks: the queues, separated by commas, of the steps that may follow now.
    """

    operation: str
    outcome: str
    waited_seconds: float
    run_seconds: float
    job_state: str
    unblocks: str

    def line(self) -> str:
        """Its fields; none of them has a space or a quote in it."""
        return " ".join(map(str, self))

    @classmethod
    def from_line(cls, line: str) -> "Figures":
        """What `line` made."""
        operation, outcome, waited, run, job_state, unblocks = line.split(" ")
        return cls(operation, outcome, float(waited), float(run), job_state, unblocks)


class Executor:
    """Runs attempts in this process. Thread-safe: a threads pool shares one."""

    def __init__(
        self,
        ledger: Ledger,
        blobs: BlobStore,
        publisher: Publisher,
        worker: Worker,
        handlers: Mapping[str, Handler[Any, Any]],
        scratch_folder: Path | None = None,
    ) -> None:
        """handlers: by Celery task name."""
        self._ledger = ledger
        self._blobs = blobs
        self._publisher = publisher
        self._worker = worker
        self._handlers = handlers
        self._scratch_folder = scratch_folder
        self._running: dict[tuple[UUID, int], StepContext] = {}

    def run(self, wanted: Sequence[TaskAttempt]) -> Iterator[str]:
        """Runs these attempts one after the other, each to a commit; None is a task's next one.

        What `celery.Body.run` tells of them, up to the last that it began: it begins no further one
        after one that was handed back, or when they take long.
        """
        until, claimed = time.monotonic() + MOST_SECONDS, None
        for place, (task_id, number) in enumerate(wanted):
            # At most one: the claim of the next goes along with the commit of this one.
            following = [Following(self._worker, *one) for one in wanted[place + 1 : place + 2]]
            try:
                # Claimed already with the end of the one before, where that worked.
                claimed = claimed or self._claim(task_id, number)
                if claimed is None:
                    log.debug("stale_message", task=str(task_id))
                    yield STALE
                    continue
                figures = self._run(claimed, following, until)
            except FluoroError as error:
                # The ledger is away. If a claim did not happen, the task is still QUEUED there and
                # its message is sent again.
                log.warning("task_not_run", task=str(task_id), reason=error.reason)
                # The claim that went along may be durable, and nobody runs it.
                yield from [UNREPORTED, *(UNREPORTED for one in following if one.beside.sent)]
                return
            yield figures.line()
            # It may have been claimed. A second claim here would find it taken, and nobody would
            # run it.
            if any(one.beside.in_doubt for one in following):
                yield UNREPORTED
                return
            # None is no refusal: the next turn of the loop claims it by itself.
            claimed = next((one.claim for one in following), None)
            # A store that had it handed back would fail the next one too.
            released = figures.outcome == Outcome.RELEASED.lower()
            # A claim that is durable has to be run, whatever the time.
            if claimed is None and (released or time.monotonic() > until):
                return

    def _claim(self, task_id: UUID, number: int | None) -> Claim | None:
        with self._ledger.connection() as connection:
            return attempts.claim(connection, task_id, self._worker, number)

    def _run(self, claimed: Claim, following: list[Following], until: float) -> Figures:
        """Runs an attempt, and claims the following one with its end if that comes in time."""
        # Watchers see that it runs before it does: an operation may take minutes.
        self._publisher.events(claimed.graph.id, claimed.graph.owner)
        with structlog.contextvars.bound_contextvars(
            job=f"jobs/{claimed.graph.id}", step=claimed.step_name, attempt=claimed.attempt
        ):
            figures = self._attempt(claimed, following, until)
        self._publisher.events(claimed.graph.id, claimed.graph.owner)
        return figures

    def close(self) -> None:
        """Sends the wake-ups that wait. Seconds at most."""
        self._publisher.close()

    def cancel(self, task_id: UUID, number: int | None) -> None:
        """Tells this attempt, if it runs here, to stop; None: every attempt of the task."""
        # A copy: other threads begin and end attempts meanwhile.
        for (task, attempt), context in list(self._running.items()):
            if task == task_id and number in {attempt, None}:
                context.cancelled.set()

    def _attempt(self, claimed: Claim, following: list[Following], until: float) -> Figures:
        started = time.monotonic()
        operation = claimed.operation.task_name if claimed.operation else "unknown"
        try:
            result = self._operate(claimed)
            outcome = Outcome.SUCCEEDED
            # Only while the handful is in time: a claim here would hold a task that another slot
            # could begin.
            beside = following[0] if following and time.monotonic() < until else None
            job_state = self._end(
                claimed, lambda connection: attempts.commit(connection, claimed, result, beside)
            )
        except CancelledAttempt:
            outcome, job_state = Outcome.CANCELLED, None  # whoever cancelled it has told the ledger
        except FluoroError as error:
            # Before the end is reported: it may become a return that costs the task nothing.
            error = self._handed_on(claimed, error)
            outcome, job_state = claimed.outcome_of(error), self._fail(claimed, error)
        except Exception as error:  # noqa: BLE001 - whatever an operation does, its attempt ends and the worker goes on
            explained = _explained(error)
            outcome, job_state = claimed.outcome_of(explained), self._fail(claimed, explained)
        # No state of the job means that the ledger did not take the end: others had ended it.
        told = outcome.lower() if job_state or outcome is Outcome.CANCELLED else FENCED
        ended = job_state.lower() if job_state and is_terminal(job_state) else ""
        # A job that has ended unblocks nothing, and an attempt that was fenced off has done
        # nothing.
        unblocks = ",".join(claimed.queues_after) if job_state and not ended else ""
        seconds = time.monotonic() - started
        return Figures(operation, told, claimed.waited_seconds, seconds, ended, unblocks)

    def _operate(self, claimed: Claim) -> TaskResult:
        handler = self._handlers.get(claimed.operation.task_name) if claimed.operation else None
        if handler is None:
            raise FluoroError(
                Reason.OPERATION_UNKNOWN,
                f"Worker {self._worker.version} does not know the operation of this step.",
            )
        request = read_request(handler.operation, claimed.request)
        context = self._context(claimed)
        # Keyed by attempt, so that a late cancel does not stop the task's next attempt.
        self._running[claimed.task_id, claimed.attempt] = context
        try:
            message: Message = handler(request, context)
            # A result that nobody wants any more need not be stored.
            context.check()
            data, blob = kept(context, handler.operation, message)
        finally:
            del self._running[claimed.task_id, claimed.attempt]
            context.folder.remove()
        origins = {one.number: one.input for one in claimed.inputs}
        items = [
            ItemResult(number, item.key, origins.get(number), item.state, item.reason, item.message)
            for number, item in sorted(context.items.items())
        ]
        return TaskResult(data, items, list(context.artifacts.values()), blob)

    def _context(self, claimed: Claim) -> StepContext:
        earlier = EarlierSteps(self._patiently, self._blobs, claimed)
        return StepContext(
            job=f"jobs/{claimed.graph.id}",
            step=claimed.step_name,
            attempt=claimed.attempt,
            inputs=inputs_of(claimed.inputs, [s.name for s in claimed.graph.steps.values()]),
            job_inputs=claimed.graph.input_count,
            earlier=earlier,
            folder=Scratch(self._scratch_folder),
            blobs=self._blobs,
            send_progress=ProgressThrottle(partial(self._publisher.progress, claimed.graph.owner)),
            shard=claimed.task.shard,
            owner=claimed.graph.owner,
        )

    def _handed_on(self, claimed: Claim, error: FluoroError) -> FluoroError:
        def served(name: str, version: str) -> bool:
            return self._patiently(
                lambda ledger: models.is_served_elsewhere(ledger, self._worker.id, name, version)
            )

        field = claimed.operation.field if claimed.operation else ""
        return handed_on(error, models_of_step(field, claimed.request), served)

    def _fail(self, claimed: Claim, error: FluoroError) -> JobState | None:
        log.warning(
            "attempt_failed", reason=error.reason, message=error.message, may_retry=error.may_retry
        )
        return self._end(claimed, lambda connection: attempts.fail(connection, claimed, error))

    def _end(self, claimed: Claim, act: Callable[[Any], JobState | None]) -> JobState | None:
        """Tells the ledger how it ended."""
        job_state = self._patiently(act)
        if job_state is None:
            log.warning("attempt_fenced_off", task=str(claimed.task_id))
        return job_state

    def _patiently(self, act: Callable[[LedgerConnection], Answer]) -> Answer:
        """Asks the ledger, and waits if it is away: a restart of PostgreSQL throws no work away."""
        deadline = time.monotonic() + COMMIT_PATIENCE_SECONDS
        while True:
            try:
                with self._ledger.connection() as connection:
                    return act(connection)
            except FluoroError as error:
                # An error that is not an outage would come again, however long one waits.
                if error.reason not in LEDGER_OUTAGES or time.monotonic() > deadline:
                    raise
                threading.Event().wait(0.5)


def _explained(error: Exception) -> FluoroError:
    """The error to report for an exception that no operation should let out."""
    if isinstance(error, MemoryError):
        return FluoroError(Reason.INTERNAL, "The attempt ran out of memory.")
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        # Named, because another worker may have room: the attempt goes back uncounted.
        return FluoroError(
            Reason.SCRATCH_FULL, "The worker has no disk space left for temporary files."
        )
    # Where it happened is logged, what it says is not: it may quote the file, so patient data.
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("operation_failed_unexpectedly", exception=type(error).__qualname__, where=where)
    return FluoroError(Reason.INTERNAL, "The operation failed in an unforeseen way.")


class ProgressThrottle:
    """Passes progress on at most once per interval; always the first of a stage and the last."""

    def __init__(self, send: Callable[[event_pb2.Progress], None]) -> None:
        """send: called in the caller's thread."""
        self._send = send
        self._stage = ""
        self._next = 0.0

    def __call__(self, progress: event_pb2.Progress) -> None:
        """Sends or drops."""
        now = time.monotonic()
        if now >= self._next or progress.stage != self._stage or progress.fraction >= 1:
            self._stage, self._next = progress.stage, now + PROGRESS_INTERVAL_SECONDS
            progress.time.GetCurrentTime()
            self._send(progress)
