"""JobService and BlobService over the state in memory. Each call runs in a thread of its own."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from fluoro.v1 import (
    blob_service_pb2,
    blob_service_pb2_grpc,
    explanation_pb2,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    pipeline_service_pb2,
    pipeline_service_pb2_grpc,
)

from fluoro_client.testing import searching, views
from fluoro_client.testing.batches import Batches, submitted
from fluoro_client.testing.calls import Context, Response, Service
from fluoro_client.testing.faults import Fault, RefusalError, invalid
from fluoro_client.testing.pipelines import page
from fluoro_client.testing.story import STEP_TERMINAL, Job, Story
from fluoro_client.testing.views import BASIC, LARGEST_PAGE, PAGE, check_view, shown

BOOKMARK_SECONDS: Final = 15
"""How long a watch is silent before it gives a sign of life."""
WAIT_SECONDS: Final = 30
"""How long WaitJob waits unless told."""
LONGEST_WAIT_SECONDS: Final = 600
ANSWER_SECONDS: Final = 0.25
"""How long before the caller's deadline WaitJob answers."""
CHUNK_BYTES: Final = 64 * 1024
"""Size of the chunks of a download. A gateway's are larger; here a small file has several."""
LARGEST_CHUNK_BYTES: Final = 1024 * 1024
HANG_UP_SECONDS: Final = 0.02
"""How long it takes to notice that the caller of an upload of unknown size hung up.

Counted from the last byte: gRPC ends the requests first.
"""


