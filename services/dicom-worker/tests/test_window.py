"""The window's formulas (PS3.3 C.11.2.1.2, C.11.2.1.3) for any window and any values."""

import numpy as np
import pytest
from dicom_worker.pixels.voi import FUNCTIONS, Window, full_range
from hypothesis import given, settings
from hypothesis import strategies as st

unhurried = settings(deadline=None)
"""On a machine that does much else, any of these takes long at times."""
windows = st.builds(
    Window,
    center=st.floats(-1e5, 1e5),
    width=st.floats(1, 1e5),
    function=st.sampled_from(sorted(FUNCTIONS)),
)
values = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50).map(
    lambda numbers: np.sort(np.array(numbers))
)


@unhurried
@given(windows, values)
def test_a_brighter_value_is_never_shown_darker(window: Window, ascending: np.ndarray) -> None:
    shown = window.apply(ascending)
    assert np.all(np.diff(shown.astype(int)) >= 0)


@unhurried
@given(windows.filter(lambda window: window.function != "SIGMOID"), values)
def test_outside_the_window_all_is_black_or_white(window: Window, ascending: np.ndarray) -> None:
    shown = window.apply(ascending)
    assert np.all(shown[ascending < window.center - window.width / 2 - 1] == 0)
    assert np.all(shown[ascending > window.center + window.width / 2 + 1] == 255)


@unhurried
@given(values)
def test_the_full_range_shows_the_smallest_black_and_the_largest_white(
    ascending: np.ndarray,
) -> None:
    shown = full_range(ascending, np.zeros(ascending.shape, np.bool_)).apply(ascending)
    if ascending[-1] - ascending[0] > 1e-3:
        assert (shown[0], shown[-1]) == (0, 255)


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (
            Window(2048, 4096),
            {0: 0, 2047: 127, 4095: 255},
        ),  # PS3.3 C.11.2.1.2.1, note 3: c=2048, w=4096 is the identity on 12 bits
        (Window(2048, 1), {2047: 0, 2048: 255}),
        (Window(0, 100), {-50: 0, 49: 255}),
        (Window(0, 100, "LINEAR_EXACT"), {-50: 0, 0: 128, 50: 255}),
        (Window(0, 100, "SIGMOID"), {0: 128, -1000: 0, 1000: 255}),
    ],
)
def test_the_examples_of_the_standard(window: Window, expected: dict[int, int]) -> None:
    shown = window.apply(np.array(list(expected)))
    assert dict(zip(expected, shown.tolist(), strict=True)) == expected
