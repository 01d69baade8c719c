import grpc
import pytest
from fluoro_jobs.errors import REASONS, FieldViolation, FluoroError, Reason
from gateway.errors import DETAILS_KEY, STATUS_BUDGET_BYTES, refusal
from google.rpc import error_details_pb2, status_pb2


def details(
    error: FluoroError,
) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, bool]:
    ((key, raw),) = refusal(error).trailers
    assert key == DETAILS_KEY
    info, bad, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    unpacked = [
        [detail.Unpack(into) for into in (info, bad, retry)]
        for detail in status_pb2.Status.FromString(raw).details
    ]
    assert sum(row[0] for row in unpacked) == 1
    return info, bad, any(row[2] for row in unpacked)


@pytest.mark.parametrize("reason", [reason for reason in Reason if REASONS[reason].code])
def test_every_reason_a_request_can_be_refused_for_has_its_code_and_one_error_info(
    reason: Reason,
) -> None:
    error = FluoroError(reason, "What to do.", metadata={"job": "jobs/1"})
    assert refusal(error).code == grpc.StatusCode[REASONS[reason].code]
    assert refusal(error).message == "What to do."
    info, _, retry = details(error)
    assert (info.reason, info.domain, dict(info.metadata)) == (reason, "fluoro", {"job": "jobs/1"})
    assert retry == (refusal(error).code is grpc.StatusCode.UNAVAILABLE)


@pytest.mark.parametrize("reason", [reason for reason in Reason if not REASONS[reason].code])
def test_a_reason_of_jobs_alone_is_a_bug_when_a_request_is_refused_for_it(reason: Reason) -> None:
    error = FluoroError(reason, "Item 7 has a problem.")
    assert refusal(error).code is grpc.StatusCode.INTERNAL
    assert "Item 7" not in refusal(error).message
    assert details(error)[0].reason == "INTERNAL"


def test_violations_name_their_fields() -> None:
    error = FluoroError(
        Reason.INVALID_ARGUMENT, "Bad.", [FieldViolation("job.steps[2].after[0]", "Names no step.")]
    )
    _, bad, _ = details(error)
    assert [(v.field, v.description) for v in bad.field_violations] == [
        ("job.steps[2].after[0]", "Names no step.")
    ]


def test_a_status_fits_a_trailer_however_many_violations_there_are() -> None:
    error = FluoroError(
        Reason.INVALID_ARGUMENT,
        "x" * 5000,
        [FieldViolation(f"job.inputs[{i}]", "No such blob.") for i in range(10_000)],
    )
    ((_, raw),) = refusal(error).trailers
    assert len(raw) <= STATUS_BUDGET_BYTES + 64
    shown = details(error)[1].field_violations
    assert shown[0].field == "job.inputs[0]"
    assert shown[-1].description == f"{10_000 - (len(shown) - 1)} more are left out."


def test_violations_that_were_not_listed_are_counted() -> None:
    error = FluoroError(
        Reason.INVALID_ARGUMENT, "Bad.", [FieldViolation("name", "No.")], more_violations=7
    )
    assert [v.description for v in details(error)[1].field_violations] == [
        "No.",
        "7 more are left out.",
    ]