class Jobs(Batches, job_service_pb2_grpc.JobServiceServicer):
    """fluoro.v1.JobService."""

    def SubmitJob(
        self, request: job_service_pb2.SubmitJobRequest, context: Context
    ) -> job_service_pb2.SubmitJobResponse:
        """Accepts a job."""

        def submit(owner: str) -> job_service_pb2.SubmitJobResponse:
            return job_service_pb2.SubmitJobResponse(job=submitted(self._state, owner, request))

        return self._answer("SubmitJob", request, context, submit)

    def GetJob(
        self, request: job_service_pb2.GetJobRequest, context: Context
    ) -> job_service_pb2.GetJobResponse:
        """The whole job."""

        def get(owner: str) -> job_service_pb2.GetJobResponse:
            check_view(request.view)
            story = self._state.story(request.name, owner)
            return job_service_pb2.GetJobResponse(job=shown(story.job, request.view))

        return self._answer("GetJob", request, context, get)

    def ListJobs(
        self, request: job_service_pb2.ListJobsRequest, context: Context
    ) -> job_service_pb2.ListJobsResponse:
        """A page of jobs. The token is the name of the last one."""

        def page(owner: str) -> job_service_pb2.ListJobsResponse:
            found = searching.jobs(self._state.stories.values(), owner, request)
            names = [job.name for job in found]
            if request.page_size < 0 or (request.page_token and request.page_token not in names):
                raise invalid(
                    "page_size" if request.page_size < 0 else "page_token",
                    "Must be 0 or more, or the token of a page before.",
                )
            start = names.index(request.page_token) + 1 if request.page_token else 0
            end = start + min(request.page_size or PAGE, LARGEST_PAGE)
            return job_service_pb2.ListJobsResponse(
                jobs=[searching.hide(job, request) for job in found[start:end]],
                next_page_token=names[end - 1] if end < len(names) else "",
            )

        return self._answer("ListJobs", request, context, page)

    def ListInputs(
        self, request: job_service_pb2.ListInputsRequest, context: Context
    ) -> job_service_pb2.ListInputsResponse:
        """A page of a job's inputs."""
        return self._part("ListInputs", request, context, views.inputs)

    def ListTasks(
        self, request: job_service_pb2.ListTasksRequest, context: Context
    ) -> job_service_pb2.ListTasksResponse:
        """A page of a job's tasks."""
        return self._part("ListTasks", request, context, views.tasks)

    def ListItems(
        self, request: job_service_pb2.ListItemsRequest, context: Context
    ) -> job_service_pb2.ListItemsResponse:
        """A page of a job's items."""
        return self._part("ListItems", request, context, views.items)

    def ListArtifacts(
        self, request: job_service_pb2.ListArtifactsRequest, context: Context
    ) -> job_service_pb2.ListArtifactsResponse:
        """A page of a job's artifacts."""
        return self._part("ListArtifacts", request, context, views.artifacts)

    def ListResults(
        self, request: job_service_pb2.ListResultsRequest, context: Context
    ) -> job_service_pb2.ListResultsResponse:
        """A page of a job's results."""
        return self._part("ListResults", request, context, views.results)

    def _part(
        self,
        method: str,
        request: Any,
        context: Context,
        page: Callable[[job_pb2.Job, Any], Response],
    ) -> Response:
        return self._answer(
            method,
            request,
            context,
            lambda owner: page(self._state.story(request.job, owner, "job").job, request),
        )

    def WaitJob(
        self, request: job_service_pb2.WaitJobRequest, context: Context
    ) -> job_service_pb2.WaitJobResponse:
        """The job, once it has ended or time is up."""

        def wait(owner: str) -> job_service_pb2.WaitJobResponse:
            check_view(request.view)
            story = self._state.story(request.name, owner)
            seconds = (
                request.timeout.ToTimedelta().total_seconds()
                if request.HasField("timeout")
                else float(WAIT_SECONDS)
            )
            if not 0 <= seconds <= LONGEST_WAIT_SECONDS:
                raise invalid("timeout", f"Must be between 0 s and {LONGEST_WAIT_SECONDS} s.")
            left = context.time_remaining()
            context.add_callback(self._wake)
            self._state.wait(
                context,
                lambda: story.ended,
                seconds if left is None else max(0.0, min(seconds, left - ANSWER_SECONDS)),
            )
            return job_service_pb2.WaitJobResponse(job=shown(story.job, request.view))

        return self._answer("WaitJob", request, context, wait)

    def CancelJob(
        self, request: job_service_pb2.CancelJobRequest, context: Context
    ) -> job_service_pb2.CancelJobResponse:
        """Cancels what has not ended."""

        def cancel(owner: str) -> job_service_pb2.CancelJobResponse:
            story = self._state.story(request.name, owner)
            self._state.end(story, Job.STATE_CANCELLED, "JOB_CANCELLED", "Cancelled by its owner.")
            return job_service_pb2.CancelJobResponse(job=shown(story.job, BASIC))

        return self._answer("CancelJob", request, context, cancel)

    def RetryJob(
        self, request: job_service_pb2.RetryJobRequest, context: Context
    ) -> job_service_pb2.RetryJobResponse:
        """Opens an ended job again."""

        def retry(owner: str) -> job_service_pb2.RetryJobResponse:
            story = self._state.story(request.name, owner)
            self._state.retry(story)
            answer = job_service_pb2.RetryJobResponse(job=shown(story.job, BASIC))
            if not self._state.hold:
                self._state.finish(story)
            return answer

        return self._answer("RetryJob", request, context, retry)

    def ExplainJob(
        self, request: job_service_pb2.ExplainJobRequest, context: Context
    ) -> job_service_pb2.ExplainJobResponse:
        """State of a job and of its open steps, with nothing that holds them up."""

        def explain(owner: str) -> job_service_pb2.ExplainJobResponse:
            job = self._state.story(request.name, owner).job
            found = explanation_pb2.JobExplanation(job=job.name, state=job.state)
            found.steps.extend(
                explanation_pb2.StepExplanation(step=step.name, state=step.state)
                for step in job.steps
                if step.state not in STEP_TERMINAL
            )
            return job_service_pb2.ExplainJobResponse(explanation=found)

        return self._answer("ExplainJob", request, context, explain)

    def WatchJob(
        self, request: job_service_pb2.WatchJobRequest, context: Context
    ) -> Iterator[job_service_pb2.WatchJobResponse]:
        """A job's snapshot and events."""
        return self._stream(
            "WatchJob",
            request,
            context,
            lambda owner, fault: self._job_told(request, context, owner, fault),
        )

    def _job_told(
        self, request: job_service_pb2.WatchJobRequest, context: Context, owner: str, fault: Fault
    ) -> Iterator[job_service_pb2.WatchJobResponse]:
        state = self._state
        with state.changed:
            check_view(request.view)
            story = state.story(request.name, owner)
            position = (
                _position(story, request.start_cursor)
                if request.start_cursor
                else len(story.events)
            )
            first = job_service_pb2.WatchJobResponse(
                cursor=_cursor(story, position), snapshot=shown(story.job, request.view)
            )
            told, ended = (
                max(0, len(story.progress) - 1),
                story.ended and position == len(story.events),
            )
        if not request.start_cursor:
            yield first
        position = max(0, position + fault.missing - fault.repeat)
        while not ended:
            with state.changed:
                state.wait(context, partial(story.has_news, position, told), BOOKMARK_SECONDS)
                if not context.is_active():
                    return
                events, progress, ended = (
                    story.events[position:],
                    story.progress[told:],
                    story.ended,
                )
            for event in events:
                position = event.sequence
                yield job_service_pb2.WatchJobResponse(cursor=_cursor(story, position), event=event)
            for latest in progress:
                told += 1
                yield job_service_pb2.WatchJobResponse(
                    cursor=_cursor(story, position), progress=latest
                )
            if not events and not progress and not ended:
                bookmark = job_service_pb2.Bookmark(last_sequence=position)
                yield job_service_pb2.WatchJobResponse(
                    cursor=_cursor(story, position), bookmark=bookmark
                )

    def RunJob(
        self, request: job_service_pb2.RunJobRequest, context: Context
    ) -> Iterator[job_service_pb2.RunJobResponse]:
        """A job's snapshot and events, once it is accepted."""
        return self._stream(
            "RunJob",
            request,
            context,
            lambda owner, fault: self._run_told(request, context, owner, fault),
        )

    def _run_told(
        self, request: job_service_pb2.RunJobRequest, context: Context, owner: str, fault: Fault
    ) -> Iterator[job_service_pb2.RunJobResponse]:
        state = self._state
        with state.changed:
            check_view(request.view)
            if request.submit.validate_only:
                raise invalid("submit.validate_only", "A check runs nothing; use SubmitJob.")
            # The run shall hear of the end as of something that comes later.
            held, state.hold = state.hold, True
            try:
                job = state.checked(request.submit)
                name = state.submit(owner, job, request.submit.request_id).name
            except RefusalError as refusal:
                bad = [(f"submit.{v.field}", v.description) for v in refusal.fault.violations]
                raise RefusalError(refusal.fault.reason, refusal.fault.message, *bad) from None
            finally:
                state.hold = held
        watch = job_service_pb2.WatchJobRequest(name=name, view=request.view)
        for message in self._job_told(watch, context, owner, fault):
            # After the snapshot was made, and before it may be the last that the caller hears.
            with state.changed:
                story = state.story(name)
                if message.HasField("snapshot") and not held and not story.ended:
                    state.finish(story)
            yield job_service_pb2.RunJobResponse.FromString(message.SerializeToString())

    def WatchJobs(
        self, request: job_service_pb2.WatchJobsRequest, context: Context
    ) -> Iterator[job_service_pb2.WatchJobsResponse]:
        """All of an owner's jobs that have the labels."""
        return self._stream(
            "WatchJobs", request, context, lambda owner, _: self._jobs_told(request, context, owner)
        )

    def _jobs_told(
        self, request: job_service_pb2.WatchJobsRequest, context: Context, owner: str
    ) -> Iterator[job_service_pb2.WatchJobsResponse]:
        """Cursors are positions in the order of all events.

        They lag, and a resume repeats two events before, as a gateway may.
        """
        state, wanted = self._state, dict(request.labels)
        watch = hashlib.sha256(repr([owner, sorted(wanted.items())]).encode()).hexdigest()[:16]
        with state.changed:
            start = (
                _number(request.start_cursor, watch, len(state.log))
                if request.start_cursor
                else len(state.log)
            )
            heads = [
                story.head()
                for story in state.stories.values()
                if not story.ended and _wanted(story, owner, wanted)
            ]
        position = start
        if request.start_cursor:
            position = max(0, start - 2)
        else:
            for head in heads:
                yield job_service_pb2.WatchJobsResponse(job=head)
            yield job_service_pb2.WatchJobsResponse(
                cursor=f"{watch}.{start}", bookmark=job_service_pb2.Bookmark()
            )
        while True:
            with state.changed:
                due = state.wait(context, partial(state.has_news, position), BOOKMARK_SECONDS)
                if not context.is_active():
                    return
                events = [
                    (number, event)
                    for number, event in enumerate(state.log[position:], position + 1)
                    if _wanted(state.stories[event.job], owner, wanted)
                ]
                position = len(state.log)
            for number, event in events:
                yield job_service_pb2.WatchJobsResponse(
                    cursor=f"{watch}.{max(start, number - number % 4)}", event=event
                )
            if not due:
                cursor = f"{watch}.{max(start, position - position % 4)}"
                yield job_service_pb2.WatchJobsResponse(
                    cursor=cursor, bookmark=job_service_pb2.Bookmark()
                )


