"""Faces that are found are black in array and preview; all else stays to the bit."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from dicom_worker.operations.import_images import import_images
from dicom_worker.photographs.faces import Face, find_faces, mask_faces
from dicom_worker.photographs.testing import gradient, saved
from dicom_worker.testing import array_of, preview_of
from fluoro.v1.photograph_pb2 import ImportImages
from fluoro_jobs.testing import operate
from imagecodecs import png_encode
from numpy.typing import NDArray
from PIL import Image

PORTRAIT = Image.open(Path(__file__).parent / "data" / "astronaut.jpg").convert("RGB")
MIDDLE = 95, 105
"""Column and row of the nose."""
NOISE = np.random.default_rng(7)


def scene(height: int, turns: int, *, rows: int = 900, columns: int = 1300) -> NDArray[np.uint8]:
    """The portrait, so high and turned, in the middle of a field of noise."""
    picture = NOISE.integers(90, 130, (rows, columns, 3)).astype(np.uint8)
    width = height * PORTRAIT.width // PORTRAIT.height
    portrait = np.rot90(np.asarray(PORTRAIT.resize((width, height))), turns)
    high, wide = portrait.shape[:2]
    top, left = (rows - high) // 2, (columns - wide) // 2
    picture[top : top + high, left : left + wide] = portrait
    return picture


def hides(faces: list[Face], column: float, row: float) -> bool:
    return any(
        face.left <= column < face.left + face.columns and face.top <= row < face.top + face.rows
        for face in faces
    )


def test_a_face_is_black_in_array_and_preview_and_the_rest_stays_to_the_bit(
    tmp_path: Path,
) -> None:
    plain = np.asarray(PORTRAIT)
    wide = plain.astype(np.uint16) * 257
    files = [saved(plain, "PNG"), png_encode(wide), saved(PORTRAIT.convert("L"), "PNG")]
    files.append(saved(gradient(), "PNG"))
    result, attempt = operate(import_images, ImportImages(mask_faces=True), tmp_path, files)
    for number, whole in enumerate((plain, wide, np.asarray(PORTRAIT.convert("L")))):
        (face,) = result.images[number].faces
        assert face.frame == 1
        assert hides([Face(face.left, face.top, face.columns, face.rows, 1)], *MIDDLE)
        hidden = np.zeros(whole.shape[:2], np.bool_)
        hidden[face.top : face.top + face.rows, face.left : face.left + face.columns] = True
        array = array_of(attempt, number)[0]
        assert not array[hidden].any()
        assert np.array_equal(array[~hidden], whole[~hidden])
        assert not preview_of(attempt, number)[hidden].any()
    assert not result.images[3].faces
    assert np.array_equal(array_of(attempt, 3)[0], gradient())
    assert all(each.faces_searched for each in result.images)


def test_without_the_option_nothing_is_searched(tmp_path: Path) -> None:
    result, attempt = operate(import_images, ImportImages(), tmp_path, [saved(PORTRAIT, "PNG")])
    assert not result.images[0].faces_searched
    assert np.array_equal(array_of(attempt)[0], np.asarray(PORTRAIT))


@pytest.mark.parametrize("height", [60, 150, 500])
@pytest.mark.parametrize("turns", range(4))
def test_a_face_is_found_standing_lying_and_upside_down(height: int, turns: int) -> None:
    picture = scene(height, turns)
    middle = picture.shape[1] / 2, picture.shape[0] / 2
    _, faces = mask_faces(picture, 8)
    assert hides(faces, *middle)


def test_a_small_face_in_a_large_picture_is_found_in_a_tile() -> None:
    picture = scene(90, 0, rows=2400, columns=3200)
    assert hides(find_faces(picture), 1600, 1200)


def test_a_mask_is_not_taken_for_a_face_again() -> None:
    masked, faces = mask_faces(np.asarray(PORTRAIT), 8)
    assert len(faces) == 1
    again, more = mask_faces(masked, 8)
    assert not more
    assert again is masked


def test_a_picture_of_one_pixel_and_a_long_one_are_searched() -> None:
    for shape in ((1, 1, 3), (1, 5000), (5000, 1, 3)):
        assert find_faces(np.zeros(shape, np.uint8)) == []
    assert cv2.getNumThreads() <= 4
