"""All that a fake gateway holds. `changed` guards it, and wakes whoever waits for a change."""

import hashlib
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

import grpc
from fluoro.v1 import (
    blob_service_pb2,
    event_pb2,
    job_pb2,
    job_service_pb2,
    model_pb2,
    token_service_pb2,
)
from fluoro.v1.deployment_service_pb2 import Finding
from google.protobuf.message import Message

from fluoro_client.testing.checks import check_inputs, check_job, check_name
from fluoro_client.testing.faults import Fault, RefusalError
from fluoro_client.testing.pipelines import Pipelines
from fluoro_client.testing.story import File, Outcome, Story, accepted

OUTPUT_ONLY_JOB: Final = (
    "name",
    "state",
    "owner",
    "reason",
    "message",
    "create_time",
    "start_time",
    "end_time",
    "last_sequence",
    "input_count",
    "pipeline",
    "provenance",
)
OUTPUT_ONLY_STEP: Final = (
    "state",
    "reason",
    "message",
    "tasks",
    "items",
    "artifacts",
    "large_result",
    "counts",
    "result",
)
"""What a caller may send but never decides."""


class Call(NamedTuple):
    """A call that reached the gateway.

    owner: "" if it named none. request: of an upload the header.
    """

    method: str
    owner: str
    request: Message


