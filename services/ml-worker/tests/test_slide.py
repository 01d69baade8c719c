"""AnalyzeSlide: what is told of the tiles of a slide, and which tiles no model sees."""

import hashlib
import io
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fluoro.v1.job_pb2 import Item
from fluoro.v1.slide_pb2 import (
    STAIN_NORMALIZATION_MACENKO,
    STAIN_NORMALIZATION_NONE,
    AnalyzeSlide,
    StainEstimate,
    TiledSlide,
    TileSlideResult,
    TissueTile,
)
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.testing import Attempt, step_context
from fluoro_jobs.worker.context import Upstream
from ml_worker.operations.slide import analyze
from ml_worker.registry import Registry
from ml_worker.settings import SHIPPED_MODELS, ModelSettings
from ml_worker.slide_phantoms import laboratory, tissue
from ml_worker.slides import PALETTE_PIXELS, colours_of, picture_of, to_reference
from numpy.typing import NDArray
from PIL import Image

SIDE = 256
KINDS = (0, 1, 2, 2, 1, 0, 0, 1, 0, 0)
"""Of the tiles."""
COLUMNS = 4
"""Of the grid, which they fill row by row."""
STAINS = laboratory(np.random.default_rng(5))
Spoil = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def tiles() -> NDArray[np.uint8]:
    random = np.random.default_rng(11)
    return np.stack([tissue(kind, random, STAINS) for kind in KINDS])


