"""Every standalone file of pydicom's wheel ends in the outcome that this table gives it."""

from pathlib import Path

import pytest
from dicom_worker.testing import WHEEL, Inspect, Render, outcome

OK = "SUCCEEDED"
NO_IMAGE = "SKIPPED NO_PIXEL_DATA"
INSPECT_FAILS = {
    "MR_truncated": "DICOM_TRUNCATED",
    "UN_sequence": "DICOM_INVALID",  # no SOP Class UID
    "badVR": "DICOM_INVALID",  # Number of Frames is `1A`
    "chrJapMulti": "DICOM_TRUNCATED",  # an image's header without the image
    "chrJapMultiExplicitIR6": "DICOM_TRUNCATED",  # an image's header without the image
    "chrKoreanMulti": "DICOM_TRUNCATED",  # an image's header without the image
    "chrSQEncoding": "DICOM_INVALID",  # no SOP Class UID
    "chrSQEncoding1": "DICOM_INVALID",  # no SOP Class UID
    "empty_charset_LEI": "DICOM_INVALID",  # no SOP Class UID
    "meta_missing_tsyntax": "DICOM_INVALID",
    "nested_priv_SQ": "DICOM_INVALID",  # no SOP Class UID
    "no_meta": "NOT_DICOM",  # and its first group is 0820
    "no_meta_group_length": "DICOM_INVALID",  # no SOP Class UID
    "priv_SQ": "DICOM_INVALID",  # no SOP Class UID
    "rtplan_truncated": "DICOM_TRUNCATED",
}
RENDER_FAILS = {
    "J2K_pixelrep_mismatch": "PIXELS_UNDECODABLE",  # the code stream is unsigned, the header signed
    "JPEG2000-embedded-sequence-delimiter": "PIXELS_UNDECODABLE",  # claims 14 million tiles
}
WITHOUT_IMAGE = {
    "ExplVR_BigEndNoMeta",
    "ExplVR_LitEndNoMeta",
    "reportsi",
    "reportsi_with_empty_number_tags",
    "rtplan",
    "rtstruct",
    "test-SR",
    "waveform_ecg",
}


FILES = [
    path
    for folder in ("test_files", "charset_files")
    for path in sorted((WHEEL / folder).glob("*.dcm"))
]


def expected_inspect(path: Path) -> str:
    return f"FAILED {INSPECT_FAILS[path.stem]}" if path.stem in INSPECT_FAILS else OK


def expected_render(path: Path) -> str:
    if path.stem in WITHOUT_IMAGE:
        return NO_IMAGE
    return (
        f"FAILED {RENDER_FAILS[path.stem]}" if path.stem in RENDER_FAILS else expected_inspect(path)
    )


def test_the_table_names_no_file_that_the_wheel_lacks() -> None:
    assert {*INSPECT_FAILS, *RENDER_FAILS, *WITHOUT_IMAGE} <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_file_ends_in_the_outcome_of_the_table(
    path: Path, inspect: Inspect, render: Render
) -> None:
    inspected, inspection = inspect(path)
    rendered, rendering = render(path)
    assert (outcome(inspection), outcome(rendering)) == (
        expected_inspect(path),
        expected_render(path),
    )
    assert (
        len(inspected.instances) == len(inspection.context.artifacts) == (outcome(inspection) == OK)
    )
    assert (
        2 * len(rendered.images)
        == len(rendering.context.artifacts)
        == 2 * (outcome(rendering) == OK)
    )


def test_a_bad_file_among_good_ones_fails_alone_and_progress_counts_all(inspect: Inspect) -> None:
    good, bad = WHEEL / "test_files" / "CT_small.dcm", WHEEL / "test_files" / "MR_truncated.dcm"
    result, attempt = inspect(good, bad, good)
    assert [outcome(attempt, number) for number in range(3)] == [OK, "FAILED DICOM_TRUNCATED", OK]
    assert [instance.input for instance in result.instances] == [0, 2]
    assert [
        (report.stage, round(report.fraction * 3), report.items.failed)
        for report in attempt.progress
    ] == [
        ("inspect", 0, 0),
        ("inspect", 1, 0),
        ("inspect", 2, 1),
        ("inspect", 3, 1),
    ]