def _wanted(story: Story, owner: str, labels: Mapping[str, str]) -> bool:
    return story.job.owner == owner and labels.items() <= dict(story.job.labels).items()


def _cursor(story: Story, sequence: int) -> str:
    return f"{story.job.name.removeprefix('jobs/')}.{sequence}"


def _position(story: Story, cursor: str) -> int:
    return _number(cursor, story.job.name.removeprefix("jobs/"), len(story.events))


def _number(cursor: str, watch: str, last: int) -> int:
    """The place in a watch that a cursor of it stands for.

    RefusalError CURSOR_INVALID if it is not one, or is ahead of `last`.
    """
    head, _, number = cursor.rpartition(".")
    if head != watch or not number.isdecimal() or int(number) > last:
        raise RefusalError(
            "CURSOR_INVALID",
            "The cursor is not one of this watch. Watch without a cursor to start with a snapshot.",
        )
    return int(number)


class PipelineService(Service, pipeline_service_pb2_grpc.PipelineServiceServicer):
    """fluoro.v1.PipelineService."""

    def ListPipelines(
        self, request: pipeline_service_pb2.ListPipelinesRequest, context: Context
    ) -> pipeline_service_pb2.ListPipelinesResponse:
        """Pipelines by name."""
        return self._answer(
            "ListPipelines", request, context, lambda _: page(self._state.pipelines, request)
        )

    def GetPipeline(
        self, request: pipeline_service_pb2.GetPipelineRequest, context: Context
    ) -> pipeline_service_pb2.GetPipelineResponse:
        """One of them."""

        def get(_: str) -> pipeline_service_pb2.GetPipelineResponse:
            found = self._state.pipelines.find(request.name, "name").shown
            return pipeline_service_pb2.GetPipelineResponse(pipeline=found)

        return self._answer("GetPipeline", request, context, get)


