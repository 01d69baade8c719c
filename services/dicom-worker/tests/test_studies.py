"""Slices are sorted in space into volumes, and whatever makes none is told about."""

import random
from dataclasses import replace
from math import cos, radians, sin
from typing import Any

import numpy as np
import pytest
from dicom_worker.studies.slices import MARKS, Mark, Plane, Slice, Vector, axes, cross, place
from dicom_worker.studies.testing import AXIAL, OBLIQUE, SAGITTAL, ct_slice
from dicom_worker.studies.volumes import Study, order_in_space, study_of
from fluoro_jobs.errors import FluoroError, Reason

Orientation = tuple[float, ...]


def plane(orientation: Orientation = AXIAL, **changes: Any) -> Plane:
    row, column = axes(orientation)
    fields: dict[str, Any] = {
        "frame_of_reference": "1.1",
        "rows": 12,
        "columns": 10,
        "samples": 1,
        "row": row,
        "column": column,
        "spacing": (0.5, 0.5),
    }
    return Plane(**fields | changes)


def marks(**values: Mark) -> tuple[Mark, ...]:
    return tuple(values.get(name, "") for name in MARKS)


def stack(
    along: Any,
    orientation: Orientation = AXIAL,
    aside: Vector = (0, 0, 0),
    series: str = "1.2",
    first: int = 0,
    **values: Mark,
) -> list[Slice]:
    """A slice at each of these distances along the normal; `aside` is added once per slice."""
    shared = plane(orientation)
    normal = np.array(shared.normal)
    return [
        Slice(
            first + at,
            0,
            series,
            shared,
            tuple(float(each) for each in normal * distance + np.array(aside) * at),
            at + 1,
            2.0,
            marks(**values),
        )
        for at, distance in enumerate(along)
    ]


def only(study: Study) -> Any:
    assert study.left == []
    assert len(study.volumes) == 1
    return study.volumes[0]


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, OBLIQUE])
def test_slices_are_in_the_order_of_space_whatever_order_they_come_in(
    orientation: Orientation,
) -> None:
    slices = stack(np.arange(20) * 2.5, orientation)
    shuffled = random.Random(7).sample(slices, len(slices))
    volume = only(study_of(shuffled))
    assert [each.file for each in volume.slices] == list(range(20))
    assert np.allclose(volume.step, np.array(plane(orientation).normal) * 2.5)
    assert (volume.shear_degrees, volume.missing, volume.uneven) == (0, 0, False)
    volume.check()


def test_instance_numbers_that_run_the_other_way_do_not_turn_a_volume_over() -> None:
    volume = only(study_of(stack(np.arange(5) * -3.0)))
    assert [each.number for each in volume.slices] == [5, 4, 3, 2, 1]
    assert volume.step == pytest.approx((0, 0, 3))


def test_the_affine_leads_from_the_first_voxel_to_the_last() -> None:
    volume = only(study_of(stack(np.arange(4) * 2.0, OBLIQUE)))
    assert np.allclose(volume.affine @ (0, 0, 3, 1), (*volume.slices[-1].position, 1))
    corner = volume.affine @ (9, 11, 0, 1)
    expected = np.array(volume.slices[0].position)
    expected = expected + np.array(OBLIQUE[:3]) * 9 * 0.5 + np.array(OBLIQUE[3:]) * 11 * 0.5
    assert np.allclose(corner[:3], expected)


def test_a_tilted_gantry_is_told_in_degrees_and_the_affine_is_sheared() -> None:
    tilt = radians(18)
    volume = only(study_of(stack(np.arange(30) * 2 * cos(tilt), aside=(0, 2 * sin(tilt), 0))))
    assert volume.shear_degrees == pytest.approx(18)
    assert np.allclose(volume.affine[:3, 2], (0, 2 * sin(tilt), 2 * cos(tilt)))
    volume.check()


def test_positions_that_were_rounded_are_no_shear() -> None:
    noise = random.Random(7)
    slices = [
        Slice(each.file, 0, each.series, each.plane, position, each.number, 2, each.marks)
        for each in stack(np.arange(300) * 0.625)
        for position in [tuple(value + noise.uniform(-0.01, 0.01) for value in each.position)]
    ]
    volume = only(study_of(slices))
    assert (volume.shear_degrees, volume.uneven) == (0, False)


def test_missing_slices_are_counted_where_they_are_missing() -> None:
    along = [2.0 * at for at in range(20) if at not in {4, 9, 10}]
    volume = only(study_of(stack(along)))
    assert (volume.missing, volume.gaps) == (3, ((3, 1), (7, 2)))
    with pytest.raises(FluoroError) as refused:
        volume.check()
    assert refused.value.reason is Reason.VOLUME_IRREGULAR
    assert refused.value.message == (
        "Of 20 slices, 3 are missing: 1 behind slice 4, 2 behind slice 8."
    )


