"""Page tokens come back from callers, who may have made them up."""

import base64

import pytest
from fluoro.v1.job_service_pb2 import ListArtifactsRequest
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger.paging import read_token, write_token


@pytest.mark.parametrize("name", [r"\ud800", r"\u0000"])
def test_a_token_with_a_key_that_the_ledger_cannot_hold_is_refused(name: str) -> None:
    request = ListArtifactsRequest(job="jobs/1")
    text = base64.urlsafe_b64decode(write_token(request, [0, "NAME"])).decode()
    request.page_token = base64.urlsafe_b64encode(text.replace("NAME", name).encode()).decode()
    with pytest.raises(FluoroError) as refused:
        read_token(request, int, str)
    assert refused.value.reason == Reason.INVALID_ARGUMENT


def test_a_token_of_many_brackets_is_refused() -> None:
    request = ListArtifactsRequest(page_token=base64.urlsafe_b64encode(b"[" * 1500).decode())
    with pytest.raises(FluoroError, match="page_token"):
        read_token(request, int, str)
