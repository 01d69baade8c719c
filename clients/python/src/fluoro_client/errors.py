"""What a call can fail with: one exception per gRPC code that callers tell apart.

They are decoded from google.rpc.Status (AIP-193).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
from fluoro.v1 import job_service_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

Detail = TypeVar("Detail", bound=Message)

TOO_SLOW: Final = frozenset({"WATCH_TOO_SLOW", "UPLOAD_TOO_SLOW"})
"""Reasons of what the caller was too slow for: it can go on, or begin again (docs/errors.md)."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One bad field of a request: its path in the proto (`job.steps[2].after[0]`), what to do."""

    field: str
    description: str


class FluoroApiError(Exception):
    """A call that did not succeed.

    code: the gRPC code.
    reason: UPPER_SNAKE reason of docs/errors.md, "" when the server did not give one (then it was
    not Fluoro that answered). message: a sentence for people.
    violations: the bad fields, when the error is about fields.
    metadata: the dynamic values of the message.
    retry_seconds: how long the server asks to be left alone before the next try, 0 if it does not
    say.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        violations: Sequence[FieldViolation] = (),
        metadata: Mapping[str, str] | None = None,
        retry_seconds: float = 0,
    ) -> None:
        super().__init__(code, message, reason)
        self.code = code
        self.message = message
        self.reason = reason
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})
        self.retry_seconds = retry_seconds

    def __str__(self) -> str:
        """`CODE (REASON): message`, and one line per bad field."""
        head = f"{self.code.name} ({self.reason})" if self.reason else self.code.name
        return "\n".join(
            [
                f"{head}: {self.message}",
                *(f"  {bad.field}: {bad.description}" for bad in self.violations),
            ]
        )

    @property
    def was_refused_early(self) -> bool:
        """Whether a limit was met that has room again soon; nothing of the call was done."""
        return self.code is grpc.StatusCode.RESOURCE_EXHAUSTED and self.retry_seconds > 0

    @property
    def resumable(self) -> bool:
        """Whether the same call, or resuming the stream, may succeed a little later."""
        # CANCELLED: what a gateway that is flooded has gRPC refuse, too.
        cut_off = self.code is grpc.StatusCode.CANCELLED or (
            self.code is grpc.StatusCode.INTERNAL and "RST_STREAM" in self.message
        )
        return (
            self.code is grpc.StatusCode.UNAVAILABLE
            or self.was_refused_early
            or self.reason in TOO_SLOW
            or (cut_off and not self.reason)
        )


class InvalidArgumentError(FluoroApiError):
    """The request is wrong as it stands; `violations` names the fields."""


class NotFoundError(FluoroApiError):
    """There is no such job or blob for this owner."""


class AlreadyExistsError(FluoroApiError):
    """The request_id was used for another body."""


class PermissionDeniedError(FluoroApiError):
    """The server does not know the caller, or the caller may not do this."""


class ResourceExhaustedError(FluoroApiError):
    """A limit was met: message size, space, the pace of a watch, or what an owner may have.

    If there will be room soon, the client has tried again for as long as it may.
    """


class UnavailableError(FluoroApiError):
    """The server answered that it cannot do this now. Every call of this client may be repeated."""


class UnreachableError(UnavailableError):
    """No Fluoro server answered at the endpoint."""


class DeadlineExceededError(FluoroApiError):
    """No answer within the deadline. What was asked for may have happened."""


class DataLossError(FluoroApiError):
    """Bytes or events that arrived are not those that were promised."""


_CLASSES: Final[dict[grpc.StatusCode, type[FluoroApiError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidArgumentError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.UNAUTHENTICATED: PermissionDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.DATA_LOSS: DataLossError,
}


def shrunk(sent_bytes: int, size_bytes: int) -> InvalidArgumentError:
    """What an upload ends with whose file has become shorter meanwhile."""
    return InvalidArgumentError(
        grpc.StatusCode.INVALID_ARGUMENT,
        f"Of {size_bytes} bytes there were {sent_bytes} in the end. Upload again.",
        reason="UPLOAD_MISMATCH",
    )


def refused(refusal: job_service_pb2.Refusal) -> FluoroApiError:
    """The typed error for what became of an entry of a batch."""
    code = next(
        (code for code in grpc.StatusCode if code.value[0] == refusal.code), grpc.StatusCode.UNKNOWN
    )
    violations = [FieldViolation(*bad) for bad in refusal.fields.items()]
    return _CLASSES.get(code, FluoroApiError)(
        code, refusal.message, reason=refusal.reason, violations=violations
    )


def decode(error: grpc.aio.AioRpcError, endpoint: str) -> FluoroApiError:
    """The typed error for what gRPC raised in a call to `endpoint`."""
    code, message = error.code(), error.details() or ""
    status = _status(error)
    info = _detail(status, error_details_pb2.ErrorInfo())
    bad = _detail(status, error_details_pb2.BadRequest())
    retry = _detail(status, error_details_pb2.RetryInfo())
    if code is grpc.StatusCode.UNAVAILABLE and not info.reason:
        return UnreachableError(
            code, f"Cannot connect to a Fluoro gateway at {endpoint}: {message or 'no answer'}"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and not info.reason:
        message = f"No answer from {endpoint} in time."
    return _CLASSES.get(code, FluoroApiError)(
        code,
        message,
        reason=info.reason,
        violations=[
            FieldViolation(violation.field, violation.description)
            for violation in bad.field_violations
        ],
        metadata=info.metadata,
        retry_seconds=retry.retry_delay.ToTimedelta().total_seconds(),
    )


def _status(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    try:
        return rpc_status.from_call(error) or status_pb2.Status()  # type: ignore[no-untyped-call]  # grpc_status has no types
    except ValueError:
        # Details that contradict the code (a proxy rewrote it) are worth less than the code.
        return status_pb2.Status()


def _detail(status: status_pb2.Status, detail: Detail) -> Detail:
    for packed in status.details:
        if packed.Unpack(detail):
            break
    return detail
