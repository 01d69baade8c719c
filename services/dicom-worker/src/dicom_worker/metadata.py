"""A data set as DICOM JSON (PS3.18 annex F), without bulk data."""

import json
import math
from typing import Any

from fluoro_jobs.errors import Reason
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from dicom_worker import limits
from dicom_worker.blame import blame_file
from dicom_worker.reading import DicomFile, is_binary, is_bulk


def dicom_json(file: DicomFile) -> bytes:
    """The elements before the pixel data, as UTF-8 JSON.

    Text is converted from the file's Specific Character Set (0008,0005). Left out at any depth:
    binary values over `limits.INLINE_BINARY_LIMIT_BYTES`, and values that cannot be read as their
    VR. They are removed from `file.header` too. FluoroError: DICOM_INVALID.
    """
    for element in file.elements:
        # By its tag: to look at the value would read it from disk into memory.
        if is_bulk(element):
            del file.header[element.tag]
    with blame_file(Reason.DICOM_INVALID, "The data set cannot be written as DICOM JSON."):
        leave_out(file.header)
        model = file.header.to_json_dict(suppress_invalid_tags=True)
        return json.dumps(finite(model), ensure_ascii=False, allow_nan=False).encode(
            "utf-8", errors="replace"
        )


def leave_out(dataset: Dataset) -> None:
    """Removes large binary values and unreadable values from a data set and its sequences."""
    for tag in list(dataset.keys()):
        element = readable(dataset, tag)
        if element is None or (
            is_binary(element.VR) and len(element.value or b"") > limits.INLINE_BINARY_LIMIT_BYTES
        ):
            del dataset[tag]
        elif element.VR == "SQ":
            for item in element.value:
                leave_out(item)


def readable(dataset: Dataset, tag: Any) -> DataElement | None:
    """The element, or None if its value breaks its VR: one bad date must not hide all the rest."""
    try:
        element: DataElement = dataset[tag]
    except (ValueError, TypeError, LookupError, NotImplementedError, ArithmeticError):
        return None
    return element


def finite(value: Any) -> Any:
    """The same model with NaN and infinities as strings.

    JSON has no numbers for them (PS3.18 F.2.3).
    """
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
