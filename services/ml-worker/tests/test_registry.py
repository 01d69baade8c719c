"""States of models, and new versions while the worker runs."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fluoro.v1.model_pb2 import Model as ModelProto
from fluoro_jobs.errors import FluoroError, Reason
from ml_worker import registry as module
from ml_worker.registry import Registry
from ml_worker.settings import SHIPPED_MODELS, ModelSettings
from ml_worker.waiting import Alone

Double = Callable[..., Path]
PATIENCE_SECONDS = 30


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """The models that ship and those of an empty folder, open."""
    (tmp_path / "models").mkdir()
    opened = Registry(ModelSettings(models_folder=tmp_path / "models", poll_seconds=0.05))
    opened.open()
    opened.changed.clear()
    return opened


@pytest.fixture
def double(tmp_path: Path, make_double: Double) -> Double:
    """Writes a version of a model into the folder of the registry."""

    def write(version: str = "1.0.0", factor: float = 2, **sample: Any) -> Path:
        return make_double(tmp_path / "models", version, factor, **sample)

    return write


def states(registry: Registry) -> dict[str, str]:
    """What is told of each model: READY, or the problem."""
    return {
        model.name: "READY"
        if model.state == ModelProto.STATE_READY
        else ModelProto.Problem.Name(model.deployments[0].problem).removeprefix("PROBLEM_")
        for model in registry.told()
    }


SHIPPED = {
    f"models/{file.parent.parent.name}/versions/{file.parent.name}": "READY"
    for file in SHIPPED_MODELS.glob("*/*/model.toml")
}


def test_the_newest_version_is_taken_unless_one_is_named(
    registry: Registry, double: Double
) -> None:
    for version in ("1.9.0", "1.10.0", "1.2.0"):
        double(version)
    registry.look()
    assert registry.find("double").reference.version == "1.10.0"
    assert registry.find("double", "1.2.0").reference.version == "1.2.0"


@pytest.mark.parametrize(("name", "version"), [("triple", ""), ("double", "3.0.0")])
def test_a_model_or_version_that_is_not_there_is_unknown_and_the_message_lists_what_is(
    registry: Registry, double: Double, name: str, version: str
) -> None:
    double()
    registry.look()
    with pytest.raises(FluoroError, match=r"ct-tissue 1\.0\.0, double 1\.0\.0") as caught:
        registry.find(name, version)
    assert caught.value.reason == Reason.MODEL_UNKNOWN


def test_a_bad_model_is_unavailable_with_its_problem_and_the_others_are_served(
    registry: Registry, double: Double
) -> None:
    double("1.0.0")
    double("2.0.0", y=np.array([[9, 9]], np.float32))
    (double("3.0.0") / "CARD.md").unlink()
    registry.look()
    assert states(registry) == SHIPPED | {
        "models/double/versions/1.0.0": "READY",
        "models/double/versions/2.0.0": "WARM_UP_DIFFERS",
        "models/double/versions/3.0.0": "FILES_MISSING",
    }
    assert registry.find("double").reference.version == "1.0.0", "the newest that is READY"
    with pytest.raises(FluoroError, match="PROBLEM_WARM_UP_DIFFERS") as caught:
        registry.find("double", "2.0.0")
    assert caught.value.reason == Reason.MODEL_UNAVAILABLE


def test_a_model_that_is_only_there_in_bad_versions_is_unavailable_not_unknown(
    registry: Registry, double: Double
) -> None:
    double(y=np.array([[9, 9]], np.float32))
    registry.look()
    with pytest.raises(FluoroError) as caught:
        registry.find("double")
    assert caught.value.reason == Reason.MODEL_UNAVAILABLE


def test_a_new_version_is_served_without_a_restart_and_one_that_is_removed_no_longer(
    registry: Registry, double: Double
) -> None:
    registry.watch()
    place = double()
    assert registry.changed.wait(PATIENCE_SECONDS)
    model = registry.find("double")
    registry.changed.clear()
    shutil.rmtree(place)
    assert registry.changed.wait(PATIENCE_SECONDS)
    registry.close()
    assert states(registry) == SHIPPED
    found = model.run({"x": np.ones((1, 2))}, Alone())
    assert found["y"].tolist() == [[2, 2]], "whoever has it goes on"


def test_a_model_that_is_mended_becomes_ready(registry: Registry, double: Double) -> None:
    place = double()
    card = (place / "CARD.md").read_bytes()
    (place / "CARD.md").unlink()
    registry.look()
    assert states(registry)["models/double/versions/1.0.0"] == "FILES_MISSING"
    (place / "CARD.md").write_bytes(card)
    registry.look()
    assert states(registry)["models/double/versions/1.0.0"] == "READY"


@pytest.mark.parametrize("whole", [True, False], ids=["a whole other model", "one other file"])
def test_files_swapped_under_a_running_worker_are_noticed_and_the_model_is_not_served(
    registry: Registry, double: Double, tmp_path: Path, *, whole: bool
) -> None:
    place = double()
    registry.look()
    kept = shutil.copytree(place, tmp_path / "kept")
    if whole:
        shutil.rmtree(place)
        double(factor=3)
    else:
        (place / "model.onnx").write_bytes(b"something else")
    registry.look()
    assert states(registry)["models/double/versions/1.0.0"] == "FILES_CHANGED"
    with pytest.raises(FluoroError, match="PROBLEM_FILES_CHANGED"):
        registry.find("double")
    shutil.rmtree(place)
    shutil.copytree(kept, place)
    registry.look()
    assert registry.find("double").manifest.version == "1.0.0", "the old files are back"


def test_a_touched_file_changes_nothing_and_costs_no_second_load(
    registry: Registry, double: Double
) -> None:
    place = double()
    registry.look()
    model = registry.find("double")
    os.utime(place / "model.onnx", ns=(1, 1))
    registry.look()
    assert registry.find("double") is model


def test_a_look_at_unchanged_folders_reads_no_file(
    registry: Registry, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    double()
    registry.look()
    monkeypatch.setattr(module, "read_model", None)
    registry.changed.clear()
    registry.look()
    assert not registry.changed.is_set()


def test_what_is_no_model_is_passed_over(
    registry: Registry, double: Double, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    shutil.move(double("9.0.0"), folder / "double" / "latest")
    shutil.move(double("8.0.0"), folder / "double" / ".being-written")
    (folder / "notes.txt").write_text("not a model")
    # What ships cannot be replaced by a file of the same version.
    shutil.copytree(double("7.0.0"), folder / "ct-tissue" / "1.0.0")
    registry.look()
    assert states(registry) == SHIPPED | {"models/double/versions/7.0.0": "READY"}


def test_a_folder_that_is_away_for_a_moment_takes_no_model_away(
    registry: Registry, double: Double, tmp_path: Path
) -> None:
    double()
    registry.look()
    (tmp_path / "models").rename(tmp_path / "away")
    registry.look()
    assert states(registry)["models/double/versions/1.0.0"] == "READY"


def test_a_worker_takes_so_many_versions_and_no_more(
    registry: Registry, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_VERSIONS", len(SHIPPED) + 1)
    for version in ("1.0.0", "2.0.0"):
        double(version)
    registry.look()
    assert sorted(states(registry).values()) == ["NOT_TAKEN", *["READY"] * (len(SHIPPED) + 1)]
    assert registry.find("ct-tissue"), "what was there stays"


def test_versions_that_fit_are_not_put_out_by_one_more_which_takes_the_place_of_one_that_goes(
    registry: Registry, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_VERSIONS", len(SHIPPED) + 1)
    loaded = double("2.0.0")
    registry.look()
    double("1.0.0")
    for _ in range(2):
        registry.look()
        assert registry.find("double").manifest.version == "2.0.0"
    shutil.rmtree(loaded)
    registry.look()
    assert registry.find("double").manifest.version == "1.0.0"


def test_a_link_that_leads_to_itself_hides_no_model(registry: Registry, double: Double) -> None:
    double("1.0.0")
    (double("2.0.0") / "weights.bin").symlink_to("weights.bin")
    (double("3.0.0").parent / "4.0.0").symlink_to("4.0.0")
    registry.look()
    assert {name[-5:] for name in states(registry)} == {"1.0.0", "2.0.0", "3.0.0"}
    assert set(states(registry).values()) == {"READY"}


def test_what_is_told_names_hashes_provider_and_card(registry: Registry) -> None:
    (about,) = (one for one in registry.told() if one.name.startswith("models/ct-tissue/"))
    reference = registry.find("ct-tissue").reference
    assert about.sha256 == reference.sha256
    assert about.deployments[0].manifest_sha256 == reference.manifest_sha256
    assert about.deployments[0].execution_provider == "CPUExecutionProvider"
    assert about.card.startswith("# ct-tissue 1.0.0")
    assert [label.display_name for label in about.labels][-1] == "bone"
