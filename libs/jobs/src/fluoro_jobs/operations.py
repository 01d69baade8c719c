"""The table of operations: which message is run by which queue under which Celery task name.

Adding an operation is one row here, after its message in `protos/`; see docs/add-an-operation.md,
also for the way to rename one. Task names are on the wire, in the ledger and in dashboards: they
are written out, never derived, and never reused.
"""

from dataclasses import dataclass
from typing import Final, Literal

from fluoro.v1 import (
    archive_pb2,
    classify_pb2,
    compare_pb2,
    convert_pb2,
    deidentify_pb2,
    dermoscopy_pb2,
    detect_pb2,
    dicom_pb2,
    dicomweb_pb2,
    embedding_pb2,
    export_pb2,
    job_pb2,
    ml_pb2,
    photograph_pb2,
    slide_pb2,
    visualize_pb2,
)
from google.protobuf.message import Message

MAX_TIMEOUT_SECONDS: Final = 6 * 3600
"""Longest that one attempt of anything may take."""


MAX_RESULT_BYTES: Final = 16 * 2**20
"""Most that the result of one task may weigh, unless the operation's row says otherwise.

An entry weighs about 500 bytes, and one task may have 10,000 inputs.
"""

JOB_INPUT: Final = "input"
"""Role of the job's own inputs."""
DICOM_FILES: Final = (JOB_INPUT, "instance", "member")
"""Roles of what may be a DICOM file: an upload, a file of a step, or a file out of an archive."""

