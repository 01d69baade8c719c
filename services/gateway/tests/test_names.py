from uuid import UUID

import pytest
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ids import new_id
from gateway import names

ID = UUID("019a0000-0000-7000-8000-000000000001")


def test_a_name_holds_its_id() -> None:
    job, blob = new_id(), new_id()
    assert names.job_id(f"jobs/{job}") == job
    assert names.blob_id(f"blobs/{blob}") == blob


@pytest.mark.parametrize(
    "name",
    [
        "",
        "jobs",
        "jobs/",
        "jobs/7",
        f"blobs/{ID}",
        f"jobs/{ID.hex}",
        f"jobs/{ID}/x",
        f"jobs/{{{ID}}}",
    ],
)
def test_what_is_not_a_name_of_a_job_is_refused(name: str) -> None:
    with pytest.raises(FluoroError) as caught:
        names.job_id(name)
    assert caught.value.reason == Reason.INVALID_ARGUMENT
    assert [violation.field for violation in caught.value.violations] == ["name"]
