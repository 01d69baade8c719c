import numpy as np
import pytest
from ml_worker.dermoscopy import NACHBAR_1994, LesionRefusedError, Verdict, assess, prepare
from ml_worker.dermoscopy.colors import REFERENCES
from ml_worker.phantoms import (
    BLACK,
    BLUE_GREY,
    DARK_BROWN,
    LIGHT_BROWN,
    RED,
    SKIN,
    WHITE,
    Phantom,
    round_lesion,
)


def half_cut() -> Phantom:
    """Wide on the left, narrow on the right: symmetric about the row alone."""
    phantom = Phantom()
    left = phantom.ellipse(width=0.35) & (phantom.columns < phantom.side / 2)
    return phantom.lesion(left | phantom.ellipse(height=0.15, width=0.35), DARK_BROWN)


def notched() -> Phantom:
    """Symmetric about no axis."""
    phantom = Phantom()
    first = phantom.ellipse(row=0.45, column=0.4, height=0.28, width=0.2)
    second = phantom.ellipse(row=0.66, column=0.62, height=0.1, width=0.22)
    return phantom.lesion(first | second, DARK_BROWN)


def spot_aside() -> Phantom:
    phantom = round_lesion(LIGHT_BROWN)
    return phantom.paint(phantom.ellipse(column=0.38, height=0.15, width=0.12), BLACK)


def spots_aside() -> Phantom:
    """Two dark areas in one quarter turn: coloured differently about each axis."""
    phantom = round_lesion(LIGHT_BROWN)
    phantom.paint(phantom.ellipse(row=0.36, column=0.36, height=0.1, width=0.1), BLACK)
    return phantom.paint(phantom.ellipse(row=0.5, column=0.66, height=0.11, width=0.11), RED)


@pytest.mark.parametrize(
    ("phantom", "score"),
    [
        (round_lesion, 0),
        (half_cut, 1),
        (spot_aside, 1),
        (notched, 2),
        (spots_aside, 2),
    ],
)
def test_asymmetry_counts_the_axes_about_which_shape_or_colour_differ(phantom, score) -> None:
    painted = phantom()
    assert assess(painted.pixels, painted.mask).asymmetry.score == score


def test_axes_are_laid_so_that_a_slanted_ellipse_is_symmetric() -> None:
    phantom = Phantom()
    turn = np.deg2rad(35)
    rows, columns = phantom.rows / phantom.side - 0.5, phantom.columns / phantom.side - 0.5
    along = columns * np.cos(turn) + rows * np.sin(turn)
    across = rows * np.cos(turn) - columns * np.sin(turn)
    phantom.lesion((along / 0.35) ** 2 + (across / 0.18) ** 2 <= 1, DARK_BROWN)
    assert assess(phantom.pixels, phantom.mask).asymmetry.score == 0


def test_a_sharp_border_is_abrupt_all_around_and_a_blurred_one_nowhere() -> None:
    sharp, blurred = round_lesion(), round_lesion(blur=8)
    assert assess(sharp.pixels, sharp.mask).border.score == 8
    assert assess(blurred.pixels, blurred.mask).border.score == 0


def test_a_border_that_is_sharp_on_one_side_is_abrupt_in_half_of_the_eighths() -> None:
    phantom = Phantom()
    disc = phantom.ellipse()
    phantom.lesion(disc, DARK_BROWN, blur=8)
    right = phantom.columns > phantom.side / 2
    phantom.paint(right, SKIN)
    phantom.paint(disc & right, DARK_BROWN)
    assert assess(phantom.pixels, phantom.mask).border.score == 4


@pytest.mark.parametrize(
    "count", range(len(REFERENCES)), ids=[f"{n}_added" for n in range(len(REFERENCES))]
)
def test_each_colour_that_covers_its_share_counts_once(count: int) -> None:
    names = ["dark brown", "black", "red", "blue-grey", "white"][:count]
    paints = [DARK_BROWN, BLACK, RED, BLUE_GREY, WHITE][:count]
    phantom = round_lesion(LIGHT_BROWN)
    for index, paint in enumerate(paints):
        angle = index * 2 * np.pi / 5
        place = {"row": 0.5 + 0.17 * np.sin(angle), "column": 0.5 + 0.17 * np.cos(angle)}
        phantom.paint(phantom.ellipse(**place, height=0.08, width=0.08), paint)
    found = assess(phantom.pixels, phantom.mask).colors
    assert set(found.found) == {"light brown", *names}
    assert found.score == count + 1


def test_an_area_as_light_as_the_skin_is_not_white() -> None:
    phantom = round_lesion(DARK_BROWN)
    phantom.paint(phantom.ellipse(height=0.12, width=0.12), (232, 222, 214))
    assert "white" in assess(phantom.pixels, phantom.mask).colors.found
    pale = Phantom()
    pale.image[:] = (236, 226, 218)
    pale.lesion(pale.ellipse(), DARK_BROWN)
    pale.paint(pale.ellipse(height=0.12, width=0.12), (232, 222, 214))
    assert "white" not in assess(pale.pixels, pale.mask).colors.found


