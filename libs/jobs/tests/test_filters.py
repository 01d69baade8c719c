"""Filters: what is refused, where, and what a filter says about the jobs that pass it."""

import time
from datetime import UTC, datetime

import pytest
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger.filters import LATEST, MAX_LENGTH, MAX_TERMS, owner_of, parse
from fluoro_jobs.states import JobState

MAY = datetime(2026, 5, 1, tzinfo=UTC)
TERM = "state = FAILED"


@pytest.mark.parametrize(
    ("text", "position", "told"),
    [
        ("state", 6, "Expected FIELD"),
        ("state =", 8, "Expected FIELD"),
        ("FAILED", 7, "Expected FIELD"),
        (f"{TERM} AND", 19, "Expected FIELD"),
        (f"({TERM}", 16, "Expected FIELD"),
        ("state = a,b", 10, "Expected FIELD"),
        ('reason = "A', 10, "Expected FIELD"),
        ("state = NOPE", 9, "Must be one of PENDING"),
        (f"{TERM} AND patient = X", 20, "The field must be one of state"),
        ("state < FAILED", 7, "no such operator"),
        ("labels = x", 8, "Name the label"),
        ("create_time > 2026-01-01", 15, "a time with its zone"),
        ('end_time > "2026-01-01T00:00:00"', 12, "a time with its zone"),
        ('create_time < "0001-01-01T00:00:00+14:00"', 15, "a time with its zone"),
        ("labels.a = '\0'", 1, "NUL"),
        (" ".join([TERM] * (MAX_TERMS + 1)), 15 * MAX_TERMS + 1, "At most 32 comparisons"),
        ("-(" * 20 + TERM + ")" * 20, 41, "At most 16 levels"),
        ("x" * 2001, 2001, "At most 2000 characters"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(text: str, position: int, told: str) -> None:
    with pytest.raises(FluoroError, match=told) as refused:
        parse(text)
    assert refused.value.reason is Reason.FILTER_INVALID
    assert refused.value.metadata == {"position": str(position)}
    assert [violation.field for violation in refused.value.violations] == ["filter"]


def test_a_refusal_does_not_quote_what_may_be_a_name() -> None:
    with pytest.raises(FluoroError) as refused:
        parse('labels.patient = "Doe^Jane" state = Doe^Jane')
    assert "Doe" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "states"),
    [
        ("", set(JobState)),
        ("labels.a = b", set(JobState)),
        ("state = FAILED", {"FAILED"}),
        ("state = STATE_FAILED", {"FAILED"}),
        ("state = FAILED OR state = RUNNING", {"FAILED", "RUNNING"}),
        ("state = FAILED OR labels.a = b", set(JobState)),
        ("state = FAILED OR state = PENDING AND state = PENDING", {"PENDING"}),
        ("NOT (state = FAILED OR end_time:*)", {"PENDING", "RUNNING"}),
        ("-end_time:*", {"PENDING", "RUNNING"}),
        ("state = FAILED state = PENDING", set()),
    ],
)
def test_what_a_filter_says_about_states_is_known_before_any_job_is_read(
    text: str, states: set[str]
) -> None:
    assert parse(text).reach.states == states


def test_what_a_filter_says_about_times_is_known_before_any_job_is_read() -> None:
    may = f'"{MAY.isoformat()}"'
    assert parse(f"create_time >= {may}").reach.created == (MAY, LATEST)
    assert parse(f"NOT create_time < {may} AND labels.a=b").reach.created == (MAY, LATEST)
    assert parse(f"create_time = {may}").reach.created == (MAY, MAY)
    assert parse(f"create_time = {may} OR labels.a=b").reach.created[1] == LATEST
    assert parse(f"end_time <= {may}").reach.ended[1] == MAY
    # Open jobs pass it too: they have no end_time that could be later.
    assert parse(f"NOT end_time > {may}").reach.ended[1] == LATEST


def test_values_are_parameters_and_never_part_of_the_statement() -> None:
    found = parse("""labels."a' OR true" = "x\\"; DROP" labels.uid = 1.2.840 reason = 'O\\'K'""")
    assert list(found.parameters.values()) == ["a' OR true", 'x"; DROP', "uid", "1.2.840", "O'K"]
    assert "DROP" not in found.sql


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        ('owner = "x"', "x"),
        ("state = SUCCEEDED AND owner=a.b-c (priority > 1)", "a.b-c"),
        ("owner = 'x' AND labels.owner = y", "x"),
        ('(priority = 1 OR priority = 2) owner = "x"', "x"),
        ('NOT owner = "x"', None),
        ('-owner = "x"', None),
        ('owner = "x" OR priority = 1', None),
        ('priority = 1 OR owner = "x"', None),
        ('labels.owner = "x"', None),
        ("owner != x", None),
        ("labels.a = OR owner = x", "x"),
        ("labels.NOT:* owner = x", "x"),
        ("labels.a = NOT owner = x", "x"),
        ("labels.a = OR OR owner = x", None),
        ('labels.a = "owner = x"', None),
        ("owner =", None),
        ("owner", None),
        ("", None),
    ],
)
def test_an_owner_is_found_where_it_must_hold(text: str, owner: str | None) -> None:
    assert owner_of(text) == owner


@pytest.mark.parametrize(
    "text",
    [
        "owner != x",
        "(owner = x)",
        '"owner" = x',
        "owner = x OR owner = y",
        "NOT owner = x",
        'owner = "b\\ob"',
        'owner = "bo"."b"',
        "owner = Bob",
        "owner = x owner = y",
    ],
)
def test_an_owner_that_does_not_decide_whose_jobs_they_are_is_refused(text: str) -> None:
    with pytest.raises(FluoroError, match="owner = ") as caught:
        parse(text)
    assert caught.value.reason == Reason.FILTER_INVALID
    assert parse("owner = x AND state = SUCCEEDED").sql
    assert parse("labels.a = OR owner = x").sql


@pytest.mark.parametrize(
    "piece", ["(owner", "owner = ", '"\\', "'\\", '\\"', 'owner = "', "-owner=x.y ", ".owner=x"]
)
def test_whose_call_it_is_costs_little_to_find_out(piece: str) -> None:
    text = ("owner" + piece * MAX_LENGTH)[:MAX_LENGTH]
    started = time.thread_time()
    for _ in range(20):
        owner_of(text)
    assert time.thread_time() - started < 0.1, "every call pays it, on the gateway's only loop"
