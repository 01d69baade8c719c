"""The table of operations: which message is run by which queue under which Celery task name.

Adding an operation is one line here, after its message in `protos/`; see docs/add-an-operation.md.
Task names are on the wire and in dashboards: they are written out, never derived, and never reused.
"""

from dataclasses import dataclass
from typing import Final

from fluoro.v1 import dicom_pb2, export_pb2, job_pb2, ml_pb2
from google.protobuf.message import Message

MAX_TIMEOUT_SECONDS: Final = 6 * 3600
"""Longest that one attempt of anything may take."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    field: its field in the oneof `fluoro.v1.Step.operation`; its result's field is
    `{field}_result`. task_name: Celery task name.
    queue: Celery queue, and the service that drains it (`{queue}-worker`).
    request, result: message types.
    timeout_seconds: how long one attempt may take, unless the step says otherwise.
    fans_out: whether its inputs may be split over tasks; one that writes a single document of them
    all may not.
    """

    field: str
    task_name: str
    queue: str
    request: type[Message]
    result: type[Message]
    timeout_seconds: int = 1800
    fans_out: bool = True


OPERATIONS: Final = (
    Operation(
        "inspect_dicom",
        "dicom.inspect",
        "dicom",
        dicom_pb2.InspectDicom,
        dicom_pb2.InspectDicomResult,
    ),
    Operation(
        "render_dicom", "dicom.render", "dicom", dicom_pb2.RenderDicom, dicom_pb2.RenderDicomResult
    ),
    Operation(
        "analyze_images", "ml.analyze", "ml", ml_pb2.AnalyzeImages, ml_pb2.AnalyzeImagesResult
    ),
    Operation(
        "export_report",
        "export.report",
        "export",
        export_pb2.ExportReport,
        export_pb2.ExportReportResult,
        fans_out=False,
    ),
)

BY_FIELD: Final = {operation.field: operation for operation in OPERATIONS}
BY_REQUEST: Final = {operation.request: operation for operation in OPERATIONS}
QUEUES: Final = tuple(sorted({operation.queue for operation in OPERATIONS}))


def of_step(step: job_pb2.Step) -> Operation | None:
    """The operation a step asks for, or None if it asks for none."""
    field = step.WhichOneof("operation")
    return BY_FIELD[field] if field else None