class State:
    """Jobs, blobs, and what the test has in store for them. Its methods want `changed` held."""

    def __init__(self, *, hold: bool, single_owner: str) -> None:
        self.changed = threading.Condition()
        self.hold, self.single_owner = hold, single_owner
        self.calls: list[Call] = []
        self.faults: dict[str, deque[Fault]] = {}
        self.stories: dict[str, Story] = {}
        self.log: list[event_pb2.Event] = []
        self.pipelines = Pipelines()
        self.tokens: dict[str, token_service_pb2.Token] = {}
        self.findings: list[Finding] = []
        self.models: list[model_pb2.Model] = []
        self.blobs: dict[str, blob_service_pb2.Blob] = {}
        self.data: dict[str, bytes] = {}
        self._blob_owners: dict[str, str] = {}
        self._outcomes: dict[str, tuple[deque[Outcome], Outcome]] = {}
        self._requests: dict[tuple[str, str], tuple[bytes, str]] = {}

    def wait(self, context: grpc.ServicerContext, due: Callable[[], bool], seconds: float) -> bool:
        """Until something is due, for so long at most, or until the caller is gone.

        Whether it is due.
        """
        self.changed.wait_for(lambda: due() or not context.is_active(), seconds)
        return due()

    def has_news(self, position: int) -> bool:
        """Whether more events were logged than these."""
        return len(self.log) > position

    # --- jobs ---

    def checked(self, request: job_service_pb2.SubmitJobRequest) -> job_pb2.Job:
        """The job with the steps of its pipeline. RefusalError if no gateway would take it."""
        job, pipeline = self.pipelines.filled(request)
        job = validated(job)
        job.pipeline = pipeline
        return job

    def submit(self, owner: str, job: job_pb2.Job, request_id: str) -> job_pb2.Job:
        """The job as accepted, or as an earlier call with this request_id had it accepted.

        RefusalError if a gateway would not take it.
        """
        digest = _digest(job)
        earlier = self._requests.get((owner, request_id))
        if earlier and earlier[0] != digest:
            field = "request_id", "Was used for a job with another body. Take a new one."
            raise RefusalError(
                "REQUEST_ID_REUSED", "The request_id was used for another body.", field
            )
        if earlier:
            return self.stories[earlier[1]].head()
        check_inputs(job, {name for name, whose in self._blob_owners.items() if whose == owner})
        story = self.add(owner, accepted(job))
        if request_id:
            self._requests[owner, request_id] = digest, story.job.name
        head = story.head()
        if not self.hold:
            self.finish(story)
        return head

    def add(self, owner: str, job: job_pb2.Job) -> Story:
        """A new job, PENDING, that has these steps."""
        story = Story(owner, job, self.log.append)
        self.stories[story.job.name] = story
        self.changed.notify_all()
        return story

    def story(self, name: str, owner: str | None = None, field: str = "name") -> Story:
        """The job of that name.

        RefusalError JOB_NOT_FOUND if there is none, or if it is another owner's; None may see all.
        field: of the request, where the name is.
        """
        check_name(name, "jobs", field)
        story = self.stories.get(name)
        if story is None or owner not in {None, story.job.owner}:
            raise RefusalError("JOB_NOT_FOUND", f"{name} does not exist for this caller.")
        return story

    def script(self, step: str, outcome: Outcome, times: int | None) -> None:
        """What steps of that name come to: the next so many times, or from now on."""
        queue, default = self._outcomes.get(step, (deque(), Outcome()))
        if times is None:
            queue, default = deque(), outcome
        queue.extend([outcome] * (times or 0))
        self._outcomes[step] = queue, default

    def finish(self, story: Story, names: Sequence[str] = ()) -> None:
        """Runs steps to what they come to: those of these names that wait for no other, or all.

        Running all ends the job.
        """
        while steps := [step for step in story.ready() if not names or step.name in names]:
            for step in steps:
                story.start(step)
                queue, default = self._outcomes.get(step.name, (deque(), Outcome()))
                outcome = queue.popleft() if queue else default
                story.end(
                    step, outcome, [self._keep(story.job.owner, file) for file in outcome.artifacts]
                )
        if not names and not story.ended:
            story.close()
        self.changed.notify_all()

    def end(
        self, story: Story, state: "job_pb2.Job.State.ValueType", reason: str, message: str
    ) -> None:
        """Ends the job, and what has not ended in it, unless it has ended."""
        if not story.ended:
            story.cancel(state, reason, message)
            self.changed.notify_all()

    def retry(self, story: Story) -> None:
        """Opens the job again. RefusalError JOB_NOT_ENDED or NOTHING_TO_RETRY."""
        if not story.ended:
            raise RefusalError(
                "JOB_NOT_ENDED", "The job has not ended. Wait for its end, or cancel it first."
            )
        if not story.retry():
            raise RefusalError("NOTHING_TO_RETRY", "Nothing in the job failed.")
        self.changed.notify_all()

    def delete(self, story: Story) -> None:
        """Forgets the job, and its request_id. RefusalError JOB_NOT_ENDED."""
        if not story.ended:
            raise RefusalError(
                "JOB_NOT_ENDED", "The job has not ended. Wait for its end, or cancel it first."
            )
        name = story.job.name
        del self.stories[name]
        self.log[:] = [event for event in self.log if event.job != name]
        self._requests = {key: value for key, value in self._requests.items() if value[1] != name}
        self.changed.notify_all()

    def _keep(self, owner: str, file: File) -> job_pb2.Artifact:
        blob = self.add_blob(owner, file.data, file.media_type)
        return job_pb2.Artifact(
            name=file.name,
            role=file.role,
            media_type=blob.media_type,
            input=file.input,
            key=file.key or ("" if file.input is None else str(file.input)),
            blob=blob.name,
            size_bytes=blob.size_bytes,
            sha256=blob.sha256,
        )

    # --- blobs ---

    def add_blob(self, owner: str, data: bytes, media_type: str) -> blob_service_pb2.Blob:
        """The owner's blob of these bytes; the earlier one if there is one."""
        sha256 = hashlib.sha256(data).digest()
        if earlier := self.blob_of(owner, sha256):
            return earlier
        blob = blob_service_pb2.Blob(
            name=f"blobs/{uuid.uuid4()}", size_bytes=len(data), sha256=sha256, media_type=media_type
        )
        blob.create_time.GetCurrentTime()
        self.blobs[blob.name], self.data[blob.name], self._blob_owners[blob.name] = (
            blob,
            data,
            owner,
        )
        return blob

    def blob_of(self, owner: str, sha256: bytes) -> blob_service_pb2.Blob | None:
        """The owner's blob of this SHA-256, if there is one."""
        mine = (self.blobs[name] for name, whose in self._blob_owners.items() if whose == owner)
        return next((blob for blob in mine if blob.sha256 == sha256), None)

    def blob(self, name: str, owner: str) -> blob_service_pb2.Blob:
        """The owner's blob of that name. RefusalError BLOB_NOT_FOUND if there is none."""
        check_name(name, "blobs")
        if self._blob_owners.get(name) != owner:
            raise RefusalError("BLOB_NOT_FOUND", f"{name} does not exist for this caller.")
        return self.blobs[name]


def validated(job: job_pb2.Job) -> job_pb2.Job:
    """The job without what is output only. RefusalError if no gateway would take it."""
    clean = job_pb2.Job()
    clean.CopyFrom(job)
    _clear([clean], OUTPUT_ONLY_JOB)
    _clear(clean.steps, OUTPUT_ONLY_STEP)
    check_job(clean)
    return clean


def _clear(messages: Iterable[Message], fields: Sequence[str]) -> None:
    for message in messages:
        for field in fields:
            message.ClearField(field)


def _digest(job: job_pb2.Job) -> bytes:
    return hashlib.sha256(job.SerializeToString(deterministic=True)).digest()
