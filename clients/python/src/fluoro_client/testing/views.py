"""What answers have of a job: views of it, and its lists page by page.

Pure: functions on a job as the story of it stands.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

from fluoro.v1 import job_pb2, job_service_pb2

from fluoro_client.testing.faults import RefusalError, invalid

Job, Step, Task = job_pb2.Job, job_pb2.Step, job_pb2.Task

PAGE: Final = 50
LARGEST_PAGE: Final = 1000
BASIC: Final = job_service_pb2.JOB_VIEW_BASIC

_ENDED: Final = frozenset((Task.STATE_SUCCEEDED, Task.STATE_FAILED, Task.STATE_CANCELLED))
_USEFUL: Final = frozenset((Step.STATE_SUCCEEDED, Step.STATE_PARTIALLY_SUCCEEDED))

Found = TypeVar("Found")


def check_view(view: int) -> None:
    """RefusalError INVALID_ARGUMENT unless there is such a view."""
    if view not in job_service_pb2.JobView.values():
        raise invalid("view", "Must be BASIC or FULL.")


def shown(job: job_pb2.Job, view: "job_service_pb2.JobView.ValueType") -> job_pb2.Job:
    """The job as an answer has it."""
    seen = Job()
    seen.CopyFrom(job)
    seen.input_count = len(job.inputs)
    for step in seen.steps:
        step.counts.CopyFrom(_counts(step))
    if view == BASIC:
        seen.ClearField("inputs")
        for step in seen.steps:
            for name in ("tasks", "items", "artifacts", "result"):
                step.ClearField(name)
    return seen


def _counts(step: job_pb2.Step) -> job_pb2.StepCounts:
    tasks, items = [task.state for task in step.tasks], [item.state for item in step.items]
    if step.state == job_pb2.Step.STATE_PENDING and _ENDED.issuperset(tasks):
        tasks = []  # it waits again; they are those of before a retry
    return job_pb2.StepCounts(
        tasks=len(tasks),
        ended_tasks=sum(state in _ENDED for state in tasks),
        failed_tasks=tasks.count(Task.STATE_FAILED),
        items=len(items),
        succeeded_items=items.count(job_pb2.Item.STATE_SUCCEEDED),
        skipped_items=items.count(job_pb2.Item.STATE_SKIPPED),
        failed_items=items.count(job_pb2.Item.STATE_FAILED),
    )


def inputs(
    job: job_pb2.Job, request: job_service_pb2.ListInputsRequest
) -> job_service_pb2.ListInputsResponse:
    """A page of inputs."""
    found, token = _page(list(job.inputs), request)
    return job_service_pb2.ListInputsResponse(inputs=found, next_page_token=token)


def tasks(
    job: job_pb2.Job, request: job_service_pb2.ListTasksRequest
) -> job_service_pb2.ListTasksResponse:
    """A page of tasks."""
    every = _of_steps(job, request, lambda step: step.tasks)
    found, token = _page([(step, task) for step, task in every], request)
    return job_service_pb2.ListTasksResponse(
        tasks=[job_service_pb2.StepTask(step=step, task=task) for step, task in found],
        next_page_token=token,
    )


def items(
    job: job_pb2.Job, request: job_service_pb2.ListItemsRequest
) -> job_service_pb2.ListItemsResponse:
    """A page of items."""
    if not set(request.states) <= set(job_pb2.Item.State.values()[1:]):
        raise invalid("states", "Must be states of an item.")
    every = _of_steps(job, request, lambda step: step.items)
    wanted = [one for one in every if not request.states or one[1].state in request.states]
    found, token = _page(wanted, request)
    return job_service_pb2.ListItemsResponse(
        items=[job_service_pb2.StepItem(step=step, item=item) for step, item in found],
        next_page_token=token,
    )


def artifacts(
    job: job_pb2.Job, request: job_service_pb2.ListArtifactsRequest
) -> job_service_pb2.ListArtifactsResponse:
    """A page of artifacts."""
    every = _of_steps(
        job, request, lambda step: sorted(step.artifacts, key=lambda artifact: artifact.name)
    )
    wanted = [one for one in every if not request.roles or one[1].role in request.roles]
    found, token = _page(wanted, request)
    return job_service_pb2.ListArtifactsResponse(
        artifacts=[job_service_pb2.StepArtifact(step=step, artifact=made) for step, made in found],
        next_page_token=token,
    )


def results(
    job: job_pb2.Job, request: job_service_pb2.ListResultsRequest
) -> job_service_pb2.ListResultsResponse:
    """A page of the parts of a step's result: all of it is in the first."""
    parts = []
    for step in _steps(job, request.step, required=True):
        done = [task for task in step.tasks if task.state == Task.STATE_SUCCEEDED]
        field = step.WhichOneof("result")
        whole = getattr(step, field).SerializeToString() if field else b""
        if step.state in _USEFUL:
            parts = [
                job_service_pb2.ResultPart(shard=task.shard, message=b"" if number else whole)
                for number, task in enumerate(done)
            ]
    found, token = _page(parts, request)
    return job_service_pb2.ListResultsResponse(parts=found, next_page_token=token)


def _of_steps(
    job: job_pb2.Job, request: Any, parts: Callable[[job_pb2.Step], Sequence[Any]]
) -> Iterator[tuple[str, Any]]:
    """These parts of the steps that the request asks for, with the step's name."""
    steps = _steps(job, request.step)
    return ((step.name, part) for step in steps for part in parts(step))


def _steps(job: job_pb2.Job, name: str, *, required: bool = False) -> list[job_pb2.Step]:
    steps = [step for step in job.steps if step.name == name or not (name or required)]
    if not steps and (name or required):
        raise RefusalError(
            "STEP_UNKNOWN",
            f"{job.name} has no such step.",
            ("step", "Must be the name of a step of the job."),
        )
    return steps


def _page(every: Sequence[Found], request: Any) -> tuple[Sequence[Found], str]:
    """What is on the page, and the token of the next one: the number of what it begins with."""
    if request.page_size < 0:
        raise invalid("page_size", "Must not be negative.")
    if not (request.page_token or "0").isdecimal():
        raise invalid("page_token", "Must be a next_page_token.")
    start = int(request.page_token or 0)
    end = start + min(request.page_size or PAGE, LARGEST_PAGE)
    return every[start:end], str(end) if end < len(every) else ""
