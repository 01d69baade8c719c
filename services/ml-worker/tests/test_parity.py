"""How far the outputs of two devices are apart, by arrays and by the CPU against itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_worker.manifest import Manifest
from ml_worker.parity import Parity, parities
from ml_worker.registry import Registry
from ml_worker.repository import read_model
from ml_worker.sessions import in_company, open_model
from ml_worker.settings import SHIPPED_MODELS, ModelSettings
from ml_worker.waiting import Alone
from ml_worker.warm_up import read_sample
from numpy.typing import NDArray

PLACES = sorted(path.parent for path in SHIPPED_MODELS.glob("*/*/model.toml"))


@pytest.fixture(scope="module")
def manifest(
    make_double: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Manifest:
    """Of a model with two classes: atol 1e-4, rtol 1e-3."""
    return read_model(make_double(tmp_path_factory.mktemp("models"))).manifest


def one(manifest: Manifest, found: Any, expected: Any) -> Parity:
    (parity,) = parities(
        manifest,
        {"y": np.array(found, np.float32)},
        {"y": np.array(expected, np.float32)},
    )
    return parity


def test_what_is_within_the_tolerance_of_the_manifest_is_no_problem(manifest: Manifest) -> None:
    parity = one(manifest, [[1.0, 0.0], [0.5, 0.4]], [[1.001, 0.0], [0.5, 0.4]])
    assert parity.problem is None
    assert parity.max_abs == pytest.approx(0.001, rel=1e-3)
    assert parity.label_differs == 0


def test_what_differs_by_more_is_told_in_words_and_numbers(manifest: Manifest) -> None:
    parity = one(manifest, [[0.6, 0.4], [0.5, 0.4]], [[0.4, 0.6], [0.5, 0.4]])
    assert parity.problem is not None
    assert parity.max_abs == pytest.approx(0.2)
    assert parity.label_differs == 0.5, "of two samples, one has another class"


@pytest.mark.parametrize(
    ("found", "expected", "max_abs"),
    [
        (np.nan, np.nan, 0),
        (np.inf, np.inf, 0),
        (np.nan, 1, np.inf),
        (np.inf, -np.inf, np.inf),
        (1, np.inf, np.inf),
    ],
)
def test_what_is_no_number_is_as_far_away_as_can_be_unless_both_are_it(
    manifest: Manifest, found: float, expected: float, max_abs: float
) -> None:
    parity = one(manifest, [[found, 0]], [[expected, 0]])
    assert parity.max_abs == max_abs
    assert (parity.problem is None) == (max_abs == 0)


def test_another_shape_is_a_problem_and_not_an_error(manifest: Manifest) -> None:
    parity = one(manifest, [[1, 0]], [[1, 0], [0, 1]])
    assert (parity.max_abs, parity.label_differs) == (np.inf, None)
    assert parity.problem is not None


def test_label_maps_are_compared_pixel_by_pixel_and_unsigned_numbers_do_not_wrap() -> None:
    manifest = read_model(SHIPPED_MODELS / "ct-tissue" / "1.0.0").manifest
    expected: dict[str, NDArray[Any]] = {
        output.name: np.zeros((1, 2, 2), output.dtype) for output in manifest.outputs
    }
    found = expected | {"label_map": np.array([[[0, 1], [0, 0]]], np.uint8)}
    for one_way, other in ((found, expected), (expected, found)):
        parity = {one.output: one for one in parities(manifest, one_way, other)}
        assert parity["label_map"].max_abs == 1
        assert parity["label_map"].label_differs == 0.25
        assert parity["label_map"].problem is not None
        assert {one.problem for name, one in parity.items() if name != "label_map"} == {None}


@pytest.mark.parametrize("place", PLACES, ids=lambda place: str(place.parent.name))
def test_a_model_that_ships_says_the_same_with_one_thread_as_with_two(
    models: Registry, place: Path
) -> None:
    files = read_model(place)
    manifest = files.manifest
    shown = in_company(read_sample(manifest, files.files[manifest.warm_up.file]), manifest)
    other = open_model(files, ModelSettings(intra_op_threads=1))
    expected = models.find(manifest.name, manifest.version).run(shown, Alone())
    found = list(parities(manifest, other.run(shown, Alone()), expected))
    assert [parity.output for parity in found] == [output.name for output in manifest.outputs]
    assert [parity.problem for parity in found] == [None] * len(found)
    assert not any(parity.label_differs for parity in found)
