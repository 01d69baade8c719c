"""Every reason Fluoro gives for refusing a request or failing a job, declared once.

`docs/errors.md` is generated from `REASONS` and `advice.ADVICE`. A reason is part of the API:
renaming one is a breaking change. The thrower states what is wrong and, where it differs from the
table, whether another attempt may mend it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

DOMAIN: Final = "fluoro"
"""Domain of every google.rpc.ErrorInfo."""


class Reason(StrEnum):
    """Machine-readable reasons, UPPER_SNAKE as in AIP-193."""

    # Requests
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    METHOD_UNKNOWN = "METHOD_UNKNOWN"
    SERVICE_UNKNOWN = "SERVICE_UNKNOWN"
    OWNER_MISSING = "OWNER_MISSING"
    CREDENTIALS_MISSING = "CREDENTIALS_MISSING"
    TOKEN_INVALID = "TOKEN_INVALID"  # noqa: S105 - the name of a reason
    TOKEN_EXPIRED = "TOKEN_EXPIRED"  # noqa: S105 - the name of a reason
    TOKEN_REVOKED = "TOKEN_REVOKED"  # noqa: S105 - the name of a reason
    TOKEN_NOT_FOUND = "TOKEN_NOT_FOUND"  # noqa: S105 - the name of a reason
    CERTIFICATE_UNKNOWN = "CERTIFICATE_UNKNOWN"
    CERTIFICATE_EXPIRED = "CERTIFICATE_EXPIRED"
    IDENTITY_UNAVAILABLE = "IDENTITY_UNAVAILABLE"
    ROLE_MISSING = "ROLE_MISSING"
    JOB_EMPTY = "JOB_EMPTY"
    STEP_GRAPH_CYCLE = "STEP_GRAPH_CYCLE"
    STEP_UNKNOWN = "STEP_UNKNOWN"
    STEP_INPUT_MISSING = "STEP_INPUT_MISSING"
    STEP_INPUT_MISMATCH = "STEP_INPUT_MISMATCH"
    STEP_SEES_IDENTIFIABLE = "STEP_SEES_IDENTIFIABLE"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    ANSWER_TOO_LARGE = "ANSWER_TOO_LARGE"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    PIPELINE_NOT_FOUND = "PIPELINE_NOT_FOUND"
    JOB_NOT_FOUND = "JOB_NOT_FOUND"
    JOB_NOT_ENDED = "JOB_NOT_ENDED"
    NOTHING_TO_RETRY = "NOTHING_TO_RETRY"
    BLOB_NOT_FOUND = "BLOB_NOT_FOUND"
    UPLOAD_MISMATCH = "UPLOAD_MISMATCH"
    BLOB_TOO_LARGE = "BLOB_TOO_LARGE"
    UPLOAD_TOO_SLOW = "UPLOAD_TOO_SLOW"
    UPLOADS_BUSY = "UPLOADS_BUSY"
    UPLOAD_NOT_FOUND = "UPLOAD_NOT_FOUND"
    UPLOAD_SUPERSEDED = "UPLOAD_SUPERSEDED"
    UPLOAD_INCOMPLETE = "UPLOAD_INCOMPLETE"
    DIRECT_UPLOAD_UNSUPPORTED = "DIRECT_UPLOAD_UNSUPPORTED"
    SOURCE_NOT_ALLOWED = "SOURCE_NOT_ALLOWED"
    SOURCE_REFUSED = "SOURCE_REFUSED"
    SOURCE_UNAVAILABLE = "SOURCE_UNAVAILABLE"
    DOWNLOAD_TOO_SLOW = "DOWNLOAD_TOO_SLOW"
    FILTER_INVALID = "FILTER_INVALID"
    CURSOR_INVALID = "CURSOR_INVALID"
    CURSOR_EXPIRED = "CURSOR_EXPIRED"
    WATCH_TOO_SLOW = "WATCH_TOO_SLOW"
    RATE_LIMITED = "RATE_LIMITED"
    TOO_MANY_CALLS = "TOO_MANY_CALLS"
    JOB_QUOTA_EXCEEDED = "JOB_QUOTA_EXCEEDED"
    BYTE_QUOTA_EXCEEDED = "BYTE_QUOTA_EXCEEDED"
    CALL_TIMEOUT = "CALL_TIMEOUT"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    GATEWAY_BUSY = "GATEWAY_BUSY"
    LEDGER_UNAVAILABLE = "LEDGER_UNAVAILABLE"
    LEDGER_BUSY = "LEDGER_BUSY"
    LEDGER_READ_ONLY = "LEDGER_READ_ONLY"
    LEDGER_FULL = "LEDGER_FULL"
    BLOB_STORE_UNAVAILABLE = "BLOB_STORE_UNAVAILABLE"
    BLOB_STORE_FULL = "BLOB_STORE_FULL"
    INTERNAL = "INTERNAL"
    # Attempts, tasks, steps and jobs
    WORKER_LOST = "WORKER_LOST"
    ATTEMPT_TIMEOUT = "ATTEMPT_TIMEOUT"
    SCRATCH_FULL = "SCRATCH_FULL"
    OPERATION_UNKNOWN = "OPERATION_UNKNOWN"
    RESULT_TOO_LARGE = "RESULT_TOO_LARGE"
    UPSTREAM_FAILED = "UPSTREAM_FAILED"
    JOB_CANCELLED = "JOB_CANCELLED"
    JOB_EXPIRED = "JOB_EXPIRED"
    STEP_FAILED = "STEP_FAILED"
    ITEMS_FAILED = "ITEMS_FAILED"
    ALL_ITEMS_FAILED = "ALL_ITEMS_FAILED"
    NO_APPLICABLE_INPUT = "NO_APPLICABLE_INPUT"
    TOO_MANY_INPUTS = "TOO_MANY_INPUTS"
    # Items
    MEMORY_EXCEEDED = "MEMORY_EXCEEDED"
    NOT_DICOM = "NOT_DICOM"
    DICOM_TRUNCATED = "DICOM_TRUNCATED"
    DICOM_INVALID = "DICOM_INVALID"
    NO_PIXEL_DATA = "NO_PIXEL_DATA"
    TRANSFER_SYNTAX_UNSUPPORTED = "TRANSFER_SYNTAX_UNSUPPORTED"
    PIXELS_UNDECODABLE = "PIXELS_UNDECODABLE"
    IMAGE_TOO_LARGE = "IMAGE_TOO_LARGE"
    NOT_AN_IMAGE = "NOT_AN_IMAGE"
    IMAGE_UNSUPPORTED = "IMAGE_UNSUPPORTED"
    CHOICE_UNAVAILABLE = "CHOICE_UNAVAILABLE"
    SOP_INSTANCE_CONFLICT = "SOP_INSTANCE_CONFLICT"
    GEOMETRY_INVALID = "GEOMETRY_INVALID"
    VOLUME_IRREGULAR = "VOLUME_IRREGULAR"
    PIXELS_NOT_CERTIFIED = "PIXELS_NOT_CERTIFIED"
    MODEL_UNKNOWN = "MODEL_UNKNOWN"
    MODEL_UNAVAILABLE = "MODEL_UNAVAILABLE"
    MODEL_OUTPUT_INVALID = "MODEL_OUTPUT_INVALID"
    MODEL_RUN_FAILED = "MODEL_RUN_FAILED"
    MODEL_RUN_TIMEOUT = "MODEL_RUN_TIMEOUT"
    MODEL_NOT_APPLICABLE = "MODEL_NOT_APPLICABLE"
    REPORT_FAILED = "REPORT_FAILED"
    LABEL_MAP_MISMATCH = "LABEL_MAP_MISMATCH"
    ARCHIVE_INVALID = "ARCHIVE_INVALID"
    ARCHIVE_ENCRYPTED = "ARCHIVE_ENCRYPTED"
    ARCHIVE_TOO_LARGE = "ARCHIVE_TOO_LARGE"
    DEIDENTIFICATION_KEY_MISSING = "DEIDENTIFICATION_KEY_MISSING"
    DEIDENTIFICATION_REFUSED = "DEIDENTIFICATION_REFUSED"
    IDENTIFIERS_LEFT = "IDENTIFIERS_LEFT"
    PACS_NOT_ALLOWED = "PACS_NOT_ALLOWED"
    PACS_UNAVAILABLE = "PACS_UNAVAILABLE"
    PACS_REFUSED = "PACS_REFUSED"
    PACS_NOT_FOUND = "PACS_NOT_FOUND"
    PACS_ANSWER_INVALID = "PACS_ANSWER_INVALID"
    PACS_CONFLICT = "PACS_CONFLICT"


@dataclass(frozen=True, slots=True)
class ReasonSpec:
    """What a reason means.

    code: name of the grpc.StatusCode a caller sees when a request is refused for it; "" for reasons
    of jobs alone. retryable: whether another attempt of a task may mend it.
    meaning: what happened. What to do about it is in `advice.py`; docs/errors.md has both.
    """

    code: str
    retryable: bool
    meaning: str


REASONS: Final[dict[Reason, ReasonSpec]] = {
    Reason.INVALID_ARGUMENT: ReasonSpec(
        "INVALID_ARGUMENT", False, "A field is missing or malformed; BadRequest names it."
    ),
    Reason.METHOD_UNKNOWN: ReasonSpec("UNIMPLEMENTED", False, "The gateway has no such method."),
    Reason.SERVICE_UNKNOWN: ReasonSpec(
        "NOT_FOUND", False, "Health is not known of a service of that name."
    ),
    Reason.OWNER_MISSING: ReasonSpec("UNAUTHENTICATED", False, "The call does not name an owner."),
    Reason.CREDENTIALS_MISSING: ReasonSpec(
        "UNAUTHENTICATED",
        False,
        "The call does not prove who makes it. The message names what the gateway takes.",
    ),
    Reason.TOKEN_INVALID: ReasonSpec(
        "UNAUTHENTICATED",
        False,
        "The token is not one that this gateway takes. The message says why, and never quotes it.",
    ),
    Reason.TOKEN_EXPIRED: ReasonSpec("UNAUTHENTICATED", False, "The token has expired."),
    Reason.TOKEN_REVOKED: ReasonSpec("UNAUTHENTICATED", False, "The token was revoked."),
    Reason.TOKEN_NOT_FOUND: ReasonSpec("NOT_FOUND", False, "No service token has this name."),
    Reason.CERTIFICATE_UNKNOWN: ReasonSpec(
        "UNAUTHENTICATED", False, "The caller's certificate names no owner that this gateway reads."
    ),
    Reason.CERTIFICATE_EXPIRED: ReasonSpec(
        "UNAUTHENTICATED", False, "Its certificate has expired."
    ),
    Reason.IDENTITY_UNAVAILABLE: ReasonSpec(
        "UNAVAILABLE",
        True,
        "What is needed to look at the token is not here yet: the issuer's keys.",
    ),
    Reason.ROLE_MISSING: ReasonSpec(
        "PERMISSION_DENIED",
        False,
        "The caller lacks the role for this call, or names another owner without being an "
        "operator.",
    ),
    Reason.JOB_EMPTY: ReasonSpec("INVALID_ARGUMENT", False, "The job has no steps or no inputs."),
    Reason.STEP_GRAPH_CYCLE: ReasonSpec(
        "INVALID_ARGUMENT", False, "Steps wait for each other in a circle; the message names them."
    ),
    Reason.STEP_UNKNOWN: ReasonSpec(
        "INVALID_ARGUMENT", False, "A step is named that is not in the job."
    ),
    Reason.STEP_INPUT_MISSING: ReasonSpec(
        "INVALID_ARGUMENT", False, "No step before this one leaves what its operation reads."
    ),
    Reason.STEP_INPUT_MISMATCH: ReasonSpec(
        "INVALID_ARGUMENT",
        False,
        "`inputs` names what its step does not leave or the operation does not read, or groups "
        "it for one that does not take groups.",
    ),
    Reason.STEP_SEES_IDENTIFIABLE: ReasonSpec(
        "INVALID_ARGUMENT",
        False,
        "The job de-identifies, and a later step would see data from before.",
    ),
    Reason.MESSAGE_TOO_LARGE: ReasonSpec(
        "RESOURCE_EXHAUSTED", False, "A message is over its limit."
    ),
    Reason.ANSWER_TOO_LARGE: ReasonSpec(
        "RESOURCE_EXHAUSTED", False, "All of the job is more than 4 MiB."
    ),
    Reason.REQUEST_ID_REUSED: ReasonSpec(
        "ALREADY_EXISTS", False, "The request_id was used for another body."
    ),
    Reason.PIPELINE_NOT_FOUND: ReasonSpec(
        "NOT_FOUND", False, "No such pipeline, or not in this version."
    ),
    Reason.JOB_NOT_FOUND: ReasonSpec("NOT_FOUND", False, "No such job for this caller."),
    Reason.JOB_NOT_ENDED: ReasonSpec("FAILED_PRECONDITION", False, "The job has not ended."),
    Reason.NOTHING_TO_RETRY: ReasonSpec("FAILED_PRECONDITION", False, "Nothing in the job failed."),
    Reason.BLOB_NOT_FOUND: ReasonSpec("NOT_FOUND", False, "No such blob for this caller."),
    Reason.UPLOAD_MISMATCH: ReasonSpec(
        "INVALID_ARGUMENT", False, "Size or SHA-256 differ from the header's. Nothing was stored."
    ),
    Reason.BLOB_TOO_LARGE: ReasonSpec(
        "INVALID_ARGUMENT",
        False,
        "The blob, or the instance of a DICOMweb server, is over the limit of this deployment "
        "(`FLUORO_MAX_BLOB_BYTES`, `FLUORO_DICOMWEB_MAX_INSTANCE_BYTES`). Nothing was stored.",
    ),
    Reason.UPLOAD_TOO_SLOW: ReasonSpec(
        "DEADLINE_EXCEEDED",
        False,
        "The bytes of the upload came too slowly, or stopped coming. No blob was stored.",
    ),
    Reason.UPLOADS_BUSY: ReasonSpec(
        "UNAVAILABLE",
        True,
        "As many uploads are under way as may, of this owner or in this gateway "
        "(`FLUORO_MAX_UPLOADS`).",
    ),
    Reason.UPLOAD_NOT_FOUND: ReasonSpec(
        "NOT_FOUND", False, "No such upload for this caller, or its time is over."
    ),
    Reason.UPLOAD_SUPERSEDED: ReasonSpec(
        "ABORTED", False, "Another stream goes on with this upload. What this one sent is dropped."
    ),
    Reason.UPLOAD_INCOMPLETE: ReasonSpec(
        "FAILED_PRECONDITION", False, "Nothing has come to the signed URL yet."
    ),
    Reason.DIRECT_UPLOAD_UNSUPPORTED: ReasonSpec(
        "FAILED_PRECONDITION",
        False,
        "This deployment's blob store cannot sign URLs; or one PUT cannot carry so many bytes.",
    ),
    Reason.SOURCE_NOT_ALLOWED: ReasonSpec(
        "FAILED_PRECONDITION",
        False,
        "The source is not on the operator's list (`FLUORO_IMPORT_SOURCES`), or its name leads to "
        "an address that may not be reached (`FLUORO_IMPORT_NETWORKS`).",
    ),
    Reason.SOURCE_REFUSED: ReasonSpec(
        "FAILED_PRECONDITION", False, "The source gives nothing; the message says why."
    ),
    Reason.SOURCE_UNAVAILABLE: ReasonSpec(
        "UNAVAILABLE", True, "The source does not answer, or broke off."
    ),
    Reason.DOWNLOAD_TOO_SLOW: ReasonSpec(
        "UNAVAILABLE", True, "Nothing was read from the download for long."
    ),
    Reason.FILTER_INVALID: ReasonSpec(
        "INVALID_ARGUMENT",
        False,
        "The filter cannot be read; `position` in the metadata is that of the first character "
        "that does not fit.",
    ),
    Reason.CURSOR_INVALID: ReasonSpec(
        "INVALID_ARGUMENT", False, "The cursor is not one of this job's."
    ),
    Reason.CURSOR_EXPIRED: ReasonSpec(
        "OUT_OF_RANGE", False, "Events after the cursor are no longer kept."
    ),
    Reason.WATCH_TOO_SLOW: ReasonSpec(
        "RESOURCE_EXHAUSTED", False, "Nothing was read from the stream for long."
    ),
    Reason.RATE_LIMITED: ReasonSpec(
        "RESOURCE_EXHAUSTED",
        True,
        "The owner makes calls, or submits jobs, faster than it may; QuotaFailure names the limit, "
        "RetryInfo says when there is room.",
    ),
    Reason.TOO_MANY_CALLS: ReasonSpec(
        "RESOURCE_EXHAUSTED",
        True,
        "As many calls, or watches and waits, of the owner are under way in this gateway as may, "
        "or wait there.",
    ),
    Reason.JOB_QUOTA_EXCEEDED: ReasonSpec(
        "RESOURCE_EXHAUSTED",
        True,
        "As many jobs of the owner have not ended as may. Nothing was stored.",
    ),
    Reason.BYTE_QUOTA_EXCEEDED: ReasonSpec(
        "RESOURCE_EXHAUSTED",
        False,
        "With these bytes the owner would have stored more than it may. Nothing was stored.",
    ),
    Reason.CALL_TIMEOUT: ReasonSpec(
        "DEADLINE_EXCEEDED",
        True,
        "The call brought no deadline, and took longer than such calls may "
        "(`FLUORO_CALL_TIMEOUT_SECONDS`).",
    ),
    Reason.SHUTTING_DOWN: ReasonSpec("UNAVAILABLE", False, "This gateway is shutting down."),
    Reason.GATEWAY_BUSY: ReasonSpec(
        "UNAVAILABLE",
        True,
        "As many calls wait here as may (`FLUORO_LEDGER_WAITING_CALLS`, "
        "`FLUORO_SUBMIT_QUEUE_JOBS`).",
    ),
    Reason.LEDGER_UNAVAILABLE: ReasonSpec("UNAVAILABLE", True, "PostgreSQL cannot be reached."),
    Reason.LEDGER_BUSY: ReasonSpec(
        "UNAVAILABLE",
        True,
        "PostgreSQL gave the statement up: a deadlock, a lock held too long, or its time was over.",
    ),
    Reason.LEDGER_READ_ONLY: ReasonSpec(
        "UNAVAILABLE",
        True,
        "The PostgreSQL that answers is a standby or read-only; a failover may be under way.",
    ),
    Reason.LEDGER_FULL: ReasonSpec(
        "RESOURCE_EXHAUSTED", True, "PostgreSQL has no disk space or memory left."
    ),
    Reason.BLOB_STORE_UNAVAILABLE: ReasonSpec(
        "UNAVAILABLE", True, "The blob store cannot be reached or gave an error."
    ),
    Reason.BLOB_STORE_FULL: ReasonSpec(
        "RESOURCE_EXHAUSTED",
        True,
        "The blob store has no space left. Nothing half-written is visible.",
    ),
    Reason.INTERNAL: ReasonSpec("INTERNAL", True, "A bug in Fluoro."),
    Reason.WORKER_LOST: ReasonSpec(
        "", True, "The worker died or stopped renewing its lease (killed, out of memory, cut off)."
    ),
    Reason.ATTEMPT_TIMEOUT: ReasonSpec("", True, "The attempt took longer than it may."),
    Reason.SCRATCH_FULL: ReasonSpec(
        "", True, "The worker has no disk space left for temporary files."
    ),
    Reason.OPERATION_UNKNOWN: ReasonSpec(
        "",
        True,
        "The worker is older than the job and does not know the operation, or cannot read what "
        "it works on.",
    ),
    Reason.RESULT_TOO_LARGE: ReasonSpec(
        "",
        False,
        "The result of a task is over its operation's limit, it leaves too many files, or the "
        "earlier steps' results are more than one task may read (64 MiB). "
        "Submit with a smaller `max_inputs_per_task`.",
    ),
    Reason.UPSTREAM_FAILED: ReasonSpec("", False, "A step this one comes after has no result."),
    Reason.JOB_CANCELLED: ReasonSpec("", False, "The job was cancelled."),
    Reason.JOB_EXPIRED: ReasonSpec("", False, "The job had not ended by its expire_time."),
    Reason.STEP_FAILED: ReasonSpec("", False, "A step of the job failed; the message names it."),
    Reason.ITEMS_FAILED: ReasonSpec("", False, "Some items failed, the others' results are there."),
    Reason.ALL_ITEMS_FAILED: ReasonSpec("", False, "Every item failed; each has its own reason."),
    Reason.NO_APPLICABLE_INPUT: ReasonSpec(
        "", False, "The operation applies to none of its inputs."
    ),
    Reason.TOO_MANY_INPUTS: ReasonSpec(
        "",
        False,
        "Earlier steps left more than 10,000 inputs or 50,000 files for the step, more than "
        "200,000 files for all steps that may begin together, or so many that the job would "
        "have more than 10,000 tasks; or a step would fetch more than 10,000 instances.",
    ),
    Reason.MEMORY_EXCEEDED: ReasonSpec("", False, "The input takes more memory than it may."),
    Reason.NOT_DICOM: ReasonSpec(
        "", False, "The file is not DICOM Part 10 (no DICM prefix or no File Meta Information)."
    ),
    Reason.DICOM_TRUNCATED: ReasonSpec("", False, "The file ends before its data does."),
    Reason.DICOM_INVALID: ReasonSpec(
        "",
        False,
        "The data set lacks a required attribute or holds a value the standard does not allow.",
    ),
    Reason.NO_PIXEL_DATA: ReasonSpec("", False, "The instance has no image."),
    Reason.TRANSFER_SYNTAX_UNSUPPORTED: ReasonSpec(
        "", False, "There is no decoder for the Transfer Syntax."
    ),
    Reason.PIXELS_UNDECODABLE: ReasonSpec(
        "", False, "The decoder refused the pixel data, or what it gave does not match the header."
    ),
    Reason.IMAGE_TOO_LARGE: ReasonSpec(
        "", False, "The image would need more memory than one item may have."
    ),
    Reason.NOT_AN_IMAGE: ReasonSpec("", False, "The file is no JPEG, PNG, WebP, TIFF or HEIC."),
    Reason.IMAGE_UNSUPPORTED: ReasonSpec(
        "", False, "The photograph is of a kind that is not taken in; the message says which."
    ),
    Reason.CHOICE_UNAVAILABLE: ReasonSpec(
        "", False, "The file does not have what the request chooses; the message says what."
    ),
    Reason.SOP_INSTANCE_CONFLICT: ReasonSpec("", False, "Two files are versions of one instance."),
    Reason.GEOMETRY_INVALID: ReasonSpec("", False, "The image has no usable place in space."),
    Reason.VOLUME_IRREGULAR: ReasonSpec("", False, "The slices make no regular volume."),
    Reason.PIXELS_NOT_CERTIFIED: ReasonSpec(
        "", False, "The pixel array does not match its certificate and was not shown to the model."
    ),
    Reason.MODEL_UNKNOWN: ReasonSpec("NOT_FOUND", False, "No worker has this model or version."),
    Reason.MODEL_UNAVAILABLE: ReasonSpec("", False, "A worker has the model and cannot serve it."),
    Reason.MODEL_OUTPUT_INVALID: ReasonSpec("", False, "The model gave what are not numbers."),
    Reason.MODEL_RUN_FAILED: ReasonSpec("", False, "The model runs on others, not on this image."),
    Reason.MODEL_RUN_TIMEOUT: ReasonSpec("", False, "The model took too long over this image."),
    Reason.MODEL_NOT_APPLICABLE: ReasonSpec("", False, "The model is not made for such images."),
    Reason.REPORT_FAILED: ReasonSpec("", False, "The report could not be set."),
    Reason.LABEL_MAP_MISMATCH: ReasonSpec("", False, "The label map is not one of this image."),
    Reason.ARCHIVE_INVALID: ReasonSpec(
        "",
        False,
        "The file is not a ZIP archive, is damaged, or is compressed in another way than deflate.",
    ),
    Reason.ARCHIVE_ENCRYPTED: ReasonSpec("", False, "A file in the archive is encrypted."),
    Reason.ARCHIVE_TOO_LARGE: ReasonSpec(
        "", False, "The archive has too many files, or too many bytes once unpacked."
    ),
    Reason.DEIDENTIFICATION_KEY_MISSING: ReasonSpec(
        "", False, "No worker has a key for the project, or the key is too short."
    ),
    Reason.DEIDENTIFICATION_REFUSED: ReasonSpec(
        "",
        False,
        "The instance holds what cannot be cleaned; the message says what. Nothing was written.",
    ),
    Reason.IDENTIFIERS_LEFT: ReasonSpec(
        "",
        False,
        "What identified the patient was found in the cleaned file, which was thrown away.",
    ),
    Reason.PACS_NOT_ALLOWED: ReasonSpec("", False, "The worker may not use that DICOMweb server."),
    Reason.PACS_UNAVAILABLE: ReasonSpec("", True, "The server is away, too slow, or broke off."),
    Reason.PACS_REFUSED: ReasonSpec(
        "", False, "The server refuses; the message says with which code."
    ),
    Reason.PACS_NOT_FOUND: ReasonSpec("", False, "The server has nothing of that kind."),
    Reason.PACS_ANSWER_INVALID: ReasonSpec("", False, "What the server answers is no DICOMweb."),
    Reason.PACS_CONFLICT: ReasonSpec("", False, "The server keeps another instance of that UID."),
}

LEDGER_OUTAGES: Final = frozenset(
    {Reason.LEDGER_UNAVAILABLE, Reason.LEDGER_BUSY, Reason.LEDGER_READ_ONLY, Reason.LEDGER_FULL}
)
"""PostgreSQL could not do what it was asked.

