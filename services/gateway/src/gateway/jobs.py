"""JobService: thin; the ledger's functions do the work, the hub does the watching."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Final, NamedTuple
from uuid import UUID

from fluoro.v1 import job_pb2
from fluoro.v1.job_service_pb2 import (
    CancelJobRequest,
    CancelJobResponse,
    DeleteJobRequest,
    DeleteJobResponse,
    ExplainJobRequest,
    ExplainJobResponse,
    GetJobRequest,
    GetJobResponse,
    JobView,
    ListArtifactsRequest,
    ListArtifactsResponse,
    ListInputsRequest,
    ListInputsResponse,
    ListItemsRequest,
    ListItemsResponse,
    ListJobsRequest,
    ListJobsResponse,
    ListResultsRequest,
    ListResultsResponse,
    ListTasksRequest,
    ListTasksResponse,
    RetryJobRequest,
    RetryJobResponse,
    RunJobRequest,
    SubmitJobRequest,
    SubmitJobResponse,
    WaitJobRequest,
    WaitJobResponse,
    WatchJobRequest,
    WatchJobResponse,
    WatchJobsRequest,
    WatchJobsResponse,
)
from fluoro_jobs import wellknown
from fluoro_jobs.dispatch import Dispatcher
from fluoro_jobs.errors import FieldViolation, FluoroError, Reason
from fluoro_jobs.ledger import accept, audit, control, deletion, explain, lists, read, search
from fluoro_jobs.ledger.accept import GroupCommit, Submission
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.submission import MAX_LABELS, MAX_TEXT
from fluoro_jobs.pipelines import Pipelines, repeat_key
from fluoro_jobs.wakeups import Publisher
from fluoro_telemetry import metrics

from gateway import cursor, frames, names, wire
from gateway.batches import Batches
from gateway.job_stream import JobStream
from gateway.ledger_calls import Landing, LedgerCalls
from gateway.rpc import Call
from gateway.settings import Settings
from gateway.states import ITEM_STATES, STATES, TERMINAL
from gateway.together import Together
from gateway.watch import Hub

MAX_WANTED: Final = 64
"""Most states or roles in a filter; repeating one says nothing."""

DEFAULT_WAIT_SECONDS: Final = 30
LONGEST_WAIT_SECONDS: Final = 600
"""Limits of WaitJob's timeout, as in job_service.proto."""

ANSWER_SECONDS: Final = 0.25
"""WaitJob answers this long before the caller's deadline: after it nobody listens."""


