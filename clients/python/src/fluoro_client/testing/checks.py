"""What a submitted job is refused for.

Not checked here are limits of number and size, and whether an operation can read what its step is
given, or take it in groups: a gateway's table of operations knows that.
"""

import re
import uuid
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Final

from fluoro.v1 import job_pb2

from fluoro_client.testing.faults import RefusalError, invalid

_STEP_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")


def check_name(name: str, collection: str, field: str = "name") -> None:
    """RefusalError INVALID_ARGUMENT unless it is a resource name of the collection.

    field: of the request, where the name is.
    """
    prefix, _, text = name.partition("/")
    if prefix != collection or not _is_uuid(text):
        raise invalid(
            field,
            f"Must be {collection}/{{uuid}} with a lower-case UUID, as this service gave it out.",
        )


def check_job(job: job_pb2.Job) -> None:
    """RefusalError if no gateway would take the job, whatever blobs there are."""
    for name in ("steps", "inputs"):
        if not getattr(job, name):
            raise RefusalError(
                "JOB_EMPTY",
                f"The job has no {name}. Add at least one.",
                (f"job.{name}", "Add at least one."),
            )
    if bad := list(_bad_fields(job)):
        field, description = bad[0]
        raise RefusalError(
            "INVALID_ARGUMENT", f"{len(bad)} bad field(s): {field}: {description}", *bad
        )
    _check_graph(job)


def check_inputs(job: job_pb2.Job, known: Collection[str]) -> None:
    """RefusalError BLOB_NOT_FOUND unless all inputs are among the names of blobs."""
    missing = [number for number, name in enumerate(job.inputs) if name not in known]
    if missing:
        fields = [
            (f"job.inputs[{number}]", "No such blob for this caller. Upload it first.")
            for number in missing
        ]
        raise RefusalError(
            "BLOB_NOT_FOUND", f"{len(missing)} of the inputs do not exist for this caller.", *fields
        )


def _bad_fields(job: job_pb2.Job) -> Iterator[tuple[str, str]]:
    for number, name in enumerate(job.inputs):
        prefix, _, text = name.partition("/")
        if prefix != "blobs" or not _is_uuid(text):
            yield (
                f"job.inputs[{number}]",
                "Must be the resource name of a blob, blobs/{uuid}, as UploadBlob returns it.",
            )
    for number, step in enumerate(job.steps):
        if not _STEP_NAME.fullmatch(step.name):
            yield (
                f"job.steps[{number}].name",
                (
                    "Must be lower case letters, digits and hyphens, at most 63, starting with a "
                    "letter."
                ),
            )
        if not step.WhichOneof("operation"):
            yield f"job.steps[{number}].operation", "Exactly one field is required in oneof."


def _check_graph(job: job_pb2.Job) -> None:
    names = [step.name for step in job.steps]
    for number, name in enumerate(names):
        if name in names[:number]:
            field = f"job.steps[{number}].name", "Step names are unique in a job."
            raise RefusalError("INVALID_ARGUMENT", f"Two steps are named {name}.", field)
    for number, step in enumerate(job.steps):
        mentioned = [(name, f"after[{place}]") for place, name in enumerate(step.after)]
        mentioned += [
            (source.step, f"inputs[{place}].step")
            for place, source in enumerate(step.inputs)
            if source.step
        ]
        for name, place in mentioned:
            if name not in names:
                field = f"job.steps[{number}].{place}", f"Must be one of {', '.join(names)}."
                raise RefusalError(
                    "STEP_UNKNOWN", f"Step {step.name} names a step that is not in the job.", field
                )
    try:
        TopologicalSorter({step.name: waits_for(step) for step in job.steps}).prepare()
    except CycleError as error:
        drawn = " -> ".join(error.args[1])
        field = f"job.steps[{names.index(error.args[1][0])}].after", f"Part of a circle: {drawn}."
        raise RefusalError(
            "STEP_GRAPH_CYCLE", f"Steps wait for each other: {drawn}.", field
        ) from None


def waits_for(step: job_pb2.Step) -> list[str]:
    """Names of the steps that it comes after, or whose artifacts it takes; each once."""
    taken = [source.step for source in step.inputs if source.step]
    return list(dict.fromkeys([*step.after, *taken]))


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
