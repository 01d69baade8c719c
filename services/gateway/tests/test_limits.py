"""Buckets of tokens, and the file of limits: plain logic, without servers."""

from pathlib import Path

import pytest
from gateway.limits.buckets import MAX_BUCKETS, Bucket, Buckets
from gateway.limits.owners import LimitsFileError, OwnerLimits, Owners

USUAL = OwnerLimits(calls_per_second=10, max_calls=5)


def owners(folder: Path, text: str) -> Owners:
    (folder / "limits.toml").write_text(text)
    return Owners(USUAL, str(folder / "limits.toml"))


def test_a_bucket_gives_what_it_saved_up_and_then_its_rate() -> None:
    bucket = Bucket(rate=10, now=0)
    assert [bucket.take(1, 0) for _ in range(50)] == [0] * 50, "5 s of it"
    assert bucket.take(1, 0) == pytest.approx(0.1)
    assert bucket.take(1, 0.1) == 0
    assert bucket.take(1, 0.1) == pytest.approx(0.1)
    assert bucket.take(50, 1000) == 0, "it holds no more than that"
    assert bucket.take(1, 1000) > 0


def test_what_costs_more_than_a_bucket_holds_leaves_it_in_debt() -> None:
    bucket = Bucket(rate=2, now=0)
    assert bucket.take(30, 0) == 0
    assert bucket.take(1, 0) == pytest.approx((20 + 1) / 2)


def test_a_slow_rate_lets_one_through_at_a_time() -> None:
    bucket = Bucket(rate=0.01, now=0)
    assert bucket.take(1, 0) == 0
    assert bucket.take(1, 0) == pytest.approx(100)


def test_what_redis_says_is_left_counts_less_what_was_spent_since() -> None:
    bucket = Bucket(rate=10, now=0)
    bucket.take(20, 0)
    sent = bucket.spent
    bucket.take(5, 0)
    bucket.settle(left=12, sent=sent, now=0)
    assert (bucket.level, bucket.spent) == (7, 5)


def test_buckets_of_any_number_of_owners_take_bounded_memory() -> None:
    buckets = Buckets("redis://127.0.0.1")
    for number in range(MAX_BUCKETS + 500):
        assert buckets.take("calls_per_second", f"owner-{number}", 1) == 0
    assert len(buckets) == MAX_BUCKETS


def test_the_file_names_what_differs_for_an_owner(tmp_path: Path) -> None:
    found = owners(tmp_path, 'ada.calls_per_second = 2\n["m@x.y"]\nmax_streams = 3\n')
    assert found.of("ada") == OwnerLimits(calls_per_second=2, max_calls=5)
    assert found.of("m@x.y") == OwnerLimits(calls_per_second=10, max_calls=5, max_streams=3)
    assert found.of("eve") == USUAL


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ada = 2", "no table of an owner"),
        ("[ada]\ncall_per_second = 2", "call_per_second"),
        ("[ada]\ncalls_per_second = -2", "calls_per_second"),
        ("[ada]\ncalls_per_second = nan", "calls_per_second"),
        ("[ada]\nmax_calls = true", "max_calls"),
        ("[scanner.ward]\nmax_calls = 1", "ward"),
        ('["A\\nB"]\nmax_calls = 1', "no table of an owner"),
        ("[ada", "not TOML"),
    ],
)
def test_a_file_that_cannot_be_meant_stops_the_start(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(LimitsFileError, match=says):
        owners(tmp_path, text)


def test_a_file_that_changes_is_read_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    found = owners(tmp_path, "[ada]\nmax_calls = 1\n")
    for text, most in [("[ada]\nmax_calls = 22", 22), ("[ada]\nmax_cal", 22), ("", 5)]:
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").replace(tmp_path / "limits.toml")
        found.look()
        assert found.of("ada").max_calls == most
    (tmp_path / "limits.toml").unlink()
    found.look()
    assert found.of("ada").max_calls == 5