def tiled(folder: Path, tiles: Sequence[NDArray[np.uint8]], spoil: Spoil = bytes) -> Upstream:
    """What TileSlide leaves of such a slide. spoil: changes the stored tiles."""
    attempt = step_context(folder, [b""], step="tile")
    strength = np.linalg.norm(STAINS, axis=0)
    data = spoil(np.stack(tiles).tobytes())
    for item in attempt.context.each("tile"):
        with item:
            item.put("tiles", ".rgb", "tiles", "application/octet-stream", data)
    slide = TiledSlide(
        item="0",
        tiles_artifact="tiles-0000.rgb",
        rows=SIDE * -(-len(tiles) // COLUMNS) - 50,
        columns=SIDE * COLUMNS,
        tile_size=SIDE,
        tissue_share=0.8,
        tiles=[
            TissueTile(
                row=number // COLUMNS,
                column=number % COLUMNS,
                sha256=hashlib.sha256(tile.tobytes()).digest(),
            )
            for number, tile in enumerate(tiles)
        ],
        stain=StainEstimate(
            hematoxylin=STAINS[:, 0] / strength[0],
            eosin=STAINS[:, 1] / strength[1],
            hematoxylin_maximum=1.2 * strength[0],
            eosin_maximum=1.1 * strength[1],
        ),
    )
    return attempt.as_upstream(TileSlideResult(slides=[slide]))


def after(folder: Path, upstream: Upstream) -> Attempt:
    return step_context(folder, [], [upstream], step="analyze", reads=("tiles",))


def test_classes_are_told_by_tile_and_drawn_where_the_tile_is(
    tmp_path: Path, models: Registry, tiles: NDArray[np.uint8]
) -> None:
    attempt = after(tmp_path, tiled(tmp_path, tiles))
    result = analyze(AnalyzeSlide(model="he-texture", top_tiles=2), attempt.context, models)
    (slide,) = result.slides
    assert result.model.name == "he-texture"
    assert (slide.tiles, slide.tissue_share) == (10, 0.8)
    assert slide.stain_normalization == STAIN_NORMALIZATION_MACENKO
    assert [each.tiles for each in slide.classes] == [5, 3, 2]
    assert sum(each.share for each in slide.classes) == pytest.approx(1)
    assert sum(each.mean_probability for each in slide.classes) == pytest.approx(1)
    crowded = slide.classes[2]
    assert {(tile.row, tile.column) for tile in crowded.top} == {(0, 2), (0, 3)}
    assert crowded.top[0].probability >= crowded.top[1].probability
    scores = np.load(io.BytesIO(attempt.read(slide.scores)))
    assert scores.dtype == "<f4"
    assert scores.argmax(axis=1).tolist() == list(KINDS)
    picture = np.asarray(Image.open(io.BytesIO(attempt.read(slide.heat_map)))).astype(int)
    side = picture.shape[0] // 3
    orange, blue = picture[side + 5, 5], picture[side + 5, side + 5]
    assert orange[0] > orange[2] + 50
    assert blue[2] > blue[0]
    assert (picture[-5, -5] == 255).all()  # no tissue there


def test_classes_have_the_codes_of_the_manifest(tmp_path: Path, tiles: NDArray[np.uint8]) -> None:
    place = tmp_path / "models" / "he-texture" / "1.0.1"
    shutil.copytree(SHIPPED_MODELS / "he-texture" / "1.0.0", place)
    manifest = (place / "model.toml").read_text().replace('version = "1.0.0"', 'version = "1.0.1"')
    code = 'codes = [{ value = "84640000", scheme = "SCT", meaning = "Nucleus" }]'
    manifest = manifest.replace('"crowded nuclei"\n', f'"crowded nuclei"\n{code}\n')
    (place / "model.toml").write_text(manifest)
    models = Registry(ModelSettings(models_folder=tmp_path / "models"))
    models.open()
    attempt = after(tmp_path, tiled(tmp_path, tiles))
    (slide,) = analyze(AnalyzeSlide(model="he-texture"), attempt.context, models).slides
    assert [[code.value for code in each.codes] for each in slide.classes] == [[], [], ["84640000"]]


def test_the_most_probable_tiles_are_left_as_pictures_for_which_classes_take_turns(
    tmp_path: Path, models: Registry, tiles: NDArray[np.uint8]
) -> None:
    attempt = after(tmp_path, tiled(tmp_path, [*tiles, *tiles]))
    request = AnalyzeSlide(model="he-texture", top_tiles=50)
    (slide,) = analyze(request, attempt.context, models).slides
    pictured = [[top for top in each.top if top.picture] for each in slide.classes]
    assert [len(each) for each in pictured] == [4, 4, 4]
    for kind, each in enumerate(pictured):
        assert [top.picture for top in each] == [top.picture for top in slide.classes[kind].top[:4]]
        for top in each:
            artifact = attempt.context.artifacts[top.picture]
            assert (artifact.role, artifact.media_type) == ("top-tile", "image/jpeg")
            number = (top.row * COLUMNS + top.column) % len(KINDS)
            assert KINDS[number] == kind
            picture = np.asarray(Image.open(io.BytesIO(attempt.read(top.picture))))
            assert np.abs(picture.astype(int) - tiles[number]).mean() < 8
    assert len(attempt.context.artifacts) == 14


def test_a_tile_of_which_another_class_is_more_probable_has_no_picture(
    tmp_path: Path, models: Registry, tiles: NDArray[np.uint8]
) -> None:
    attempt = after(tmp_path, tiled(tmp_path, tiles))
    (slide,) = analyze(AnalyzeSlide(model="he-texture"), attempt.context, models).slides
    assert [[bool(top.picture) for top in each.top] for each in slide.classes] == [
        [True] * 5,
        [True] * 3 + [False] * 2,
        [True] * 2 + [False] * 3,
    ]


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: b"x" + data[1:]])
def test_no_picture_shows_a_tile_that_nobody_vouches_for(
    tmp_path: Path, tiles: NDArray[np.uint8], spoil: Spoil
) -> None:
    (slide,) = tiled(tmp_path, tiles).result.slides

    def piece(offset: int, length: int) -> bytes:
        return spoil(tiles.tobytes()[offset : offset + length])

    with pytest.raises(FluoroError) as caught:
        picture_of(slide, 3, piece)
    assert caught.value.reason == Reason.PIXELS_NOT_CERTIFIED


def test_the_picture_of_a_large_tile_is_small() -> None:
    tile = np.full((1024, 1024, 3), (200, 100, 150), np.uint8)
    digest = hashlib.sha256(tile.tobytes()).digest()
    slide = TiledSlide(tile_size=1024, tiles=[TissueTile(sha256=digest)])
    picture = Image.open(io.BytesIO(picture_of(slide, 0, lambda *_: tile.tobytes())))
    assert picture.size == (256, 256)


def test_a_slide_in_colours_of_another_laboratory_is_skipped_unless_normalized(
    tmp_path: Path, models: Registry, tiles: NDArray[np.uint8]
) -> None:
    request = AnalyzeSlide(model="he-texture", stain_normalization=STAIN_NORMALIZATION_NONE)
    attempt = after(tmp_path, tiled(tmp_path, tiles))
    assert not analyze(request, attempt.context, models).slides
    (item,) = attempt.context.items.values()
    assert (item.state, item.reason) == (Item.STATE_SKIPPED, "MODEL_NOT_APPLICABLE")
    assert not attempt.context.artifacts
    attempt = after(tmp_path, tiled(tmp_path, tiles))
    (slide,) = analyze(AnalyzeSlide(model="he-texture"), attempt.context, models).slides
    assert slide.stain_normalization == STAIN_NORMALIZATION_MACENKO