class Blobs(Service, blob_service_pb2_grpc.BlobServiceServicer):
    """fluoro.v1.BlobService."""

    def UploadBlob(
        self, request_iterator: Iterator[blob_service_pb2.UploadBlobRequest], context: Context
    ) -> blob_service_pb2.UploadBlobResponse:
        """Keeps what is as announced."""
        first = next(request_iterator, blob_service_pb2.UploadBlobRequest())
        try:
            owner, fault = self._enter("UploadBlob", first.header, context)
            if first.WhichOneof("part") != "header":
                raise invalid("header", "The first message of an upload must be the header.")
            data = _received(request_iterator, None if fault is None else fault.after)
            if data is not None:
                return self._keep(owner, first.header, data, context)
        except RefusalError as refusal:
            fault = refusal.fault
        assert fault is not None
        return fault.end(context)

    def _keep(
        self, owner: str, header: blob_service_pb2.UploadBlobHeader, data: bytes, context: Context
    ) -> blob_service_pb2.UploadBlobResponse:
        if header.size_bytes and header.size_bytes != len(data):
            raise RefusalError(
                "UPLOAD_MISMATCH",
                f"{len(data)} bytes came, the header declares {header.size_bytes}.",
            )
        if header.sha256 and header.sha256 != hashlib.sha256(data).digest():
            raise RefusalError(
                "UPLOAD_MISMATCH", "The SHA-256 of what came differs from the header's."
            )
        if not header.size_bytes and not header.sha256:
            gone = threading.Event()
            if not context.add_callback(gone.set) or gone.wait(HANG_UP_SECONDS):
                return blob_service_pb2.UploadBlobResponse()
        with self._state.changed:
            blob = self._state.add_blob(
                owner, data, header.media_type or "application/octet-stream"
            )
        return blob_service_pb2.UploadBlobResponse(blob=blob)

    def GetBlob(
        self, request: blob_service_pb2.GetBlobRequest, context: Context
    ) -> blob_service_pb2.GetBlobResponse:
        """The record."""

        def get(owner: str) -> blob_service_pb2.GetBlobResponse:
            return blob_service_pb2.GetBlobResponse(blob=self._state.blob(request.name, owner))

        return self._answer("GetBlob", request, context, get)

    def DownloadBlob(
        self, request: blob_service_pb2.DownloadBlobRequest, context: Context
    ) -> Iterator[blob_service_pb2.DownloadBlobResponse]:
        """The bytes."""

        def read(owner: str, _: Fault) -> Iterator[blob_service_pb2.DownloadBlobResponse]:
            with self._state.changed:
                blob = self._state.blob(request.name, owner)
                data = self._state.data[request.name]
            if not 0 <= request.offset <= blob.size_bytes:
                raise invalid(
                    "offset", f"Must be between 0 and the blob's size of {blob.size_bytes} bytes."
                )
            for start in range(request.offset, len(data), CHUNK_BYTES):
                yield blob_service_pb2.DownloadBlobResponse(chunk=data[start : start + CHUNK_BYTES])

        return self._stream("DownloadBlob", request, context, read)


def _received(
    requests: Iterator[blob_service_pb2.UploadBlobRequest], until_bytes: int | None
) -> bytes | None:
    """The bytes of an upload; None once so many have come."""
    chunks, size_bytes = list[bytes](), 0
    while until_bytes is None or size_bytes < until_bytes:
        request = next(requests, None)
        if request is None:
            return b"".join(chunks)
        if request.WhichOneof("part") != "chunk":
            raise invalid("chunk", "Every message of an upload after the first must be a chunk.")
        if len(request.chunk) > LARGEST_CHUNK_BYTES:
            text = (
                f"A chunk of {len(request.chunk)} bytes is over the limit of {LARGEST_CHUNK_BYTES}."
            )
            raise RefusalError("MESSAGE_TOO_LARGE", text)
        chunks.append(request.chunk)
        size_bytes += len(request.chunk)
    return None
