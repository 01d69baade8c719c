"""EmbedImages from certified pixels to vectors, on a model whose vectors NumPy can work out."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fluoro.v1 import job_pb2
from fluoro.v1.embedding_pb2 import EmbedImages
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.testing import Attempt
from fluoro_jobs.worker.context import Upstream
from ml_worker.operations.embed import embed
from ml_worker.registry import Registry
from ml_worker.seeing import DIMENSIONS, SIDE, weights, write_seeing
from numpy.typing import NDArray

Render = Callable[..., Upstream]
After = Callable[..., Attempt]
SEEING = EmbedImages(model="seeing")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return write_seeing(tmp_path_factory.mktemp("seeing"))


def photographs(frames: int = 1, seed: int = 1, side: int = SIDE) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 200, (frames, side, side, 3)).astype("|u1")


def vectors(attempt: Attempt, name: str) -> NDArray[Any]:
    array: NDArray[Any] = np.load(io.BytesIO(attempt.read(name)), allow_pickle=False)
    return array


def test_each_frame_becomes_the_unit_vector_that_numpy_gives(
    seeing: Registry, render: Render, attempt: After
) -> None:
    # Seven frames are two runs of this model, of four samples at most.
    one, many = photographs(), photographs(7, seed=2)
    run = attempt(render(one, many, unit="1", modality="XC"))
    result = embed(SEEING, run.context, seeing)
    assert [(e.input, e.item, e.vectors, e.frames, e.dimensions) for e in result.embeddings] == [
        (0, "0", "embedding-0000.npy", 1, DIMENSIONS),
        (1, "1", "embedding-0001.npy", 7, DIMENSIONS),
    ]
    assert {e.manifest_sha256 for e in result.embeddings} == {result.model.manifest_sha256}
    assert (result.model.name, len(result.model.sha256)) == ("seeing", 32)
    artifact = run.context.artifacts["embedding-0001.npy"]
    assert (artifact.role, artifact.media_type) == ("embedding", "application/x-npy")
    for name, frames in (("embedding-0000.npy", one), ("embedding-0001.npy", many)):
        row = (frames.transpose(0, 3, 1, 2).reshape(len(frames), -1) / 255) @ weights()
        found = vectors(run, name)
        assert found.dtype.str == "<f4"
        expected = row / np.linalg.norm(row, axis=1, keepdims=True)
        assert found == pytest.approx(expected, abs=1e-5)
        assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-6)


def test_images_of_any_kind_and_size_have_vectors_of_one_length(
    seeing: Registry, render: Render, attempt: After
) -> None:
    arrays = [
        np.full((1, 1, 1), 9, "|u1"),
        np.arange(12, dtype="<u2").reshape(1, 3, 4) * 5000,
        np.full((1, 1, 30_000, 3), 90, "|u1"),
    ]
    run = attempt(render(*arrays, unit="1", modality="XC"))
    result = embed(SEEING, run.context, seeing)
    assert [each.dimensions for each in result.embeddings] == [DIMENSIONS] * 3
    assert not any(np.isnan(vectors(run, e.vectors)).any() for e in result.embeddings)


def test_images_without_a_vector_fail_alone_each_with_its_reason(
    seeing: Registry, render: Render, attempt: After
) -> None:
    black, white = np.zeros((1, 2, 2, 3), "|u1"), np.full((1, 2, 2, 3), 255, "|u1")
    signed = np.zeros((1, 2, 2), "<i2")
    upstream = render(photographs(), black, white, signed, photographs(), unit="1", modality="XC")
    upstream.result.images[4].certificate.sha256 = bytes(32)  # type: ignore[attr-defined]
    run = attempt(upstream)
    result = embed(SEEING, run.context, seeing)
    assert [run.context.items[number].reason for number in range(5)] == [
        "",
        Reason.MODEL_OUTPUT_INVALID,
        Reason.MODEL_OUTPUT_INVALID,
        Reason.MODEL_NOT_APPLICABLE,
        Reason.PIXELS_NOT_CERTIFIED,
    ]
    assert "points nowhere" in run.context.items[1].message
    assert "not numbers" in run.context.items[2].message
    assert run.context.items[3].state == job_pb2.Item.STATE_SKIPPED
    assert [each.input for each in result.embeddings] == [0]
    assert list(run.context.artifacts) == ["embedding-0000.npy"]


@pytest.mark.parametrize(
    ("model", "version", "reason", "words"),
    [
        ("ct-tissue", "", Reason.MODEL_NOT_APPLICABLE, "that gives embedding"),
        ("unseen", "", Reason.MODEL_UNKNOWN, "seeing 1.0.0"),
        ("seeing", "2.0.0", Reason.MODEL_UNKNOWN, "seeing 1.0.0"),
    ],
)
def test_a_model_that_makes_no_vectors_is_refused_in_words(
    seeing: Registry,
    render: Render,
    attempt: After,
    model: str,
    version: str,
    reason: Reason,
    words: str,
) -> None:
    run = attempt(render(photographs(), unit="1"))
    with pytest.raises(FluoroError, match=words) as caught:
        embed(EmbedImages(model=model, version=version), run.context, seeing)
    assert caught.value.reason == reason