def test_tiles_unlike_the_training_data_have_no_class_and_stay_grey(
    tmp_path: Path, models: Registry, tiles: NDArray[np.uint8]
) -> None:
    seen = tiles.copy()
    seen[4] = np.random.default_rng(1).integers(0, 255, seen[4].shape, np.uint8)
    attempt = after(tmp_path, tiled(tmp_path, seen))
    (slide,) = analyze(AnalyzeSlide(model="he-texture"), attempt.context, models).slides
    assert (slide.tiles, slide.novel_tiles) == (10, 1)
    assert [each.tiles for each in slide.classes] == [5, 2, 2]
    assert sum(each.share for each in slide.classes) == pytest.approx(0.9)
    assert sum(each.mean_probability for each in slide.classes) == pytest.approx(1)
    assert (1, 0) not in {(tile.row, tile.column) for each in slide.classes for tile in each.top}
    scores = np.load(io.BytesIO(attempt.read(slide.scores)))
    assert np.flatnonzero(np.isnan(scores).any(axis=1)).tolist() == [4]
    picture = np.asarray(Image.open(io.BytesIO(attempt.read(slide.heat_map)))).astype(int)
    square = picture[picture.shape[0] // 3 :][:20, :20]
    assert (square == square[..., :1]).all()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-7] + b"x" + data[-6:],
        lambda data: data[: SIDE * SIDE * 3 * 9],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[SIDE * SIDE * 3 :] + data[: SIDE * SIDE * 3],
    ],
    ids=["a bit", "a tile less", "a byte less", "a byte more", "another order"],
)
def test_tiles_that_nobody_vouches_for_are_refused(
    tmp_path: Path, models: Registry, tiles: NDArray[np.uint8], spoil: Spoil
) -> None:
    attempt = after(tmp_path, tiled(tmp_path, tiles, spoil))
    result = analyze(AnalyzeSlide(model="he-texture"), attempt.context, models)
    (item,) = attempt.context.items.values()
    assert (item.state, item.reason) == (Item.STATE_FAILED, "PIXELS_NOT_CERTIFIED")
    assert not result.slides
    assert not attempt.context.artifacts


def test_a_slide_of_many_tiles_gets_the_same_colours_by_a_faster_way(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    tiles = random.integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    (slide,) = tiled(tmp_path, tiles).result.slides
    tables = to_reference(slide)
    assert tables is not None
    with ThreadPoolExecutor() as pool:
        few = colours_of(tables, 1, pool)(tiles)
        many = colours_of(tables, PALETTE_PIXELS, pool)(tiles)
    np.testing.assert_array_equal(few, many)


@pytest.mark.parametrize(("microns_per_pixel", "state"), [(0.5, "SUCCEEDED"), (0.0, "SKIPPED")])
def test_a_model_that_states_a_spacing_needs_slides_that_tell_theirs(
    tmp_path: Path, tiles: NDArray[np.uint8], microns_per_pixel: float, state: str
) -> None:
    folder = tmp_path / "models" / "he-spaced" / "1.0.0"
    shutil.copytree(SHIPPED_MODELS / "he-texture" / "1.0.0", folder)
    manifest = folder / "model.toml"
    text = manifest.read_text().replace('name = "he-texture"', 'name = "he-spaced"', 1)
    spaced = 'image = { colour = "rgb", resize = "stretch", spacing_mm = [0.0005, 0.0005] }'
    manifest.write_text(re.sub(r"(?m)^image = .*$", spaced, text))
    upstream = tiled(tmp_path, tiles)
    upstream.result.slides[0].microns_per_pixel = microns_per_pixel
    attempt = after(tmp_path, upstream)
    spaced_models = Registry(ModelSettings(models_folder=tmp_path / "models"))
    spaced_models.open()
    analyze(AnalyzeSlide(model="he-spaced"), attempt.context, spaced_models)
    (item,) = attempt.context.items.values()
    assert item.state == Item.State.Value(f"STATE_{state}")


def test_a_model_that_is_not_made_for_slides_is_refused(
    tmp_path: Path, models: Registry, tiles: NDArray[np.uint8]
) -> None:
    attempt = after(tmp_path, tiled(tmp_path, tiles[:1]))
    with pytest.raises(FluoroError) as caught:
        analyze(AnalyzeSlide(model="ct-tissue"), attempt.context, models)
    assert caught.value.reason == Reason.MODEL_NOT_APPLICABLE
