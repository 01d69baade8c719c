"""Filters of the audit, and what they leave to an index."""

from datetime import UTC, datetime

import pytest
from fluoro_jobs.errors import FluoroError
from fluoro_jobs.ledger.audit_search import Reach, compile_filter

JOB = "jobs/01a21a6e-6441-75ad-89ce-834abed0ccf9"
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "reach"),
    [
        ("", Reach()),
        ("owner = ada", Reach(owner="ada")),
        (f'job = "{JOB}" AND owner = ada', Reach(owner="ada", thing=JOB)),
        (f'job = "{JOB.removeprefix("jobs/")}"', Reach(thing=JOB)),
        ("owner = ada OR owner = bob", Reach()),
        ("owner = ada OR owner = ada", Reach(owner="ada")),
        ("NOT owner != ada", Reach(owner="ada")),
        ("NOT owner = ada", Reach()),
        ('time >= "2026-01-31T13:00:00+01:00"', Reach((NOON, datetime.max.replace(tzinfo=UTC)))),
        ("action = READ outcome != OK method = GetJob", Reach()),
    ],
)
def test_a_filter_says_which_index_to_follow_and_from_where(text: str, reach: Reach) -> None:
    assert compile_filter(text)[1] == reach


@pytest.mark.parametrize(
    ("text", "position", "what"),
    [
        ("state = FAILED", 1, "one of time, principal, owner"),
        ("owner : ada", 7, "no such operator"),
        ("action = LOOK", 10, "CREATE, READ"),
        ("job = Doe^John", 7, "jobs/{uuid}"),
        ('time > "yesterday"', 8, "zone"),
        ("time : now", 6, "no such operator"),
    ],
)
def test_a_filter_that_is_none_is_told_where_and_without_a_word_of_it(
    text: str, position: int, what: str
) -> None:
    with pytest.raises(FluoroError, match=what) as caught:
        compile_filter(text)
    assert caught.value.metadata == {"position": str(position)}
    assert "Doe" not in str(caught.value)