It wrote nothing, or the guard of a repeated write finds that it did.
"""
STORE_OUTAGES: Final = LEDGER_OUTAGES | {Reason.BLOB_STORE_UNAVAILABLE, Reason.BLOB_STORE_FULL}
"""Faults of a store, not of the task that met them: they cost a task none of its attempts."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One bad field of a request: its path in the proto (`job.steps[2].after[0]`), what to do."""

    field: str
    description: str


@dataclass(slots=True, eq=False)
class FluoroError(Exception):
    """What went wrong, for a program and for a person.

    message never holds patient data, paths or a traceback: it is shown to clients and kept in the
    ledger. metadata: the dynamic values of the message, for google.rpc.ErrorInfo.
    retryable: None takes the table's word. retry_seconds: when the same call may succeed, if that
    is known. A limit that was met stands in metadata as `limit`.
    more_violations: how many there are beyond those listed.
    """

    reason: Reason
    message: str
    violations: Sequence[FieldViolation] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    retryable: bool | None = None
    more_violations: int = 0
    retry_seconds: float | None = None

    def __str__(self) -> str:
        """`REASON: message`."""
        return f"{self.reason}: {self.message}"

    @property
    def may_retry(self) -> bool:
        """Whether another attempt may mend it."""
        return REASONS[self.reason].retryable if self.retryable is None else self.retryable


class CancelledAttempt(Exception):  # noqa: N818 - it is not an error: it unwinds an attempt whose result nobody wants
    """Raised inside an operation when its attempt was cancelled or fenced off."""
