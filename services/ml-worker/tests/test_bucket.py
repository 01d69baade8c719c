"""Models out of a bucket: copied, served, changed and lost while the worker runs."""

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from fluoro.v1.model_pb2 import Model as ModelProto
from fluoro_blobs.testing import ENVIRONMENT, delete_object, new_bucket, put_object, serving_s3
from ml_worker import bucket as module
from ml_worker.bucket import Bucket
from ml_worker.registry import Registry
from ml_worker.settings import ModelSettings
from pydantic import ValidationError
from structlog.testing import capture_logs

Double = Callable[..., Path]
Upload = Callable[..., Path]
PATIENCE_SECONDS = 30


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server of S3."""
    with serving_s3() as endpoint:
        yield endpoint


@pytest.fixture
def url(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of an empty prefix in it."""
    for name, value in (ENVIRONMENT | {"AWS_ENDPOINT": endpoint}).items():
        monkeypatch.setenv(name, value)
    return f"s3://{new_bucket(endpoint)}/models"


@pytest.fixture
def upload(url: str, tmp_path: Path, make_double: Double) -> Upload:
    """Writes a version of a model into the bucket, and gives the folder with the same files."""

    def write(version: str = "1.0.0", factor: float = 2, leave_out: str = "") -> Path:
        place = make_double(tmp_path / f"made-{factor}", version, factor)
        for file in place.iterdir():
            if file.name != leave_out:
                put_object(url, f"double/{version}/{file.name}", file.read_bytes())
        return place

    return write


@pytest.fixture
def bucket(url: str, tmp_path: Path) -> Bucket:
    """Copies when it is told to."""
    return Bucket(url, tmp_path / "cache", 0.05, 60)


@pytest.fixture
def open_registry(url: str, tmp_path: Path) -> Iterator[Callable[..., Registry]]:
    """Opens the models that ship and those of the bucket; closes them in the end."""
    opened: list[Registry] = []

    def opening(**settings: str) -> Registry:
        given = {"models_url": url, "models_cache": tmp_path / "cache"} | settings
        opened.append(Registry(ModelSettings(poll_seconds=0.05, **given)))
        opened[-1].open()
        return opened[-1]

    yield opening
    for registry in opened:
        registry.close()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


def state(registry: Registry, version: str = "1.0.0") -> str:
    """READY, the problem, or nothing."""
    for model in registry.told():
        if model.name == f"models/double/versions/{version}":
            problem = model.deployments[0].problem
            return ModelProto.Problem.Name(problem).removeprefix("PROBLEM_") if problem else "READY"
    return ""


def copied(cache: Path) -> list[str]:
    """Names and versions that the folder shows."""
    return sorted(
        f"{link.parent.name} {link.name}"
        for link in cache.glob("[!.]*/*")
        if (link / "model.toml").is_file()
    )


def test_a_model_of_the_bucket_is_served_like_one_of_a_folder(
    upload: Upload, open_registry: Callable[..., Registry]
) -> None:
    place = upload()
    registry = open_registry()
    model = registry.find("double", "1.0.0")
    assert model.manifest_sha256 == sha256((place / "model.toml").read_bytes()).digest()
    assert state(registry) == "READY"


def test_a_new_version_is_served_without_a_restart_and_one_that_is_removed_no_longer(
    upload: Upload, url: str, open_registry: Callable[..., Registry]
) -> None:
    upload("1.0.0")
    registry = open_registry()
    registry.watch()
    upload("2.0.0")
    until(lambda: state(registry, "2.0.0") == "READY")
    assert registry.find("double").manifest.version == "2.0.0"
    delete_object(url, "double/2.0.0/model.toml")
    until(lambda: state(registry, "2.0.0") == "")
    assert registry.find("double").manifest.version == "1.0.0"


def test_a_version_is_none_before_its_manifest_and_not_served_before_all_files_are_there(
    upload: Upload, url: str, bucket: Bucket, open_registry: Callable[..., Registry], tmp_path: Path
) -> None:
    place = upload(leave_out="model.toml")
    bucket.copy()
    assert copied(tmp_path / "cache") == []
    put_object(url, "double/1.0.0/model.toml", (place / "model.toml").read_bytes())
    delete_object(url, "double/1.0.0/model.onnx")
    registry = open_registry()
    assert state(registry) == "FILES_MISSING"
    registry.watch()
    put_object(url, "double/1.0.0/model.onnx", (place / "model.onnx").read_bytes())
    until(lambda: state(registry) == "READY")


def test_a_file_with_another_hash_than_the_manifest_says_is_not_served(
    upload: Upload, url: str, open_registry: Callable[..., Registry]
) -> None:
    upload()
    put_object(url, "double/1.0.0/model.onnx", b"something else")
    assert state(open_registry()) == "FILE_MISMATCH"


def test_files_swapped_in_the_bucket_are_noticed_and_the_model_is_not_served(
    upload: Upload, open_registry: Callable[..., Registry]
) -> None:
    upload(factor=2)
    registry = open_registry()
    registry.watch()
    upload(factor=3)
    until(lambda: state(registry) == "FILES_CHANGED")


