"""JobService over the state in memory, but for its streams."""

from collections.abc import Callable
from typing import Any, Final

from fluoro.v1 import explanation_pb2, job_pb2, job_service_pb2, job_service_pb2_grpc

from fluoro_client.testing import searching, views
from fluoro_client.testing.batches import Batches, submitted
from fluoro_client.testing.calls import Context, Response
from fluoro_client.testing.faults import invalid
from fluoro_client.testing.services.watches import Watches
from fluoro_client.testing.story import STEP_TERMINAL, Job
from fluoro_client.testing.views import BASIC, LARGEST_PAGE, PAGE, check_view, shown

WAIT_SECONDS: Final = 30
"""How long WaitJob waits unless told."""
LONGEST_WAIT_SECONDS: Final = 600
ANSWER_SECONDS: Final = 0.25
"""How long before the caller's deadline WaitJob answers."""


class Jobs(Watches, Batches, job_service_pb2_grpc.JobServiceServicer):
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
