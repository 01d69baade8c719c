"""Attributes of a data set as plain values.

A file may hold anything, so each reader says what it accepts.
"""

from typing import Any

from fluoro_jobs.errors import FluoroError, Reason
from pydicom.dataset import Dataset

from dicom_worker.blame import blame_file


def value(header: Dataset, keyword: str) -> Any:
    """The value as pydicom has it, None if absent or empty. DICOM_INVALID if it cannot be read."""
    with blame_file(Reason.DICOM_INVALID, f"{keyword} cannot be read."):
        found = header.get(keyword)
    return None if found == "" else found


def text(header: Dataset, keyword: str) -> str:
    """A string; "" if absent."""
    return str(value(header, keyword) or "")


def number(header: Dataset, keyword: str, low: int, high: int, default: int | None = None) -> int:
    """An integer within [low, high].

    DICOM_INVALID if it is another, or missing without a default.
    """
    found = value(header, keyword)
    with blame_file(Reason.DICOM_INVALID, f"{keyword} is not a number."):
        found = default if found is None else int(found)
    if found is None or not low <= found <= high:
        raise FluoroError(Reason.DICOM_INVALID, f"{keyword} is missing or outside {low} to {high}.")
    return found


def decimals(header: Dataset, keyword: str) -> list[float]:
    """One or many finite decimal strings; [] if absent, or if one is no finite number."""
    found = value(header, keyword)
    try:
        numbers = [
            float(each)
            for each in ([found] if isinstance(found, str | int | float) else found or [])
        ]
    except (TypeError, ValueError):
        return []
    # All or none: without one of them, the others would move to places that mean something else.
    return numbers if all(abs(each) < float("inf") for each in numbers) else []


def item(header: Dataset, keyword: str) -> Dataset | None:
    """The first item of a sequence, None if it has none. DICOM_INVALID if it is no sequence."""
    found = value(header, keyword)
    if not found:
        return None
    with blame_file(Reason.DICOM_INVALID, f"{keyword} is not a sequence."):
        first = found[0]
    if not isinstance(first, Dataset):
        raise FluoroError(Reason.DICOM_INVALID, f"{keyword} is not a sequence.")
    return first
