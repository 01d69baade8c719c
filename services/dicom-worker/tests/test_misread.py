"""Identifiers are found in texts with one or two characters misread."""

import pytest
from dicom_worker.deidentify.misread import misread

SOUGHT = misread(["quackenbush", "nguyen", "mrn-99812345", "li", "müller"], ["19570312"])


@pytest.mark.parametrize(
    "text",
    [
        "QUACKENBUSH",
        "Dr. Quackenbush, Ottoline",
        "QUACKENBUSII",
        "0UACKEN8USH",
        "UACKENBUS",
        "QUACXENBUSB",
        "NGUVEN",
        "MRN 998l2345",
        "MRN998I23A5",
        "12.03.1957",
        "03/12/1957",
        "1957-O3-12",
        "12.03.1951",
        "MÜLLER",
        "MULLER",
    ],
)
def test_an_identifier_is_found_with_one_or_two_characters_misread(text: str) -> None:
    assert SOUGHT(text)


@pytest.mark.parametrize(
    "text", ["", "0", "LI", "QUICKSAND", "N6", "MRN", "GAIN 57", "31.12.2026", "Philips", "QUACK"]
)
def test_what_merely_looks_like_text_is_none(text: str) -> None:
    assert not SOUGHT(text)


def test_a_hundred_names_are_compared_with_a_long_text_in_no_time() -> None:
    many = misread([f"name{number:05}" for number in range(2000)], [])
    assert not many("x" * 500)