@pytest.mark.parametrize(
    "along",
    [
        [0, 2, 4, 5, 6, 8],
        [0, 2, 4.3, 6, 8],
        [0, 0.02, 2, 4, 6, 8],
        [at**1.05 for at in range(40)],
    ],
    ids=["half a step", "one off", "two close together", "growing"],
)
def test_uneven_spacing_is_refused(along: list[float]) -> None:
    with pytest.raises(FluoroError) as refused:
        only(study_of(stack(along))).check()
    assert refused.value.reason is Reason.VOLUME_IRREGULAR


def test_a_slice_that_lies_aside_is_refused() -> None:
    slices = stack(np.arange(5) * 2.0)
    aside = Slice(5, 0, "1.2", slices[0].plane, (1.0, 0, 10.0), 6, 2, marks())
    with pytest.raises(FluoroError, match="not evenly spaced along a line"):
        only(study_of([*slices, aside])).check()


def test_directions_sizes_series_and_frames_of_reference_are_volumes_of_their_own() -> None:
    slices = [
        *stack(range(3)),
        *stack(range(4), SAGITTAL, first=3),
        *stack(range(5), series="1.3", first=7),
    ]
    other = [
        Slice(20 + at, 0, "1.2", plane(**change), (0, 0, float(at)), 1, 2, marks())
        for change in ({"rows": 13}, {"spacing": (0.6, 0.5)}, {"frame_of_reference": "1.9"})
        for at in range(2)
    ]
    study = study_of([*slices, *other])
    assert [(each.series, len(each.slices)) for each in study.volumes] == [
        ("1.2", 3),
        ("1.2", 4),
        *[("1.2", 2)] * 3,
        ("1.3", 5),
    ]


def test_segments_beside_each_other_are_not_one_volume() -> None:
    slices = stack(range(3), segment=(1.0,)) + stack(range(3, 6), first=3, segment=(2.0,))
    study = study_of(slices)
    assert [(volume.phase, len(volume.slices)) for volume in study.volumes] == [
        ({"segment": (1.0,)}, 3),
        ({"segment": (2.0,)}, 3),
    ]


def test_a_frame_of_no_segment_makes_no_segment_look_complete() -> None:
    slices = stack(range(3), segment=(1.0,)) + stack(range(2), first=3, segment=(2.0,))
    nameless = stack([2], first=5)
    one_file = [replace(each, file=0) for each in slices + nameless]
    study = study_of(one_file + stack(range(4), series="1.3", first=6))
    assert [(each.series, len(each.slices)) for each in study.volumes] == [("1.3", 4)]
    assert [(each.series, each.count) for each in study.left] == [("1.2", 6)]


def test_phases_are_told_apart_by_time() -> None:
    slices = [
        each
        for phase in range(3)
        for each in stack(range(6), first=6 * phase, temporal_position=(phase + 1.0,))
    ]
    study = study_of(random.Random(7).sample(slices, len(slices)))
    assert [volume.phase for volume in study.volumes] == [
        {"temporal_position": (1.0,)},
        {"temporal_position": (2.0,)},
        {"temporal_position": (3.0,)},
    ]
    assert [[each.file for each in volume.slices] for volume in study.volumes] == [
        list(range(6)),
        list(range(6, 12)),
        list(range(12, 18)),
    ]


def test_diffusion_is_told_apart_by_b_value_and_then_by_gradient() -> None:
    weights: list[tuple[Mark, Mark]] = [((0.0,), "")]
    weights += [((1000.0,), (float(axis), 0.0, 0.0)) for axis in range(3)]
    study = study_of(
        each
        for number, (b_value, gradient) in enumerate(weights)
        for each in stack(range(4), first=4 * number, b_value=b_value, gradient=gradient)
    )
    assert [volume.phase["b_value"] for volume in study.volumes] == [(0,), *[(1000,)] * 3]
    assert [len(volume.slices) for volume in study.volumes] == [4] * 4


def test_the_time_of_each_slice_does_not_make_a_volume_of_each() -> None:
    slices = [
        Slice(
            6 * phase + at,
            0,
            "1.2",
            plane(),
            (0, 0, 2.0 * at),
            at,
            2,
            marks(acquisition=(phase + 1.0,), acquisition_time=f"1200{phase}{at}"),
        )
        for phase in range(2)
        for at in range(6)
    ]
    assert [len(volume.slices) for volume in study_of(slices).volumes] == [6, 6]


def test_a_phase_that_lacks_a_slice_at_its_end_is_told_about() -> None:
    slices = [
        *stack(range(6), temporal_position=(1.0,)),
        *stack(range(5), first=6, temporal_position=(2.0,)),
    ]
    whole, part = study_of(slices).volumes
    whole.check()
    with pytest.raises(FluoroError, match="Of 6 slices, 1 are missing, which other phases have"):
        part.check()


def test_slices_of_one_place_that_nothing_tells_apart_are_left_out() -> None:
    study = study_of([*stack(range(6)), *stack([3], first=6)])
    assert study.volumes == []
    [left] = study.left
    assert (left.series, left.count, left.reason) == ("1.2", 7, Reason.VOLUME_IRREGULAR)
    assert left.message.startswith("At 1 of 6 places there are several slices")


