"""Calls about many jobs at once. Each works in pieces, between which others have their turn."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple
from uuid import UUID

import grpc
from fluoro.v1 import job_pb2
from fluoro.v1.job_service_pb2 import (
    BatchCancelJobsRequest,
    BatchCancelJobsResponse,
    BatchRetryJobsRequest,
    BatchRetryJobsResponse,
    BatchSubmitJobsRequest,
    BatchSubmitJobsResponse,
    CountJobsRequest,
    CountJobsResponse,
    JobCount,
    Refusal,
    SubmitJobRequest,
    SubmitOutcome,
)
from fluoro_jobs.dispatch import Dispatcher
from fluoro_jobs.errors import REASONS, FluoroError, Reason
from fluoro_jobs.ledger import batches, filters, search
from fluoro_jobs.ledger.accept import Submission, accept, repeated
from fluoro_jobs.ledger.audit import Entry
from fluoro_jobs.ledger.batches import Piece
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.paging import Key, write_token
from fluoro_jobs.ledger.records import MAX_TASKS
from fluoro_jobs.ledger.search import Search
from fluoro_jobs.pipelines import repeat_key
from fluoro_jobs.states import JobState
from fluoro_jobs.wakeups import Publisher

from gateway import names, wire
from gateway.errors import MESSAGE_BUDGET_CHARACTERS
from gateway.ledger_calls import LedgerCalls
from gateway.rpc import Call
from gateway.watch import Hub

MAX_ENTRIES: Final = 1000
"""Most jobs of a BatchSubmitJobs."""
MAX_ROW_BYTES: Final = 4 * 2**20
"""Most that the rows of its jobs weigh; those of the largest single job weigh about as much."""
ENTRIES_AT_ONCE: Final = 20
"""Entries that are checked at a time, which takes some 10 ms; then others have the thread."""
MAX_FIELDS_TOLD: Final = 3
"""Bad fields that the refusal of an entry names: a thousand refusals fit into an answer."""
TRANSACTIONS_AT_ONCE: Final = 2
"""Batches of a gateway that are being stored. A large one takes a thread for half a second."""
MAX_BATCHES: Final = 8
"""Batches that a gateway has under way. Each holds its request, some 20 MiB once parsed."""
MAX_OF_OWNER: Final = 4
"""Of these, how many may be of one owner."""
TURN_SECONDS: Final = 10
"""How long a batch waits for that."""
CALL_SECONDS: Final = 5
"""After which a call that works through jobs answers how far it got."""
COUNT_SECONDS: Final = 1
"""After which a count answers how far it got."""
MARGIN_SECONDS: Final = 1
"""How long before the caller's deadline it does so at the latest."""

Checked = Callable[[SubmitJobRequest, str], tuple[Submission, job_pb2.Job | None]]
"""The submission of a request, and the answer if it is only to be checked."""


class _Refused(NamedTuple):
    """An entry that is not taken. key: by which an earlier job of the same entry is found."""

    error: FluoroError
    key: tuple[str, bytes] | None