class Jobs:
    """The methods of fluoro.v1.JobService."""

    def __init__(
        self,
        calls: LedgerCalls,
        commits: GroupCommit,
        dispatcher: Dispatcher,
        publisher: Publisher,
        hub: Hub,
        pipelines: Pipelines,
        settings: Settings,
    ) -> None:
        """calls, commits, dispatcher, publisher, hub: closing them is the caller's."""
        self._calls = calls
        self._commits = commits
        self._dispatcher = dispatcher
        self._publisher = publisher
        self._hub = hub
        self._pipelines = pipelines
        self._landing = Landing(settings.submit_timeout_seconds)
        batches = Batches(calls, dispatcher, publisher, hub, self._checked)
        self.batch_submit_jobs = batches.submit
        self.batch_cancel_jobs = batches.cancel
        self.batch_retry_jobs = batches.retry
        self.count_jobs = batches.count
        self._snapshots = Together(calls, _snapshots, settings.ledger_waiting_calls)

    async def submit_job(self, request: SubmitJobRequest, call: Call) -> SubmitJobResponse:
        """Answers after the commit that holds the job, and not before."""
        return SubmitJobResponse(job=await self._submitted(request, call))

    async def run_job(
        self, request: RunJobRequest, call: Call
    ) -> AsyncIterator[WatchJobResponse | bytes | JobStream]:
        """A submit and a watch. Messages of a watch are those of a run, field by field."""
        _check_view(request.view)
        if request.submit.validate_only:
            raise names.invalid("submit.validate_only", "A check runs nothing; use SubmitJob.")
        try:
            job = await self._submitted(request.submit, call)
        except FluoroError as error:
            # The submit is a field of this request, so the paths of bad fields need its name in
            # front.
            error.violations = [
                FieldViolation(f"submit.{bad.field}", bad.description) for bad in error.violations
            ]
            raise
        watch = WatchJobRequest(name=job.name, view=request.view)
        try:
            async with aclosing(self.watch_job(watch, call)) as messages:
                async for message in messages:
                    yield message
        except FluoroError as error:
            # The job is stored. A caller who loses the stream needs its name to continue.
            error.metadata["job"] = job.name
            raise

    async def get_job(self, request: GetJobRequest, call: Call) -> GetJobResponse:
        """The job from the ledger."""
        _check_view(request.view)
        response = GetJobResponse()
        await self._read(call, names.job_id(request.name), response.job, request.view)
        return response

    async def list_jobs(self, request: ListJobsRequest, call: Call) -> ListJobsResponse:
        """A page of the caller's jobs."""
        wire.check_filtered(call.request_bytes)
        if len(request.states) > MAX_WANTED or not set(request.states) <= STATES:
            raise names.invalid("states", "Must be states of a job.")
        _check_labels(request.labels)
        return await self._calls.run_for(call.owner, search.list_jobs, call.owner, request)

    async def list_inputs(self, request: ListInputsRequest, call: Call) -> ListInputsResponse:
        """A page of a job's inputs."""
        return await self._calls.run_for(
            call.owner, lists.list_inputs, call.owner, names.job_id(request.job, "job"), request
        )

    async def list_tasks(self, request: ListTasksRequest, call: Call) -> ListTasksResponse:
        """A page of a job's tasks."""
        return await self._calls.run_for(
            call.owner, lists.list_tasks, call.owner, names.job_id(request.job, "job"), request
        )

    async def list_items(self, request: ListItemsRequest, call: Call) -> ListItemsResponse:
        """A page of what became of a job's inputs."""
        if len(request.states) > MAX_WANTED or not set(request.states) <= ITEM_STATES:
            raise names.invalid("states", "Must be states of an item.")
        return await self._calls.run_for(
            call.owner, lists.list_items, call.owner, names.job_id(request.job, "job"), request
        )

    async def list_artifacts(
        self, request: ListArtifactsRequest, call: Call
    ) -> ListArtifactsResponse:
        """A page of a job's artifacts."""
        if len(request.roles) > MAX_WANTED or any("\0" in role for role in request.roles):
            raise names.invalid("roles", f"At most {MAX_WANTED}, without NUL.")
        return await self._calls.run_for(
            call.owner, lists.list_artifacts, call.owner, names.job_id(request.job, "job"), request
        )

    async def list_results(self, request: ListResultsRequest, call: Call) -> ListResultsResponse:
        """A page of a step's result."""
        return await self._calls.run_for(
            call.owner, lists.list_results, call.owner, names.job_id(request.job, "job"), request
        )

    async def cancel_job(self, request: CancelJobRequest, call: Call) -> CancelJobResponse:
        """Cancels in the ledger, then tells watchers and workers.

        Those who miss it find out by their next poll or heartbeat.
        """
        job_id = names.job_id(request.name)
        response = CancelJobResponse()
        _, workers = await self._calls.run_for(
            call.owner, control.cancel_job, call.owner, job_id, response.job, call.record.entry
        )
        call.record.written()
        self._hub.woken(job_id, call.owner)
        self._publisher.cancel(job_id, call.owner, workers)
        return response

    async def retry_job(self, request: RetryJobRequest, call: Call) -> RetryJobResponse:
        """Opens the job again in the ledger, then has it dispatched."""
        job_id = names.job_id(request.name)
        response = RetryJobResponse()
        await self._calls.run_for(
            call.owner, control.retry_job, call.owner, job_id, response.job, call.record.entry
        )
        call.record.written()
        self._hub.woken(job_id, call.owner)
        self._publisher.events(job_id, call.owner)
        self._dispatcher.wake()
        return response

    async def explain_job(self, request: ExplainJobRequest, call: Call) -> ExplainJobResponse:
        """Why the job has not ended."""
        job_id = names.job_id(request.name)
        found = await self._calls.run_for(call.owner, explain.explain_job, call.owner, job_id)
        return ExplainJobResponse(explanation=found)

    async def delete_job(self, request: DeleteJobRequest, call: Call) -> DeleteJobResponse:
        """Takes the job from its owner. The scheduler removes what is left of it."""
        job_id = names.job_id(request.name)
        delete = call.record.with_change(
            deletion.delete_job, lambda was_there: audit.job_name(job_id) if was_there else ""
        )
        await self._calls.run_for(
            call.owner, delete, call.owner, job_id, allow_missing=request.allow_missing
        )
        return DeleteJobResponse()

    async def wait_job(self, request: WaitJobRequest, call: Call) -> WaitJobResponse:
        """Sleeps on the hub until the job's last event, the timeout, or the caller's deadline."""
        job_id = names.job_id(request.name)
        seconds = _wait_seconds(request, call)
        _check_view(request.view)
        # Before the state is read, or an end in between would be missed.
        with self._hub.waiting(job_id, call.owner) as ended:
            _, state = await self._calls.run_for(call.owner, read.job_head, call.owner, job_id)
            if state not in TERMINAL:
                try:
                    async with asyncio.timeout(seconds):
                        await ended
                except TimeoutError:
                    pass  # not being finished is not an error
        response = WaitJobResponse()
        await self._read(call, job_id, response.job, request.view)
        return response

    async def watch_job(
        self, request: WatchJobRequest, call: Call
    ) -> AsyncGenerator[WatchJobResponse | bytes | JobStream, None]:
        """Snapshot or missed events first, then live from the hub.

        The watcher is there before the read, so nothing falls in between.
        """
        job_id = names.job_id(request.name)
        _check_view(request.view)
        with self._hub.watching(job_id, call.owner) as watcher:
            if request.start_cursor:
                last, state = await self._calls.run_for(
                    call.owner, read.job_head, call.owner, job_id
                )
                sequence = cursor.decode(request.start_cursor, job_id, last)
            else:
                first = [await self._snapshot(call, job_id, request.view)]
                sequence = last = first[0].sequence
                state = first[0].state
                # It may be many MB, and this call lives as long as its caller likes.
                yield first.pop().response
            if state in TERMINAL and sequence == last:
                return
            if state != job_pb2.Job.STATE_PENDING:  # or it has made none
                self._hub.recall_progress(watcher)
            yield self._hub.stream(watcher, call.owner, sequence, last)

    async def watch_jobs(
        self, request: WatchJobsRequest, call: Call
    ) -> AsyncIterator[WatchJobsResponse | bytes]:
        """All of the caller's jobs that have the labels."""
        _check_labels(request.labels)
        async for response in self._hub.jobs_watches.watch(
            call.owner, dict(request.labels), request.start_cursor
        ):
            yield response

    async def _submitted(self, request: SubmitJobRequest, call: Call) -> job_pb2.Job:
        """The job once it is durable, or the one that was only checked."""
        started = time.monotonic()
        try:
            submission, checked = (
                await call.heavy.run(call.request_bytes, self._checked, request, call.owner)
                if call.is_large
                else self._checked(request, call.owner)
            )
        except FluoroError as error:
            # A newer version of the pipeline may refuse what an earlier one accepted, and this call
            # may be a repetition.
            if error.may_retry or (job := await self._earlier(request, call.owner)) is None:
                raise
            call.record.is_about([job.name])
            return job
        if checked:
            return checked
        try:
            await call.limits.submits(call.owner, 1)
        except FluoroError as error:
            full = error.reason is Reason.JOB_QUOTA_EXCEEDED
            # A job that is there already counts in the quota and needs no room.
            if not full or (job := await self._repeated(submission)) is None:
                raise
            call.record.is_about([job.name])
            return job
        submission.audit = call.record.entry
        job = await self._committed(submission)
        # Only a new job is in the transaction that wrote its row.
        if job.name == submission.name:
            call.record.written()
        else:
            call.record.is_about([job.name])  # an earlier one, by its request_id
        metrics.SUBMIT_SECONDS.observe(time.monotonic() - started)
        # After the commit: what is dispatched has to be there.
        self._dispatcher.wake(*submission.queues)
        self._hub.woken(UUID(job.name.removeprefix("jobs/")), call.owner)
        return job

    def _checked(
        self, request: SubmitJobRequest, owner: str
    ) -> tuple[Submission, job_pb2.Job | None]:
        """The submission, and the answer to validate_only, which has no name: nothing was stored.

        It runs in a thread for a large request.
        """
        submission = self._pipelines.validate(request, owner)
        if not request.validate_only:
            return submission, None
        job = submission.as_job()
        job.ClearField("name")
        return submission, job

    async def _earlier(self, request: SubmitJobRequest, owner: str) -> job_pb2.Job | None:
        """The job that the same call made before, if it names a pipeline."""
        if (key := repeat_key(request)) is None:
            return None
        return (await self._calls.run_for(owner, accept.repeated, owner, [key])).get(key)

    async def _repeated(self, submission: Submission) -> job_pb2.Job | None:
        """The job that the same submit made before, which counts in the quota already."""
        if not submission.request_id:
            return None
        owner, key = submission.owner, (submission.request_id, submission.sha256)
        found = (await self._calls.run_for(owner, accept.repeated, owner, [key])).get(key)
        if found is None:
            return None
        job = submission.as_job()
        job.MergeFrom(found)  # all but inputs and steps
        return job

    async def _committed(self, submission: Submission) -> job_pb2.Job:
        """The job once it is durable.

        A submit nobody waits for any more is not written, unless its transaction is under way.
        """
        future = self._commits.submit(submission)
        try:
            return await self._landing.of(future)
        except TimeoutError as error:
            # A future that can still be cancelled is not in a transaction.
            stored = "Nothing was stored" if future.cancel() else "The job may have been stored"
            text = (
                "The ledger did not take the job in time. "
                f"{stored}; try again with the same request_id."
            )
            raise FluoroError(Reason.LEDGER_UNAVAILABLE, text) from error
        except asyncio.CancelledError:
            future.cancel()
            raise

    async def _snapshot(self, call: Call, job_id: UUID, view: "JobView.ValueType") -> "_Snapshot":
        """Read with other small jobs that callers wait for, or alone."""
        # None means that the job is too large to be read with others.
        if (small := await self._snapshots.of(call.owner, (job_id, view))) is not None:
            return small
        response = WatchJobResponse()
        job = await self._read(call, job_id, response.snapshot, view)
        response.cursor = cursor.encode(job_id, job.last_sequence)
        return _Snapshot(response, job.last_sequence, job.state)

    async def _read(
        self, call: Call, job_id: UUID, into: job_pb2.Job, view: "JobView.ValueType"
    ) -> job_pb2.Job:
        """The job, in a part of the answer."""
        return await self._calls.run_for(
            call.owner, read.get_job, call.owner, job_id, into, view=view
        )


