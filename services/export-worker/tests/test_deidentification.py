"""What a report says of de-identification."""

from typing import Any

from fluoro_jobs.errors import Reason


def test_the_report_counts_what_was_done_and_what_is_left(clinic: Any, reader: Any) -> None:
    clinic.inputs = 3
    text = reader.text(clinic.pdf(clinic.deidentify(), clinic.render()))
    for said in (
        "3 180 6,000 0 INSTANCES CLEANED VALUES CHANGED PIXELS MASKED IDENTIFIERS LEFT",
        "Profile DICOM PS3.15 2024e, Basic Application Level Confidentiality Profile",
        "Options Clean Pixel Data (113101); Retain Device Identity (113109)",
        "Proof Each written file was read back and searched for 20 to 22 identifiers",
        "Pixels 3 of 3 instances searched for text; 3 regions of text, masks in 2",
        "Key 0123456789ab",
        "X removed 1,500",
        "K kept by an option 6",
    ):
        assert said in text
    assert "2.25." not in text, "UIDs are nobody's business here"


def test_unsearched_pixels_are_told_as_such(clinic: Any, reader: Any) -> None:
    text = reader.text(clinic.pdf(clinic.deidentify(pixels_cleaned=False, method_codes=["113100"])))
    assert "Pixels Not searched for text" in text
    assert "Options None" in text


def test_a_step_that_cleaned_nothing_is_told_too(clinic: Any, reader: Any) -> None:
    clinic.failing = {"0": (Reason.IDENTIFIERS_LEFT, "What identified the patient is still there.")}
    text = reader.text(clinic.pdf(clinic.deidentify()))
    assert "IDENTIFIERS_LEFT" in text
    assert "Proof No file was written" in text


def test_without_de_identification_the_report_does_not_speak_of_it(
    clinic: Any, reader: Any
) -> None:
    assert "identif" not in reader.text(clinic.pdf(clinic.render())).lower()
