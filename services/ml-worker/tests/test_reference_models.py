"""The reference models: their bytes, their cards, and what they say of pictures of another kind."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
from dicom_worker.slides.tissue import LEAST_DENSITY, stain_of
from fluoro.v1 import dicom_pb2
from fluoro.v1.classify_pb2 import ClassifyImages, ModelChoice
from fluoro.v1.dermoscopy_pb2 import AssessDermoscopy
from fluoro.v1.ml_pb2 import AnalyzeImages
from fluoro.v1.slide_pb2 import StainEstimate, TiledSlide
from fluoro.v1.visualize_pb2 import VisualizeImages
from fluoro_jobs.testing import Attempt
from fluoro_jobs.worker.context import Upstream
from ml_worker.operations.analyze import analyze
from ml_worker.operations.classify import classify_all
from ml_worker.operations.dermoscopy import assess_all
from ml_worker.operations.visualize import visualize
from ml_worker.outputs import Novelty
from ml_worker.phantoms import round_lesion
from ml_worker.prepare import prepare
from ml_worker.registry import Registry
from ml_worker.settings import SHIPPED_MODELS
from ml_worker.skin_phantoms import KINDS, burn, lesion, plain
from ml_worker.slides import normalized, to_reference
from ml_worker.waiting import Alone
from numpy.typing import NDArray
from PIL import Image

CHECK = Path(__file__).parents[1] / "models_check.py"
KIND_MODELS = ["lesion-kind-color", "lesion-kind-shape", "lesion-kind-texture"]
MODELS = ["lesion-presence", *KIND_MODELS, "lesion-outline", "burn-depth"]
PHOTOGRAPHS = [
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
]


def asked(models: Registry, name: str, pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """What a model says of a photograph, by the kind of output."""
    model = models.find(name, "")
    (tensor,) = model.manifest.inputs
    shown = prepare(pixels[np.newaxis], dicom_pb2.RenderedImage(), tensor)
    found = model.run({tensor.name: shown}, Alone())
    return {output.kind: found[output.name][0] for output in model.manifest.outputs}


def limit(models: Registry, name: str) -> float:
    novelty = models.find(name, "").manifest.output("novelty")
    assert isinstance(novelty, Novelty)
    return novelty.threshold


def tiles_of(photograph: str) -> NDArray[np.uint8]:
    """What is lit of it, 256 x 256 pixels each, as they are and normalised."""
    with Image.open(Path(skimage.__file__).parent / "data" / photograph) as image:
        pixels = np.asarray(image.convert("RGB"))
    places = product(*(range(0, side - 255, 128) for side in pixels.shape[:2]))
    found = [pixels[row : row + 256, column : column + 256] for row, column in places]
    tiles = np.stack([tile for tile in found if np.median(tile) > 20])
    density = -np.log((tiles.reshape(-1, 3)[::16] + 1.0) / 240)
    stain = stain_of(density[density.mean(axis=1) > LEAST_DENSITY])
    if stain is None:
        return tiles
    estimate = StainEstimate(
        hematoxylin=stain.hematoxylin,
        eosin=stain.eosin,
        hematoxylin_maximum=stain.maxima[0],
        eosin_maximum=stain.maxima[1],
    )
    tables = to_reference(TiledSlide(stain=estimate))
    assert tables is not None
    return np.concatenate([tiles, normalized(tiles, tables)])


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_the_model_of_tissue_abstains_from_tiles_that_are_not_painted(
    models: Registry, photograph: str
) -> None:
    model = models.find("he-texture", "")
    tiles = tiles_of(photograph)
    assert len(tiles) >= 2
    found = model.run({"image": tiles}, Alone())["novelty"]
    assert found.min() > 1.2 * limit(models, "he-texture")


@pytest.mark.parametrize("name", MODELS)
def test_a_reference_model_abstains_from_every_picture_that_is_not_painted_skin(
    models: Registry, name: str
) -> None:
    assert models.find(name, "").manifest.intended_use == "demonstration"
    for photograph in PHOTOGRAPHS:
        with Image.open(Path(skimage.__file__).parent / "data" / photograph) as image:
            found = asked(models, name, np.asarray(image.convert("RGB")))
        assert found["novelty"] > 1.2 * limit(models, name), photograph


def test_lesions_of_another_size_than_the_trained_ones_are_told_and_not_abstained_from(
    models: Registry,
) -> None:
    random, right, near, sure = np.random.default_rng(5), 0, 0, 0.0
    shown = [lesion(random, number % len(KINDS), side=240) for number in range(24)]
    for skin in shown:
        opinions = [asked(models, name, skin.pixels) for name in KIND_MODELS]
        mean = np.mean([each["classes"] for each in opinions], axis=0)
        right += int(mean.argmax() == skin.kind)
        sure += float(mean.max())
        near += sum(
            each["novelty"] < limit(models, name)
            for name, each in zip(KIND_MODELS, opinions, strict=True)
        )
    assert right >= 21
    assert near >= 68
    assert sure / len(shown) < 0.97, "probabilities must own up to the rules that are broken"


def test_presence_outline_and_depths_of_larger_pictures_are_near_the_truth(
    models: Registry,
) -> None:
    random = np.random.default_rng(6)
    skin = plain(random, 240)
    assert asked(models, "lesion-presence", skin.pixels)["classes"].argmax() == 0
    disc = round_lesion()
    assert asked(models, "lesion-presence", disc.pixels)["classes"].argmax() == 1
    found = asked(models, "lesion-outline", disc.pixels)["label_map"]
    assert (found == disc.mask).mean() > 0.98
    burns = [burn(random, 240) for _ in range(6)]
    right = [(asked(models, "burn-depth", b.pixels)["label_map"] == b.truth).mean() for b in burns]
    assert np.mean(right) > 0.9


def test_codes_of_classes_are_identifiers_of_snomed_ct(models: Registry) -> None:
    found = {
        label.display_name: code
        for name in MODELS
        for label in models.find(name, "").manifest.labels
        for code in label.codes
    }
    assert len(found) == 8
    for code in found.values():
        assert code.scheme == "SCT"
        assert verhoeff(code.value) == 0, code.value


def verhoeff(digits: str) -> int:
    """The checksum of SNOMED CT identifiers (RF2 specification, 5.8): 0 if it is right."""
    turned, checksum = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4), 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit)
        for _ in range(place % 8):
            value = turned[value]
        # Sum in the dihedral group of a pentagon: 5 to 9 are its reflections.
        turn = (checksum - value if checksum >= 5 else checksum + value) % 5
        checksum = turn + 5 * ((checksum >= 5) != (value >= 5))
    return checksum


def test_results_tell_the_codes_of_classes(
    models: Registry, render: Callable[..., Upstream], attempt: Callable[..., Attempt]
) -> None:
    upstream = render(round_lesion().pixels[np.newaxis], unit="1", modality="DMS")
    run = attempt(upstream)
    (outline,) = analyze(AnalyzeImages(model="lesion-outline"), run.context, models).findings
    told = {one.display_name: one.codes[0].meaning for one in outline.measurements}
    assert told == {"skin": "Skin", "lesion": "Skin lesion"}
    (presence,) = analyze(AnalyzeImages(model="lesion-presence"), run.context, models).findings
    codes = {one.display_name: [code.value for code in one.codes] for one in presence.classes}
    assert codes == {"no lesion": [], "lesion": ["95324001"]}
    asked = ClassifyImages(models=[ModelChoice(model=name) for name in KIND_MODELS])
    (image,) = classify_all(asked, run.context, models).images
    (frame,) = image.frames
    values = {"naevus": "400010006", "melanoma": "93655004", "keratosis": "25499005"}
    assert [code.value for code in frame.codes] == [values[frame.display_name]]
    for opinion in frame.opinions:
        assert {one.display_name: one.codes[0].value for one in opinion.classes} == values


@pytest.mark.parametrize("name", ["lesion-presence", "burn-depth"])
def test_building_a_reference_model_again_gives_the_same_bytes(tmp_path: Path, name: str) -> None:
    place = SHIPPED_MODELS / name / "1.0.0"
    subprocess.run([sys.executable, place / "build.py", "--to", tmp_path], check=True)
    for file in ("model.onnx", "model.toml", "warm_up.npz"):
        assert (tmp_path / file).read_bytes() == (place / file).read_bytes()


def test_the_figures_of_a_card_are_measured_anew_and_a_false_card_is_found_out() -> None:
    names = ["lesion-outline", "he-texture"]
    checked = subprocess.run(
        [sys.executable, CHECK, *names], check=True, capture_output=True, text=True
    )
    assert '"Dice of lesion"' in checked.stdout
    assert '"worst laboratory, normalised"' in checked.stdout
    missing = runpy.run_path(str(CHECK))["missing"]
    place = SHIPPED_MODELS / "lesion-outline" / "1.0.0"
    assert missing(place, {"Dice of lesion": "1.000"}) == ["| Dice of lesion | 1.000 |"]


def test_what_is_no_skin_gets_no_outline_no_depth_and_no_class(
    models: Registry, render: Callable[..., Upstream], attempt: Callable[..., Attempt]
) -> None:
    cup = Image.open(Path(skimage.__file__).parent / "data" / "coffee.png").convert("RGB")
    coffee = np.asarray(cup)[None]
    photographs = render(coffee, round_lesion().pixels[None], unit="1", modality="XC")
    outline = AssessDermoscopy(outline=ModelChoice(model="lesion-outline"))
    run = attempt(photographs)
    (lesion,) = assess_all(outline, run.context, models).lesions
    assert (lesion.item, lesion.fraction) == ("1", pytest.approx(np.pi * 0.09, rel=0.1))
    assert "unlike" in run.context.items[0].message
    for model in ("burn-depth", "lesion-presence"):
        run = attempt(photographs)
        analyze(AnalyzeImages(model=model), run.context, models)
        assert "unlike" in run.context.items[0].message
    run = attempt(photographs)
    explained = visualize(VisualizeImages(model="lesion-presence", cells=2), run.context, models)
    assert [one.item for one in explained.maps] == ["1"]
    assert "unlike" in run.context.items[0].message