ResourceClass = Literal["cpu", "gpu", "io"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    field: its field in the oneof `fluoro.v1.Step.operation`; its result's field is
    `{field}_result`. task_name: Celery task name. formerly: names that it had before; a worker
    takes messages with these too.
    queue: Celery queue, and the service that drains it (`{queue}-worker`).
    request, result: message types.
    reads: roles of the artifacts that it works on; `JOB_INPUT` for the job's own inputs. Any one of
    them will do. Empty: it has one task, and no items but those that it makes itself.
    reads_results: whether it reads the results of the steps it comes after, and needs one.
    leaves: roles of the artifacts that it leaves.
    beside: those of `reads` that do not stand for its files but belong to them: a step that names
    no inputs takes its files, and the nearest of each of these.
    fans_out: whether its inputs may be split over tasks; one that writes a single document of them
    all may not.
    groups: whether it looks at every part of an input, so that a step may `group` its inputs.
    deidentifies: whether what it leaves identifies no patient, though what it read did.
    brings_originals: whether it leaves data from elsewhere, which may identify a patient.
    resource_class: what it uses most; `io` waits for other systems.
    timeout_seconds: how long one attempt may take, unless the step says otherwise.
    max_result_bytes: most that the result of one task may weigh, serialized.
    """

    field: str
    task_name: str
    queue: str
    request: type[Message]
    result: type[Message]
    reads: tuple[str, ...]
    leaves: tuple[str, ...]
    beside: tuple[str, ...] = ()
    reads_results: bool = False
    fans_out: bool = True
    groups: bool = False
    deidentifies: bool = False
    brings_originals: bool = False
    resource_class: ResourceClass = "cpu"
    timeout_seconds: int = 1800
    max_result_bytes: int = MAX_RESULT_BYTES
    formerly: tuple[str, ...] = ()

    @property
    def task_names(self) -> tuple[str, ...]:
        """Every Celery task name that a worker takes messages by."""
        return (self.task_name, *self.formerly)


OPERATIONS: Final = (
    Operation(
        "inspect_dicom",
        "dicom.inspect",
        "dicom",
        dicom_pb2.InspectDicom,
        dicom_pb2.InspectDicomResult,
        reads=DICOM_FILES,
        leaves=("metadata",),
    ),
    Operation(
        "render_dicom",
        "dicom.render",
        "dicom",
        dicom_pb2.RenderDicom,
        dicom_pb2.RenderDicomResult,
        reads=DICOM_FILES,
        leaves=("preview", "pixels", "thumbnail", "animation", "frame", "contact-sheet"),
    ),
    Operation(
        "unpack_archive",
        "archive.unpack",
        "dicom",
        archive_pb2.UnpackArchive,
        archive_pb2.UnpackArchiveResult,
        reads=(JOB_INPUT,),
        leaves=("member", "members"),
        resource_class="io",
    ),
    Operation(
        "deidentify_dicom",
        "dicom.deidentify",
        "dicom",
        deidentify_pb2.DeidentifyDicom,
        deidentify_pb2.DeidentifyDicomResult,
        reads=DICOM_FILES,
        leaves=("instance", "deidentification-report"),
        deidentifies=True,
    ),
    Operation(
        "import_images",
        "photograph.import",
        "dicom",
        photograph_pb2.ImportImages,
        photograph_pb2.ImportImagesResult,
        reads=(JOB_INPUT, "member"),
        leaves=("preview", "pixels"),
    ),
    Operation(
        "convert_dicom",
        "dicom.convert",
        "dicom",
        convert_pb2.ConvertDicom,
        convert_pb2.ConvertDicomResult,
        reads=DICOM_FILES,
        leaves=("volume", "geometry", "instance"),
        groups=True,
    ),
    Operation(
        "fetch_dicomweb",
        "dicomweb.fetch",
        "dicom",
        dicomweb_pb2.FetchDicomweb,
        dicomweb_pb2.FetchDicomwebResult,
        reads=(),
        leaves=("instance",),
        fans_out=False,
        brings_originals=True,
        resource_class="io",
    ),
    Operation(
        "store_dicomweb",
        "dicomweb.store",
        "dicom",
        dicomweb_pb2.StoreDicomweb,
        dicomweb_pb2.StoreDicomwebResult,
        reads=DICOM_FILES,
        leaves=(),
        resource_class="io",
    ),
    Operation(
        "analyze_images",
        "ml.analyze",
        "ml",
        ml_pb2.AnalyzeImages,
        ml_pb2.AnalyzeImagesResult,
        reads=("pixels",),
        leaves=("label-map", "overlay"),
        resource_class="gpu",
    ),
    Operation(
        "embed_images",
        "ml.embed",
        "ml",
        embedding_pb2.EmbedImages,
        embedding_pb2.EmbedImagesResult,
        reads=("pixels",),
        leaves=("embedding",),
        resource_class="gpu",
    ),
    Operation(
        "find_similar",
        "ml.find_similar",
        "ml",
        embedding_pb2.FindSimilar,
        embedding_pb2.FindSimilarResult,
        reads=("embedding", JOB_INPUT),
        leaves=(),
        fans_out=False,
    ),
    Operation(
        "visualize_images",
        "ml.visualize",
        "ml",
        visualize_pb2.VisualizeImages,
        visualize_pb2.VisualizeImagesResult,
        reads=("pixels",),
        leaves=("heat-map", "before-after"),
        resource_class="gpu",
    ),
    Operation(
        "classify_images",
        "ml.classify",
        "ml",
        classify_pb2.ClassifyImages,
        classify_pb2.ClassifyImagesResult,
        reads=("pixels",),
        leaves=(),
        resource_class="gpu",
    ),
    Operation(
        "assess_dermoscopy",
        "ml.assess_dermoscopy",
        "ml",
        dermoscopy_pb2.AssessDermoscopy,
        dermoscopy_pb2.AssessDermoscopyResult,
        reads=("pixels",),
        leaves=("label-map", "overlay"),
        resource_class="gpu",
    ),
    Operation(
        "detect_objects",
        "ml.detect",
        "ml",
        detect_pb2.DetectObjects,
        detect_pb2.DetectObjectsResult,
        reads=("pixels",),
        leaves=("detections",),
        resource_class="gpu",
    ),
    Operation(
        "compare_images",
        "ml.compare",
        "ml",
        compare_pb2.CompareImages,
        compare_pb2.CompareImagesResult,
        reads=("pixels",),
        leaves=("comparison",),
        fans_out=False,
        resource_class="gpu",
    ),
    Operation(
        "tile_slide",
        "slide.tile",
        "dicom",
        slide_pb2.TileSlide,
        slide_pb2.TileSlideResult,
        reads=DICOM_FILES,
        leaves=("tiles",),
    ),
    Operation(
        "analyze_slide",
        "slide.analyze",
        "ml",
        slide_pb2.AnalyzeSlide,
        slide_pb2.AnalyzeSlideResult,
        reads=("tiles",),
        leaves=("heat-map", "tile-scores", "top-tile"),
        resource_class="gpu",
    ),
    Operation(
        "export_report",
        "export.report",
        "export",
        export_pb2.ExportReport,
        export_pb2.ExportReportResult,
        reads=(),
        leaves=("report", "result"),
        reads_results=True,
        fans_out=False,
    ),
    Operation(
        "export_dicom",
        "export.dicom",
        "export",
        export_pb2.ExportDicom,
        export_pb2.ExportDicomResult,
        reads=(*DICOM_FILES, "label-map", "overlay", "preview"),
        leaves=("instance",),
        beside=("label-map", "overlay", "preview"),
        fans_out=False,
    ),
    Operation(
        "export_archive",
        "export.archive",
        "export",
        export_pb2.ExportArchive,
        export_pb2.ExportArchiveResult,
        reads=(),
        leaves=("archive", "table"),
        reads_results=True,
        fans_out=False,
        resource_class="io",
    ),
    Operation(
        "export_fhir",
        "export.fhir",
        "export",
        export_pb2.ExportFhir,
        export_pb2.ExportFhirResult,
        reads=(),
        leaves=("fhir",),
        reads_results=True,
        fans_out=False,
    ),
    Operation(
        "export_infographic",
        "export.infographic",
        "export",
        export_pb2.ExportInfographic,
        export_pb2.ExportInfographicResult,
        reads=(),
        leaves=("chart",),
        reads_results=True,
        fans_out=False,
    ),
    Operation(
        "export_comparison",
        "export.comparison",
        "export",
        export_pb2.ExportComparison,
        export_pb2.ExportComparisonResult,
        reads=(),
        leaves=("report", "result"),
        reads_results=True,
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


def task_names_of(queue: str) -> list[str]:
    """Every Celery task name that a worker of the queue takes messages by."""
    return [
        name
        for operation in OPERATIONS
        if operation.queue == queue
        for name in operation.task_names
    ]
