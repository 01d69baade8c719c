"""Calls about many jobs: lists, batches, and whatever passes a filter."""

import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from fluoro.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc
from google.protobuf import field_mask_pb2

from fluoro_client.errors import FluoroApiError, ResourceExhaustedError, refused
from fluoro_client.jobs import JobSource, parse_job
from fluoro_client.sharing import Calling

MOST_ENTRIES: Final = 1000
"""Most jobs of a BatchSubmitJobs."""
MOST_BYTES: Final = 3 * 2**20
"""Most bytes of one, which leaves room below the gateway's limit of 4 MiB."""
TOO_LARGE: Final = "MESSAGE_TOO_LARGE"


class Tally(NamedTuple):
    """A number of jobs. more: there may be more, which were not looked at."""

    jobs: int
    more: bool


class Calls(Calling, Protocol):
    """What these methods need of a client."""

    _jobs: "job_service_pb2_grpc.JobServiceAsyncStub"


class ManyJobs:
    """Methods of a client about many jobs."""

    async def list(
        self: Calls,
        *,
        states: Sequence["job_pb2.Job.State.ValueType"] = (),
        labels: Mapping[str, str] | None = None,
        filter_by: str = "",
        order_by: str = "",
        fields: Sequence[str] = (),
        limit: int | None = None,
        page_size: int = 0,
    ) -> AsyncGenerator[job_pb2.Job, None]:
        """The owner's jobs, newest first unless ordered otherwise, without steps and inputs.

        They are fetched page by page as they are read.
        states, labels: only jobs in one of these states and with all of these labels.
        filter_by: only jobs that pass this filter, `state = FAILED AND labels.study = "a"`, say
        (docs/filters.md). order_by: `create_time desc`, which is the default, `create_time`,
        `end_time desc` or `end_time`; by end_time only jobs that have ended. fields: of a job that
        are wanted, `name` and `state`, say; empty means all. limit: at most this many; None means
        all. page_size: jobs per call; 0 leaves it to the server.
        """
        if limit is not None and limit <= 0:
            return
        request = job_service_pb2.ListJobsRequest(
            page_size=min(page_size, limit) if limit else page_size,
            states=states,
            labels=labels or {},
            filter=filter_by,
            order_by=order_by,
            read_mask=field_mask_pb2.FieldMask(paths=fields) if fields else None,
        )
        count = 0
        async for page in self._pages(self._jobs.ListJobs, request):
            for job in page.jobs:
                yield job
                count += 1
                if count == limit:
                    return

    async def count(
        self: Calls, filter_by: str = "", *, pages: int | None = None
    ) -> tuple[Counter[tuple["job_pb2.Job.State.ValueType", str]], bool]:
        """How many jobs pass the filter, by state and pipeline ("" for none).

        And whether there may be more. pages: calls at most, each of which looks at the next
        100,000 jobs or so; None means as many as it takes.
        """
        request = job_service_pb2.CountJobsRequest(filter=filter_by)
        counts: Counter[tuple[job_pb2.Job.State.ValueType, str]] = Counter()
        while True:
            answer = await self._unary(self._jobs.CountJobs, request)
            for one in answer.counts:
                counts[one.state, one.pipeline] += one.count
            request.page_token = answer.next_page_token
            pages = None if pages is None else pages - 1
            if not answer.next_page_token or pages == 0:
                return counts, bool(answer.next_page_token)

    async def delete(self: Calls, name: str, *, missing_ok: bool = True) -> None:
        """Deletes a job that has ended; its uploads stay.

        FluoroApiError JOB_NOT_ENDED. missing_ok: a job that does not exist is fine, so the call may
        be repeated; otherwise it is NotFoundError, and the call is sent once.
        """
        request = job_service_pb2.DeleteJobRequest(name=name, allow_missing=missing_ok)
        if missing_ok:
            await self._unary(self._jobs.DeleteJob, request)
        else:
            await self._once(self._jobs.DeleteJob, request, self.deadline_seconds)

    async def submit_many(
        self: Calls,
        jobs: Sequence[JobSource],
        *,
        request_ids: Sequence[str] = (),
        validate_only: bool = False,
    ) -> Sequence[job_pb2.Job | FluoroApiError]:
        """Submits jobs, up to 1000 in a transaction: in order, each as accepted, or its refusal.

        Jobs as accepted have no steps, inputs and labels. More than fit into a call are sent in
        several; an error that is raised says nothing about the jobs of the calls before it, so
        repeat such a call with the same request_ids.

        request_ids: one for each job; none makes new ones, which cover the retries inside.
        InvalidJobError if a job is none; ValueError if there are not as many request_ids as jobs.
        """
        ids = request_ids or [str(uuid.uuid4()) for _ in jobs]
        entries = [
            job_service_pb2.SubmitJobRequest(job=parse_job(job), request_id=request_id)
            for job, request_id in zip(jobs, ids, strict=True)
        ]
        waiting = list(_batches(entries))[::-1]
        outcomes: list[job_pb2.Job | FluoroApiError] = []
        while waiting:
            batch = waiting.pop()
            request = job_service_pb2.BatchSubmitJobsRequest(
                requests=batch, validate_only=validate_only
            )
            try:
                answer = await self._unary(self._jobs.BatchSubmitJobs, request)
            except ResourceExhaustedError as error:
                if error.reason != TOO_LARGE or len(batch) == 1:
                    raise
                # Only the gateway knows what the rows of a job weigh.
                half = len(batch) // 2
                waiting += [batch[half:], batch[:half]]
                continue
            outcomes += [
                refused(one.refusal) if one.HasField("refusal") else one.job
                for one in answer.outcomes
            ]
        return outcomes

    async def cancel_matching(self: Calls, filter_by: str, *, preview: bool = False) -> Tally:
        """Cancels every job that passes the filter and has not ended; `*` means all.

        preview: only counts them, for a few seconds at most. After an error, call it again.
        """
        request = job_service_pb2.BatchCancelJobsRequest(filter=filter_by, validate_only=preview)
        count = 0
        while True:
            answer = await self._unary(self._jobs.BatchCancelJobs, request)
            count += answer.count
            request.page_token = answer.next_page_token
            if preview or not answer.next_page_token:
                return Tally(count, bool(answer.next_page_token))

    async def retry_matching(self: Calls, filter_by: str, *, preview: bool = False) -> Tally:
        """Retries every ended job that passes the filter and did not succeed; `*` means all.

        preview: only counts them, for a few seconds at most. Each call is sent once: after an
        error, call it again; jobs that have failed again by then are retried again.
        """
        request = job_service_pb2.BatchRetryJobsRequest(filter=filter_by, validate_only=preview)
        count = 0
        while True:
            answer = await self._once(self._jobs.BatchRetryJobs, request, self.deadline_seconds)
            count += answer.count
            request.page_token = answer.next_page_token
            if preview or not answer.next_page_token:
                return Tally(count, bool(answer.next_page_token))


def _batches(
    entries: Sequence[job_service_pb2.SubmitJobRequest],
) -> Iterator[list[job_service_pb2.SubmitJobRequest]]:
    """The entries in order, as many at a time as a call takes."""
    batch: list[job_service_pb2.SubmitJobRequest] = []
    size = 0
    for entry in entries:
        size += entry.ByteSize()
        if batch and (len(batch) == MOST_ENTRIES or size > MOST_BYTES):
            yield batch
            batch, size = [], entry.ByteSize()
        batch.append(entry)
    if batch:
        yield batch
