"""The one place where an error becomes a gRPC status with google.rpc details (AIP-193)."""

import math
from dataclasses import dataclass
from typing import Final

import grpc
from fluoro_jobs.errors import DOMAIN, REASONS, FluoroError, Reason
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2

DETAILS_KEY: Final = "grpc-status-details-bin"
"""Trailer that carries the google.rpc.Status."""

STATUS_BUDGET_BYTES: Final = 3072
"""Largest google.rpc.Status sent.

Trailers over 8 KiB are dropped by gRPC clients, base64 adds a third, and the message travels twice.
"""

MESSAGE_BUDGET_CHARACTERS: Final = 512
"""Longest message sent; outside ASCII, each byte of it takes three in the grpc-message trailer."""

RETRY_DELAY_SECONDS: Final = 1
"""What UNAVAILABLE asks callers to wait before the next try."""

UNFORESEEN: Final = FluoroError(
    Reason.INTERNAL,
    "Something unforeseen went wrong in the gateway. Its log has it at this time and method.",
)


def shutting_down() -> FluoroError:
    """What every caller hears from a gateway that drains."""
    return FluoroError(
        Reason.SHUTTING_DOWN,
        "This gateway is shutting down. Connect again; resume a watch with its last cursor.",
    )


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a call ends: what grpc.aio's abort takes."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, bytes], ...]


def refusal(error: FluoroError) -> Refusal:
    """The status for an error.

    A reason that is of jobs alone is a bug when a request is refused for it: INTERNAL.
    """
    name = REASONS[error.reason].code
    if not name:
        error, name = UNFORESEEN, REASONS[Reason.INTERNAL].code
    message = error.message[:MESSAGE_BUDGET_CHARACTERS]
    status = status_pb2.Status(code=code_pb2.Code.Value(name), message=message)
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    )
    retry_seconds = error.retry_seconds
    # Every outage asks for a pause, or thousands would try again at once.
    if retry_seconds is None and name == "UNAVAILABLE":
        retry_seconds = RETRY_DELAY_SECONDS
    if retry_seconds is not None:
        delay = Duration()
        delay.FromMilliseconds(math.ceil(1000 * retry_seconds))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    if limit := error.metadata.get("limit"):
        status.details.add().Pack(_quota_failure(limit, error))
    # The last of the details, because it takes whatever room the others leave.
    if error.violations:
        status.details.add().Pack(_bad_request(error, STATUS_BUDGET_BYTES - status.ByteSize()))
    return Refusal(grpc.StatusCode[name], message, ((DETAILS_KEY, status.SerializeToString()),))


def _quota_failure(limit: str, error: FluoroError) -> error_details_pb2.QuotaFailure:
    violation = error_details_pb2.QuotaFailure.Violation(
        subject="owner", description=error.message[:MESSAGE_BUDGET_CHARACTERS], quota_id=limit
    )
    return error_details_pb2.QuotaFailure(violations=[violation])


def _bad_request(error: FluoroError, budget_bytes: int) -> error_details_pb2.BadRequest:
    """As many violations as fit; the last one then says how many more there are."""
    bad = error_details_pb2.BadRequest()
    for count, violation in enumerate(error.violations):
        bad.field_violations.add(field=violation.field, description=violation.description)
        # Measured after it was added, because only the message knows its size.
        if bad.ByteSize() > budget_bytes:
            del bad.field_violations[-1]
            bad.field_violations.add(
                description=(
                    f"{len(error.violations) - count + error.more_violations} more are left out."
                )
            )
            return bad
    if error.more_violations:
        bad.field_violations.add(description=f"{error.more_violations} more are left out.")
    return bad
