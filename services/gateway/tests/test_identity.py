import pytest
from fluoro_jobs.errors import FluoroError, Reason
from gateway.identity import owner_of


@pytest.mark.parametrize(
    ("metadata", "owner"),
    [(None, "me"), ((), "me"), ((("x", "y"), ("fluoro-owner", "a.b-c_d@e9")), "a.b-c_d@e9")],
)
def test_the_owner_is_the_one_in_the_metadata_or_the_only_one_there_is(
    metadata: tuple[tuple[str, str], ...] | None, owner: str
) -> None:
    assert owner_of(metadata, "me") == owner


@pytest.mark.parametrize("value", ["", "A", "a b", "a/b", "a" * 64, "ü", "a\n", b"a"])
def test_a_malformed_owner_is_refused(value: str | bytes) -> None:
    with pytest.raises(FluoroError, match="fluoro-owner") as caught:
        owner_of([("fluoro-owner", value)])
    assert caught.value.reason == Reason.INVALID_ARGUMENT


def test_two_owners_are_refused() -> None:
    with pytest.raises(FluoroError, match="more than once"):
        owner_of([("fluoro-owner", "a"), ("fluoro-owner", "b")])


def test_a_call_of_nobody_is_refused_unless_the_gateway_is_for_one_user() -> None:
    with pytest.raises(FluoroError, match="fluoro-owner") as caught:
        owner_of([("x", "y")])
    assert caught.value.reason == Reason.OWNER_MISSING