@pytest.mark.parametrize(
    ("phantom", "found"),
    [
        (round_lesion, {"structureless areas"}),
        (lambda: round_lesion().speckle(8), set()),
        (
            lambda: round_lesion(LIGHT_BROWN).speckle(4).spots(8, 3.5, BLACK),
            {"structureless areas", "dots"},
        ),
        (
            lambda: round_lesion(LIGHT_BROWN).speckle(4).spots(8, 9, DARK_BROWN),
            {"structureless areas", "globules"},
        ),
        (
            lambda: round_lesion(LIGHT_BROWN).speckle(4).spots(2, 3.5, BLACK),
            {"structureless areas"},
        ),
        (lambda: round_lesion(LIGHT_BROWN).network(), {"pigment network"}),
        (
            lambda: round_lesion(LIGHT_BROWN).speckle(4).streaks(8),
            {"structureless areas", "branched streaks"},
        ),
    ],
    ids=["plain", "speckled", "dots", "globules", "two_dots", "network", "streaks"],
)
def test_structures_are_told_apart(phantom, found: set[str]) -> None:
    painted = phantom()
    assert set(assess(painted.pixels, painted.mask).structures.found) == found


def test_a_turned_mirrored_or_larger_picture_scores_the_same() -> None:
    phantom = spots_aside()
    image, mask = phantom.pixels, phantom.mask
    shown = [
        (np.rot90(image), np.rot90(mask)),
        (image[:, ::-1], mask[:, ::-1]),
        (image.repeat(2, 0).repeat(2, 1), mask.repeat(2, 0).repeat(2, 1)),
        (image[40:-40, 40:-40], mask[40:-40, 40:-40]),
    ]
    whole = assess(image, mask)
    for other in shown:
        found = assess(*map(np.ascontiguousarray, other))
        assert found.asymmetry.score == whole.asymmetry.score
        assert found.border.score == whole.border.score
        assert found.colors.found == whole.colors.found
        assert found.structures.found == whole.structures.found
        assert found.total == pytest.approx(whole.total)


def test_sizes_are_known_where_a_scale_is() -> None:
    phantom = round_lesion()
    found = assess(phantom.pixels, phantom.mask, mm_per_pixel=0.02)
    radius = 0.3 * phantom.side * 0.02
    assert found.diameter_mm == pytest.approx(2 * radius, rel=0.02)
    assert found.area_mm2 == pytest.approx(np.pi * radius**2, rel=0.02)
    assert assess(phantom.pixels, phantom.mask).diameter_mm is None


@pytest.mark.parametrize(
    ("scores", "total", "verdict"),
    [
        ((0, 0, 1, 1), 1.0, Verdict.BENIGN),
        ((2, 8, 6, 5), 8.9, Verdict.HIGHLY_SUSPICIOUS),
        ((1, 4, 3, 3), 4.7, Verdict.BENIGN),
        ((1, 5, 3, 3), 4.8, Verdict.SUSPICIOUS),
        ((2, 3, 3, 2), 5.4, Verdict.SUSPICIOUS),
        ((2, 4, 3, 2), 5.5, Verdict.HIGHLY_SUSPICIOUS),
    ],
)
def test_the_total_is_the_published_sum(scores, total: float, verdict: Verdict) -> None:
    assert NACHBAR_1994.total(*scores) == pytest.approx(total)
    assert NACHBAR_1994.verdict(NACHBAR_1994.total(*scores)) == verdict


def test_the_largest_region_is_the_lesion_and_its_holes_belong_to_it() -> None:
    phantom = round_lesion()
    mask = phantom.mask.copy()
    mask[5:40, 5:40] = True
    mask[230:250, 230:250] = False
    assert prepare(phantom.pixels, mask).area_pixels == np.count_nonzero(phantom.mask)


def refused(image, mask) -> str:
    with pytest.raises(LesionRefusedError) as caught:
        assess(image, mask)
    return str(caught.value)


def test_what_cannot_be_scored_is_refused_with_the_reason() -> None:
    phantom = round_lesion()
    image, mask = phantom.pixels, phantom.mask
    assert "not 8-bit RGB" in refused(image.astype(np.uint16), mask)
    assert "not 8-bit RGB" in refused(image[..., 0], mask)
    assert "another shape" in refused(image, mask[1:])
    assert "no lesion" in refused(image, np.zeros_like(mask))
    tiny = np.zeros_like(mask)
    tiny[100:120, 100:120] = True
    assert "less than 32 pixels" in refused(image, tiny)
    assert "too little skin" in refused(image, np.ones_like(mask))