class _Snapshot(NamedTuple):
    """What a watch without a cursor begins with; sequence and state are those of the job."""

    response: WatchJobResponse | bytes
    sequence: int
    state: job_pb2.Job.State.ValueType


def _snapshots(
    connection: LedgerConnection, wanted: Sequence[tuple[str, tuple[UUID, "JobView.ValueType"]]]
) -> list[_Snapshot | FluoroError | None]:
    """Of each owner, job and view; None for a job that is too large to be read with others."""
    return [
        _Snapshot(
            frames.snapshot(cursor.encode(job_id, job.last_sequence), job),
            job.last_sequence,
            job.state,
        )
        if isinstance(job, job_pb2.Job)
        else job
        for job, (_, (job_id, _)) in zip(read.get_jobs(connection, wanted), wanted, strict=True)
    ]


def _check_view(view: int) -> None:
    if view not in JobView.values():
        raise names.invalid("view", "Must be BASIC or FULL.")


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > MAX_LABELS or any(
        len(text) > MAX_TEXT for label in labels.items() for text in label
    ):
        raise names.invalid(
            "labels", f"At most {MAX_LABELS}, of {MAX_TEXT} characters each; no job has more."
        )
    if any("\0" in text for label in labels.items() for text in label):
        raise names.invalid("labels", "Must not hold NUL; no label does.")


def _wait_seconds(request: WaitJobRequest, call: Call) -> float:
    seconds: float = DEFAULT_WAIT_SECONDS
    if request.HasField("timeout"):
        seconds = wellknown.seconds(request.timeout)
        if not 0 <= seconds <= LONGEST_WAIT_SECONDS:
            raise names.invalid("timeout", f"Must be between 0 s and {LONGEST_WAIT_SECONDS} s.")
    left = call.seconds_left
    return seconds if left is None else max(0.0, min(seconds, left - ANSWER_SECONDS))