class Batches:
    """The methods of JobService whose names begin with Batch, and CountJobs."""

    def __init__(
        self,
        calls: LedgerCalls,
        dispatcher: Dispatcher,
        publisher: Publisher,
        hub: Hub,
        checked: Checked,
    ) -> None:
        """checked: as SubmitJob checks its request."""
        self._calls, self._dispatcher = calls, dispatcher
        self._publisher, self._hub = publisher, hub
        self._checked = checked
        self._turns = asyncio.Semaphore(TRANSACTIONS_AT_ONCE)
        self._batches: Counter[str] = Counter()

    async def submit(self, request: BatchSubmitJobsRequest, call: Call) -> BatchSubmitJobsResponse:
        """Answers after the commit that holds all jobs."""
        if len(request.requests) > MAX_ENTRIES:
            raise names.invalid("requests", f"At most {MAX_ENTRIES}.")
        full = None
        # A check stores nothing, so it counts towards no quota.
        if not request.validate_only:
            try:
                await call.limits.submits(call.owner, len(request.requests))
            except FluoroError as error:
                if error.reason is not Reason.JOB_QUOTA_EXCEEDED:
                    raise
                full = error  # some of the jobs may be there already, and count in the quota
        with self._under_way(call.owner):
            return await self._submit(request, call, full)

    async def cancel(self, request: BatchCancelJobsRequest, call: Call) -> BatchCancelJobsResponse:
        """Cancels in the ledger, and tells watchers and workers after each piece."""
        wire.check_filtered(call.request_bytes)
        wanted = batches.cancellable(call.owner, request.filter)

        def tell(piece: Piece) -> None:
            for one in piece.changed:
                self._hub.woken(one.job, one.owner)
                self._publisher.cancel(*one)

        count, token = await self._through(request, call, wanted, batches.cancel, tell)
        return BatchCancelJobsResponse(count=count, next_page_token=token)

    async def retry(self, request: BatchRetryJobsRequest, call: Call) -> BatchRetryJobsResponse:
        """Opens jobs again in the ledger, and has them dispatched after each piece."""
        wire.check_filtered(call.request_bytes)
        wanted = batches.retriable(call.owner, request.filter)

        def tell(piece: Piece) -> None:
            for one in piece.changed:
                self._hub.woken(one.job, one.owner)
                self._publisher.events(one.job, one.owner)
            # Wakes all queues, because retried tasks may belong to any step.
            self._dispatcher.wake()

        count, token = await self._through(request, call, wanted, batches.retry, tell)
        return BatchRetryJobsResponse(count=count, next_page_token=token)

    async def count(self, request: CountJobsRequest, call: Call) -> CountJobsResponse:
        """Counts piece after piece."""
        wire.check_filtered(call.request_bytes)
        wanted = Search(call.owner, filters.parse(request.filter))
        counts, token = await self._counted(request, call, wanted, COUNT_SECONDS)
        return CountJobsResponse(
            counts=[
                JobCount(
                    state=job_pb2.Job.State.Value(f"STATE_{state}"), pipeline=pipeline, count=number
                )
                for (state, pipeline), number in sorted(counts.items())
            ],
            next_page_token=token,
        )

    async def _counted(
        self, request: Any, call: Call, wanted: Search, seconds: float
    ) -> tuple[Counter[tuple[JobState, str]], str]:
        # The answer must leave before the caller's deadline, or the token to continue with is lost.
        until = time.monotonic() + min(seconds, _seconds(call))
        key = search.read_key(request, wanted.order)
        counts: Counter[tuple[JobState, str]] = Counter()
        while True:
            some, key = await self._calls.run_for(call.owner, search.count, wanted, key)
            counts += some
            # Checked after a piece, so that every call makes some progress.
            if key is None or time.monotonic() > until:
                return counts, "" if key is None else write_token(request, key)

    async def _submit(
        self, request: BatchSubmitJobsRequest, call: Call, full: FluoroError | None
    ) -> BatchSubmitJobsResponse:
        outcomes: list[job_pb2.Job | FluoroError | None] = []
        submissions: list[Submission] = []
        refused: dict[int, tuple[str, bytes]] = {}
        for start in range(0, len(request.requests), ENTRIES_AT_ONCE):
            entries = request.requests[start : start + ENTRIES_AT_ONCE]
            size = sum(map(SubmitJobRequest.ByteSize, entries)) if call.is_large else 0
            for outcome in await call.heavy.run(size, self._check, entries, request, call.owner):
                if isinstance(outcome, Submission):
                    submissions.append(outcome)
                    outcomes.append(None)
                elif isinstance(outcome, _Refused):
                    if outcome.key:
                        refused[len(outcomes)] = outcome.key
                    outcomes.append(outcome.error)
                else:
                    outcomes.append(outcome)
            # Checked after each piece, so that a batch that will be refused is not processed to its
            # end.
            _check_size(submissions)
        if refused:
            keys = list(refused.values())
            earlier = await self._calls.run_for(call.owner, repeated, call.owner, keys)
            for place, key in refused.items():
                # A refusal is replaced if the same request was taken before, by an earlier version
                # of its pipeline.
                outcomes[place] = earlier.get(key, outcomes[place])
        if full:
            known = await self._earlier(submissions, full, call)
            told = iter(known)
            outcomes = [next(told) if outcome is None else outcome for outcome in outcomes]
            submissions = [
                one for one, outcome in zip(submissions, known, strict=True) if outcome is None
            ]
        stored = iter(await self._stored(submissions, call))
        answers = [next(stored) if outcome is None else outcome for outcome in outcomes]
        # Those that were stored now have their rows already, in their own transaction.
        new = {one.name for one in submissions}
        call.record.is_about(
            [one.name for one in answers if isinstance(one, job_pb2.Job) and one.name not in new]
        )
        response = BatchSubmitJobsResponse()
        response.outcomes.extend(map(_outcome, answers))
        return response

    async def _earlier(
        self, submissions: Sequence[Submission], full: FluoroError, call: Call
    ) -> Sequence[job_pb2.Job | FluoroError | None]:
        """What each is answered under a full quota: the job of an earlier submit, or a refusal.

        None for what is to be stored, because it fits in without the others. Raises `full` if no
        job is there already.
        """
        keys = [(one.request_id, one.sha256) for one in submissions]
        named = [key for key in keys if key[0]]
        earlier = await self._calls.run_for(call.owner, repeated, call.owner, named)
        if not earlier:
            raise full
        refused = None
        if new := sum(key not in earlier for key in keys):
            try:
                await call.limits.submits(call.owner, new)
            except FluoroError as error:
                refused = error
        return [earlier.get(key, refused) for key in keys]

    @contextmanager
    def _under_way(self, owner: str) -> Iterator[None]:
        """FluoroError GATEWAY_BUSY if as many batches are under way as may."""
        if self._batches[owner] >= MAX_OF_OWNER or self._batches.total() >= MAX_BATCHES:
            raise FluoroError(
                Reason.GATEWAY_BUSY,
                "Too many batches are under way. Nothing was stored; try again.",
            )
        self._batches[owner] += 1
        try:
            yield
        finally:
            self._batches[owner] -= 1
            self._batches += Counter()  # drops the owners who have none

    async def _through(
        self,
        request: BatchCancelJobsRequest | BatchRetryJobsRequest,
        call: Call,
        wanted: Search,
        act: Callable[[LedgerConnection, Search, Key | None, Entry | None], Piece],
        tell: Callable[[Piece], None],
    ) -> tuple[int, str]:
        """Piece after piece until the end, or until it has taken long. Jobs, and the token."""
        # A count instead, which changes nothing.
        if request.validate_only:
            counts, token = await self._counted(request, call, wanted, CALL_SECONDS)
            return counts.total(), token
        until = time.monotonic() + _seconds(call)
        key, count = search.read_key(request, wanted.order), 0
        while True:
            piece = await self._calls.run_for(call.owner, act, wanted, key, call.record.entry)
            if piece.changed:
                # The rows of these jobs went with their transactions.
                call.record.written()
            key = piece.following
            count += len(piece.changed)
            tell(piece)
            if key is None or time.monotonic() > until:
                return count, "" if key is None else write_token(request, key)

    def _check(
        self, entries: Sequence[SubmitJobRequest], request: BatchSubmitJobsRequest, owner: str
    ) -> list[Submission | job_pb2.Job | _Refused]:
        """What is to be stored of each, or its outcome if nothing is."""
        found: list[Submission | job_pb2.Job | _Refused] = []
        for entry in entries:
            entry.validate_only |= request.validate_only
            try:
                submission, job = self._checked(entry, owner)
            except FluoroError as error:
                # Only a refusal for good can have been a success before.
                found.append(_Refused(error, None if error.may_retry else repeat_key(entry)))
            else:
                found.append(job or submission)
        return found

    async def _stored(
        self, submissions: Sequence[Submission], call: Call
    ) -> Sequence[job_pb2.Job | FluoroError]:
        if not submissions:
            return []
        for one in submissions:
            one.audit = call.record.entry
        try:
            # Waits in the event loop, so that a waiting batch holds no thread.
            async with asyncio.timeout(TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            raise FluoroError(
                Reason.GATEWAY_BUSY, "Other batches are being stored. Nothing was; try again."
            ) from None
        try:
            answers = await self._calls.run_for(call.owner, accept, submissions)
        finally:
            self._turns.release()
        self._dispatcher.wake(*set().union(*(one.queues for one in submissions)))
        for one, answer in zip(submissions, answers, strict=True):
            if isinstance(answer, job_pb2.Job):
                self._hub.woken(UUID(answer.name.removeprefix("jobs/")), call.owner)
                if answer.name == one.name:
                    call.record.written()
        return answers


def _check_size(submissions: Sequence[Submission]) -> None:
    tasks = sum(len(step.tasks) for one in submissions for step in one.steps)
    size = sum(one.row_bytes for one in submissions)
    # A single job has the limits of SubmitJob, and is always taken.
    if len(submissions) > 1 and (tasks > MAX_TASKS or size > MAX_ROW_BYTES):
        raise FluoroError(
            Reason.MESSAGE_TOO_LARGE,
            f"Together the jobs have more than {MAX_TASKS} tasks, or {MAX_ROW_BYTES} bytes of "
            "rows. Nothing was stored; send fewer at once.",
        )


def _outcome(answer: job_pb2.Job | FluoroError) -> SubmitOutcome:
    if isinstance(answer, job_pb2.Job):
        answer.ClearField("labels")  # those of a thousand jobs may be more than an answer holds
        return SubmitOutcome(job=answer)
    return SubmitOutcome(
        refusal=Refusal(
            code=grpc.StatusCode[REASONS[answer.reason].code].value[0],
            reason=answer.reason,
            message=answer.message[:MESSAGE_BUDGET_CHARACTERS],
            fields={
                violation.field: violation.description
                for violation in answer.violations[:MAX_FIELDS_TOLD]
            },
        )
    )


def _seconds(call: Call) -> float:
    left = call.seconds_left
    return CALL_SECONDS if left is None else min(CALL_SECONDS, left - MARGIN_SECONDS)
