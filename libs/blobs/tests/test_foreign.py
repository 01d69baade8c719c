"""Objects that others write into a bucket, as moto's server has them."""

from pathlib import Path

import pytest
from fluoro_blobs import BlobStoreError
from fluoro_blobs.foreign import RANGE_BYTES, ForeignPrefix
from fluoro_blobs.testing import ENVIRONMENT, put_object


@pytest.fixture
def url(s3_endpoint: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of an empty prefix; the process may read and write there."""
    for name, value in (ENVIRONMENT | {"AWS_ENDPOINT": s3_endpoint}).items():
        monkeypatch.setenv(name, value)
    return f"s3://{bucket}/some/prefix"


def test_objects_are_listed_below_the_prefix_and_copied_byte_for_byte(
    url: str, tmp_path: Path
) -> None:
    content = {"a/b/large": bytes(range(256)) * (RANGE_BYTES // 128 + 1), "a/none": b"", "c": b"c"}
    for key, data in content.items():
        put_object(url, key, data)
    put_object(url.removesuffix("/some/prefix"), "elsewhere", b"x")
    prefix = ForeignPrefix(url, 5)
    found = {one.key: one for one in prefix.objects()}
    assert {key: one.size_bytes for key, one in found.items()} == {
        key: len(data) for key, data in content.items()
    }
    for number, (key, data) in enumerate(content.items()):
        prefix.fetch(found[key], tmp_path / str(number), lambda: True)
        assert (tmp_path / str(number)).read_bytes() == data


def test_an_object_that_changed_after_it_was_listed_is_not_mixed_with_the_old_one(
    url: str, tmp_path: Path
) -> None:
    put_object(url, "object", b"old")
    prefix = ForeignPrefix(url, 5)
    (old,) = prefix.objects()
    put_object(url, "object", b"new content")
    with pytest.raises(BlobStoreError):
        prefix.fetch(old, tmp_path / "copy", lambda: True)
    (new,) = prefix.objects()
    assert new.tag != old.tag


def test_a_copy_ends_before_the_next_request_once_it_is_not_to_go_on(
    url: str, tmp_path: Path
) -> None:
    put_object(url, "object", bytes(2 * RANGE_BYTES))
    prefix = ForeignPrefix(url, 5)
    (found,) = prefix.objects()
    answers = iter([True, False])
    with pytest.raises(TimeoutError):
        prefix.fetch(found, tmp_path / "copy", lambda: next(answers))
    assert (tmp_path / "copy").stat().st_size == RANGE_BYTES


@pytest.mark.usefixtures("url")
def test_a_bucket_that_is_not_there_is_an_error_and_not_empty() -> None:
    with pytest.raises(BlobStoreError):
        list(ForeignPrefix("s3://no-such-bucket", 5).objects())


@pytest.mark.parametrize("url", ["file:///tmp", "memory://", "https://example.org/models"])
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="s3://"):
        ForeignPrefix(url, 5)