def test_a_bucket_that_dies_takes_no_model_away_and_a_worker_starts_without_it(
    tmp_path: Path, make_double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_double(tmp_path / "made")
    with serving_s3() as endpoint:
        for name, value in (ENVIRONMENT | {"AWS_ENDPOINT": endpoint}).items():
            monkeypatch.setenv(name, value)
        url = f"s3://{new_bucket(endpoint)}/models"
        for file in place.iterdir():
            put_object(url, f"double/1.0.0/{file.name}", file.read_bytes())
        Bucket(url, tmp_path / "cache", 1, 60).copy()
    monkeypatch.setattr(module, "REQUEST_SECONDS", 1)
    registry = Registry(ModelSettings(models_url=url, models_cache=tmp_path / "cache"))
    with capture_logs() as logs:
        registry.open()
    registry.close()
    assert state(registry) == "READY"
    assert "models_bucket_unreadable" in {entry["event"] for entry in logs}


def test_a_bucket_that_does_not_answer_holds_up_neither_the_start_for_long_nor_other_folders(
    tmp_path: Path, make_double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_SECONDS", 0.1)
    monkeypatch.setattr(module, "REQUEST_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name, value in ENVIRONMENT.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        (tmp_path / "models").mkdir()
        registry = Registry(
            ModelSettings(
                models_folder=tmp_path / "models",
                models_url="s3://bucket/models",
                models_cache=tmp_path / "cache",
            )
        )
        registry.open()
        make_double(tmp_path / "models")
        registry.look()
        assert state(registry) == "READY"
        registry.close()


def test_a_copy_that_takes_too_long_leaves_nothing_and_is_begun_again(
    upload: Upload, url: str, tmp_path: Path
) -> None:
    upload()
    with capture_logs() as logs:
        Bucket(url, tmp_path / "cache", 1, -1).copy()
    assert [entry["exception"] for entry in logs] == ["TimeoutError"]
    assert copied(tmp_path / "cache") == []
    assert list((tmp_path / "cache" / ".copies").iterdir()) == []
    Bucket(url, tmp_path / "cache", 1, 60).copy()
    assert copied(tmp_path / "cache") == ["double 1.0.0"]


def test_what_has_not_changed_is_not_copied_again(
    bucket: Bucket, upload: Upload, tmp_path: Path
) -> None:
    upload()
    inodes = []
    for _ in range(2):
        bucket.copy()
        (there,) = (tmp_path / "cache" / ".copies").iterdir()
        inodes.append((there.stat().st_ino, (tmp_path / "cache/double/1.0.0").lstat().st_ino))
    assert inodes[0] == inodes[1]


def test_two_workers_may_share_a_folder(upload: Upload, url: str, tmp_path: Path) -> None:
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        upload(version)
    workers = [Bucket(url, tmp_path / "cache", 1, 60) for _ in range(2)]
    start = threading.Barrier(len(workers))

    def copy(worker: Bucket) -> None:
        start.wait(PATIENCE_SECONDS)
        worker.copy()

    with capture_logs() as logs:
        threads = [threading.Thread(target=copy, args=[worker]) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
    assert logs == []
    assert copied(tmp_path / "cache") == [f"double {n}.0.0" for n in (1, 2, 3)]


def test_copies_that_nothing_points_to_are_removed_once_they_are_old(
    bucket: Bucket, upload: Upload, url: str, tmp_path: Path
) -> None:
    upload()
    bucket.copy()
    delete_object(url, "double/1.0.0/model.toml")
    bucket.copy()
    copies = tmp_path / "cache" / ".copies"
    (there,) = copies.iterdir()
    assert copied(tmp_path / "cache") == []
    (copies / ".given-up").mkdir()
    for path in (there, copies / ".given-up"):
        os.utime(path, (1, 1))
    bucket.copy()
    assert list(copies.iterdir()) == []


def test_names_that_lead_elsewhere_are_not_followed(
    bucket: Bucket, upload: Upload, url: str, tmp_path: Path
) -> None:
    place = upload()
    manifest = (place / "model.toml").read_text()
    hostile = re.sub('"model.onnx" =', '"../../../../escaped" = "0"\n"model.onnx" =', manifest)
    put_object(url, "double/2.0.0/model.toml", hostile.encode())
    put_object(url, "Double/1.0.0/model.toml", b"")
    put_object(url, "double/latest/model.toml", b"")
    put_object(url, "double/1.0.0/deeper/model.toml", b"")
    put_object(url, "double/3.0.0/model.toml", b"files = 3")
    put_object(url, "double/4.0.0/model.toml", b"\xff")
    bucket.copy()
    assert copied(tmp_path / "cache") == [f"double {n}.0.0" for n in (1, 2, 3, 4)]
    assert not list(tmp_path.rglob("escaped"))


def test_a_bucket_with_too_much_in_it_is_told_and_fills_no_disk(
    bucket: Bucket, upload: Upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload("1.0.0")
    bucket.copy()
    upload("2.0.0")
    monkeypatch.setattr(module, "MAX_MODEL_BYTES", 10)
    with capture_logs() as logs:
        bucket.copy()
    assert [(entry["version"], entry["exception"]) for entry in logs] == [("2.0.0", "TooMuchError")]
    monkeypatch.setattr(module, "MAX_VERSIONS", 1)
    with capture_logs() as logs:
        bucket.copy()
    assert [entry["event"] for entry in logs] == ["models_bucket_too_large"]
    assert copied(tmp_path / "cache") == ["double 1.0.0"], "what was there stays"
    monkeypatch.setattr(module, "MAX_LOOKED_AT", 3)
    with capture_logs() as logs:
        bucket.copy()
    assert [entry["event"] for entry in logs] == ["models_bucket_unreadable"]
    assert copied(tmp_path / "cache") == ["double 1.0.0"]


def test_a_worker_that_does_not_start_leaves_no_thread_that_keeps_it_from_ending(
    open_registry: Callable[..., Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Registry, "look", None)
    with pytest.raises(TypeError):
        open_registry()
    until(lambda: "models-bucket" not in {thread.name for thread in threading.enumerate()})


@pytest.mark.parametrize(
    "settings",
    [
        {"models_url": "s3://bucket/models"},
        {"models_cache": "/tmp/cache"},
        {"models_url": "file:///models", "models_cache": "/tmp/cache"},
    ],
)
def test_settings_that_nothing_would_follow_are_refused(settings: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        ModelSettings(**settings)
