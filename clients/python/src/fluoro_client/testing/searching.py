"""Lists of jobs as a gateway gives them: filters, orders and masks.

Of filters, the fake knows comparisons by = and != that are joined by AND.
"""

import re
from collections.abc import Iterable
from typing import Final

from fluoro.v1 import job_pb2, job_service_pb2

from fluoro_client.testing.faults import RefusalError, invalid
from fluoro_client.testing.story import Story

ORDERS: Final = ("", "create_time desc", "create_time", "end_time desc", "end_time")
_TERM: Final = re.compile(
    r"""\s*(?:AND\s+)?(state|reason|pipeline|labels\.[\w-]+)\s*(!?=)\s*(?:"([^"\\]*)"|([^\s"()]+))"""
)
_Terms = list[tuple[str, str, str]]
"""Field, operator and value of each comparison."""


def jobs(
    stories: Iterable[Story], owner: str, request: job_service_pb2.ListJobsRequest
) -> list[job_pb2.Job]:
    """Those of the owner that the request wants, in its order.

    RefusalError for a filter, order or mask that does not fit.
    """
    terms, order = _terms(request.filter), " ".join(request.order_by.split())
    if order not in ORDERS:
        raise invalid("order_by", f"Must be one of: {', '.join(ORDERS[1:])}.")
    fields = {field.name for field in job_pb2.Job.DESCRIPTOR.fields}
    shown = set(request.read_mask.paths) - {"*"}
    if not shown <= fields:
        raise invalid("read_mask", "Must be fields of Job, without their parts; or * for all.")
    found = [
        story.head()
        for story in stories
        if story.job.owner == owner
        and request.labels.items() <= dict(story.job.labels).items()
        and (not request.states or story.job.state in request.states)
        and all(_passes(story.job, term) for term in terms)
    ]
    if order.startswith("end_time"):
        found = [job for job in found if job.HasField("end_time")]
        found.sort(key=lambda job: job.end_time.ToNanoseconds())
    if order in {"", "create_time desc", "end_time desc"}:
        found.reverse()
    return found


def hide(job: job_pb2.Job, request: job_service_pb2.ListJobsRequest) -> job_pb2.Job:
    """The job without what the request's mask leaves out."""
    shown = set(request.read_mask.paths)
    if shown and "*" not in shown:
        for field, _ in job.ListFields():
            if field.name not in shown:
                job.ClearField(field.name)  # type: ignore[arg-type]  # a field of the job
    return job


def _terms(text: str) -> _Terms:
    terms: _Terms = []
    at = 0
    while text[at:].strip():
        found = _TERM.match(text, at)
        if found is None:
            raise RefusalError(
                "FILTER_INVALID",
                "filter: The fake gateway knows FIELD = VALUE and FIELD != VALUE, joined by AND.",
                ("filter", f"Expected FIELD = VALUE (at character {at + 1})."),
            )
        terms.append((found[1], found[2], found[3] if found[3] is not None else found[4]))
        at = found.end()
    return terms


def _passes(job: job_pb2.Job, term: tuple[str, str, str]) -> bool:
    field, operator, value = term
    if field == "state":
        name = job_pb2.Job.State.Name(job.state).removeprefix("STATE_")
        same = name == value.removeprefix("STATE_")
    elif field == "reason":
        same = job.reason == value
    elif field == "pipeline":
        same = job.pipeline.startswith(f"pipelines/{value}/")
    else:
        same = job.labels.get(field.removeprefix("labels.")) == value
    return same is (operator == "=")
