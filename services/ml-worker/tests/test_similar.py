"""FindSimilar on vectors whose cosines NumPy can work out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fluoro.v1.embedding_pb2 import EmbedImagesResult, FindSimilar, FindSimilarResult
from fluoro_jobs.errors import CancelledAttempt, FluoroError, Reason
from fluoro_jobs.testing import Attempt, step_context
from fluoro_jobs.worker.context import Upstream
from ml_worker.operations import similar
from ml_worker.operations.embed import npy
from ml_worker.operations.similar import VECTORS_AT_ONCE, find_similar
from numpy.typing import NDArray

Arrays = Sequence[NDArray[Any]]
Spoil = Callable[[bytes], bytes]


def unit(*rows: Sequence[float]) -> NDArray[Any]:
    values = np.array(rows, float)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype("<f4")


def embedded(folder: Path, arrays: Arrays, spoil: Spoil = bytes, model: bytes = b"m") -> Upstream:
    """What EmbedImages leaves. spoil: changes the second array."""
    run = step_context(folder, [b""] * len(arrays), step="embed")
    result = EmbedImagesResult()
    for item, array in zip(run.context.each("embed"), arrays, strict=True):
        with item:
            data = spoil(npy(array)) if item.input == 1 else npy(array)
            result.embeddings.add(
                input=item.input,
                item=item.key,
                vectors=item.put("embedding", ".npy", "embedding", "application/x-npy", data),
                frames=len(array),
                dimensions=array.shape[1],
                manifest_sha256=model,
            )
    return run.as_upstream(result)


def after(folder: Path, upstream: Upstream) -> Attempt:
    return step_context(folder, (), [upstream], "similar", reads=["embedding"])


def compared(folder: Path, arrays: Arrays, **request: Any) -> FindSimilarResult:
    return find_similar(FindSimilar(**request), after(folder, embedded(folder, arrays)).context)


def test_neighbors_are_those_of_all_pairs_the_most_similar_first(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    # More queries than one block, and images of one to three frames.
    arrays = [unit(*random.normal(size=(1 + n % 3, 16))) for n in range(VECTORS_AT_ONCE)]
    result = compared(tmp_path, arrays, neighbors=4)
    assert result.images == len(arrays)
    assert [(one.input, one.frame) for one in result.found] == [
        (n, frame + 1) for n, array in enumerate(arrays) for frame in range(len(array))
    ]
    for one in result.found:
        query = arrays[one.input][one.frame - 1].astype(float)
        cosines = {n: (a @ query) for n, a in enumerate(arrays) if n != one.input}
        nearest = sorted(cosines, key=lambda n: -cosines[n].max())[:4]
        assert [near.input for near in one.neighbors] == nearest
        for near in one.neighbors:
            assert near.item == str(near.input)
            assert near.frame == cosines[near.input].argmax() + 1
            assert near.similarity == pytest.approx(cosines[near.input].max(), abs=2e-6)


def test_equals_keep_the_order_of_inputs_and_no_image_is_its_own_neighbor(tmp_path: Path) -> None:
    same = unit([3, 4])
    result = compared(tmp_path, [same, -same, same, same], queries=["2", "2"])
    (one,) = result.found
    assert [(near.input, near.similarity) for near in one.neighbors] == [(0, 1), (3, 1), (1, -1)]


def test_an_image_alone_has_no_neighbors(tmp_path: Path) -> None:
    (one,) = compared(tmp_path, [unit([1, 0])]).found
    assert not one.neighbors


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"no array at all",
        lambda data: data[:-1],
        lambda _: npy(unit([1, 0], [0, 1])),
        lambda _: npy(unit([1, 0]).astype("<f8")),
        lambda _: npy(2 * unit([1, 0])),
        lambda _: npy(np.array([[np.nan, 1]], "<f4")),
        lambda _: npy(np.array([[3e38, 3e38]], "<f4")),
    ],
    ids=["not NPY", "cut off", "two vectors", "float64", "length 2", "NaN", "huge"],
)
def test_an_array_that_is_not_as_told_fails_alone(tmp_path: Path, spoil: Spoil) -> None:
    run = after(tmp_path, embedded(tmp_path, [unit([1, 0])] * 3, spoil))
    result = find_similar(FindSimilar(), run.context)
    assert [run.context.items[n].reason for n in range(3)] == ["", Reason.MODEL_OUTPUT_INVALID, ""]
    assert [[near.input for near in one.neighbors] for one in result.found] == [[2], [0]]
    assert result.images == 2


def test_a_key_that_no_image_has_is_refused_without_repeating_it(tmp_path: Path) -> None:
    with pytest.raises(FluoroError, match="the key of 1 of the queries") as caught:
        compared(tmp_path, [unit([1, 0])], queries=["0", "Doe^Jane"])
    assert caught.value.reason == Reason.CHOICE_UNAVAILABLE
    assert "Doe" not in caught.value.message


def test_vectors_of_two_models_are_not_compared(tmp_path: Path) -> None:
    upstream = embedded(tmp_path, [unit([1, 0])] * 2)
    upstream.result.embeddings[1].manifest_sha256 = b"another"  # type: ignore[attr-defined]
    with pytest.raises(FluoroError, match="different models") as caught:
        find_similar(FindSimilar(), after(tmp_path, upstream).context)
    assert caught.value.reason == Reason.MODEL_NOT_APPLICABLE


def test_vectors_of_earlier_jobs_are_compared_as_inputs_of_the_job(tmp_path: Path) -> None:
    arrays = [unit([1, 0]), unit([0, 1], [1, 0.1]), unit([1, 1])]
    bad = [b"no array", npy(np.zeros((0, 2), "<f4")), npy(unit([1, 0])[0]), npy(3 * unit([1, 0]))]
    run = step_context(tmp_path, [*map(npy, arrays), *bad], step="similar")
    result = find_similar(FindSimilar(neighbors=1, queries=["0"]), run.context)
    (one,) = result.found
    ((near,),) = [one.neighbors]
    assert (near.input, near.item, near.frame) == (1, "1", 2)
    assert near.similarity == pytest.approx(1 / np.hypot(1, 0.1), abs=2e-6)
    assert result.images == 3
    assert [run.context.items[n].reason for n in range(7)] == [
        *[""] * 3,
        *[Reason.MODEL_OUTPUT_INVALID] * 4,
    ]


def test_vectors_of_earlier_jobs_with_other_lengths_are_not_compared(tmp_path: Path) -> None:
    run = step_context(tmp_path, [npy(unit([1, 0])), npy(unit([1, 0, 0]))], step="similar")
    with pytest.raises(FluoroError, match="different models") as caught:
        find_similar(FindSimilar(), run.context)
    assert caught.value.reason == Reason.MODEL_NOT_APPLICABLE


def test_vectors_of_earlier_jobs_are_counted_as_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similar, "MAX_VECTORS", 3)
    run = step_context(tmp_path, [npy(unit([1, 0], [0, 1]))] * 2, step="similar")
    with pytest.raises(FluoroError, match="vector store") as caught:
        find_similar(FindSimilar(), run.context)
    assert caught.value.reason == Reason.IMAGE_TOO_LARGE


def test_more_vectors_than_may_be_compared_are_refused_before_one_is_read(tmp_path: Path) -> None:
    upstream = embedded(tmp_path, [unit([1, 0])] * 2)
    upstream.result.embeddings[1].frames = 50_000  # type: ignore[attr-defined]
    run = after(tmp_path, upstream)
    with pytest.raises(FluoroError, match="vector store") as caught:
        find_similar(FindSimilar(), run.context)
    assert caught.value.reason == Reason.IMAGE_TOO_LARGE
    assert not run.context.items


def test_a_cancel_stops_it_between_two_blocks(tmp_path: Path) -> None:
    arrays = [unit(*np.random.default_rng(5).normal(size=(3 * VECTORS_AT_ONCE, 4)))] * 2
    run = after(tmp_path, embedded(tmp_path, arrays))
    blocks = []

    def send(progress: Any) -> None:
        run.progress.append(progress)
        if progress.stage == "compare":
            blocks.append(progress)
            run.context.cancelled.set()

    run.context.send_progress = send
    with pytest.raises(CancelledAttempt):
        find_similar(FindSimilar(), run.context)
    assert len(blocks) == 1