def test_one_slice_is_as_thick_as_it_says_and_without_that_has_no_affine() -> None:
    thick = only(study_of(stack([0])))
    assert thick.step == (0, 0, 2)
    each = thick.slices[0]
    thin = only(study_of([Slice(0, 0, "1.2", each.plane, each.position, 1, 0, each.marks)]))
    with pytest.raises(FluoroError) as refused:
        _ = thin.affine
    assert refused.value.reason is Reason.GEOMETRY_INVALID


def test_a_fan_of_directions_is_refused_before_it_takes_long() -> None:
    slices = [
        Slice(
            at,
            0,
            "1.2",
            plane((cos(at / 500), sin(at / 500), 0, 0, 0, -1)),
            (0, 0, 0),
            at,
            2,
            marks(),
        )
        for at in range(3000)
    ]
    [left] = study_of(slices).left
    assert (left.count, left.reason) == (3000, Reason.VOLUME_IRREGULAR)


def test_ten_thousand_slices_of_forty_phases_are_sorted_in_seconds() -> None:
    slices = [
        each
        for phase in range(40)
        for each in stack(np.arange(250), first=250 * phase, trigger_time_ms=(phase * 20.0,))
    ]
    study = study_of(random.Random(7).sample(slices, len(slices)))
    assert [len(volume.slices) for volume in study.volumes] == [250] * 40


def turned(first: int, count: int, angle: float, spread: float = 2.0) -> list[Slice]:
    """Axial slices, turned in their plane by so many radians."""
    direction = plane((cos(angle), sin(angle), 0, -sin(angle), cos(angle), 0))
    return [
        Slice(first + at, 0, "1.2", direction, (0, 0, (first + at) * spread), at, 2, marks())
        for at in range(count)
    ]


def test_a_stack_that_turns_on_its_way_is_refused_rather_than_cut_in_two() -> None:
    [left] = study_of([*turned(0, 5, 0), *turned(5, 5, 0.004)]).left
    assert (left.count, left.reason) == (10, Reason.VOLUME_IRREGULAR)
    assert left.message == "The direction of the slices drifts from one to the next."


def test_views_of_one_place_may_be_turned_a_little_or_far() -> None:
    same_place = study_of([*turned(0, 5, 0), *turned(0, 5, 0.004)])
    far = study_of([*turned(0, 5, 0), *turned(5, 5, 0.5)])
    assert [len(each.slices) for each in (*same_place.volumes, *far.volumes)] == [5] * 4


def test_an_order_in_space_keeps_parallel_images_together() -> None:
    axial = cross((1, 0, 0), (0, 1, 0))
    sagittal = cross((0, 1, 0), (0, 0, -1))
    places = [
        ((0.0, 0.0, 5.0), axial),
        ((9.0, 0.0, 0.0), sagittal),
        ((0.0, 0.0, 1.0), axial),
        ((2.0, 0.0, 0.0), sagittal),
        ((0.0, 0.0, 1.0), axial),
    ]
    assert order_in_space(places) == [2, 4, 0, 1, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {"ImageOrientationPatient": [1, 0, 0, 0.3, 1, 0]},
        {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]},
        {"ImageOrientationPatient": [1, 0, 0]},
        {"ImageOrientationPatient": None},
        {"ImagePositionPatient": None},
        {"ImagePositionPatient": [0, 0, 1e9]},
    ],
)
def test_an_impossible_place_is_none(changes: dict[str, Any]) -> None:
    assert place(ct_slice(0), 0) is not None
    assert place(ct_slice(0, **changes), 0) is None


@pytest.mark.parametrize(
    ("own", "other", "apart", "missing"),
    [
        ([0, 4, 8], [0, 2, 4, 6, 8], 0, 2),
        ([0, 4, 8], [], 2, 2),
        ([0, 14], [], 2, 6),
        ([4, 6], [0, 14], 0, 0),
        ([0, 2, 4], [], 5, 0),
    ],
    ids=["others lie between", "the file says so", "far apart", "neighbours", "nonsense"],
)
def test_empty_slices_that_a_segmentation_leaves_out_are_missed(
    own: list[float], other: list[float], apart: float, missing: int
) -> None:
    slices = stack(own, segment=(1.0,)) + stack(other, first=9, segment=(2.0,))
    volume = study_of(replace(each, apart=apart) for each in slices).volumes[0]
    assert volume.missing == missing
    assert np.allclose(volume.step, (0, 0, 2))


def test_a_segment_in_one_slice_is_as_thick_as_the_slices_of_others_lie_apart() -> None:
    slices = stack([4], segment=(1.0,)) + stack([0, 3, 6], first=1, segment=(2.0,))
    assert study_of(slices).volumes[0].step == (0, 0, pytest.approx(1))
    assert study_of(stack([4], segment=(1.0,))).volumes[0].step == (0, 0, 2)
