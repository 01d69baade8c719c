"""Building jobs: `step` for any operation, short ways to common ones, jobs from JSON."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from fluoro.v1 import blob_service_pb2, dicom_pb2, export_pb2, job_pb2, ml_pb2
from google.protobuf import json_format
from google.protobuf.message import Message

JobSource = job_pb2.Job | dict[str, Any] | str
"""A job, or its proto3 JSON as a dict or as text."""


class InvalidJobError(ValueError):
    """The JSON is not that of a fluoro.v1.Job."""


def parse_job(source: JobSource) -> job_pb2.Job:
    """The job in `source`. InvalidJobError if it is none."""
    if isinstance(source, job_pb2.Job):
        return source
    try:
        fields = json.loads(source) if isinstance(source, str) else source
        if not isinstance(fields, dict):
            raise InvalidJobError("not a fluoro.v1.Job in proto3 JSON: it is not an object")
        return json_format.ParseDict(fields, job_pb2.Job())
    except (json.JSONDecodeError, json_format.ParseError, TypeError) as error:
        raise InvalidJobError(f"not a fluoro.v1.Job in proto3 JSON: {error}") from error


MAX_INPUTS_PER_TASK: Final = 50
"""For steps that work per input.

Of a large study several tasks run at once, and a worker that dies takes no more than this with it.
"""


_FIELDS: Final = {
    field.message_type.full_name: field.name
    for field in job_pb2.Step.DESCRIPTOR.oneofs_by_name["operation"].fields
    if field.message_type
}


def step(
    operation: Message,
    name: str = "",
    *,
    after: Sequence[str] = (),
    inputs: Iterable[job_pb2.StepInput] = (),
    max_inputs_per_task: int = 0,
    allow_identifiable: bool = False,
) -> job_pb2.Step:
    """A step with any operation: `step(RenderDicom())`.

    name: of the step; that of the operation, `render-dicom`, if empty. The rest as in
    fluoro.v1.Step. ValueError if the message is no operation.
    """
    field = _FIELDS.get(operation.DESCRIPTOR.full_name)
    if field is None:
        raise ValueError(f"{operation.DESCRIPTOR.full_name} is not an operation")
    made = job_pb2.Step(
        name=name or field.replace("_", "-"),
        after=after,
        inputs=inputs,
        max_inputs_per_task=max_inputs_per_task,
        allow_identifiable=allow_identifiable,
    )
    getattr(made, field).CopyFrom(operation)
    return made


def inspect(
    name: str = "inspect",
    *,
    after: Sequence[str] = (),
    max_inputs_per_task: int = MAX_INPUTS_PER_TASK,
) -> job_pb2.Step:
    """A step that validates DICOM files and returns their metadata.

    max_inputs_per_task: 0 for one task.
    """
    operation = dicom_pb2.InspectDicom()
    return step(operation, name, after=after, max_inputs_per_task=max_inputs_per_task)


def render(
    name: str = "render",
    *,
    after: Sequence[str] = (),
    window: tuple[float, float] | None = None,
    max_inputs_per_task: int = MAX_INPUTS_PER_TASK,
) -> job_pb2.Step:
    """A step that renders DICOM images.

    window: centre and width that override the file's, in units after the Modality LUT.
    """
    operation = dicom_pb2.RenderDicom()
    if window:
        operation.window.center, operation.window.width = window
    return step(operation, name, after=after, max_inputs_per_task=max_inputs_per_task)


def analyze(
    model: str,
    name: str = "analyze",
    *,
    after: Sequence[str],
    max_inputs_per_task: int = MAX_INPUTS_PER_TASK,
) -> job_pb2.Step:
    """A step that runs a model (`ct-tissue`, say) on what the render steps in `after` made."""
    operation = ml_pb2.AnalyzeImages(model=model)
    return step(operation, name, after=after, max_inputs_per_task=max_inputs_per_task)


def report(
    name: str = "report",
    *,
    after: Sequence[str],
    title: str = "",
    formats: Sequence["export_pb2.ExportReport.Format.ValueType"] = (),
) -> job_pb2.Step:
    """A step that reports on the steps in `after`.

    formats: empty means PDF and JSON. No patient data in the title.
    """
    return step(export_pb2.ExportReport(formats=formats, title=title), name, after=after)


def imaging_report(blobs: Iterable[blob_service_pb2.Blob | str]) -> job_pb2.Job:
    """Inspects, renders and analyzes (ct-tissue) DICOM files and reports on them.

    The steps are those of the pipeline `ct-tissue`, for code that changes some of them.
    blobs: records or names, in item order.
    """
    return job_pb2.Job(
        inputs=[blob if isinstance(blob, str) else blob.name for blob in blobs],
        steps=[
            inspect(),
            render(after=["inspect"]),
            analyze("ct-tissue", after=["render"]),
            report(after=["inspect", "render", "analyze"]),
        ],
    )
