"""Calls of JobService about many jobs. A fake is done with all of them in one call."""

from collections import Counter
from collections.abc import Iterator

from fluoro.v1 import job_pb2, job_service_pb2

from fluoro_client.testing import searching
from fluoro_client.testing.calls import Context, Service
from fluoro_client.testing.faults import CODES, RefusalError, invalid
from fluoro_client.testing.state import State
from fluoro_client.testing.story import Job, Story, accepted

MAX_ENTRIES = 1000
MAX_FIELDS_TOLD = 3


class Batches(Service):
    """The methods whose names begin with Batch, CountJobs and DeleteJob."""

    def BatchSubmitJobs(
        self, request: job_service_pb2.BatchSubmitJobsRequest, context: Context
    ) -> job_service_pb2.BatchSubmitJobsResponse:
        """Accepts jobs, each for itself."""

        def submit(owner: str) -> job_service_pb2.BatchSubmitJobsResponse:
            if len(request.requests) > MAX_ENTRIES:
                raise invalid("requests", f"At most {MAX_ENTRIES}.")
            response = job_service_pb2.BatchSubmitJobsResponse()
            for entry in request.requests:
                entry.validate_only |= request.validate_only
                outcome = response.outcomes.add()
                try:
                    outcome.job.CopyFrom(submitted(self._state, owner, entry))
                except RefusalError as refusal:
                    fault = refusal.fault
                    outcome.refusal.code = CODES[fault.reason].value[0]
                    outcome.refusal.reason = fault.reason
                    outcome.refusal.message = fault.message
                    for bad in fault.violations[:MAX_FIELDS_TOLD]:
                        outcome.refusal.fields[bad.field] = bad.description
                else:
                    outcome.job.ClearField("labels")
            return response

        return self._answer("BatchSubmitJobs", request, context, submit)

    def BatchCancelJobs(
        self, request: job_service_pb2.BatchCancelJobsRequest, context: Context
    ) -> job_service_pb2.BatchCancelJobsResponse:
        """Cancels what has not ended."""

        def cancel(owner: str) -> job_service_pb2.BatchCancelJobsResponse:
            found = [one for one in self._matching(owner, request.filter) if not one.ended]
            for story in [] if request.validate_only else found:
                self._state.end(
                    story, Job.STATE_CANCELLED, "JOB_CANCELLED", "Cancelled by its owner."
                )
            return job_service_pb2.BatchCancelJobsResponse(count=len(found))

        return self._answer("BatchCancelJobs", request, context, cancel)

    def BatchRetryJobs(
        self, request: job_service_pb2.BatchRetryJobsRequest, context: Context
    ) -> job_service_pb2.BatchRetryJobsResponse:
        """Opens what did not succeed."""

        def retry(owner: str) -> job_service_pb2.BatchRetryJobsResponse:
            found = [
                one
                for one in self._matching(owner, request.filter)
                if one.ended and one.job.state != Job.STATE_SUCCEEDED
            ]
            if request.validate_only:
                return job_service_pb2.BatchRetryJobsResponse(count=len(found))
            opened = [story for story in found if story.retry()]
            for story in [] if self._state.hold else opened:
                self._state.finish(story)
            self._state.changed.notify_all()
            return job_service_pb2.BatchRetryJobsResponse(count=len(opened))

        return self._answer("BatchRetryJobs", request, context, retry)

    def CountJobs(
        self, request: job_service_pb2.CountJobsRequest, context: Context
    ) -> job_service_pb2.CountJobsResponse:
        """Counts all at once."""

        def count(owner: str) -> job_service_pb2.CountJobsResponse:
            counts = Counter(
                (one.job.state, _pipeline(one.job))
                for one in self._matching(owner, request.filter or "*")
            )
            response = job_service_pb2.CountJobsResponse()
            for (state, pipeline), number in sorted(counts.items(), key=_by_name):
                response.counts.add(state=state, pipeline=pipeline, count=number)
            return response

        return self._answer("CountJobs", request, context, count)

    def DeleteJob(
        self, request: job_service_pb2.DeleteJobRequest, context: Context
    ) -> job_service_pb2.DeleteJobResponse:
        """Forgets a job that has ended."""

        def delete(owner: str) -> job_service_pb2.DeleteJobResponse:
            try:
                story = self._state.story(request.name, owner)
            except RefusalError as refusal:
                if request.allow_missing and refusal.fault.reason == "JOB_NOT_FOUND":
                    return job_service_pb2.DeleteJobResponse()
                raise
            self._state.delete(story)
            return job_service_pb2.DeleteJobResponse()

        return self._answer("DeleteJob", request, context, delete)

    def _matching(self, owner: str, text: str) -> Iterator[Story]:
        """The owner's jobs that pass a filter."""
        if not text.strip():
            raise invalid("filter", "Say which jobs; * means all.")
        request = job_service_pb2.ListJobsRequest(filter="" if text.strip() == "*" else text)
        found = searching.jobs(self._state.stories.values(), owner, request)
        return (self._state.stories[job.name] for job in found)


def submitted(state: State, owner: str, request: job_service_pb2.SubmitJobRequest) -> job_pb2.Job:
    """The job as accepted, or as it would be. RefusalError if a gateway would not take it."""
    job = state.checked(request)
    if not request.validate_only:
        return state.submit(owner, job, request.request_id)
    checked = Story(owner, accepted(job), lambda _: None).head()
    checked.ClearField("name")
    checked.ClearField("create_time")
    return checked


def _pipeline(job: job_pb2.Job) -> str:
    """Id in `pipelines/{id}/versions/{number}`."""
    return job.pipeline.split("/")[1] if job.pipeline else ""


def _by_name(row: tuple[tuple["job_pb2.Job.State.ValueType", str], int]) -> tuple[str, str]:
    """Of a state and a pipeline, as gateways order them."""
    (state, pipeline), _ = row
    return job_pb2.Job.State.Name(state), pipeline
