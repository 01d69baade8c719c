"""What a release can read of another one's requests."""

import pytest
from fluoro.v1.export_pb2 import ExportReport
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.operations import BY_FIELD
from fluoro_jobs.skew import read_request

EXPORT = BY_FIELD["export_report"]
LATER_FORMAT = 99


@pytest.mark.parametrize("field", [b"\x08\x63", b"\x0a\x01\x63"], ids=["one", "packed"])
def test_a_value_of_a_later_release_is_not_known_rather_than_bad(field: bytes) -> None:
    assert list(ExportReport.FromString(field).formats) == [LATER_FORMAT]
    with pytest.raises(FluoroError) as caught:
        read_request(EXPORT, field)
    assert caught.value.reason == Reason.OPERATION_UNKNOWN
    assert caught.value.may_retry


def test_values_that_this_release_has_are_read() -> None:
    request = ExportReport(formats=[ExportReport.FORMAT_PDF], title="A title")
    assert read_request(EXPORT, request.SerializeToString()) == request
