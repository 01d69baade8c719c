"""How a call ends in an error: with the code and the details that a gateway sends."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from fluoro_client.errors import FieldViolation

CODES: Final[dict[str, grpc.StatusCode]] = {
    "INVALID_ARGUMENT": grpc.StatusCode.INVALID_ARGUMENT,
    "OWNER_MISSING": grpc.StatusCode.UNAUTHENTICATED,
    "CREDENTIALS_MISSING": grpc.StatusCode.UNAUTHENTICATED,
    "TOKEN_INVALID": grpc.StatusCode.UNAUTHENTICATED,
    "TOKEN_EXPIRED": grpc.StatusCode.UNAUTHENTICATED,
    "TOKEN_REVOKED": grpc.StatusCode.UNAUTHENTICATED,
    "TOKEN_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "CERTIFICATE_EXPIRED": grpc.StatusCode.UNAUTHENTICATED,
    "CERTIFICATE_UNKNOWN": grpc.StatusCode.UNAUTHENTICATED,
    "IDENTITY_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "ROLE_MISSING": grpc.StatusCode.PERMISSION_DENIED,
    "JOB_EMPTY": grpc.StatusCode.INVALID_ARGUMENT,
    "STEP_GRAPH_CYCLE": grpc.StatusCode.INVALID_ARGUMENT,
    "STEP_UNKNOWN": grpc.StatusCode.INVALID_ARGUMENT,
    "STEP_INPUT_MISSING": grpc.StatusCode.INVALID_ARGUMENT,
    "STEP_INPUT_MISMATCH": grpc.StatusCode.INVALID_ARGUMENT,
    "STEP_SEES_IDENTIFIABLE": grpc.StatusCode.INVALID_ARGUMENT,
    "MESSAGE_TOO_LARGE": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "ANSWER_TOO_LARGE": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "REQUEST_ID_REUSED": grpc.StatusCode.ALREADY_EXISTS,
    "PIPELINE_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "MODEL_UNKNOWN": grpc.StatusCode.NOT_FOUND,
    "JOB_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "JOB_NOT_ENDED": grpc.StatusCode.FAILED_PRECONDITION,
    "NOTHING_TO_RETRY": grpc.StatusCode.FAILED_PRECONDITION,
    "BLOB_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "UPLOAD_MISMATCH": grpc.StatusCode.INVALID_ARGUMENT,
    "BLOB_TOO_LARGE": grpc.StatusCode.INVALID_ARGUMENT,
    "UPLOAD_TOO_SLOW": grpc.StatusCode.DEADLINE_EXCEEDED,
    "DOWNLOAD_TOO_SLOW": grpc.StatusCode.UNAVAILABLE,
    "UPLOADS_BUSY": grpc.StatusCode.UNAVAILABLE,
    "UPLOAD_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "UPLOAD_SUPERSEDED": grpc.StatusCode.ABORTED,
    "UPLOAD_INCOMPLETE": grpc.StatusCode.FAILED_PRECONDITION,
    "DIRECT_UPLOAD_UNSUPPORTED": grpc.StatusCode.FAILED_PRECONDITION,
    "SOURCE_NOT_ALLOWED": grpc.StatusCode.FAILED_PRECONDITION,
    "SOURCE_REFUSED": grpc.StatusCode.FAILED_PRECONDITION,
    "SOURCE_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "FILTER_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "CURSOR_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "CURSOR_EXPIRED": grpc.StatusCode.OUT_OF_RANGE,
    "WATCH_TOO_SLOW": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "SHUTTING_DOWN": grpc.StatusCode.UNAVAILABLE,
    "GATEWAY_BUSY": grpc.StatusCode.UNAVAILABLE,
    "LEDGER_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "LEDGER_BUSY": grpc.StatusCode.UNAVAILABLE,
    "LEDGER_READ_ONLY": grpc.StatusCode.UNAVAILABLE,
    "LEDGER_FULL": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "BLOB_STORE_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "BLOB_STORE_FULL": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "INTERNAL": grpc.StatusCode.INTERNAL,
    "METHOD_UNKNOWN": grpc.StatusCode.UNIMPLEMENTED,
    "SERVICE_UNKNOWN": grpc.StatusCode.NOT_FOUND,
    "RATE_LIMITED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "TOO_MANY_CALLS": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "JOB_QUOTA_EXCEEDED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "BYTE_QUOTA_EXCEEDED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "CALL_TIMEOUT": grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""Reasons that a call is refused for, and their codes, as in docs/errors.md."""

DOMAIN: Final = "fluoro"
"""Domain of every google.rpc.ErrorInfo."""


@dataclass(frozen=True, slots=True)
class Fault:
    """How one call goes wrong.

    reason: one of docs/errors.md; "" for an error that did not come from Fluoro, of a proxy say.
    code: None takes the reason's; UNAVAILABLE without a reason.
    after: how much goes through before: messages of a stream, bytes of an upload. A call without a
    stream fails before it does anything. hang: says nothing more, instead of ending, until the
    caller gives up.
    retry_seconds: how long the caller is asked to wait before the next try; a gateway asks for 1 s
    after UNAVAILABLE, this asks for none. repeat, missing: events of WatchJob that a resumed stream
    tells once more, or leaves out, which a gateway never does.

    ValueError for a reason that no call is refused for, unless a code is given, and for details
    without a reason: they travel together.
    """

    reason: str = ""
    message: str = "The test wants this call to fail."
    code: grpc.StatusCode | None = None
    violations: Sequence[FieldViolation] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_seconds: float = 0
    after: int = 0
    hang: bool = False
    repeat: int = 0
    missing: int = 0

    def __post_init__(self) -> None:
        if self.reason and self.code is None and self.reason not in CODES:
            raise ValueError(
                f"no call is refused for {self.reason}; docs/errors.md has the reasons"
            )
        if not self.reason and (self.violations or self.metadata or self.retry_seconds):
            raise ValueError("violations, metadata and retry_seconds travel with a reason")

    def end(self, context: grpc.ServicerContext) -> NoReturn:
        """Ends the call."""
        if self.hang:
            over = threading.Event()
            if context.add_callback(over.set):
                over.wait()
        code = self.code or CODES.get(self.reason, grpc.StatusCode.UNAVAILABLE)
        if not self.reason:
            context.abort(code, self.message)
        status = status_pb2.Status(
            code=code.value[0], message=self.message, details=list(map(_packed, self._details()))
        )
        context.abort_with_status(rpc_status.to_status(status))  # type: ignore[no-untyped-call]  # grpc_status has no types

    def _details(self) -> list[Message]:
        """As a gateway sends them: ErrorInfo always, the others if they say something."""
        details: list[Message] = [
            error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)
        ]
        if self.retry_seconds:
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(round(self.retry_seconds * 1000))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        if self.violations:
            fields = [
                error_details_pb2.BadRequest.FieldViolation(
                    field=bad.field, description=bad.description
                )
                for bad in self.violations
            ]
            details.append(error_details_pb2.BadRequest(field_violations=fields))
        return details


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


class RefusalError(Exception):
    """A call cannot be done; `fault` says why."""

    def __init__(self, reason: str, message: str, *violations: tuple[str, str]) -> None:
        super().__init__(reason, message)
        self.fault = Fault(reason, message, violations=[FieldViolation(*bad) for bad in violations])


def invalid(name: str, description: str) -> RefusalError:
    """INVALID_ARGUMENT about one field of the request."""
    return RefusalError("INVALID_ARGUMENT", f"{name}: {description}", (name, description))
